//! What commands work with.

use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::agents::Agents;
use crate::alerts::{self, AlertType};
use crate::api::session::Logins;
use crate::configuration::{ALERT_PURGE_DELAY, Configuration, EVENT_PURGE_DELAY, JOB_EXPIRE_MINUTES};
use crate::jobs::Jobs;
use crate::store::alert::AlertFilter;
use crate::store::event::EventFilter;
use crate::store::id::{PodId, ZoneId};
use crate::store::{Store, StoreError};
use crate::zone::Zone;

/// How often old rows are looked for.
const PURGE_INTERVAL: Duration = Duration::from_hours(1);

/// The management server as a command sees it.
pub struct Management {
    /// What it remembers.
    pub store: Store,
    /// The connected agents.
    pub agents: Agents,
    /// Settings.
    pub configuration: Configuration,
    /// Work in progress.
    pub jobs: Jobs,
    /// System VMs, downloads, consoles.
    pub zone: Zone,
    /// Who tries to log in.
    pub(crate) logins: Logins,
    /// `managementserverid` in answers.
    pub id: Uuid,
    /// When this run began.
    pub started: OffsetDateTime,
}

impl Management {
    /// Takes over from the run before: its jobs are failed.
    ///
    /// # Errors
    /// The store.
    pub async fn new(
        store: Store,
        agents: Agents,
        configuration: Configuration,
        zone: Zone,
    ) -> Result<Self, StoreError> {
        let id = store
            .setting_or_insert_with("management.server.uuid", || Uuid::new_v4().to_string())
            .await?;
        Ok(Self {
            configuration,
            jobs: Jobs::new(store.clone()).await?,
            logins: Logins::default(),
            id: id.parse().unwrap_or_default(),
            started: OffsetDateTime::now_utc(),
            store,
            agents,
            zone,
        })
    }

    /// Records an alert, and logs it.
    pub async fn alert(
        &self,
        alert_type: AlertType,
        zone: Option<ZoneId>,
        pod: Option<PodId>,
        description: impl Into<String>,
    ) {
        alerts::record(&self.store, alert_type, zone, pod, description).await;
    }

    /// Forgets old jobs, events and alerts until `stop`.
    pub async fn purge(&self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.purge_once().await {
                warn!(error = %platform::logging::chain(&error), "Cannot delete old jobs, events and alerts");
            }
            if stop
                .run_until_cancelled(tokio::time::sleep(PURGE_INTERVAL))
                .await
                .is_none()
            {
                return;
            }
        }
    }

    async fn purge_once(&self) -> Result<(), StoreError> {
        let before = |setting| {
            let age = self.configuration.time(setting);
            OffsetDateTime::now_utc() - age
        };
        let is_on = |setting| !self.configuration.time(setting).is_zero();
        let jobs = self.store.purge_jobs(before(&JOB_EXPIRE_MINUTES)).await?;
        let (mut events, mut alerts) = (0, 0);
        if is_on(&EVENT_PURGE_DELAY) {
            let until = Some(before(&EVENT_PURGE_DELAY));
            events = self
                .store
                .delete_events(EventFilter {
                    until,
                    ..EventFilter::default()
                })
                .await?;
        }
        if is_on(&ALERT_PURGE_DELAY) {
            let until = Some(before(&ALERT_PURGE_DELAY));
            alerts = self
                .store
                .delete_alerts(AlertFilter {
                    until,
                    ..AlertFilter::default()
                })
                .await?;
        }
        if jobs + events + alerts > 0 {
            info!(jobs, events, alerts, "Old rows deleted");
        }
        Ok(())
    }
}
