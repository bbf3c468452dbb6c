//! Makes consoles, decides about those who come, and keeps the books (management.md §7, §8).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use platform::logging::chain;
use protocol::answer::Answer;
use protocol::command::Command;
use protocol::console_proxy::{
    AllowConsoleAccessCommand, ConsoleAccessAuthenticationAnswer, ConsoleAccessAuthenticationCommand,
    ConsoleProxyLoadReportCommand,
};
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::load;
use super::ticket::{self, Subject};
use super::token::{BadKey, Content, Sealer};
use super::url::{Root, UrlSettings};
use crate::agents::Agents;
use crate::configuration::{
    CONSOLE_SESSION_CLEANUP_INTERVAL, CONSOLE_SESSION_CLEANUP_RETENTION, CONSOLEPROXY_SESSION_MAX,
    CONSOLEPROXY_SESSION_TIMEOUT, CONSOLEPROXY_SSL_ENABLED, CONSOLEPROXY_URL_DOMAIN, Configuration,
};
use crate::driver::Driver;
use crate::hooks::denied;
use crate::instance_state::InstanceState;
use crate::random;
use crate::store::console_session::NewConsoleSession;
use crate::store::host::{Host, HostType};
use crate::store::id::{AccountId, HostId, UserId};
use crate::store::instance::{Instance, InstanceType, Vnc};
use crate::store::{Store, StoreError};

/// For AllowConsoleAccessCommand. The proxy asks us about the session in any case, so its answer decides nothing.
const ALLOW_LIMIT: Duration = Duration::from_secs(5);
/// Reports that wait for the store.
const MAX_REPORTS: usize = 1024;

/// CloudStack's text for a zone without a proxy that has room.
const NOT_READY: &str = "Console access will be ready in a few minutes. Please try it again later.";

/// Who wants a console.
#[derive(Clone, Debug)]
pub struct Creator {
    /// The account.
    pub account: AccountId,
    /// The user.
    pub user: UserId,
    /// Where the user is.
    pub address: Option<String>,
}

/// What the user gets.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The page.
    pub url: String,
    /// For those who bring their own page: where the WebSocket is.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Sealed; see [`super::token`].
    pub token: Secret<String>,
    /// The caller's own token.
    pub extra: Option<String>,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum NoConsole {
    /// It shows nothing now.
    #[error("instance {name} is {state}: only a running instance has a console")]
    State {
        /// Which one.
        name: String,
        /// Its state.
        state: InstanceState,
    },
    /// It has no screen.
    #[error(
        "instance {0} has no screen now: programs of the management server's machine have none, and a VM has one while it is on"
    )]
    NoScreen(String),
    /// All proxies are full or not there yet.
    #[error("{NOT_READY}")]
    NotReady,
    /// Without a driver somebody else starts them, and nobody has.
    #[error(
        "no console proxy is connected to the management server; start one that names this server in its boot arguments"
    )]
    NoProxy,
    /// The setting.
    #[error(transparent)]
    Key(#[from] BadKey),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written.
    #[error("the console's token cannot be written")]
    Token(#[from] serde_json::Error),
}

/// Consoles; cheap to clone.
#[derive(Clone)]
pub struct Consoles {
    store: Store,
    agents: Agents,
    configuration: Configuration,
    proxies: Proxies,
    /// Knows the screens of the VMs that it runs.
    driver: Option<Arc<dyn Driver>>,
    reports: mpsc::Sender<Report>,
}

/// Whose console proxies are used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxies {
    /// Those that this server has made, and no others. They are reached at an address of this machine, each at its port.
    Own(IpAddr),
    /// Those that connect: there is no driver, somebody else starts them.
    Connected,
}

/// Of a proxy: its host's id and name, and what it said.
type Report = (HostId, String, String);

/// The other end of [`Consoles::new`]: keeps the books.
pub struct Books {
    consoles: Consoles,
    reports: mpsc::Receiver<Report>,
}

/// A proxy that can show a screen now.
struct Candidate {
    host: HostId,
    name: String,
    address: IpAddr,
    /// Where its page is.
    port: u16,
    sessions: u32,
}

impl Candidate {
    /// One of ours; it serves where it was told to.
    fn own(vm: &Instance, host: &Host, address: IpAddr) -> Option<Self> {
        Some(Self {
            host: host.id,
            name: vm.name.clone(),
            address,
            port: vm.console_port?,
            sessions: vm.active_sessions,
        })
    }

    /// Somebody else's; it serves where it says.
    fn connected(host: &Host) -> Option<Self> {
        Some(Self {
            host: host.id,
            name: host.name.clone(),
            address: host.public.ip?,
            port: host.proxy_port?.get(),
            sessions: host.active_sessions,
        })
    }

    /// A system VM's page is on the usual port, and its WebSocket on one of its own (console-proxy.md §3.1).
    fn websocket_port(&self) -> u16 {
        match self.port {
            80 => 8080,
            443 => 8443,
            port => port,
        }
    }
}

impl Consoles {
    /// The second is to be run.
    pub fn new(
        store: Store,
        agents: Agents,
        configuration: Configuration,
        proxies: Proxies,
        driver: Option<Arc<dyn Driver>>,
    ) -> (Self, Books) {
        let (reports, received) = mpsc::channel(MAX_REPORTS);
        let consoles = Self {
            store,
            agents,
            configuration,
            proxies,
            driver,
            reports,
        };
        let books = Books {
            consoles: consoles.clone(),
            reports: received,
        };
        (consoles, books)
    }

    /// Makes a console for an instance that the caller may see.
    ///
    /// # Errors
    /// There is none now; the text is for the caller.
    pub async fn create(&self, vm: &Instance, creator: &Creator, extra: Option<String>) -> Result<Endpoint, NoConsole> {
        use InstanceState::*;
        if !matches!(vm.state, Starting | Running | Stopping | Migrating) {
            return Err(NoConsole::State {
                name: vm.display_name.clone(),
                state: vm.state,
            });
        }
        let vnc = self
            .screen(vm)
            .ok_or_else(|| NoConsole::NoScreen(vm.display_name.clone()))?;
        let proxy = self.choose(vm).await?;
        let session = Uuid::new_v4();
        let token = self.token(vm, &vnc, session, creator, extra.as_deref()).await?;
        let new = NewConsoleSession {
            uuid: session,
            account: creator.account,
            user: creator.user,
            instance: vm.id,
            proxy: proxy.name.clone(),
            creator_address: creator.address.clone(),
        };
        self.store.create_console_session(new).await?;
        let allow = AllowConsoleAccessCommand {
            session_uuid: Some(session.to_string()),
        };
        let told = self
            .agents
            .send(proxy.host, vec![Command::new(allow)], ALLOW_LIMIT)
            .await;
        if let Err(error) = told {
            warn!(proxy = proxy.name, %error, "A console proxy was not told of a new session");
        }
        info!(vm = vm.name, proxy = proxy.name, %session, "Console made");
        let port = proxy.websocket_port();
        let root = Root::new(&self.url_settings(), proxy.address, Some(proxy.port));
        Ok(Endpoint {
            url: root.page(port, token.expose(), extra.as_deref()),
            host: root.host.clone(),
            port,
            token,
            extra,
        })
    }

    /// Where its screen is now.
    fn screen(&self, vm: &Instance) -> Option<Vnc> {
        vm.vnc.clone().or_else(|| {
            let screen = self.driver.as_ref()?.screen(&vm.name)?;
            Some(Vnc {
                address: screen.address.ip().to_string(),
                port: screen.address.port(),
                password: screen.password,
            })
        })
    }

    fn url_settings(&self) -> UrlSettings {
        UrlSettings {
            ssl_enabled: self.configuration.flag(&CONSOLEPROXY_SSL_ENABLED),
            domain: self.configuration.text(&CONSOLEPROXY_URL_DOMAIN),
            fixed: None,
        }
    }

    async fn token(
        &self,
        vm: &Instance,
        vnc: &Vnc,
        session: Uuid,
        creator: &Creator,
        extra: Option<&str>,
    ) -> Result<Secret<String>, NoConsole> {
        let key = self.secret("security.encryption.key").await?;
        let iv = self.secret("security.encryption.iv").await?;
        let hash_key = self.secret("security.hash.key").await?;
        let (tag, session, port) = (vm.uuid.to_string(), session.to_string(), vnc.port.to_string());
        let subject = Subject {
            host: &vnc.address,
            port: &port,
            sid: vnc.password.expose(),
            tag: &tag,
            session: &session,
        };
        let ticket = Secret::new(ticket::ticket(&hash_key, &subject, OffsetDateTime::now_utc()));
        let content = Content {
            client_host_address: &vnc.address,
            client_host_port: vnc.port,
            client_host_password: &vnc.password,
            client_tag: &tag,
            client_display_name: &vm.display_name,
            ticket: &ticket,
            session_uuid: &session,
            source_ip: creator.address.as_deref(),
            extra_security_token: extra,
            session_requires_new_viewer: false,
        };
        let content = serde_json::to_vec(&content)?;
        Ok(Secret::new(Sealer::new(&key, &iv)?.seal(&content, random::nonce())))
    }

    /// Keys are made once.
    async fn secret(&self, name: &'static str) -> Result<Secret<String>, StoreError> {
        let value = self.store.setting_or_insert_with(name, || random::url_safe(16)).await?;
        Ok(Secret::new(value))
    }

    /// Management.md §7 "Choosing a proxy for a VM's console".
    async fn choose(&self, vm: &Instance) -> Result<Candidate, NoConsole> {
        let max = u32::try_from(self.configuration.number(&CONSOLEPROXY_SESSION_MAX)).unwrap_or(u32::MAX);
        let mut candidates = self.candidates(vm).await?;
        if candidates.is_empty() && self.proxies == Proxies::Connected {
            return Err(NoConsole::NoProxy);
        }
        if let Some((last, since)) = self.store.last_proxy(vm.id).await?
            && let Some(index) = candidates.iter().position(|candidate| candidate.name == last)
        {
            let is_fresh = OffsetDateTime::now_utc() - since < self.configuration.time(&CONSOLEPROXY_SESSION_TIMEOUT);
            if candidates[index].sessions < max || is_fresh || self.store.has_console_session(vm.id, last).await? {
                return Ok(candidates.swap_remove(index));
            }
        }
        candidates.retain(|candidate| candidate.sessions < max);
        let least = candidates
            .into_iter()
            .min_by_key(|candidate| (candidate.sessions, candidate.host));
        least.ok_or(NoConsole::NotReady)
    }

    /// The proxies of the instance's zone whose agents are Up.
    async fn candidates(&self, vm: &Instance) -> Result<Vec<Candidate>, StoreError> {
        let is_proxy = |host: &&Host| {
            host.host_type == HostType::ConsoleProxy && host.zone == vm.zone && self.agents.is_up(host.id)
        };
        let hosts = self.store.hosts().await?;
        let hosts = hosts.iter().filter(is_proxy);
        let Proxies::Own(address) = self.proxies else {
            return Ok(hosts.filter_map(Candidate::connected).collect());
        };
        let instances = self.store.instances().await?;
        let own = |host: &Host| {
            let is_its = |proxy: &&Instance| {
                proxy.kind == InstanceType::ConsoleProxy
                    && proxy.state == InstanceState::Running
                    && proxy.name == host.name
            };
            Candidate::own(instances.iter().find(is_its)?, host, address)
        };
        Ok(hosts.filter_map(own).collect())
    }

    /// Decides about somebody who comes with a token. The proxy is told yes or no, the log why.
    pub async fn decide(&self, question: ConsoleAccessAuthenticationCommand) -> Answer {
        let again = question.is_reauthenticating;
        let decided = if again {
            self.reauthenticate(&question).await
        } else {
            self.authenticate(&question)
                .await
                .map(|()| ConsoleAccessAuthenticationAnswer {
                    success: true,
                    ..ConsoleAccessAuthenticationAnswer::default()
                })
        };
        let session = question.session_uuid.as_deref().unwrap_or_default();
        let (vm, client) = (question.vm_id.as_deref(), question.client_address.as_deref());
        match decided {
            Ok(answer) => {
                info!(session, vm, client, again, "Console access granted");
                Answer::new(answer)
            }
            Err(Denied::Because(reason)) => {
                warn!(session, vm, client, reason, "Console access denied");
                denied(again)
            }
            Err(Denied::Store(error)) => {
                error!(session, vm, client, error = %chain(&error), "Console access denied: the database failed");
                denied(again)
            }
        }
    }

    /// In CloudStack's order (console-proxy.md §3.3): the session is used up even when a later check fails.
    async fn authenticate(&self, question: &ConsoleAccessAuthenticationCommand) -> Result<(), Denied> {
        let ticket = question.ticket.as_ref().filter(|ticket| !ticket.expose().is_empty());
        let ticket = ticket.ok_or(Denied::Because("it has no ticket"))?;
        let text = question.session_uuid.as_deref().unwrap_or_default();
        let uuid: Uuid = text.parse().map_err(|_| Denied::Because("it has no session"))?;
        let client = question.client_address.clone().filter(|address| address.len() <= 255);
        let session = self.store.acquire_console_session(uuid, client).await?;
        let session = session.ok_or(Denied::Because("its session is unknown, ended, or was used before"))?;
        let hash_key = self.secret("security.hash.key").await?;
        let sid = question.sid.clone().unwrap_or_default();
        let subject = Subject {
            host: question.host.as_deref().unwrap_or_default(),
            port: question.port.as_deref().unwrap_or_default(),
            sid: sid.expose(),
            tag: question.vm_id.as_deref().unwrap_or_default(),
            session: text,
        };
        if !ticket::is_good(&hash_key, &subject, ticket.expose(), OffsetDateTime::now_utc()) {
            return Err(Denied::Because("its ticket is wrong or older than two minutes"));
        }
        let vm = self.instance_of(question).await?;
        if vm.id != session.instance {
            return Err(Denied::Because("its session is another instance's"));
        }
        let vnc = self.screen(&vm).ok_or(Denied::Because("its instance has no screen"))?;
        // The ticket, which nobody else can make, covers it: comparing in constant time would hide nothing.
        if vnc.password != sid {
            return Err(Denied::Because("its password is not the screen's any more"));
        }
        Ok(())
    }

    /// The screen may have moved (management.md §8).
    async fn reauthenticate(
        &self,
        question: &ConsoleAccessAuthenticationCommand,
    ) -> Result<ConsoleAccessAuthenticationAnswer, Denied> {
        let vm = self.instance_of(question).await?;
        let vnc = self.screen(&vm).ok_or(Denied::Because("its instance has no screen"))?;
        Ok(ConsoleAccessAuthenticationAnswer {
            success: true,
            is_reauthenticating: true,
            host: Some(vnc.address),
            port: vnc.port.into(),
            ..ConsoleAccessAuthenticationAnswer::default()
        })
    }

    async fn instance_of(&self, question: &ConsoleAccessAuthenticationCommand) -> Result<Instance, Denied> {
        let id = question.vm_id.as_deref().filter(|id| !id.is_empty());
        let id = id.ok_or(Denied::Because("it names no instance"))?;
        let found = match (id.parse::<Uuid>(), id.parse()) {
            (Ok(uuid), _) => self.store.instance_by_uuid(uuid).await?,
            (_, Ok(number)) => self.store.instance(number).await?,
            _ => None,
        };
        let found = found.filter(|vm| vm.removed.is_none());
        let vm = found.ok_or(Denied::Because("its instance does not exist any more"))?;
        if matches!(
            vm.state,
            InstanceState::Stopped | InstanceState::Destroyed | InstanceState::Error
        ) {
            return Err(Denied::Because("its instance is not running"));
        }
        Ok(vm)
    }

    /// A proxy's report; it is dealt with in the order of arrival.
    pub fn reported(&self, proxy: &Host, report: &ConsoleProxyLoadReportCommand) {
        let Some(text) = report.load_info.clone() else { return };
        if self.reports.try_send((proxy.id, proxy.name.clone(), text)).is_err() {
            warn!(proxy = proxy.name, "Too many load reports at once, dropping one");
        }
    }

    async fn record(&self, host: HostId, proxy: &str, report: String) -> Result<(), StoreError> {
        let load = match load::parse(&report) {
            Ok(load) => load,
            Err(error) => {
                warn!(proxy, error = %chain(&error), "Load report cannot be used");
                return Ok(());
            }
        };
        if !load.removed.is_empty() {
            self.store.end_console_sessions(proxy.to_owned(), load.removed).await?;
        }
        let instances = self.store.instances().await?;
        let is_it = |vm: &&Instance| vm.name == proxy && vm.kind == InstanceType::ConsoleProxy;
        match instances.iter().find(is_it) {
            Some(vm) if vm.last_load.as_deref() == Some(report.as_str()) => {}
            Some(vm) => self.store.record_console_load(vm.id, load.sessions, report).await?,
            None => {}
        }
        self.store.record_host_sessions(host, load.sessions).await?;
        Ok(())
    }
}

impl Books {
    /// Records reports and forgets old sessions until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let consoles = self.consoles;
        let record = async {
            while let Some((host, proxy, report)) = self.reports.recv().await {
                if let Err(error) = consoles.record(host, &proxy, report).await {
                    error!(proxy, error = %chain(&error), "Cannot record a load report");
                }
            }
        };
        let purge = async {
            loop {
                let retention = consoles.configuration.time(&CONSOLE_SESSION_CLEANUP_RETENTION);
                match consoles
                    .store
                    .purge_console_sessions(OffsetDateTime::now_utc() - retention)
                    .await
                {
                    Ok(0) => {}
                    Ok(count) => info!(count, "Old console sessions deleted"),
                    Err(error) => error!(error = %chain(&error), "Cannot delete old console sessions"),
                }
                let interval = consoles.configuration.time(&CONSOLE_SESSION_CLEANUP_INTERVAL);
                tokio::time::sleep(interval.max(Duration::from_mins(1))).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = record => {}
            () = purge => {}
        }
    }
}

#[derive(Debug)]
enum Denied {
    Because(&'static str),
    Store(StoreError),
}

impl From<StoreError> for Denied {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// A screen's address as an operator gives it.
///
/// # Errors
/// It is neither a name nor an address.
pub fn screen_address(text: &str) -> Result<String, String> {
    let is_name = |text: &str| {
        (1..=253).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
            && !text.starts_with(['-', '.'])
    };
    if text.parse::<IpAddr>().is_ok() || is_name(text) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is not an address; write it like 10.0.0.5 or vnc.example.org"
        ))
    }
}
