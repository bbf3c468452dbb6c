//! What a new agent is told before it is ready: the connect listeners, in upstream's order (management.md §9).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::answer::{Answer, AnswerBody};
use protocol::command::{Command, StringMap};
use protocol::console_proxy::StartConsoleProxyAgentHttpHandlerCommand;
use protocol::secondary_storage::{
    ListTemplateCommand, ListVolumeCommand, PortConfig, SecStorageFirewallCfgCommand, SecStorageSetupCommand,
    SecStorageVMSetupCommand, TemplateProp,
};
use protocol::secret::Secret;
use protocol::session::ReadyCommand;
use protocol::transfer::{DataStoreRole, DataStoreTO, NfsTO};
use tracing::{Instrument, info, warn};

use crate::agents::{Agents, Entry, NoAnswer};
use crate::configuration::NOVNC_CONSOLE_SOURCEIP_CHECK_ENABLED;
use crate::random;
use crate::settings::Settings;
use crate::store::host::HostType;
use crate::store::image_store::ImageStore;
use crate::store::{Store, StoreError};
use crate::template_sync;

/// For what other SSVMs are told of a new one.
const OTHERS_LIMIT: Duration = Duration::from_mins(1);

/// Why an agent did not become ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotReady {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("ReadyCommand has no answer")]
    NoAnswer(#[from] NoAnswer),
    #[error("ReadyCommand was answered: {0}")]
    Refused(String),
    #[error("{command} was answered with {answer}; a stock server cannot go on either")]
    WrongClass {
        command: &'static str,
        answer: &'static str,
    },
}

/// Sets up one agent.
pub(crate) struct Connect<'a> {
    pub(crate) store: &'a Store,
    pub(crate) agents: &'a Agents,
    pub(crate) settings: &'a Settings,
    pub(crate) entry: &'a Arc<Entry>,
    /// By which all log lines of this set-up, here and at the agent, are found.
    pub(crate) log_id: String,
}

impl Connect<'_> {
    /// Everything before ReadyCommand. A command that fails is logged and the next one follows: an agent that cannot
    /// mount a store is still of use (agent-protocol.md §5.1).
    pub(crate) async fn listeners(&self) -> Result<(), NotReady> {
        match self.entry.host.host_type {
            HostType::SecondaryStorageVm => self.secondary_storage().await,
            HostType::ConsoleProxy => Ok(self.console_proxy().await?),
            // It has no agent.
            HostType::Routing => Ok(()),
        }
    }

    /// The first ReadyCommand: its answer makes the host Up.
    pub(crate) async fn ready(&self) -> Result<(), NotReady> {
        let mut command = Command::new(self.identity());
        command.base.wait = i64::try_from(self.settings.ready_wait.as_secs()).unwrap_or(60);
        let answer = self.send(command).await?;
        if answer.result {
            return Ok(());
        }
        Err(NotReady::Refused(
            answer.details.unwrap_or_else(|| "no reason given".into()),
        ))
    }

    /// The second ReadyCommand: server list, architecture. Its answer changes nothing.
    pub(crate) async fn ready_again(&self) {
        let host = &self.entry.host;
        let expected = self.settings.hosts.join(",");
        let reported = host.ms_host_list.as_deref().unwrap_or_default();
        let (hosts, algorithm) = reported.split_once('@').unwrap_or((reported, ""));
        let shuffled = self.settings.lb_algorithm == "shuffle" && same_members(hosts, &expected);
        let differs =
            !expected.is_empty() && !(algorithm == self.settings.lb_algorithm && (hosts == expected || shuffled));
        let ready = ReadyCommand {
            ms_host_list: differs.then(|| self.settings.hosts.clone()),
            avoid_ms_host_list: Some(Vec::new()),
            lb_algorithm: differs.then(|| self.settings.lb_algorithm.clone()),
            lb_check_interval: i64::try_from(self.settings.lb_check_interval.as_secs()).ok(),
            arch: Some(host.arch.clone()),
            ..self.identity()
        };
        if let Err(error) = self.send(Command::new(ready)).await {
            warn!(%error, "The second ReadyCommand was not answered");
        }
    }

    fn identity(&self) -> ReadyCommand {
        let host = &self.entry.host;
        ReadyCommand {
            dc_id: Some(host.zone.0),
            host_id: Some(host.id.0),
            host_uuid: Some(host.uuid.to_string()),
            host_name: Some(host.name.clone()),
            enable_human_readable_sizes: Some(true),
            ..ReadyCommand::default()
        }
    }

    async fn secondary_storage(&self) -> Result<(), NotReady> {
        let stores = self.store.image_stores(self.entry.host.zone).await?;
        let key = self
            .store
            .setting_or_insert_with("upload.post.secret.key", || random::url_safe(64))
            .await?;
        for store in &stores {
            self.set_up_store(store, &key).await?;
        }
        self.firewall().await;
        self.send_or_warn(vm_setup(self.store, &self.settings.allowed_internal_sites).await?)
            .await;
        for store in &stores {
            self.send_or_warn(ListVolumeCommand {
                store: Some(nfs(store)),
                sec_url: Some(store.url.clone()),
                ..ListVolumeCommand::default()
            })
            .await;
            let list = ListTemplateCommand {
                store: Some(nfs(store)),
                nfs_version: store.nfs_version.clone(),
            };
            if let Some(AnswerBody::ListTemplate(list)) = self.send_or_warn(list).await.map(|answer| answer.body) {
                self.synchronise(store, list.template_infos.unwrap_or_default()).await?;
            }
        }
        Ok(())
    }

    /// Compares what is on a store with what should be (management.md §10.4).
    async fn synchronise(
        &self,
        store: &ImageStore,
        listed: indexmap::IndexMap<String, TemplateProp>,
    ) -> Result<(), StoreError> {
        let templates = self.store.templates().await?;
        let deleted = self.store.deleted_templates().await?;
        let findings = template_sync::compare(store.id, &templates, &deleted, &listed);
        info!(
            store = store.name,
            listed = listed.len(),
            changes = findings.len(),
            "Templates on the image store"
        );
        for finding in findings {
            if let Some(delete) = template_sync::apply(self.store, store, finding).await? {
                self.send_or_warn(delete).await;
            }
        }
        Ok(())
    }

    async fn set_up_store(&self, store: &ImageStore, key: &str) -> Result<(), NotReady> {
        let setup = SecStorageSetupCommand {
            store: Some(nfs(store)),
            sec_url: Some(store.url.clone()),
            post_upload_key: Some(Secret::new(key.to_owned())),
            nfs_version: store.nfs_version.clone(),
            ..SecStorageSetupCommand::default()
        };
        let Some(answer) = self.send_or_warn(setup).await else {
            return Ok(());
        };
        let AnswerBody::SecStorageSetup(mounted) = answer.body else {
            let answer = answer.body.class().name;
            return Err(NotReady::WrongClass {
                command: "SecStorageSetupCommand",
                answer,
            });
        };
        match mounted.dir {
            Some(dir) if is_directory_name(&dir) => Ok(self.store.set_image_store_parent(store.id, dir).await?),
            dir => {
                warn!(
                    ?dir,
                    store = store.name,
                    "The agent mounted a store under an unusable name"
                );
                Ok(())
            }
        }
    }

    /// Copies between SSVMs: the others learn of this one, this one of all others. The others have their own pace: one
    /// that hangs must not keep this one from getting ready.
    async fn firewall(&self) {
        let others = self.agents.others(&self.entry.host, HostType::SecondaryStorageVm);
        if let Some(address) = self.entry.host.public.ip {
            let port_configs = vec![copies_from(address)];
            let command = SecStorageFirewallCfgCommand {
                port_configs,
                is_append_ip: true,
            };
            let command = self.with_log_id(Command::new(command));
            for other in others.iter().cloned() {
                let command = command.clone();
                let tell = async move {
                    if let Err(error) = other.send(vec![command], OTHERS_LIMIT).await {
                        warn!(%error, other = other.host.name, "Another SSVM did not learn of this one");
                    }
                };
                tokio::spawn(tell.in_current_span());
            }
        }
        let port_configs = others
            .iter()
            .filter_map(|other| other.host.public.ip)
            .map(copies_from)
            .collect();
        self.send_or_warn(SecStorageFirewallCfgCommand {
            port_configs,
            is_append_ip: false,
        })
        .await;
    }

    async fn console_proxy(&self) -> Result<(), StoreError> {
        let key = self
            .store
            .setting_or_insert_with("security.encryption.key", || random::url_safe(16))
            .await?;
        let iv = self
            .store
            .setting_or_insert_with("security.encryption.iv", || random::url_safe(16))
            .await?;
        let name = NOVNC_CONSOLE_SOURCEIP_CHECK_ENABLED.name;
        let is_source_ip_checked = self.store.setting(name).await?.is_some_and(|value| value == "true");
        let encryptor = format!(r#"{{"base64EncodedKeyBytes":"{key}","base64EncodedIvBytes":"{iv}"}}"#);
        self.send_or_warn(StartConsoleProxyAgentHttpHandlerCommand {
            keystore_password: Some(Secret::new(random::standard(16))),
            encryptor_password: Some(Secret::new(encryptor)),
            is_source_ip_check_enabled: Some(is_source_ip_checked),
            ..StartConsoleProxyAgentHttpHandlerCommand::default()
        })
        .await;
        Ok(())
    }

    async fn send_or_warn(&self, body: impl Into<protocol::command::CommandBody>) -> Option<Answer> {
        let command = Command::new(body);
        let class = command.body.class().name;
        match self.send(command).await {
            Ok(answer) if answer.result => Some(answer),
            Ok(answer) => {
                warn!(
                    class,
                    details = answer.details,
                    "The agent could not do what it was told at connecting"
                );
                None
            }
            Err(error) => {
                warn!(class, %error, "The agent did not answer what it was told at connecting");
                None
            }
        }
    }

    async fn send(&self, command: Command) -> Result<Answer, NoAnswer> {
        let command = self.with_log_id(command);
        let answers = self.entry.send(vec![command], self.limit()).await?;
        Ok(answers
            .into_iter()
            .next()
            .unwrap_or_else(|| Answer::failure("the agent sent an empty answer")))
    }

    fn with_log_id(&self, mut command: Command) -> Command {
        command.base.context_map = Some(StringMap::from([("logid".to_owned(), self.log_id.clone())]));
        command
    }

    fn limit(&self) -> Duration {
        self.settings.default_wait
    }
}

/// What an SSVM is told of its surroundings: the setting `secstorage.allowed.internal.sites` and `more`, and the
/// password for copies.
pub(crate) async fn vm_setup(store: &Store, more: &[String]) -> Result<SecStorageVMSetupCommand, StoreError> {
    let password = store
        .setting_or_insert_with("secstorage.copy.password", || random::letters(12))
        .await?;
    let sites = store
        .setting("secstorage.allowed.internal.sites")
        .await?
        .unwrap_or_default();
    let sites = sites.split(',').map(str::trim).filter(|site| !site.is_empty());
    Ok(SecStorageVMSetupCommand {
        allowed_internal_sites: Some(sites.map(str::to_owned).chain(more.iter().cloned()).collect()),
        copy_user_name: Some("cloud".into()),
        copy_password: Some(Secret::new(password)),
    })
}

/// An image store as agents know it.
pub(crate) fn nfs(store: &ImageStore) -> DataStoreTO {
    DataStoreTO::Nfs(NfsTO {
        url: Some(store.url.clone()),
        role: Some(DataStoreRole::Image),
        uuid: Some(store.uuid.to_string()),
        nfs_version: store.nfs_version.clone(),
    })
}

/// Opens the copy web server for another SSVM. Copies are not encrypted: there is no setting for that yet.
fn copies_from(address: IpAddr) -> PortConfig {
    PortConfig {
        add: true,
        source_ip: Some(address.to_string()),
        port: Some("80".into()),
        intf: Some("eth2".into()),
    }
}

/// One component of a path.
fn is_directory_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=255).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}

fn same_members(a: &str, b: &str) -> bool {
    let sorted = |list: &str| {
        let mut members: Vec<String> = list.split(',').map(str::to_owned).collect();
        members.sort();
        members
    };
    sorted(a) == sorted(b)
}
