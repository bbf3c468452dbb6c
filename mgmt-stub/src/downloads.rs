//! Brings templates and ISOs to image stores: asks an SSVM, follows its progress, tries again (management.md §10.1).
//!
//! Each download is a task that does what its row says, and its row says all there is: a server that is started again
//! goes on where the last one was.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use platform::logging::chain;
use protocol::answer::{Answer, AnswerBody};
use protocol::command::Command;
use protocol::secondary_storage::{
    DeleteCommand, DownloadAnswer, DownloadCommand, DownloadProgressCommand, DownloadRequest, GetStorageStatsCommand,
    Proxy, ResourceType, SecStorageVMSetupCommand,
};
use protocol::transfer::{DataTO, HypervisorType, ImageFormat, TemplateObjectTO};
use serde::Deserialize;
use serde::de::value::{Error as ValueError, StrDeserializer};
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::agents::{Agents, Entry, NoAnswer};
use crate::alerts::{self, AlertType};
use crate::configuration::{
    Configuration, MAX_TEMPLATE_ISO_SIZE, SECONDARY_STORAGE_CAPACITY_THRESHOLD, SECSTORAGE_ALLOWED_INTERNAL_SITES,
    SECSTORAGE_PROXY, STORAGE_STATS_INTERVAL, STORE_DOWNLOAD_FOLLOW_REDIRECTS, TEMPLATE_DOWNLOAD_POLL_INTERVAL,
    TEMPLATE_DOWNLOAD_RETRY_INTERVAL,
};
use crate::connect::{self, nfs};
use crate::download_state::{self, DISCONNECTED, DownloadEvent, DownloadState, Heard, TIMEOUT, back_off, patience};
use crate::store::host::HostType;
use crate::store::id::{TemplateId, TemplateStoreId, ZoneId};
use crate::store::image_store::ImageStore;
use crate::store::template::{Progress, Template, TemplateKind, TemplateOnStores, TemplateStore};
use crate::store::{Store, StoreError};

/// Downloads that are looked after at the same time; the others wait. An SSVM has its own, smaller limit.
const MAX_TASKS: usize = 256;
/// A question for the space of a store, and a deletion: files of hundreds of GB take their time.
const STATS_LIMIT: Duration = Duration::from_secs(30);
const DELETE_LIMIT: Duration = Duration::from_mins(10);
/// For ABORT and PURGE: what they are for is over in any case.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);
/// From DOWNLOADED to PURGE (management.md §10.1).
const PURGE_WAIT: Duration = Duration::from_millis(100);
/// Without an SSVM: how long to wait for one to come up before looking again.
const LOOK: Duration = Duration::from_secs(5);
/// CloudStack's port of proxies.
const PROXY_PORT: i64 = 3128;

/// Why a template is still there.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// Nobody can reach the store.
    #[error("no secondary storage VM is Up in the zone; try again when listSystemVms shows one with agentstate Up")]
    NoAgent,
    /// The agent did not answer.
    #[error("the secondary storage VM did not answer; try again")]
    NoAnswer(#[from] NoAnswer),
    /// The agent could not.
    #[error("the secondary storage VM could not delete it: {0}")]
    Refused(String),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Downloads; cheap to clone.
#[derive(Clone)]
pub struct Downloads {
    inner: Arc<Inner>,
}

struct Inner {
    store: Store,
    agents: Agents,
    configuration: Configuration,
    tasks: Mutex<HashMap<TemplateStoreId, AbortOnDropHandle<()>>>,
    /// Rows have changed, or a task has ended.
    wake: Notify,
    /// An agent has come Up.
    agent_up: Notify,
}

/// What came of asking an agent.
enum Asked {
    Answer(Box<DownloadAnswer>, Heard),
    Silent,
    Gone,
}

/// What to do after one round with one agent.
enum Next {
    Finished,
    Again,
}

impl Downloads {
    /// Nothing is downloaded before [`Downloads::run`].
    pub fn new(store: Store, agents: Agents, configuration: Configuration) -> Self {
        Self {
            inner: Arc::new(Inner {
                store,
                agents,
                configuration,
                tasks: Mutex::default(),
                wake: Notify::new(),
                agent_up: Notify::new(),
            }),
        }
    }

    /// There is something new to download.
    pub fn look_now(&self) {
        self.inner.wake.notify_one();
    }

    /// An agent has come Up.
    pub fn agent_up(&self) {
        self.inner.wake.notify_one();
        self.inner.agent_up.notify_waiters();
    }

    /// Downloads what is to be downloaded until `stop`; agents go on with what they were asked for.
    pub async fn run(&self, stop: CancellationToken) {
        if let Err(error) = self.inner.store.forget_commands().await {
            error!(error = %chain(&error), "Cannot forget the commands of the last run");
        }
        let watch = async {
            loop {
                if let Err(error) = self.start_tasks().await {
                    error!(error = %chain(&error), "Cannot look for downloads; trying again");
                }
                tokio::select! {
                    () = self.inner.wake.notified() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch => {}
            () = self.measure_stores() => {}
            () = self.tell_allowed_sites() => {}
        }
        self.tasks().clear();
    }

    async fn start_tasks(&self) -> Result<(), StoreError> {
        let templates = self.inner.store.templates().await?;
        let rows = templates.iter().flat_map(|(_, rows)| rows).filter(|row| is_wanted(row));
        let mut tasks = self.tasks();
        tasks.retain(|_, task| !task.is_finished());
        for row in rows {
            if tasks.len() >= MAX_TASKS {
                break;
            }
            tasks.entry(row.id).or_insert_with(|| {
                let (downloads, id) = (self.clone(), row.id);
                let span = info_span!("download", template = %row.template, store = %row.store);
                let follow = async move {
                    if let Err(error) = downloads.follow(id).await {
                        error!(error = %chain(&error), "Lost track of a download; trying again");
                        tokio::time::sleep(LOOK).await;
                    }
                    downloads.inner.wake.notify_one();
                };
                AbortOnDropHandle::new(tokio::spawn(follow.instrument(span)))
            });
        }
        Ok(())
    }

    /// One download to its end.
    async fn follow(&self, id: TemplateStoreId) -> Result<(), StoreError> {
        loop {
            let Some(row) = self.inner.store.template_store(id).await?.filter(is_wanted) else {
                return Ok(());
            };
            let Some(template) = self.inner.store.template(row.template).await? else {
                return Ok(());
            };
            if let Some(at) = row.next_attempt {
                let wait = (at - OffsetDateTime::now_utc()).max(time::Duration::ZERO);
                tokio::time::sleep(wait.unsigned_abs()).await;
            }
            let stores = self.inner.store.image_stores(template.facts.zone).await?;
            let Some(store) = stores.into_iter().find(|store| store.id == row.store) else {
                warn!("The image store of a download is gone");
                return Ok(());
            };
            let up = self.inner.agent_up.notified();
            let Some(agent) = self.an_agent(template.facts.zone).await? else {
                if row.state == DownloadState::InProgress {
                    self.fail(&row, DISCONNECTED, Some(OffsetDateTime::now_utc()), false)
                        .await?;
                }
                tokio::time::timeout(LOOK, up).await.ok();
                continue;
            };
            let log = self
                .inner
                .store
                .command_sent(agent.host.id, agent.host.name.clone(), "DownloadCommand")
                .await?;
            let round = self.round(row, &template, &store, &agent).await;
            self.inner.store.command_ended(log).await?;
            if matches!(round?, Next::Finished) {
                return Ok(());
            }
        }
    }

    /// Asks one agent until the download is over or must be begun again.
    async fn round(
        &self,
        mut row: TemplateStore,
        template: &Template,
        store: &ImageStore,
        agent: &Arc<Entry>,
    ) -> Result<Next, StoreError> {
        if row.state == DownloadState::Error {
            let attempt = row.attempt;
            match self
                .record(&row, DownloadEvent::Retry, row.progress.clone(), attempt, None)
                .await?
            {
                Some(retried) => row = retried,
                None => return Ok(Next::Finished),
            }
        }
        let wanted = self.command(template, store);
        // A job that is known is asked for, and begun again if the agent does not know it; its answer may have a new id.
        let mut question = match &row.progress.job {
            Some(job) => progress(&wanted, job, DownloadRequest::GetOrRestart),
            None => Command::new(wanted.clone()),
        };
        let mut job = None;
        let mut rate = Rate::default();
        let mut is_first = true;
        loop {
            match self.ask(agent, &question, job.as_deref()).await {
                Asked::Gone => {
                    self.fail(&row, DISCONNECTED, Some(OffsetDateTime::now_utc()), false)
                        .await?;
                    return Ok(Next::Again);
                }
                Asked::Silent => {
                    self.fail_and_retry(&row, template, TIMEOUT, false).await?;
                    return Ok(Next::Again);
                }
                Asked::Answer(answer, Heard::Progress) => {
                    let mut now = news(&row.progress, &answer);
                    now.rate = rate.measure(now.bytes);
                    job = now.job.clone();
                    // The first answer has no bytes (ssvm.md §3.6): the next question comes at once.
                    let counts_bytes = !is_first || job.is_none() || now.bytes > 0 || now.percent == 0;
                    is_first = false;
                    let Some(moved) = self
                        .record(&row, DownloadEvent::Progress, now, row.attempt, None)
                        .await?
                    else {
                        return Ok(Next::Finished);
                    };
                    row = moved;
                    if counts_bytes {
                        tokio::time::sleep(self.poll_interval()).await;
                    }
                }
                Asked::Answer(answer, Heard::Done) => {
                    let mut now = news(&row.progress, &answer);
                    (now.percent, now.rate, now.error) = (100, None, None);
                    self.done(&row, now, template, store).await?;
                    tokio::time::sleep(PURGE_WAIT).await;
                    if let Some(job) = answer.job_id {
                        self.say(agent, progress(&wanted, &job, DownloadRequest::Purge)).await;
                    }
                    return Ok(Next::Finished);
                }
                Asked::Answer(_, Heard::Unknown) => {
                    row.progress.job = None;
                    let text = "the storage VM has forgotten the download, it begins again";
                    self.fail_and_retry(&row, template, text, false).await?;
                    return Ok(Next::Again);
                }
                Asked::Answer(answer, Heard::Failed { text, is_final }) => {
                    row.progress = news(&row.progress, &answer);
                    let job = row.progress.job.take();
                    self.fail_and_retry(&row, template, &text, is_final).await?;
                    if let Some(job) = job {
                        self.say(agent, progress(&wanted, &job, DownloadRequest::Purge)).await;
                    }
                    return Ok(Next::Again);
                }
            }
            question = match &row.progress.job {
                Some(job) => progress(&wanted, job, DownloadRequest::GetStatus),
                None => Command::new(wanted.clone()),
            };
        }
    }

    /// One question, asked again after 30 s of silence and given up after 50 s.
    async fn ask(&self, agent: &Arc<Entry>, question: &Command, job: Option<&str>) -> Asked {
        let start = Instant::now();
        while let Some(limit) = patience(start.elapsed()) {
            match agent.send(vec![question.clone()], limit).await {
                Ok(answers) => {
                    if let Some((answer, heard)) = answers.into_iter().next().and_then(|answer| understood(answer, job))
                    {
                        return Asked::Answer(Box::new(answer), heard);
                    }
                    debug!("An answer about another download, ignoring it");
                    tokio::time::sleep(self.poll_interval()).await;
                }
                Err(NoAnswer::NotConnected | NoAnswer::Disconnected) => return Asked::Gone,
                Err(error) => debug!(%error, "The storage VM is silent"),
            }
        }
        Asked::Silent
    }

    async fn done(
        &self,
        row: &TemplateStore,
        progress: Progress,
        template: &Template,
        store: &ImageStore,
    ) -> Result<(), StoreError> {
        let (size, physical_size) = (progress.size, progress.physical_size);
        info!(
            name = template.facts.name,
            store = store.name,
            size,
            physical_size,
            "Template downloaded"
        );
        self.record(row, DownloadEvent::Done, progress, row.attempt, None)
            .await?;
        Ok(())
    }

    /// `is_final`: there is no next attempt, because none would succeed.
    async fn fail_and_retry(
        &self,
        row: &TemplateStore,
        template: &Template,
        text: &str,
        is_final: bool,
    ) -> Result<(), StoreError> {
        let first = self.inner.configuration.time(&TEMPLATE_DOWNLOAD_RETRY_INTERVAL);
        let wait = back_off(first, row.attempt).filter(|_| !is_final);
        let next = wait.map(|wait| OffsetDateTime::now_utc() + wait);
        self.fail(row, text, next, true).await?;
        if next.is_none() {
            let facts = &template.facts;
            let (kind, name) = (words_of(facts.kind).1, &facts.name);
            let tried = match row.attempt {
                1 => String::new(),
                count => format!(", tried {count} times"),
            };
            let text = format!("{kind} {name} cannot be downloaded{tried}: {text}");
            let zone = Some(facts.zone);
            alerts::record(&self.inner.store, AlertType::UPLOAD_FAILED, zone, None, text).await;
        }
        Ok(())
    }

    /// `counts`: the next attempt has the next number. A link that was lost is none's fault.
    async fn fail(
        &self,
        row: &TemplateStore,
        text: &str,
        next: Option<OffsetDateTime>,
        counts: bool,
    ) -> Result<(), StoreError> {
        warn!(
            reason = text,
            attempt = row.attempt,
            again = next.is_some(),
            "Download failed"
        );
        let progress = Progress {
            error: Some(text.to_owned()),
            rate: None,
            ..row.progress.clone()
        };
        let attempt = row.attempt + u32::from(counts && next.is_some());
        self.record(row, DownloadEvent::Failed, progress, attempt, next).await?;
        Ok(())
    }

    /// `None`: the template was deleted, or its owner does not want it any more.
    async fn record(
        &self,
        row: &TemplateStore,
        event: DownloadEvent,
        progress: Progress,
        attempt: u32,
        next: Option<OffsetDateTime>,
    ) -> Result<Option<TemplateStore>, StoreError> {
        match self
            .inner
            .store
            .download_event(row.id, event, progress, attempt, next)
            .await
        {
            Err(StoreError::NoDownloadTransition(rejected)) => {
                info!(%rejected, "A download has ended in another way");
                Ok(None)
            }
            other => other,
        }
    }

    fn command(&self, template: &Template, store: &ImageStore) -> DownloadCommand {
        let facts = &template.facts;
        let gigabytes = self.inner.configuration.number(&MAX_TEMPLATE_ISO_SIZE);
        DownloadCommand {
            hvm: facts.requires_hvm,
            description: Some(facts.display_text.clone()),
            checksum: facts.checksum.clone(),
            proxy: proxy(&self.inner.configuration.text(&SECSTORAGE_PROXY)),
            max_download_size_in_bytes: Some(gigabytes.saturating_mul(1 << 30)),
            id: template.id.0,
            resource_type: Some(ResourceType::Template),
            install_path: Some(directory_of(template)),
            store: Some(nfs(store)),
            follow_redirects: self.inner.configuration.flag(&STORE_DOWNLOAD_FOLLOW_REDIRECTS),
            url: Some(facts.url.clone()),
            format: image_format(&facts.format),
            account_id: facts.account.0,
            name: Some(template.unique_name.clone()),
            sec_url: Some(store.url.clone()),
            nfs_version: store.nfs_version.clone(),
            ..DownloadCommand::default()
        }
    }

    /// The SSVM with the fewest commands under way.
    async fn an_agent(&self, zone: ZoneId) -> Result<Option<Arc<Entry>>, StoreError> {
        let is_one = |entry: &Arc<Entry>| {
            entry.host.host_type == HostType::SecondaryStorageVm && entry.host.zone == zone && entry.is_up()
        };
        let agents: Vec<Arc<Entry>> = self.inner.agents.entries().into_iter().filter(is_one).collect();
        if agents.len() < 2 {
            return Ok(agents.into_iter().next());
        }
        let load = self.inner.store.active_commands(OffsetDateTime::UNIX_EPOCH).await?;
        let key = |entry: &Arc<Entry>| (load.get(&entry.host.id).copied().unwrap_or_default(), entry.host.id);
        Ok(agents.into_iter().min_by_key(key))
    }

    /// Stops what is under way and removes a template from its stores and from the list.
    ///
    /// # Errors
    /// It is still there.
    pub async fn delete(&self, (template, rows): TemplateOnStores) -> Result<(), DeleteError> {
        for row in &rows {
            self.delete_from_store(&template, row.id).await?;
        }
        self.inner.store.remove_template(template.id).await?;
        info!(name = template.facts.name, "Template deleted");
        Ok(())
    }

    async fn delete_from_store(&self, template: &Template, row: TemplateStoreId) -> Result<(), DeleteError> {
        let Some(row) = self.inner.store.template_store(row).await? else {
            return Ok(());
        };
        let stores = self.inner.store.image_stores(template.facts.zone).await?;
        let Some(store) = stores.into_iter().find(|store| store.id == row.store) else {
            return Ok(());
        };
        let agent = self.an_agent(template.facts.zone).await?;
        let is_downloaded = row.state == DownloadState::Downloaded;
        // An agent that was asked may have begun, or have left something, even if it was never heard of again.
        let was_asked =
            row.state != DownloadState::NotDownloaded || row.attempt > 1 || row.progress.install_path.is_some();
        if agent.is_none() && was_asked {
            return Err(DeleteError::NoAgent);
        }
        if !is_downloaded {
            // Before its task ends: no other task may take it up.
            self.record(&row, DownloadEvent::Abort, row.progress.clone(), row.attempt, None)
                .await?;
        }
        let task = self.tasks().remove(&row.id);
        if let Some(task) = task {
            task.abort();
            task.await.ok();
        }
        let Some(agent) = agent else { return Ok(()) };
        if let (Some(job), false) = (&row.progress.job, is_downloaded) {
            let command = self.command(template, &store);
            self.say(&agent, progress(&command, job, DownloadRequest::Abort)).await;
            self.say(&agent, progress(&command, job, DownloadRequest::Purge)).await;
        }
        let path = row.progress.install_path.unwrap_or_else(|| directory_of(template));
        let command = Command::new(delete_command(template, &store, path));
        let answers = agent.send(vec![command], DELETE_LIMIT).await?;
        match answers.into_iter().next() {
            Some(answer) if answer.result => Ok(()),
            // What never came cannot be deleted, and what is not there is deleted.
            Some(answer) if !is_downloaded => {
                debug!(details = answer.details, "Nothing to delete on the store");
                Ok(())
            }
            answer => Err(DeleteError::Refused(
                answer
                    .and_then(|answer| answer.details)
                    .unwrap_or_else(|| "no reason given".into()),
            )),
        }
    }

    /// Tells an agent something whose answer changes nothing.
    async fn say(&self, agent: &Arc<Entry>, command: Command) {
        if let Err(error) = agent.send(vec![command], FAREWELL_LIMIT).await {
            debug!(%error, "A farewell to a download was not answered");
        }
    }

    /// Asks for the space of all image stores, again and again (management.md §10.7).
    async fn measure_stores(&self) {
        loop {
            if let Err(error) = self.measure_once().await {
                warn!(error = %chain(&error), "Cannot measure the image stores");
            }
            let interval = self
                .inner
                .configuration
                .time(&STORAGE_STATS_INTERVAL)
                .max(Duration::from_millis(100));
            let mut settings = self.inner.configuration.changes();
            settings.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.inner.agent_up.notified() => {}
                _ = settings.changed() => {}
            }
        }
    }

    async fn measure_once(&self) -> Result<(), StoreError> {
        for zone in self.inner.store.zones().await? {
            let Some(agent) = self.an_agent(zone.id).await? else {
                continue;
            };
            for store in self.inner.store.image_stores(zone.id).await? {
                let command = GetStorageStatsCommand {
                    id: Some(store.uuid.to_string()),
                    sec_url: Some(store.url.clone()),
                    store: Some(nfs(&store)),
                    nfs_version: store.nfs_version.clone(),
                    ..GetStorageStatsCommand::default()
                };
                let answers = agent.send(vec![Command::new(command)], STATS_LIMIT).await;
                match answers.map(|answers| answers.into_iter().next()) {
                    Ok(Some(Answer {
                        result: true,
                        body: AnswerBody::GetStorageStats(stats),
                        ..
                    })) => {
                        let (used, total) = (stats.used_bytes.max(0), stats.capacity_bytes.max(0));
                        self.inner.store.set_image_store_size(store.id, used, total).await?;
                    }
                    Ok(Some(answer)) => warn!(
                        store = store.name,
                        details = answer.details,
                        "Cannot measure an image store"
                    ),
                    Ok(None) => {}
                    Err(error) => warn!(store = store.name, %error, "Cannot measure an image store"),
                }
            }
        }
        Ok(())
    }

    /// A changed `secstorage.allowed.internal.sites` takes effect at once.
    async fn tell_allowed_sites(&self) {
        let mut settings = self.inner.configuration.changes();
        let mut told = self.inner.configuration.text(&SECSTORAGE_ALLOWED_INTERNAL_SITES);
        while settings.changed().await.is_ok() {
            let wanted = self.inner.configuration.text(&SECSTORAGE_ALLOWED_INTERNAL_SITES);
            if wanted == told {
                continue;
            }
            let setup = match connect::vm_setup(&self.inner.store, &[]).await {
                Ok(setup) => setup,
                Err(error) => {
                    error!(error = %chain(&error), "Cannot read what storage VMs are to be told");
                    continue;
                }
            };
            told = wanted;
            let ssvms = self.inner.agents.entries().into_iter();
            for agent in ssvms.filter(|entry| entry.host.host_type == HostType::SecondaryStorageVm) {
                self.tell(&agent, setup.clone()).await;
            }
        }
    }

    async fn tell(&self, agent: &Arc<Entry>, setup: SecStorageVMSetupCommand) {
        let answers = agent.send(vec![Command::new(setup)], STATS_LIMIT).await;
        let problem = match answers.map(|answers| answers.into_iter().next()) {
            Ok(Some(answer)) if answer.result => {
                return info!(name = agent.host.name, "Told the allowed internal sites");
            }
            Ok(answer) => answer.and_then(|answer| answer.details).unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        warn!(
            name = agent.host.name,
            problem, "Cannot tell the allowed internal sites; the next connection will"
        );
    }

    fn poll_interval(&self) -> Duration {
        let interval = self.inner.configuration.time(&TEMPLATE_DOWNLOAD_POLL_INTERVAL);
        interval.max(Duration::from_millis(10))
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<TemplateStoreId, AbortOnDropHandle<()>>> {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stores that take new data; used above `threshold` they do not. One whose size is not known yet does.
pub fn with_room(stores: &[ImageStore], configuration: &Configuration) -> Vec<ImageStore> {
    let threshold = configuration.fraction(&SECONDARY_STORAGE_CAPACITY_THRESHOLD);
    let has_room = |store: &&ImageStore| match (store.used_bytes, store.total_bytes) {
        (Some(used), Some(total)) if total > 0 => is_below(used, total, threshold),
        _ => true,
    };
    stores.iter().filter(has_room).cloned().collect()
}

/// Compares in thousandths.
fn is_below(used: i64, total: i64, threshold: f64) -> bool {
    let limit = (0..=1000_u16).rev().find(|part| f64::from(*part) <= threshold * 1000.0);
    i128::from(used) * 1000 <= i128::from(total) * i128::from(limit.unwrap_or(0))
}

/// `template/tmpl/<account>/<template>` (ssvm.md §2).
pub fn directory_of(template: &Template) -> String {
    format!("template/tmpl/{}/{}", template.facts.account, template.id)
}

/// What is told to delete.
pub(crate) fn delete_command(template: &Template, store: &ImageStore, path: String) -> DeleteCommand {
    let facts = &template.facts;
    let object = TemplateObjectTO {
        path: Some(path),
        orig_url: Some(facts.url.clone()),
        uuid: Some(template.uuid.to_string()),
        id: template.id.0,
        format: image_format(&facts.format),
        account_id: facts.account.0,
        checksum: facts.checksum.clone(),
        hvm: facts.requires_hvm,
        display_text: Some(facts.display_text.clone()),
        image_data_store: Some(nfs(store)),
        name: Some(template.unique_name.clone()),
        hypervisor_type: hypervisor(&facts.hypervisor),
        bootable: facts.is_bootable,
        unique_name: Some(template.unique_name.clone()),
        ..TemplateObjectTO::default()
    };
    DeleteCommand {
        data: Some(DataTO::Template(Box::new(object))),
        delete_chain: false,
    }
}

/// CloudStack's spelling of a format, in upper case.
pub fn image_format(name: &str) -> Option<ImageFormat> {
    ImageFormat::deserialize(StrDeserializer::<ValueError>::new(name)).ok()
}

/// CloudStack's spelling of a hypervisor, in any case.
pub fn hypervisor(name: &str) -> Option<HypervisorType> {
    let owned = name.to_owned();
    HypervisorType::deserialize(serde::de::value::StringDeserializer::<ValueError>::new(owned)).ok()
}

/// For sentences: inside, and at the start.
pub fn words_of(kind: TemplateKind) -> (&'static str, &'static str) {
    match kind {
        TemplateKind::Template => ("template", "Template"),
        TemplateKind::Iso => ("ISO", "ISO"),
    }
}

/// Whether somebody should look after it.
fn is_wanted(row: &TemplateStore) -> bool {
    match row.state {
        DownloadState::NotDownloaded | DownloadState::InProgress => true,
        DownloadState::Error => row.next_attempt.is_some(),
        DownloadState::Downloaded | DownloadState::Abandoned => false,
    }
}

fn progress(download: &DownloadCommand, job: &str, request: DownloadRequest) -> Command {
    Command::new(DownloadProgressCommand {
        job_id: Some(job.to_owned()),
        request: Some(request),
        download: download.clone(),
    })
}

/// An answer of another class is a failure with the agent's words.
fn understood(answer: Answer, job: Option<&str>) -> Option<(DownloadAnswer, Heard)> {
    if let AnswerBody::Download(download) = answer.body {
        let heard = download_state::heard(&download, job)?;
        return Some((download, heard));
    }
    let words = answer.details.unwrap_or_else(|| "it gave no reason".into());
    let is_final = download_state::is_final(&words);
    let text = format!("the storage VM did not take the download: {words}");
    Some((DownloadAnswer::default(), Heard::Failed { text, is_final }))
}

/// What an answer says beyond what was known.
fn news(known: &Progress, answer: &DownloadAnswer) -> Progress {
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty() && text.len() <= 4096);
    let size = |size: i64| Some(size).filter(|size| *size > 0);
    Progress {
        percent: u8::try_from(answer.download_pct.clamp(0, 100)).unwrap_or_default(),
        error: text(&answer.error_string),
        job: text(&answer.job_id).or_else(|| known.job.clone()),
        install_path: text(&answer.install_path).or_else(|| known.install_path.clone()),
        size: size(answer.template_size).or(known.size),
        physical_size: size(answer.template_physical_size).or(known.physical_size),
        checksum: text(&answer.check_sum).or_else(|| known.checksum.clone()),
        // Some answers have a percentage only.
        bytes: match answer.template_physical_size.max(0) {
            0 if answer.download_pct > 0 => known.bytes,
            bytes => bytes,
        },
        rate: None,
    }
}

/// `host[:port]`.
fn proxy(text: &str) -> Option<Proxy> {
    let text = text.trim();
    let text = text
        .split_once("://")
        .map_or(text, |(_, rest)| rest)
        .trim_end_matches('/');
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (text, PROXY_PORT),
    };
    (!host.is_empty()).then(|| Proxy {
        host: Some(host.to_owned()),
        port,
        ..Proxy::default()
    })
}

/// Bytes per second, smoothed over some questions.
#[derive(Default)]
struct Rate {
    /// The last measurement: when, and how many bytes.
    last: Option<(Instant, i64)>,
    smoothed: Option<i64>,
}

impl Rate {
    /// The first one, and one with fewer bytes than before (the download has begun again), only say where to count from.
    fn measure(&mut self, bytes: i64) -> Option<i64> {
        let now = Instant::now();
        let Some((at, before)) = self.last.filter(|(_, before)| *before <= bytes) else {
            self.last = (bytes > 0).then_some((now, bytes));
            return None;
        };
        let millis = i64::try_from((now - at).as_millis()).unwrap_or(i64::MAX);
        if millis >= 100 {
            let rate = (bytes - before).saturating_mul(1000) / millis;
            // Each measurement counts a third.
            self.smoothed = Some(
                self.smoothed
                    .map_or(rate, |before| before.saturating_mul(2).saturating_add(rate) / 3),
            );
            self.last = Some((now, bytes));
        }
        self.smoothed
    }
}

/// Rows of one template by its id.
pub async fn find(store: &Store, id: TemplateId) -> Result<Option<TemplateOnStores>, StoreError> {
    Ok(store
        .templates()
        .await?
        .into_iter()
        .find(|(template, _)| template.id == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_and_hypervisors_are_cloudstacks() {
        assert_eq!(image_format("QCOW2"), Some(ImageFormat::Qcow2));
        assert_eq!(image_format("qcow3"), None);
        assert_eq!(hypervisor("kvm"), Some(HypervisorType::Kvm));
        assert_eq!(hypervisor("abacus"), None);
    }

    #[test]
    fn a_proxy_has_a_port() {
        let read = |text| proxy(text).map(|proxy| (proxy.host.unwrap(), proxy.port));
        assert_eq!(read("proxy.example"), Some(("proxy.example".into(), 3128)));
        assert_eq!(read("http://10.0.0.1:8080/"), Some(("10.0.0.1".into(), 8080)));
        assert_eq!(read(""), None);
        assert_eq!(read("host:port"), None);
    }

    #[test]
    fn a_full_store_takes_nothing_new() {
        assert!(is_below(0, 100, 0.9));
        assert!(is_below(90, 100, 0.9));
        assert!(!is_below(91, 100, 0.9));
        assert!(is_below(100, 100, 1.0));
        assert!(!is_below(1, 100, 0.0));
    }
}
