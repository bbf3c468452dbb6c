//! Templates come, whatever happens on the way.

use std::collections::BTreeMap;

use mgmt_stub::download_state::DownloadState;
use mgmt_stub::store::id::{AccountId, ZoneId};
use mgmt_stub::store::instance::InstanceType::SecondaryStorageVm;
use mgmt_stub::store::template::{Template, TemplateFacts, TemplateKind, TemplateStore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{TestZone, until};

pub(crate) async fn register(zone: &TestZone, wish: &str) -> Template {
    let facts = TemplateFacts {
        kind: TemplateKind::Template,
        name: wish.into(),
        display_text: wish.into(),
        format: "QCOW2".into(),
        hypervisor: "KVM".into(),
        url: format!("http://127.0.0.1/{wish}"),
        checksum: None,
        arch: "x86_64".into(),
        bits: 64,
        os_type: None,
        template_tag: None,
        details: BTreeMap::new(),
        account: AccountId(1),
        zone: ZoneId(1),
        is_public: true,
        is_featured: false,
        is_extractable: false,
        is_bootable: true,
        requires_hvm: true,
        password_enabled: false,
        ssh_key_enabled: false,
        dynamically_scalable: false,
    };
    let stores = zone.store.image_stores(ZoneId(1)).await.unwrap();
    let (template, _) = zone.store.create_template(facts, vec![stores[0].id]).await.unwrap();
    zone.zone.downloads.look_now();
    template
}

async fn row(zone: &TestZone, template: &Template) -> TemplateStore {
    let (_, mut rows) = mgmt_stub::downloads::find(&zone.store, template.id)
        .await
        .unwrap()
        .unwrap();
    rows.remove(0)
}

pub(crate) async fn reaches(zone: &TestZone, template: &Template, state: DownloadState) -> TemplateStore {
    until(&format!("{} is {state}", template.facts.name), async || {
        let row = row(zone, template).await;
        (row.state == state).then_some(row)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_downloaded_and_its_job_purged() {
    let zone = TestZone::start().await;
    let template = register(&zone, "ok").await; // before there is an SSVM at all
    let row = reaches(&zone, &template, DownloadState::Downloaded).await;
    assert_eq!((row.progress.percent, row.attempt, row.progress.error), (100, 1, None));
    assert_eq!(
        (row.progress.size, row.progress.physical_size),
        (Some(10_485_760), Some(100_000))
    );
    assert_eq!(
        row.progress.install_path,
        Some(format!("template/tmpl/1/{}/image.qcow2", template.id))
    );
    let ssvm = zone.up(SecondaryStorageVm).await;
    let purge = format!("Purge {}", row.progress.job.unwrap());
    until("the job is purged", async || {
        zone.seen(&ssvm).contains(&purge).then_some(())
    })
    .await;
    let stores = until("the store is measured", async || {
        let stores = zone.store.image_stores(ZoneId(1)).await.unwrap();
        stores[0].total_bytes.is_some().then_some(stores)
    })
    .await;
    assert_eq!(
        (stores[0].used_bytes, stores[0].total_bytes),
        (Some(1 << 30), Some(10 << 30))
    );
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_download_is_tried_again_until_it_works() {
    let zone = TestZone::start().await;
    let template = register(&zone, "fail2").await;
    let row = reaches(&zone, &template, DownloadState::Downloaded).await;
    assert_eq!(row.attempt, 3);
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_five_attempts_a_person_is_told() {
    let zone = TestZone::start().await;
    let template = register(&zone, "never").await;
    let row = given_up(&zone, &template).await;
    assert_eq!(row.attempt, 5);
    let error = "HTTP Server returned 503 (expected 200 OK) (http://127.0.0.1/never)";
    assert_eq!(row.progress.error.as_deref(), Some(error));
    let told = format!("Template never cannot be downloaded, tried 5 times: {error}");
    until("the alert", async || zone.alerts().await.contains(&told).then_some(())).await;
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_attempt_can_change_is_final_at_once() {
    let zone = TestZone::start().await;
    let template = register(&zone, "missing").await;
    let row = given_up(&zone, &template).await;
    assert_eq!(row.attempt, 1);
    let error = "HTTP Server returned 404 (expected 200 OK) (http://127.0.0.1/missing)";
    assert_eq!(row.progress.error.as_deref(), Some(error));
    let told = format!("Template missing cannot be downloaded: {error}");
    until("the alert", async || zone.alerts().await.contains(&told).then_some(())).await;

    // What it has left on the store goes with it.
    let ssvm = zone.up(SecondaryStorageVm).await;
    delete(&zone, &template).await.unwrap();
    let directory = format!("DELETE template/tmpl/1/{}\n", template.id);
    assert!(zone.seen(&ssvm).contains(&directory), "{}", zone.seen(&ssvm));
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_has_begun_is_deleted_when_an_agent_can_be_told() {
    let zone = TestZone::start_without_driver(&[]).await;
    let never_asked = register(&zone, "ok").await;
    delete(&zone, &never_asked).await.unwrap();
    let begun = register(&zone, "hang").await;
    let asked = row(&zone, &begun).await;
    let event = mgmt_stub::download_state::DownloadEvent::Failed;
    zone.store
        .download_event(asked.id, event, asked.progress, 1, None)
        .await
        .unwrap();
    let refused = delete(&zone, &begun).await.unwrap_err();
    assert!(
        matches!(refused, mgmt_stub::downloads::DeleteError::NoAgent),
        "{refused}"
    );
    assert_eq!(row(&zone, &begun).await.state, DownloadState::Error, "as it was");
    zone.end().await;
}

async fn delete(zone: &TestZone, template: &Template) -> Result<(), mgmt_stub::downloads::DeleteError> {
    let found = mgmt_stub::downloads::find(&zone.store, template.id).await.unwrap();
    zone.zone.downloads.delete(found.unwrap()).await
}

async fn given_up(zone: &TestZone, template: &Template) -> TemplateStore {
    until("it is given up", async || {
        let row = row(zone, template).await;
        (row.state == DownloadState::Error && row.next_attempt.is_none()).then_some(row)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_survives_the_ssvm() {
    let zone = TestZone::start().await;
    let template = register(&zone, "hang").await;
    let before = until("half of it", async || {
        let row = row(&zone, &template).await;
        (row.progress.percent == 50).then_some(row)
    })
    .await;
    assert_eq!(before.state, DownloadState::InProgress);
    let ssvm = zone.up(SecondaryStorageVm).await;
    kill(Pid::from_raw(zone.pid(&ssvm)), Signal::SIGKILL).unwrap();
    let job = before.progress.job.clone().unwrap();
    let asked_again = format!("GetOrRestart {job}\n");
    until("the next SSVM is asked for the same job", async || {
        (zone.seen(&ssvm).matches(&asked_again).count() == 1).then_some(())
    })
    .await;
    let after = reaches(&zone, &template, DownloadState::InProgress).await;
    assert_eq!(
        (after.progress.job, after.attempt),
        (Some(job), 1),
        "a lost link is no attempt"
    );
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_survives_the_server() {
    let zone = TestZone::start().await;
    let template = register(&zone, "hang").await;
    until("half of it", async || {
        (row(&zone, &template).await.progress.percent == 50).then_some(())
    })
    .await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    let job = row(&zone, &template).await.progress.job.unwrap();
    let zone = zone.restart(async |_| ()).await;
    until("the same job is asked for", async || {
        zone.seen(&ssvm)
            .contains(&format!("GetOrRestart {job}\n"))
            .then_some(())
    })
    .await;
    assert_eq!(zone.seen(&ssvm).matches("DOWNLOAD ").count(), 1, "{}", zone.seen(&ssvm));
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_stops_a_download_first() {
    let zone = TestZone::start().await;
    let template = register(&zone, "hang").await;
    reaches(&zone, &template, DownloadState::InProgress).await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    let job = row(&zone, &template).await.progress.job.unwrap();
    delete(&zone, &template).await.unwrap();
    assert!(zone.store.templates().await.unwrap().is_empty());
    let seen = zone.seen(&ssvm);
    let (abort, delete) = (seen.find(&format!("Abort {job}")), seen.find("DELETE"));
    assert!(abort.is_some() && abort < delete, "{seen}");
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_internal_sites_are_told_at_once() {
    let zone = TestZone::start().await;
    let ssvm = zone.up(SecondaryStorageVm).await;
    assert!(zone.seen(&ssvm).contains("SITES \n"), "{}", zone.seen(&ssvm));
    zone.set("secstorage.allowed.internal.sites", "127.0.0.0/8,10.0.0.0/8")
        .await;
    until("they are told", async || {
        zone.seen(&ssvm)
            .contains("SITES 127.0.0.0/8,10.0.0.0/8\n")
            .then_some(())
    })
    .await;
    zone.end().await;
}
