//! What keeps a zone going: system VMs, downloads, consoles; and the agents' questions to them.

use std::sync::{Arc, OnceLock};

use protocol::console_proxy::{ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agents::Agents;
use crate::configuration::Configuration;
use crate::console::{Books, Consoles, Proxies};
use crate::downloads::Downloads;
use crate::driver::Driver;
use crate::hooks::{BoxedAnswer, Hooks, denied};
use crate::store::Store;
use crate::store::host::Host;
use crate::system_vms::SystemVms;
use crate::usage::Usages;
use crate::user_vms::UserVms;

/// The parts; cheap to clone.
#[derive(Clone)]
pub struct Zone {
    /// `None` without a driver: agents are started by somebody else.
    pub system_vms: Option<SystemVms>,
    /// `None` without a driver that can run them.
    pub user_vms: Option<UserVms>,
    /// What all VMs use.
    pub usages: Usages,
    /// Templates and ISOs.
    pub downloads: Downloads,
    /// Who sees what.
    pub consoles: Consoles,
    driver: Option<Arc<dyn Driver>>,
}

impl Zone {
    /// The second is for [`Zone::run`].
    pub fn new(
        store: Store,
        agents: Agents,
        configuration: Configuration,
        system_vms: Option<SystemVms>,
        user_vms: Option<UserVms>,
    ) -> (Self, Books) {
        let proxies = match &system_vms {
            Some(system_vms) => Proxies::Own(system_vms.place().console.ip()),
            None => Proxies::Connected,
        };
        let of_users = user_vms.as_ref().map(UserVms::shared_driver);
        let driver = system_vms.as_ref().map(SystemVms::shared_driver).or(of_users);
        let (consoles, books) = Consoles::new(
            store.clone(),
            agents.clone(),
            configuration.clone(),
            proxies,
            driver.clone(),
        );
        let zone = Self {
            system_vms,
            user_vms,
            usages: Usages::new(driver.clone()),
            driver,
            downloads: Downloads::new(store, agents, configuration),
            consoles,
        };
        (zone, books)
    }

    /// Who runs VMs, if this server starts any.
    pub fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.driver.clone()
    }

    /// Works until `stop`.
    pub async fn run(self, books: Books, store: Store, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        let (usages, until) = (self.usages, stop.clone());
        tasks.spawn(async move { usages.run(store, until).await });
        if let Some(user_vms) = self.user_vms {
            let until = stop.clone();
            tasks.spawn(async move { user_vms.run(until).await });
        }
        tasks.spawn(books.run(stop.clone()));
        let (downloads, until) = (self.downloads, stop.clone());
        tasks.spawn(async move { downloads.run(until).await });
        if let Some(system_vms) = self.system_vms {
            tasks.spawn(async move { system_vms.run(stop).await });
        }
        while let Some(ended) = tasks.join_next().await {
            if let Err(panic) = ended {
                tracing::error!(%panic, "A part of the zone has failed; restart the server");
            }
        }
    }
}

/// The listener needs the hooks before there is a zone: questions that come earlier are answered with no.
#[derive(Default)]
pub struct ZoneHooks {
    zone: OnceLock<Zone>,
}

impl ZoneHooks {
    /// No zone yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on questions go there.
    pub fn set(&self, zone: Zone) {
        self.zone.set(zone).ok(); // a second one changes nothing
    }
}

impl Hooks for ZoneHooks {
    fn console_access(&self, question: ConsoleAccessAuthenticationCommand) -> BoxedAnswer<'_> {
        match self.zone.get() {
            Some(zone) => Box::pin(zone.consoles.decide(question)),
            None => Box::pin(std::future::ready(denied(question.is_reauthenticating))),
        }
    }

    fn console_load(&self, proxy: &Host, report: &ConsoleProxyLoadReportCommand) {
        if let Some(zone) = self.zone.get() {
            zone.consoles.reported(proxy, report);
        }
    }

    fn agent_up(&self, _host: &Host) {
        if let Some(zone) = self.zone.get() {
            zone.downloads.agent_up();
            if let Some(system_vms) = &zone.system_vms {
                system_vms.look_now();
            }
        }
    }
}
