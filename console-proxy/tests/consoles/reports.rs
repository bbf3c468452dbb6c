//! What the management server hears (§10).

use std::time::Duration;

use protocol::answer::AnswerBody;
use protocol::console_proxy::CheckConsoleProxyLoadCommand;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::client::{Browser, get};
use crate::fake_host::FakeHost;
use crate::proxy::{Running, until};
use crate::token::{VM, content, seal};
use console_proxy::proxy::Shows;

async fn open(running: &Running, host: &FakeHost, session: &str) -> Browser {
    running.allow(session).await;
    let mut browser = Browser::connect(running.site(), &seal(&content(host.address.port(), session)))
        .await
        .unwrap();
    browser.open().await;
    browser
}

fn last_count(running: &Running) -> Option<usize> {
    Some(running.ms.told().last()?["connections"].as_array().unwrap().len())
}

#[tokio::test]
async fn sessions_are_reported_when_they_open_and_when_they_close() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let browser = open(&running, &host, "s1").await;
    until("it is counted", || last_count(&running) == Some(1)).await;
    let report = running.ms.told().pop().unwrap();
    let connection = &report["connections"][0];
    assert_eq!(
        (connection["tag"].as_str(), connection["sessionUuid"].as_str()),
        (Some(VM), Some("s1"))
    );
    assert_eq!(connection["port"], host.address.port());

    let (status, _, body) = get(running.address(Shows::Commands), "/cmd/getstatus", "").await;
    let document: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (status, document["connections"][0]["host"].as_str()),
        (200, Some("127.0.0.1"))
    );
    let check = CheckConsoleProxyLoadCommand {
        proxy_vm_id: 2,
        proxy_vm_name: Some("v-2-VM".into()),
        ..CheckConsoleProxyLoadCommand::default()
    };
    let answer = running.execute(check).await;
    let details: Value = serde_json::from_str(&answer.details.unwrap()).unwrap();
    assert_eq!(details["connections"].as_array().unwrap().len(), 1);
    assert!(matches!(answer.body, AnswerBody::ConsoleProxyLoad(load) if load.proxy_vm_id == 2));

    drop(browser);
    until("its end is told", || running.ms.removed() == ["s1"]).await;
    let reports = running.ms.told().len();
    until("the heart beats", || running.ms.told().len() > reports).await;
    assert_eq!(
        (running.ms.removed(), last_count(&running)),
        (vec!["s1".to_owned()], Some(0))
    );
}

#[tokio::test]
async fn while_the_server_is_away_sessions_go_on_and_their_ends_are_told_once_when_it_is_back() {
    let mut host = FakeHost::listen().await;
    let running = Running::serving("console.multi_viewer = \"share\"").await;
    let mut browsers = Vec::new();
    for session in ["s1", "s2", "s3"] {
        browsers.push(open(&running, &host, session).await);
    }
    until("all are counted", || last_count(&running) == Some(3)).await;
    running.ms.set_away(true);
    let mut survivor = browsers.pop().unwrap();
    drop(browsers);
    until("two have ended", || running.proxy.sessions.count() == 1).await;
    let (_first, _second, mut near) = (host.next().await, host.next().await, host.next().await);
    survivor.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]).await;
    near.read_exact(&mut [0; 8]).await.unwrap();
    near.write_all(b"\x02").await.unwrap();
    assert_eq!(survivor.read().await, [2]);
    assert_eq!(running.ms.removed(), Vec::<String>::new());
    running.ms.set_away(false);
    until("both ends are told", || running.ms.removed().len() == 2).await;
    tokio::time::sleep(Duration::from_secs(6)).await; // a heartbeat more
    let mut removed = running.ms.removed();
    removed.sort_unstable();
    assert_eq!(removed, ["s1", "s2"]);
    let most = running
        .ms
        .told()
        .iter()
        .filter_map(|report| Some(report["removedSessions"].as_array()?.len()))
        .max();
    assert_eq!(most, Some(1), "one in a report");
    assert_eq!(last_count(&running), Some(1));
}

#[tokio::test]
async fn many_changes_at_once_are_few_reports() {
    let host = FakeHost::listen().await;
    let running = Running::serving("console.multi_viewer = \"share\"").await;
    let mut browsers = Vec::new();
    for number in 0..30 {
        browsers.push(open(&running, &host, &format!("s{number}")).await);
    }
    until("all are counted", || last_count(&running) == Some(30)).await;
    assert!(running.ms.told().len() <= 12, "{}", running.ms.told().len());
}
