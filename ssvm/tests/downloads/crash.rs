//! The program is killed in the middle of its work.

use std::time::Duration;

use protocol::secondary_storage::{DownloadRequest, DownloadStatus};
use protocol::transfer::ImageFormat;

use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, template};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_download_goes_on_from_what_is_on_disk_under_the_same_job() {
    let source = Source::start().await;
    let body = noise(48 << 20);
    let file = File {
        rate: Some(5 << 20),
        ..File::new(body.clone())
    };
    source.put("/a.raw", file);
    let mut machine = Machine::start().await;
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let first = machine.controller.download(command.clone()).await;
    tokio::time::sleep(Duration::from_secs(5)).await; // longer than between two entries in the journal
    machine.kill().await;
    source.put("/a.raw", File::new(body.clone()));
    machine.run().await;
    let answer = machine.progress(&command, &first, DownloadRequest::GetOrRestart).await;
    assert_eq!(answer.job_id, first.job_id);
    let answer = machine.ended(&command, answer).await;
    assert_eq!(
        answer.download_status,
        Some(DownloadStatus::Downloaded),
        "{answer:?}\n{}",
        machine.log()
    );
    assert!(machine.image(&answer) == body);
    let asked = source.asked();
    let range = asked
        .last()
        .unwrap()
        .headers
        .get("range")
        .expect("only the rest is asked for");
    let from: usize = range["bytes=".len()..range.len() - 1].parse().unwrap();
    assert!(from >= 5 << 20, "{range}");
    assert_eq!(machine.files(&command).len(), 2, "{:?}", machine.files(&command));

    machine.kill().await;
    machine.run().await;
    let known = machine.progress(&command, &answer, DownloadRequest::GetStatus).await;
    assert_eq!(
        known.download_status,
        Some(DownloadStatus::Downloaded),
        "finished jobs are known after a restart"
    );
    machine.progress(&command, &answer, DownloadRequest::Purge).await;
    let unknown = machine.progress(&command, &answer, DownloadRequest::GetStatus).await;
    assert_eq!(unknown.download_status, Some(DownloadStatus::Unknown));
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_time_a_download_ends_right_and_leaves_nothing_else() {
    let source = Source::start().await;
    let body = noise(6 << 20);
    source.put(
        "/a.raw",
        File {
            rate: Some(12 << 20),
            ..File::new(body.clone())
        },
    );
    let mut machine = Machine::start().await;
    for (round, wait) in [30, 150, 320, 480, 540, 600].into_iter().enumerate() {
        let mut command = template(&source.url("/a.raw"), ImageFormat::Raw);
        command.install_path = Some(format!("template/tmpl/2/{round}"));
        let asking = machine.controller.clone();
        let asked = command.clone();
        let asking = tokio::spawn(async move { asking.download(asked).await });
        tokio::time::sleep(Duration::from_millis(wait)).await;
        machine.kill().await;
        asking.abort();
        machine.run().await;
        let answer = machine.download(&command).await;
        assert_eq!(
            answer.download_status,
            Some(DownloadStatus::Downloaded),
            "{wait} ms: {answer:?}\n{}",
            machine.log()
        );
        assert!(machine.image(&answer) == body, "{wait} ms");
        let left = machine.files(&command);
        assert!(left.iter().all(|name| !name.starts_with("dnld")), "{wait} ms: {left:?}");
        let properties = machine
            .store
            .join(format!("template/tmpl/2/{round}/template.properties"));
        let properties = std::fs::read_to_string(properties).unwrap();
        assert!(
            properties.contains("raw.virtualsize=6291456"),
            "{wait} ms: {properties}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_waits_for_a_place_is_not_forgotten() {
    let source = Source::start().await;
    source.put(
        "/slow.raw",
        File {
            rate: Some(1 << 20),
            ..File::new(noise(64 << 20))
        },
    );
    source.put("/a.raw", File::new(noise(1 << 20)));
    let mut machine = Machine::start_with("active_jobs = 1").await;
    let slow = template(&source.url("/slow.raw"), ImageFormat::Raw);
    machine.controller.download(slow.clone()).await;
    let mut next = template(&source.url("/a.raw"), ImageFormat::Raw);
    next.install_path = Some("template/tmpl/2/208".into());
    let waiting = machine.controller.download(next.clone()).await;
    machine.kill().await;
    source.put("/slow.raw", File::new(noise(64 << 20)));
    machine.run().await;
    let answer = machine.ended(&next, waiting).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == noise(1 << 20));
}
