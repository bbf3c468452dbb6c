//! Many downloads at once: all right, in bounded memory, and the management server does not wait.

use std::time::{Duration, Instant};

use protocol::secondary_storage::{DownloadRequest, DownloadStatus};
use protocol::session::CheckHealthCommand;
use protocol::transfer::ImageFormat;

use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, template};

/// ssvm.md §11.3 P10.
const MEMORY_KIB: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn fifty_downloads_at_once_are_right_in_64_mib() {
    let machine = Machine::start().await;
    let source = Source::start().await;
    let body = noise(12 << 20);
    source.put("/a.raw", File::new(body.clone()));
    let commands: Vec<_> = (0..50)
        .map(|id| {
            let mut command = template(&source.url("/a.raw"), ImageFormat::Raw);
            command.install_path = Some(format!("template/tmpl/2/{id}"));
            command.name = Some(format!("{id}-2-demo"));
            command
        })
        .collect();
    let asking = commands
        .iter()
        .map(|command| machine.controller.download(command.clone()));
    let watching = async {
        for _ in 0..20 {
            let asked = Instant::now();
            assert!(machine.controller.ask(CheckHealthCommand {}).await.result);
            assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let (firsts, ()) = tokio::join!(futures_util::future::join_all(asking), watching);
    let mut sums = std::collections::BTreeSet::new();
    for (command, first) in commands.iter().zip(firsts) {
        let answer = machine.ended(command, first).await;
        assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
        assert!(machine.image(&answer) == body);
        sums.insert(answer.check_sum.clone());
        machine.progress(command, &answer, DownloadRequest::Purge).await;
    }
    assert_eq!(sums.len(), 1);
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    assert!(peak <= MEMORY_KIB, "{peak} KiB");
    println!("peak {peak} KiB");
}
