//! What is in the store after something went wrong, or happened twice.

use std::time::{Duration, Instant};

use protocol::answer::AnswerBody;
use protocol::secondary_storage::{DownloadCommand, DownloadRequest, DownloadStatus, ListTemplateCommand};
use protocol::transfer::ImageFormat;

use crate::fake_controller::nfs;
use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, STORE, template};
use crate::stores::Freezable;

/// Waits until nothing is left in the store, and in the journal.
async fn all_is_gone(machine: &Machine) {
    let started = Instant::now();
    let journal = machine.directory.path().join("state/jobs");
    while !machine.tree().is_empty() || std::fs::read_dir(&journal).unwrap().count() > 0 {
        let left = machine.tree();
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{left:?}\n{}",
            machine.log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A source that stops in the middle, and a command for it.
fn endless(source: &Source) -> DownloadCommand {
    let file = File {
        stall_after: Some(3 << 20),
        ..File::new(noise(4 << 20))
    };
    source.put("/endless.raw", file);
    template(&source.url("/endless.raw"), ImageFormat::Raw)
}

async fn listed_size(machine: &Machine) -> i64 {
    let list = ListTemplateCommand {
        store: Some(nfs(STORE)),
        ..ListTemplateCommand::default()
    };
    match machine.controller.ask(list).await.body {
        AnswerBody::ListTemplate(list) => list.template_infos.unwrap()["207-2-demo"].size,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_stopped_or_purged_leaves_nothing() {
    let machine = Machine::start().await;
    let source = Source::start().await;
    for request in [DownloadRequest::Abort, DownloadRequest::Purge] {
        let command = endless(&source);
        let running = machine.controller.download(command.clone()).await;
        assert_eq!(
            machine.files(&command).len(),
            2,
            "a temporary file and empty properties"
        );
        let stopped = machine.progress(&command, &running, request).await;
        assert_eq!(
            stopped.download_status,
            Some(DownloadStatus::NotDownloaded),
            "{stopped:?}"
        );
        all_is_gone(&machine).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_image_is_valid_until_a_new_one_takes_its_place() {
    let machine = Machine::start().await;
    let source = Source::start().await;
    for (path, mib) in [("/old.raw", 1), ("/new.raw", 2)] {
        source.put(path, File::new(noise(mib << 20)));
    }
    let command = |path: &str| template(&source.url(path), ImageFormat::Raw);
    let old = machine.download(&command("/old.raw")).await;
    assert_eq!(old.download_status, Some(DownloadStatus::Downloaded), "{old:?}");

    let text = machine.refusal(&command("/missing.raw")).await;
    assert!(text.contains("404"), "{text}");
    assert!(machine.image(&old) == noise(1 << 20));
    assert_eq!(listed_size(&machine).await, 1 << 20);

    let new = machine.download(&command("/new.raw")).await;
    assert_eq!(new.download_status, Some(DownloadStatus::Downloaded), "{new:?}");
    assert!(machine.image(&new) == noise(2 << 20));
    assert_eq!(listed_size(&machine).await, 2 << 20);
    assert_eq!(machine.files(&command("")).len(), 2, "{:?}", machine.tree());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_download_gives_way_to_another_for_its_directory() {
    let machine = Machine::start().await;
    let source = Source::start().await;
    source.put("/a.raw", File::new(noise(1 << 20)));
    let slow = endless(&source);
    let running = machine.controller.download(slow.clone()).await;
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    // Twice at once: one job.
    let asked = tokio::join!(
        machine.controller.download(command.clone()),
        machine.controller.download(command.clone())
    );
    assert_eq!(asked.0.job_id, asked.1.job_id);
    let answer = machine.ended(&command, asked.0).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == noise(1 << 20));
    assert_eq!(machine.files(&command).len(), 2, "{:?}", machine.tree());
    let gone = machine.progress(&slow, &running, DownloadRequest::GetStatus).await;
    assert_eq!(gone.download_status, Some(DownloadStatus::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_now_is_removed_when_the_store_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Freezable::new(directory.path()).await;
    let store = disk.mounted.0.clone();
    let machine = Machine::start_in(directory, store, "").await;
    let source = Source::start().await;
    let command = endless(&source);
    let running = machine.controller.download(command.clone()).await;
    disk.freeze("-f").await;
    let asked = Instant::now();
    let stopped = machine.progress(&command, &running, DownloadRequest::Purge).await;
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(
        stopped.download_status,
        Some(DownloadStatus::NotDownloaded),
        "{stopped:?}"
    );
    // Another for the same directory waits until nothing of the first is left.
    source.put("/a.raw", File::new(noise(1 << 20)));
    let next = template(&source.url("/a.raw"), ImageFormat::Raw);
    let waiting = machine.controller.download(next.clone()).await;
    assert_eq!(
        waiting.download_status,
        Some(DownloadStatus::DownloadInProgress),
        "{waiting:?}"
    );
    disk.freeze("-u").await;
    let answer = machine.ended(&next, waiting).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert_eq!(machine.files(&next).len(), 2, "{:?}", machine.tree());
    drop(machine);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_removed_before_the_end_of_the_program_is_removed_by_the_next() {
    let mut machine = Machine::start().await;
    let source = Source::start().await;
    let command = endless(&source);
    let running = machine.controller.download(command.clone()).await;
    let away = machine.directory.path().join("away");
    std::fs::rename(&machine.store, &away).unwrap();
    let stopped = machine.progress(&command, &running, DownloadRequest::Abort).await;
    assert_eq!(
        stopped.download_status,
        Some(DownloadStatus::NotDownloaded),
        "{stopped:?}"
    );
    machine.kill().await;
    std::fs::rename(&away, &machine.store).unwrap();
    assert_eq!(machine.files(&command).len(), 2, "{:?}", machine.tree());
    machine.run().await;
    all_is_gone(&machine).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_file_that_somebody_has_removed_is_fetched_again() {
    let mut machine = Machine::start().await;
    let source = Source::start().await;
    let body = noise(40 << 20);
    let slow = File {
        rate: Some(5 << 20),
        ..File::new(body.clone())
    };
    source.put("/a.raw", slow);
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let running = machine.controller.download(command.clone()).await;
    tokio::time::sleep(Duration::from_millis(3500)).await; // longer than between two times that what came is made certain
    machine.kill().await;
    std::fs::remove_dir_all(machine.store.join("template/tmpl/2")).unwrap();
    source.put("/a.raw", File::new(body.clone()));
    machine.run().await;
    let answer = machine.ended(&command, running).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == body);
    assert!(
        machine.log().contains("The temporary file is gone"),
        "{}",
        machine.log()
    );
}
