//! Who gets in, and who does not (§6).

use std::sync::Arc;
use std::time::Duration;

use console_proxy::proxy::Shows;
use protocol::console_proxy::StartConsoleProxyAgentHttpHandlerCommand;
use protocol::secret::Secret;
use serde_json::{Value, json};

use crate::client::{Browser, Status};
use crate::fake_host::FakeHost;
use crate::proxy::{Running, start};
use crate::token::{VM, content, seal, seal_with};

async fn refused(running: &Running, token: &str) {
    let refused = Browser::connect(running.site(), token).await.err();
    assert_eq!(refused, Some(Status(403)), "{token}");
}

#[tokio::test]
async fn forged_foreign_replayed_and_unannounced_tokens_get_403_and_reach_nobody() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let port = host.address.port();
    let vectors: Value = serde_json::from_str(include_str!("../vectors/tokens.json")).unwrap();
    running.allow("0f5f9f1a-6a51-4b61-9d0b-2b7f4f4f5a10").await; // the session of the vectors
    for vector in vectors["must_be_refused"].as_array().unwrap() {
        let token = vector["token_in_query"].as_str().unwrap();
        if !token.contains(' ') {
            refused(&running, token).await; // no client sends a blank
        }
    }
    running.allow("s1").await;
    refused(&running, &seal_with([9; 16], &content(port, "s1"))).await; // another zone's key
    for member in [
        "clientHostAddress",
        "clientHostPort",
        "clientHostPassword",
        "sessionUuid",
    ] {
        let mut incomplete = content(port, "s1");
        incomplete.as_object_mut().unwrap().remove(member);
        refused(&running, &seal(&incomplete)).await;
    }
    let token = seal(&content(port, "s1"));
    let mut browser = Browser::connect(running.site(), &token).await.unwrap();
    browser.open().await;
    refused(&running, &token).await; // a replay
    refused(&running, &seal(&content(port, "never announced"))).await;
    assert_eq!((host.connections(), running.ms.asked().len()), (1, 1));
    let metrics = running.proxy.metrics.text();
    assert!(
        metrics.contains("console_auth_total{result=\"bad_token\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn nobody_is_served_before_the_management_server_says_so() {
    let running = Running::new("");
    for (_, address) in [
        (Shows::Site, running.site()),
        (Shows::Commands, running.address(Shows::Commands)),
    ] {
        assert!(
            tokio::net::TcpStream::connect(address).await.is_err(),
            "{address} is open"
        );
    }
    let bad = StartConsoleProxyAgentHttpHandlerCommand {
        encryptor_password: Some(Secret::new("{}".into())),
        ..start()
    };
    let answer = running.execute(bad).await;
    let wanted = "encryptorPassword is not JSON with base64EncodedKeyBytes and base64EncodedIvBytes";
    assert_eq!((answer.result, answer.details.as_deref()), (false, Some(wanted)));
    running.start().await;
    assert!(tokio::net::TcpStream::connect(running.site()).await.is_ok());
    running.start().await; // as at every reconnect
}

#[tokio::test(flavor = "multi_thread")]
async fn of_fifty_who_use_a_permission_at_the_same_time_one_gets_in() {
    let host = FakeHost::listen().await;
    let running = Arc::new(Running::serving("").await);
    running.allow("once").await;
    let token = seal(&content(host.address.port(), "once"));
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let attempts: Vec<_> = (0..50)
        .map(|_| {
            let (running, token, barrier) = (Arc::clone(&running), token.clone(), Arc::clone(&barrier));
            tokio::spawn(async move {
                barrier.wait().await;
                let Ok(mut browser) = Browser::connect(running.site(), &token).await else {
                    return None; // too late for the upgrade already
                };
                let mut first = [0; 1];
                tokio::select! {
                    (code, _) = async { browser.end().await } => { assert_eq!(code, 1008); None }
                    () = tokio::time::sleep(Duration::from_secs(5)) => { first[0] = browser.unread()[0]; Some(first[0]) }
                }
            })
        })
        .collect();
    let mut winners = 0;
    for attempt in attempts {
        winners += usize::from(attempt.await.unwrap() == Some(b'R'));
    }
    assert_eq!((winners, running.ms.asked().len(), host.connections()), (1, 1, 1));
}

#[tokio::test]
async fn the_management_servers_no_and_its_absence_end_it_without_a_hint() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let attempt = async |session: &str| {
        running.allow(session).await;
        let mut browser = Browser::connect(running.site(), &seal(&content(host.address.port(), session)))
            .await
            .unwrap();
        browser.end().await
    };
    running.ms.set_away(true);
    assert_eq!(attempt("away").await, (1008, "not authorised".into()));
    running.ms.set_away(false);
    running.ms.refuse();
    assert_eq!(attempt("refused").await, (1008, "not authorised".into()));
    assert_eq!(running.ms.asked().len(), 1, "never asked twice");
    assert_eq!(host.connections(), 0);
    assert_eq!(
        running.proxy.sessions.unreported(),
        0,
        "sessions that never were do not end"
    );
}

#[tokio::test]
async fn the_extra_token_must_be_in_the_query() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    running.allow("s1").await;
    let mut with_extra = content(host.address.port(), "s1");
    with_extra["extraSecurityToken"] = json!("s3cr3t+extra");
    let token = seal(&with_extra);
    let attempt = async |extra: &str| {
        Browser::connect_to(
            running.site(),
            &format!("/websockify/websockify?token={token}{extra}"),
            &[],
        )
        .await
    };
    for wrong in ["", "&extra=", "&extra=s3cr3t", "&extra=s3cr3t%20extra"] {
        assert_eq!(attempt(wrong).await.err(), Some(Status(403)), "{wrong}");
    }
    attempt("&extra=s3cr3t+extra").await.unwrap().open().await;
}

#[tokio::test]
async fn a_token_is_bound_to_its_viewers_address_when_the_server_says_so_and_proxies_may_tell_it() {
    let host = FakeHost::listen().await;
    let running = Running::serving("console.trusted_proxies = [\"127.0.0.1/32\"]").await;
    let check = |is_source_ip_check_enabled| StartConsoleProxyAgentHttpHandlerCommand {
        is_source_ip_check_enabled,
        ..start()
    };
    running.execute(check(Some(true))).await;
    running.allow("s1").await;
    let token = seal(&content(host.address.port(), "s1")); // for 203.0.113.7
    let attempt = async |forwarded: &str| {
        Browser::connect_to(
            running.site(),
            &format!("/?token={token}"),
            &[("x-forwarded-for", forwarded)],
        )
        .await
    };
    for wrong in ["203.0.113.8", "203.0.113.7, 203.0.113.8", "nonsense"] {
        assert_eq!(attempt(wrong).await.err(), Some(Status(403)), "{wrong}");
    }
    attempt("198.51.100.1, 203.0.113.7").await.unwrap().open().await;
    assert_eq!(running.ms.asked()[0].client_address.as_deref(), Some("203.0.113.7"));
    running.execute(check(None)).await;
    running.allow("s2").await;
    let free = seal(&content(host.address.port(), "s2"));
    Browser::connect(running.site(), &free).await.unwrap().open().await;
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_where_the_operator_lists_some() {
    let host = FakeHost::listen().await;
    let running = Running::serving("console.allowed_origins = [\"https://cloud.example.com\"]").await;
    running.allow("s1").await;
    let path = format!("/?token={}", seal(&content(host.address.port(), "s1")));
    let attempt = async |origin: &str| Browser::connect_to(running.site(), &path, &[("origin", origin)]).await;
    assert_eq!(attempt("https://evil.example.com").await.err(), Some(Status(403)));
    assert_eq!(
        Browser::connect_to(running.site(), &path, &[]).await.err(),
        Some(Status(403))
    );
    attempt("https://cloud.example.com").await.unwrap().open().await;
}

#[tokio::test]
async fn a_server_may_be_trusted_with_sessions_that_it_did_not_announce_but_not_with_vmwares() {
    let host = FakeHost::listen().await;
    let running = Running::serving("console.trust_ms_session_check = true").await;
    let token = content(host.address.port(), "elsewhere");
    Browser::connect(running.site(), &seal(&token))
        .await
        .unwrap()
        .open()
        .await;
    let mut vmware = token;
    vmware["websocketUrl"] = json!("wss://192.0.2.1:443/ticket/cst");
    refused(&running, &seal(&vmware)).await;
}

#[tokio::test]
async fn tokens_of_old_servers_are_opened_where_the_operator_says_so() {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/tokens.json")).unwrap();
    let old = vectors["tokens"][0]["token_cbc_before_4_18_1"].as_str().unwrap();
    let running = Running::serving("").await;
    running.allow("0f5f9f1a-6a51-4b61-9d0b-2b7f4f4f5a10").await;
    refused(&running, old).await;
    let lenient = Running::serving("console.legacy_cbc_tokens = true").await;
    lenient.ms.refuse(); // its host does not exist here
    lenient.allow("0f5f9f1a-6a51-4b61-9d0b-2b7f4f4f5a10").await;
    let mut browser = Browser::connect(lenient.site(), old).await.unwrap();
    assert_eq!(browser.end().await.0, 1008);
    assert_eq!(lenient.ms.asked()[0].vm_id.as_deref(), Some(VM));
}
