//! Commands: what one end of the link asks of the other.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::answer::Answer;
use crate::certificate::{PostCertificateRenewalCommand, SetupCertificateCommand, SetupKeyStoreCommand};
use crate::class::{self, BadBody, Class};
use crate::console_proxy::{
    AllowConsoleAccessCommand, CheckConsoleProxyLoadCommand, ConsoleAccessAuthenticationCommand,
    ConsoleProxyLoadReportCommand, StartConsoleProxyAgentHttpHandlerCommand, WatchConsoleProxyLoadCommand,
};
use crate::gson::{self, Charset, Value};
use crate::secondary_storage::{
    ComputeChecksumCommand, CopyCommand, CreateDatadiskTemplateCommand, CreateEntityDownloadURLCommand, DeleteCommand,
    DeleteEntityDownloadURLCommand, DeleteSnapshotsDirCommand, DownloadCommand, DownloadProgressCommand,
    GetDatadisksCommand, GetStorageStatsCommand, HandleConfigDriveIsoCommand, ListDataStoreObjectsCommand,
    ListTemplateCommand, ListVolumeCommand, MoveVolumeCommand, QuerySnapshotZoneCopyCommand,
    SecStorageFirewallCfgCommand, SecStorageSetupCommand, SecStorageVMSetupCommand, UploadStatusCommand,
};
use crate::session::{
    AgentControlCommand, CancelCommand, CheckHealthCommand, MaintainCommand, MigrateAgentConnectionCommand,
    PingCommand, PingStorageCommand, ReadyCommand, SetupMSListCommand, ShutdownCommand, StartupCommand,
    StartupProxyCommand, StartupSecondaryStorageCommand, UpdateHostPasswordCommand,
};

/// A JSON object of texts, in the order of the wire.
pub type StringMap = IndexMap<String, String>;

/// What every command and every answer ends with (§3.2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Base {
    /// Keys for the log (`logid`, `job`) and hints. Absent only where a peer left it out of a class without constructor.
    pub context_map: Option<StringMap>,
    /// Seconds the sender waits.
    pub wait: i64,
    /// Internal to the server.
    pub bypass_host_maintenance: bool,
    /// For external hypervisors.
    pub external_details: Option<IndexMap<String, StringMap>>,
}

impl Default for Base {
    fn default() -> Self {
        Self {
            context_map: Some(StringMap::new()),
            wait: 0,
            bypass_host_maintenance: false,
            external_details: None,
        }
    }
}

impl Base {
    /// Reads the common members; those that are missing are as the class's constructor leaves them.
    pub(crate) fn read(class: Class, content: &Value) -> Result<Self, BadBody> {
        #[derive(Deserialize, Default)]
        #[serde(default, rename_all = "camelCase")]
        struct Sent {
            context_map: Option<StringMap>,
            wait: Option<i64>,
            bypass_host_maintenance: bool,
            external_details: Option<IndexMap<String, StringMap>>,
        }
        let sent: Sent = class::members(class.name, content)?;
        let constructed = !class.raw;
        Ok(Self {
            context_map: sent.context_map.or_else(|| constructed.then(StringMap::new)),
            wait: sent.wait.unwrap_or(if constructed { class.wait } else { 0 }),
            bypass_host_maintenance: sent.bypass_host_maintenance,
            external_details: sent.external_details,
        })
    }

    /// The short hex id by which the server's log lines of one action are found.
    pub fn log_id(&self) -> Option<&str> {
        self.context_map.as_ref()?.get("logid").map(String::as_str)
    }
}

/// One command of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// Class and own members.
    pub body: CommandBody,
    /// The members all commands have.
    pub base: Base,
}

/// Stands for a whole request that cannot be read: unknown class, broken JSON (§2 "Errors while parsing").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCommand {
    /// What is wrong; for the log, never on the wire.
    pub reason: String,
}

impl BadCommand {
    const CLASS: Class = Class::of("com.cloud.agent.api.BadCommand");
}

macro_rules! commands {
    ($($variant:ident($type:ident) = $class:literal $(, $property:ident $(($value:literal))?)*;)*) => {
        /// Class and own members of a command.
        #[derive(Debug, Clone, PartialEq)]
        pub enum CommandBody {
            $(#[doc = concat!("`", $class, "`")] $variant($type),)*
            /// An answer class where a command is expected: readable, but nobody handles it.
            Answer(Box<Answer>),
            /// A request that cannot be read.
            Bad(BadCommand),
        }

        impl CommandBody {
            /// The class as the peer knows it.
            pub fn class(&self) -> Class {
                match self {
                    $(Self::$variant(_) => Class::of($class)$(.$property($($value)?))*,)*
                    Self::Answer(answer) => answer.body.class(),
                    Self::Bad(_) => BadCommand::CLASS,
                }
            }

            fn read(name: &str, content: &Value) -> Result<Option<(Class, Self)>, BadBody> {
                Ok(Some(match name {
                    $($class => {
                        let class = Class::of($class)$(.$property($($value)?))*;
                        (class, Self::$variant(class::members($class, content)?))
                    })*
                    _ => return Ok(None),
                }))
            }

            fn write(&self, writer: &mut gson::Writer) {
                match self {
                    $(Self::$variant(members) => gson::write_members(writer, members),)*
                    Self::Answer(answer) => answer.write_own(writer),
                    Self::Bad(_) => {}
                }
            }
        }

        $(impl From<$type> for CommandBody {
            fn from(members: $type) -> Self {
                Self::$variant(members)
            }
        })*
    };
}

commands! {
    Startup(StartupCommand) = "com.cloud.agent.api.StartupCommand";
    StartupSecondaryStorage(StartupSecondaryStorageCommand) = "com.cloud.agent.api.StartupSecondaryStorageCommand", in_sequence;
    StartupProxy(StartupProxyCommand) = "com.cloud.agent.api.StartupProxyCommand", in_sequence;
    Ready(ReadyCommand) = "com.cloud.agent.api.ReadyCommand", in_sequence;
    Ping(PingCommand) = "com.cloud.agent.api.PingCommand";
    PingStorage(PingStorageCommand) = "com.cloud.agent.api.PingStorageCommand";
    Shutdown(ShutdownCommand) = "com.cloud.agent.api.ShutdownCommand", in_sequence;
    Maintain(MaintainCommand) = "com.cloud.agent.api.MaintainCommand", in_sequence;
    AgentControl(AgentControlCommand) = "com.cloud.agent.api.AgentControlCommand";
    CheckHealth(CheckHealthCommand) = "com.cloud.agent.api.CheckHealthCommand", wait(50);
    MigrateAgentConnection(MigrateAgentConnectionCommand) = "com.cloud.agent.api.MigrateAgentConnectionCommand";
    SetupMSList(SetupMSListCommand) = "org.apache.cloudstack.agent.lb.SetupMSListCommand", wait(60), raw;
    SetupKeyStore(SetupKeyStoreCommand) = "org.apache.cloudstack.ca.SetupKeyStoreCommand", wait(60), raw;
    SetupCertificate(SetupCertificateCommand) = "org.apache.cloudstack.ca.SetupCertificateCommand", wait(60), raw;
    PostCertificateRenewal(PostCertificateRenewalCommand) = "org.apache.cloudstack.ca.PostCertificateRenewalCommand";
    SecStorageSetup(SecStorageSetupCommand) = "com.cloud.agent.api.SecStorageSetupCommand", in_sequence;
    SecStorageFirewallCfg(SecStorageFirewallCfgCommand) = "com.cloud.agent.api.SecStorageFirewallCfgCommand";
    SecStorageVMSetup(SecStorageVMSetupCommand) = "com.cloud.agent.api.SecStorageVMSetupCommand", in_sequence;
    GetStorageStats(GetStorageStatsCommand) = "com.cloud.agent.api.GetStorageStatsCommand";
    ComputeChecksum(ComputeChecksumCommand) = "com.cloud.agent.api.ComputeChecksumCommand", in_sequence;
    DeleteSnapshotsDir(DeleteSnapshotsDirCommand) = "com.cloud.agent.api.DeleteSnapshotsDirCommand", in_sequence;
    HandleConfigDriveIso(HandleConfigDriveIsoCommand) = "com.cloud.agent.api.HandleConfigDriveIsoCommand", raw;
    ListTemplate(ListTemplateCommand) = "com.cloud.agent.api.storage.ListTemplateCommand", in_sequence;
    ListVolume(ListVolumeCommand) = "com.cloud.agent.api.storage.ListVolumeCommand", in_sequence;
    Download(DownloadCommand) = "org.apache.cloudstack.storage.command.DownloadCommand";
    DownloadProgress(DownloadProgressCommand) = "org.apache.cloudstack.storage.command.DownloadProgressCommand";
    CreateEntityDownloadURL(CreateEntityDownloadURLCommand) = "com.cloud.agent.api.storage.CreateEntityDownloadURLCommand";
    DeleteEntityDownloadURL(DeleteEntityDownloadURLCommand) = "com.cloud.agent.api.storage.DeleteEntityDownloadURLCommand", in_sequence;
    UploadStatus(UploadStatusCommand) = "org.apache.cloudstack.storage.command.UploadStatusCommand";
    Copy(CopyCommand) = "org.apache.cloudstack.storage.command.CopyCommand", raw;
    Delete(DeleteCommand) = "org.apache.cloudstack.storage.command.DeleteCommand";
    GetDatadisks(GetDatadisksCommand) = "com.cloud.agent.api.storage.GetDatadisksCommand";
    CreateDatadiskTemplate(CreateDatadiskTemplateCommand) = "com.cloud.agent.api.storage.CreateDatadiskTemplateCommand";
    MoveVolume(MoveVolumeCommand) = "org.apache.cloudstack.storage.command.MoveVolumeCommand", raw;
    ListDataStoreObjects(ListDataStoreObjectsCommand) = "org.apache.cloudstack.storage.command.browser.ListDataStoreObjectsCommand", wait(15);
    QuerySnapshotZoneCopy(QuerySnapshotZoneCopyCommand) = "org.apache.cloudstack.storage.command.QuerySnapshotZoneCopyCommand", raw;
    CheckConsoleProxyLoad(CheckConsoleProxyLoadCommand) = "com.cloud.agent.api.proxy.CheckConsoleProxyLoadCommand";
    WatchConsoleProxyLoad(WatchConsoleProxyLoadCommand) = "com.cloud.agent.api.proxy.WatchConsoleProxyLoadCommand";
    StartConsoleProxyAgentHttpHandler(StartConsoleProxyAgentHttpHandlerCommand) = "com.cloud.agent.api.proxy.StartConsoleProxyAgentHttpHandlerCommand", in_sequence;
    AllowConsoleAccess(AllowConsoleAccessCommand) = "com.cloud.agent.api.proxy.AllowConsoleAccessCommand";
    ConsoleAccessAuthentication(ConsoleAccessAuthenticationCommand) = "com.cloud.agent.api.ConsoleAccessAuthenticationCommand";
    ConsoleProxyLoadReport(ConsoleProxyLoadReportCommand) = "com.cloud.agent.api.ConsoleProxyLoadReportCommand";
    UpdateHostPassword(UpdateHostPasswordCommand) = "com.cloud.agent.api.UpdateHostPasswordCommand";
    Cancel(CancelCommand) = "com.cloud.agent.api.CancelCommand";
}

impl Command {
    /// A command as its Java constructor makes it.
    pub fn new(body: impl Into<CommandBody>) -> Self {
        let body = body.into();
        let wait = body.class().wait;
        Self {
            body,
            base: Base {
                wait,
                ..Base::default()
            },
        }
    }

    /// Whether a request with this command carries the flag IN_SEQUENCE.
    pub fn is_in_sequence(&self) -> bool {
        match &self.body {
            CommandBody::Copy(copy) => copy.execute_in_sequence,
            body => body.class().in_sequence,
        }
    }

    /// Reads a request's body. What is merely unreadable becomes one [`BadCommand`]; an error means: no answer.
    pub fn read_all(body: &str) -> Result<Vec<Self>, BadBody> {
        if body.trim().is_empty() {
            return Err(BadBody::Fatal("the body is empty".into()));
        }
        match Self::try_read_all(body) {
            Err(BadBody::Unreadable(reason)) => Ok(vec![Self::bad(reason)]),
            read => read,
        }
    }

    pub(crate) fn bad(reason: String) -> Self {
        Self {
            body: CommandBody::Bad(BadCommand { reason }),
            base: Base::default(),
        }
    }

    fn try_read_all(body: &str) -> Result<Vec<Self>, BadBody> {
        let (value, _garbage) = gson::parse_prefix(body).map_err(|error| BadBody::Unreadable(error.to_string()))?;
        class::elements(&value)?
            .into_iter()
            .map(|(name, content)| Self::read(name, content))
            .collect()
    }

    fn read(name: &str, content: &Value) -> Result<Self, BadBody> {
        if let Some((class, body)) = CommandBody::read(name, content)? {
            return Ok(Self {
                body,
                base: Base::read(class, content)?,
            });
        }
        match Answer::read(name, content)? {
            Some(answer) => Ok(Self {
                base: answer.base.clone(),
                body: CommandBody::Answer(Box::new(answer)),
            }),
            None => Err(BadBody::Unreadable(format!("unknown class {}", class::shown(name)))),
        }
    }

    /// Writes a request's body.
    pub fn write_all(commands: &[Self], charset: Charset) -> String {
        class::write_elements(
            commands,
            charset,
            |command| command.body.class().name,
            |command, writer| {
                command.body.write(writer);
                gson::write_members(writer, &command.base);
            },
        )
    }
}
