//! The browser harness itself: what tests believe of a page has to be true.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::{StatusCode, header};
use platform::http::{self, Handler, Limits, Peer, Request, Response};
use serde_json::json;
use system_tests::browser::{Browser, ColorScheme, Origin};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

const LIMIT: Duration = Duration::from_secs(20);

const PAGE: &str = "<!doctype html><title>t</title><label>Say <input id=say></label>
    <button id=shout>Shout</button><p id=said></p><a id=other href=/other target=_blank rel=noopener>Other</a>
    <div style=\"position:fixed;right:0;top:0;width:50px;height:50px\"><button id=under>u</button></div>
    <div id=cover></div><script src=/script.js></script>";
const SCRIPT: &str = "const keys = [];
    document.querySelector('#say').addEventListener('keydown', (event) => keys.push(event.code));
    document.querySelector('#shout').addEventListener('click', (event) => {
        document.querySelector('#said').textContent = document.querySelector('#say').value.toUpperCase();
        globalThis.trusted = event.isTrusted;
    });";

/// A page with a strict policy, which `/guilty` violates, besides other sins.
struct Site;

impl Handler for Site {
    async fn handle(&self, request: Request, _: Peer) -> Response {
        let html = "text/html; charset=utf-8";
        let mut response = match request.uri().path() {
            "/" => http::answer(StatusCode::OK, html, PAGE),
            "/script.js" => http::answer(StatusCode::OK, "text/javascript", SCRIPT),
            "/other" => http::answer(StatusCode::OK, html, "<!doctype html><title>other</title><p>Other page"),
            "/guilty" => http::answer(
                StatusCode::OK,
                html,
                "<!doctype html><script>inline()</script><script src=/throws.js></script><img src=/missing.png>",
            ),
            "/throws.js" => http::answer(
                StatusCode::OK,
                "text/javascript",
                "console.error('said', 7); throw new Error('thrown');",
            ),
            _ => http::answer(StatusCode::NOT_FOUND, "text/plain", "no"),
        };
        let policy = "default-src 'self'; style-src 'unsafe-inline'";
        response.headers_mut().insert(
            header::CONTENT_SECURITY_POLICY,
            header::HeaderValue::from_static(policy),
        );
        response
    }
}

async fn site() -> (SocketAddr, DropGuard) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(http::serve(
        listener,
        None,
        Limits::default(),
        Arc::new(Site),
        stop.clone(),
    ));
    (address, stop.drop_guard())
}

#[tokio::test]
async fn a_page_is_used_with_real_keys_and_clicks_and_its_sins_are_seen() {
    let (address, _site) = site().await;
    let browser = Browser::start().await.unwrap();
    let page = browser.open(&format!("http://{address}/")).await.unwrap();

    page.fill("#say", "Hi, ~{You}!").await.unwrap();
    page.press("Backspace").await.unwrap();
    page.click("#shout").await.unwrap();
    page.wait_for_text("HI, ~{YOU}", LIMIT).await.unwrap();
    assert_eq!(page.evaluate("trusted").await.unwrap(), json!(true));
    let keys = page.evaluate("keys.slice(-2)").await.unwrap();
    assert_eq!(keys, json!(["Digit1", "Backspace"]));
    page.fill("#say", "new").await.unwrap();
    assert_eq!(
        page.evaluate("document.querySelector('#say').value").await.unwrap(),
        json!("new")
    );

    page.look(ColorScheme::Dark, 360, 700).await.unwrap();
    let seen = "[matchMedia('(prefers-color-scheme: dark)').matches, innerWidth, innerHeight]";
    assert_eq!(page.evaluate(seen).await.unwrap(), json!([true, 360, 700]));
    let png = page.screenshot("harness").await.unwrap();
    assert_eq!(&png[1..4], b"PNG");

    page.click("#other").await.unwrap();
    let other = browser.opened("/other").await.unwrap();
    assert_eq!(other.evaluate("opener").await.unwrap(), json!(null));
    other.close().await.unwrap();

    let missing = page.click("#nobody").await.unwrap_err().to_string();
    assert_eq!(missing, "cannot click #nobody: there is no such element");
    let cover = "document.querySelector('#cover').style = 'position:fixed;inset:0'";
    page.evaluate(cover).await.unwrap();
    let covered = page.click("#shout").await.unwrap_err().to_string();
    assert!(covered.contains("covered by <div id=\"cover\""), "{covered}");
    let never = page
        .wait_for("1 > 2", Duration::from_millis(100))
        .await
        .unwrap_err()
        .to_string();
    assert!(never.contains("still not true"), "{never}");
    let thrown = page.evaluate("nothing.at.all").await.unwrap_err().to_string();
    assert!(thrown.contains("nothing is not defined"), "{thrown}");
    page.check_clean().unwrap();

    page.go(&format!("http://{address}/guilty")).await.unwrap();
    let wanted = [Origin::Browser, Origin::Console, Origin::Exception, Origin::Network];
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !wanted
        .iter()
        .all(|origin| page.problems().iter().any(|problem| problem.origin == *origin))
    {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", page.problems());
        page.evaluate("1").await.unwrap();
    }
    let complaint = page.check_clean().unwrap_err().to_string();
    assert!(complaint.contains("Content Security Policy"), "{complaint}");
    assert!(complaint.contains("Console: said 7"), "{complaint}");
    assert!(complaint.contains("Exception: Error: thrown"), "{complaint}");
    assert!(!complaint.contains("missing.png"), "{complaint}");
}

#[tokio::test]
async fn dropping_a_browser_leaves_nothing_running_and_no_files() {
    let browser = Browser::start().await.unwrap();
    let profile = browser.profile().to_owned();
    drop(browser);
    let deadline = tokio::time::Instant::now() + LIMIT;
    while is_running_with(&profile) {
        assert!(tokio::time::Instant::now() < deadline, "Chromium still runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!profile.exists(), "{} is left", profile.display());
}

/// Whether a process has the profile in its command line.
fn is_running_with(profile: &std::path::Path) -> bool {
    let name = profile.file_name().unwrap().as_encoded_bytes();
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        command.windows(name.len()).any(|window| window == name)
    })
}
