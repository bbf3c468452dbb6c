//! Answers: what comes back for a command.

use serde::{Deserialize, Serialize};

use crate::certificate::{SetupCertificateAnswer, SetupKeystoreAnswer};
use crate::class::{self, BadBody, Class};
use crate::command::{Base, Command};
use crate::console_proxy::{ConsoleAccessAuthenticationAnswer, ConsoleProxyLoadAnswer};
use crate::gson::{self, Charset, Value};
use crate::secondary_storage::{
    CopyCmdAnswer, CreateDatadiskTemplateAnswer, CreateEntityDownloadURLAnswer, DownloadAnswer, GetDatadisksAnswer,
    GetStorageStatsAnswer, HandleConfigDriveIsoAnswer, ListDataStoreObjectsAnswer, ListTemplateAnswer,
    ListVolumeAnswer, QuerySnapshotZoneCopyAnswer, SecStorageSetupAnswer, UploadStatusAnswer,
};
use crate::session::{
    AgentControlAnswer, CheckHealthAnswer, MaintainAnswer, MigrateAgentConnectionAnswer, PingAnswer, ReadyAnswer,
    SetupMSListAnswer, StartupAnswer, UnsupportedAnswer,
};

/// One answer of a response; answers stand in the order of the commands.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Class and own members.
    pub body: AnswerBody,
    /// Whether the command succeeded.
    pub result: bool,
    /// Error text, or a payload such as a checksum.
    pub details: Option<String>,
    /// The members all commands and answers have.
    pub base: Base,
}

/// `com.cloud.agent.api.Answer`: nothing but result and details.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlainAnswer {}

#[derive(Serialize)]
struct Head<'a> {
    result: bool,
    details: Option<&'a str>,
}

macro_rules! answers {
    ($($variant:ident($type:ident) = $class:literal $(, $property:ident)*;)*) => {
        /// Class and own members of an answer.
        #[derive(Debug, Clone, PartialEq)]
        pub enum AnswerBody {
            $(#[doc = concat!("`", $class, "`")] $variant($type),)*
        }

        impl AnswerBody {
            /// The class as the peer knows it.
            pub fn class(&self) -> Class {
                match self {
                    $(Self::$variant(_) => Class::of($class)$(.$property())*,)*
                }
            }

            fn read(name: &str, content: &Value) -> Result<Option<(Class, Self)>, BadBody> {
                Ok(Some(match name {
                    $($class => {
                        let class = Class::of($class)$(.$property())*;
                        (class, Self::$variant(class::members($class, content)?))
                    })*
                    _ => return Ok(None),
                }))
            }

            fn write(&self, writer: &mut gson::Writer) {
                match self {
                    $(Self::$variant(members) => gson::write_members(writer, members),)*
                }
            }
        }

        $(impl From<$type> for AnswerBody {
            fn from(members: $type) -> Self {
                Self::$variant(members)
            }
        })*
    };
}

answers! {
    Plain(PlainAnswer) = "com.cloud.agent.api.Answer";
    Startup(StartupAnswer) = "com.cloud.agent.api.StartupAnswer";
    Ready(ReadyAnswer) = "com.cloud.agent.api.ReadyAnswer";
    Ping(PingAnswer) = "com.cloud.agent.api.PingAnswer";
    Maintain(MaintainAnswer) = "com.cloud.agent.api.MaintainAnswer";
    AgentControl(AgentControlAnswer) = "com.cloud.agent.api.AgentControlAnswer";
    Unsupported(UnsupportedAnswer) = "com.cloud.agent.api.UnsupportedAnswer";
    CheckHealth(CheckHealthAnswer) = "com.cloud.agent.api.CheckHealthAnswer";
    MigrateAgentConnection(MigrateAgentConnectionAnswer) = "com.cloud.agent.api.MigrateAgentConnectionAnswer";
    SetupMSList(SetupMSListAnswer) = "org.apache.cloudstack.agent.lb.SetupMSListAnswer", raw;
    SetupKeystore(SetupKeystoreAnswer) = "org.apache.cloudstack.ca.SetupKeystoreAnswer", raw;
    SetupCertificate(SetupCertificateAnswer) = "org.apache.cloudstack.ca.SetupCertificateAnswer", raw;
    SecStorageSetup(SecStorageSetupAnswer) = "com.cloud.agent.api.SecStorageSetupAnswer";
    GetStorageStats(GetStorageStatsAnswer) = "com.cloud.agent.api.GetStorageStatsAnswer";
    HandleConfigDriveIso(HandleConfigDriveIsoAnswer) = "com.cloud.agent.api.HandleConfigDriveIsoAnswer", raw;
    ListTemplate(ListTemplateAnswer) = "com.cloud.agent.api.storage.ListTemplateAnswer";
    ListVolume(ListVolumeAnswer) = "com.cloud.agent.api.storage.ListVolumeAnswer";
    Download(DownloadAnswer) = "com.cloud.agent.api.storage.DownloadAnswer";
    CreateEntityDownloadURL(CreateEntityDownloadURLAnswer) = "com.cloud.agent.api.storage.CreateEntityDownloadURLAnswer";
    UploadStatus(UploadStatusAnswer) = "org.apache.cloudstack.storage.command.UploadStatusAnswer";
    CopyCmd(CopyCmdAnswer) = "org.apache.cloudstack.storage.command.CopyCmdAnswer", raw;
    GetDatadisks(GetDatadisksAnswer) = "com.cloud.agent.api.storage.GetDatadisksAnswer", raw;
    CreateDatadiskTemplate(CreateDatadiskTemplateAnswer) = "com.cloud.agent.api.storage.CreateDatadiskTemplateAnswer", raw;
    ListDataStoreObjects(ListDataStoreObjectsAnswer) = "org.apache.cloudstack.storage.command.browser.ListDataStoreObjectsAnswer";
    QuerySnapshotZoneCopy(QuerySnapshotZoneCopyAnswer) = "org.apache.cloudstack.storage.command.QuerySnapshotZoneCopyAnswer", raw;
    ConsoleProxyLoad(ConsoleProxyLoadAnswer) = "com.cloud.agent.api.proxy.ConsoleProxyLoadAnswer";
    ConsoleAccessAuthentication(ConsoleAccessAuthenticationAnswer) = "com.cloud.agent.api.ConsoleAccessAuthenticationAnswer";
}

impl Answer {
    /// A successful answer of a class.
    pub fn new(body: impl Into<AnswerBody>) -> Self {
        Self {
            body: body.into(),
            result: true,
            details: None,
            base: Base::default(),
        }
    }

    /// A plain, successful answer.
    pub fn success() -> Self {
        Self::new(PlainAnswer {})
    }

    /// A plain answer that says what went wrong.
    pub fn failure(details: impl Into<String>) -> Self {
        Self {
            result: false,
            ..Self::success()
        }
        .with_details(details)
    }

    /// The same with details.
    #[must_use]
    pub fn with_details(self, details: impl Into<String>) -> Self {
        Self {
            details: Some(details.into()),
            ..self
        }
    }

    /// The command is not handled here: exactly upstream's text, two blanks included (§4.7).
    pub fn unsupported(command: &Command) -> Self {
        let class = command.body.class().name;
        let details = format!("Unsupported command issued: {class}.  Are you sure you got the right type of server?");
        Self {
            result: false,
            ..Self::new(UnsupportedAnswer {})
        }
        .with_details(details)
    }

    /// A command after a failed one in a request with STOP_ON_ERROR (§4.7).
    pub fn stopped() -> Self {
        Self::failure("Stopped by previous failure")
    }

    /// Reads a response's body. Unlike a request, a response that cannot be read is dropped.
    pub fn read_all(body: &str) -> Result<Vec<Self>, BadBody> {
        let value = gson::parse(body).map_err(|error| BadBody::Fatal(error.to_string()))?;
        let read = |(name, content)| match Self::read(name, content)? {
            Some(answer) => Ok(answer),
            None => Err(BadBody::Fatal(format!("unknown answer class {}", class::shown(name)))),
        };
        class::elements(&value)?.into_iter().map(read).collect()
    }

    pub(crate) fn read(name: &str, content: &Value) -> Result<Option<Self>, BadBody> {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Sent {
            result: Option<bool>,
            details: Option<String>,
        }
        let Some((class, body)) = AnswerBody::read(name, content)? else {
            return Ok(None);
        };
        let sent: Sent = class::members(name, content)?;
        Ok(Some(Self {
            body,
            result: sent.result.unwrap_or(!class.raw),
            details: sent.details,
            base: Base::read(class, content)?,
        }))
    }

    /// Writes a response's body.
    pub fn write_all(answers: &[Self], charset: Charset) -> String {
        class::write_elements(
            answers,
            charset,
            |answer| answer.body.class().name,
            |answer, writer| {
                answer.write_own(writer);
                gson::write_members(writer, &answer.base);
            },
        )
    }

    /// Everything but the members that commands have, too.
    pub(crate) fn write_own(&self, writer: &mut gson::Writer) {
        self.body.write(writer);
        gson::write_members(
            writer,
            &Head {
                result: self.result,
                details: self.details.as_deref(),
            },
        );
    }
}
