//! Links come and go without growth. Alone in its process, because it looks at the process.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use support::raw::{connect, register, send, startup};
use support::{TestServer, quick, until};
use tempfile::tempdir;
use tokio::net::TcpStream;

#[path = "agent_link/support/mod.rs"]
#[expect(dead_code, reason = "most of it is for the other tests")]
mod support;

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Resident memory of this process in KiB.
fn resident() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// Both ends are in this process, so both would be seen to grow.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_links_come_and_go_without_growth() {
    let data = tempdir().unwrap();
    let server = TestServer::start(data.path(), quick()).await;
    let cycle = async |count: u32| {
        for number in 0..count {
            let mut link = connect(&server).await;
            match number % 4 {
                0 => register(&server, &mut link, number % 8).await,
                1 => send(&mut link, &startup(1)).await,
                2 => drop(TcpStream::connect(server.address).await.unwrap()),
                _ => {}
            }
        }
        until("all links have ended", || async { server.agents.count() == 0 }).await;
    };
    cycle(200).await; // allocator, database and thread pools settle
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (files_before, memory_before) = (descriptors(), resident());
    cycle(1000).await;
    until("all descriptors are closed", || async {
        descriptors() <= files_before + 2
    })
    .await;
    let grown = resident() - memory_before;
    assert!(grown < 4096, "{grown} KiB more after 1,000 links");
    server.stop().await;
}
