//! How sessions end, and what does not end them (§6, §8).

use std::time::Duration;

use console_proxy::proxy::Shows;
use futures_util::SinkExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

use crate::client::{Browser, get};
use crate::fake_host::FakeHost;
use crate::proxy::{LIMIT, Running, until};
use crate::token::{content, seal};

async fn open(running: &Running, host: &FakeHost, session: &str) -> Browser {
    running.allow(session).await;
    let mut browser = Browser::connect(running.site(), &seal(&content(host.address.port(), session)))
        .await
        .unwrap();
    browser.open().await;
    browser
}

/// A socket that must be closed by the other end, soon.
async fn is_closed(host: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = timeout(LIMIT, host.read_to_end(&mut rest)).await.expect("closed");
}

#[tokio::test]
async fn bytes_pass_in_both_directions_and_the_end_reaches_the_other_side() {
    let mut host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let mut browser = open(&running, &host, "s1").await;
    let mut near = host.next().await;
    let key = [4, 1, 0, 0, 0, 0, 0, 0x61];
    browser.send(&key).await;
    let mut got = [0; 8];
    near.read_exact(&mut got).await.unwrap();
    assert_eq!(got, key);
    near.write_all(b"\x02").await.unwrap();
    assert_eq!(browser.read().await, [2]);
    browser.socket.close(None).await.unwrap();
    is_closed(&mut near).await;
    until("nobody is left", || running.proxy.sessions.count() == 0).await;
    assert_eq!(browser.end().await.0, 1000);

    let mut browser = open(&running, &host, "s2").await;
    drop(host.next().await);
    assert_eq!(browser.end().await, (4003, "console closed by host".into()));

    let browser = open(&running, &host, "s3").await;
    let mut near = host.next().await;
    drop(browser); // without a goodbye
    is_closed(&mut near).await;
}

#[tokio::test]
async fn a_second_viewer_takes_over_shares_or_has_a_session_of_its_own() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let mut first = open(&running, &host, "s1").await;
    let second = open(&running, &host, "s2").await;
    assert_eq!(first.end().await, (4001, "taken over".into()));
    until("only the second is left", || running.proxy.sessions.count() == 1).await;
    running.allow("s3").await;
    let mut own = content(host.address.port(), "s3");
    own["sessionRequiresNewViewer"] = json!(true);
    Browser::connect(running.site(), &seal(&own))
        .await
        .unwrap()
        .open()
        .await;
    until("the second stays", || running.ms.removed() == ["s1", "s3"]).await;
    drop(second);

    let shared = Running::serving("console.multi_viewer = \"share\"").await;
    let (mut one, mut two) = (open(&shared, &host, "s1").await, open(&shared, &host, "s2").await);
    assert_eq!(shared.proxy.sessions.count(), 2);
    one.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]).await;
    two.send(&[4, 1, 0, 0, 0, 0, 0, 0x61]).await;
}

#[tokio::test]
async fn hosts_that_cannot_be_reached_or_do_not_speak_vnc_end_it_with_4004() {
    let running = Running::serving("").await;
    let web = FakeHost::saying(|mut stream| async move {
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok()?;
        Some(stream)
    });
    let mut unused = FakeHost::listen().await.address;
    unused.set_port(1); // tcpmux: nobody has that
    for (session, port) in [("web", web.await.address.port()), ("unused", unused.port())] {
        running.allow(session).await;
        let mut browser = Browser::connect(running.site(), &seal(&content(port, session)))
            .await
            .unwrap();
        browser.read::<12>().await;
        browser.send(b"RFB 003.008\n").await;
        assert_eq!(browser.end().await, (4004, "cannot reach host".into()), "{session}");
        assert_eq!(browser.unread(), b"\0\0\0\0\x11cannot reach host");
    }
    for (member, value) in [
        ("websocketUrl", "wss://192.0.2.1/ticket/x"),
        ("hypervHost", "192.0.2.1"),
    ] {
        running.allow(member).await;
        let mut token = content(1, member);
        token[member] = json!(value);
        let mut browser = Browser::connect(running.site(), &seal(&token)).await.unwrap();
        browser.read::<12>().await;
        browser.send(b"RFB 003.008\n").await;
        assert_eq!(browser.end().await.0, 4004, "{member}");
    }
}

#[tokio::test]
async fn idle_is_who_does_not_type_however_much_the_screen_moves() {
    let mut host = FakeHost::listen().await;
    let running = Running::serving("console.idle_timeout = \"2s\"").await;
    let mut browser = open(&running, &host, "s1").await;
    let mut near = host.next().await;
    let blinking = tokio::spawn(async move {
        while near.write_all(b"\x02").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(500)).await; // longer than the limit, together
        browser.send(&[5, 0, 0, 1, 0, 1]).await;
    }
    let typed = tokio::time::Instant::now();
    browser.send(&[3, 1, 0, 0, 0, 0, 0, 1, 0, 1]).await; // the page, not the person
    assert_eq!(browser.end().await, (4002, "idle timeout".into()));
    let idle = typed.elapsed();
    assert!((1900..4000).contains(&idle.as_millis()), "{idle:?}");
    blinking.await.unwrap();
}

#[tokio::test]
async fn there_may_be_a_limit_of_sessions_and_of_their_time() {
    let host = FakeHost::listen().await;
    let running = Running::serving("console.max_sessions = 1\nconsole.max_session = \"2s\"").await;
    let mut browser = open(&running, &host, "s1").await;
    running.allow("s2").await;
    let token = seal(&content(host.address.port(), "s2"));
    let mut second = Browser::connect(running.site(), &token).await.unwrap();
    assert_eq!(second.end().await, (4006, "session limit".into()));
    assert_eq!(browser.end().await.0, 4002);
    until("there is room again", || running.proxy.sessions.count() == 0).await;
    let mut third = Browser::connect(running.site(), &token).await.unwrap(); // a session without a place is not used up
    third.open().await;
}

#[tokio::test]
async fn what_no_browser_sends_ends_the_session_with_a_code() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let mut browser = open(&running, &host, "text").await;
    browser.socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(browser.end().await, (4007, "protocol error".into()));
    let mut browser = open(&running, &host, "clipboard").await;
    browser.send(&[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]).await;
    assert_eq!(browser.end().await.0, 4007);
    let mut browser = open(&running, &host, "frame").await;
    // Unmasked, below the client library.
    browser.socket.get_mut().write_all(&[0x82, 1, 0]).await.unwrap();
    assert_eq!(browser.end().await.0, 1002);
    let mut browser = open(&running, &host, "long").await;
    browser
        .socket
        .get_mut()
        .write_all(&[0x82, 0xff, 0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4])
        .await
        .unwrap();
    assert_eq!(browser.end().await.0, 1009);

    running.allow("version").await;
    let mut browser = Browser::connect(running.site(), &seal(&content(host.address.port(), "version")))
        .await
        .unwrap();
    browser.send(b"GET / HTTP/1").await;
    assert_eq!(browser.end().await.0, 4007);
}

#[tokio::test]
async fn old_rfb_versions_of_browsers_are_spoken() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    for (line, has_types) in [(b"RFB 003.003\n", false), (b"RFB 003.007\n", true)] {
        let session = String::from_utf8_lossy(line).trim().to_owned();
        running.allow(&session).await;
        let token = seal(&content(host.address.port(), &session));
        let mut browser = Browser::connect(running.site(), &token).await.unwrap();
        browser.read::<12>().await;
        browser.send(line).await;
        if has_types {
            assert_eq!(browser.read().await, [1, 1]);
            browser.send(&[1]).await;
        } else {
            assert_eq!(browser.read().await, [0, 0, 0, 1]);
        }
        browser.send(&[1]).await;
        assert_eq!(browser.read::<24>().await[..4], [2, 0x80, 1, 0xe0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_reads_nothing_stops_its_host_and_loses_nothing() {
    const OFFERED: usize = 120 << 20;
    let mut host = FakeHost::listen().await;
    let running = Running::serving("").await;
    running.allow("slow").await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let stream = socket.connect(running.site()).await.unwrap();
    let path = format!("/?token={}", seal(&content(host.address.port(), "slow")));
    let mut browser = Browser::over(stream, "ws", &path, &[]).await.unwrap();
    browser.open().await;
    let mut near = host.next().await;
    let (progress, seen) = tokio::sync::watch::channel(0);
    let offering = tokio::spawn(async move {
        let mut chunk = vec![0; 64 << 10];
        for at in 0..OFFERED / chunk.len() {
            chunk.fill(u8::try_from(at % 251).unwrap());
            near.write_all(&chunk).await.unwrap();
            progress.send_replace(at * chunk.len());
        }
        near
    });
    // It comes to a stop: what the sockets of both legs hold, and little of ours.
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = *seen.borrow();
        if now == last {
            break;
        }
        last = now;
    }
    assert!(
        last < OFFERED / 4,
        "{last} bytes were taken for a browser that reads nothing"
    );
    // Others go on.
    let mut other = content(host.address.port(), "other");
    other["clientTag"] = json!("another VM");
    running.allow("other").await;
    let mut quick = Browser::connect(running.site(), &seal(&other)).await.unwrap();
    timeout(Duration::from_secs(5), quick.open()).await.unwrap();
    // And all of it arrives in the end.
    for at in 0..OFFERED / (64 << 10) {
        let chunk = browser.read_vec(64 << 10).await;
        assert!(
            chunk.iter().all(|byte| usize::from(*byte) == at % 251),
            "chunk {at} is damaged"
        );
    }
    offering.await.unwrap();
}

#[tokio::test]
async fn a_host_that_stalls_in_the_handshake_is_given_up_and_costs_nothing_meanwhile() {
    let stalling = FakeHost::saying(|mut stream| async move {
        stream.write_all(b"RFB 003.008\n").await.ok()?;
        Some(stream) // and not another word
    });
    let stalling = stalling.await;
    let running = Running::serving("").await;
    running.allow("s1").await;
    let mut browser = Browser::connect(running.site(), &seal(&content(stalling.address.port(), "s1")))
        .await
        .unwrap();
    let started = tokio::time::Instant::now();
    let cpu = cpu_ticks();
    browser.read::<12>().await;
    browser.send(b"RFB 003.008\n").await;
    assert_eq!(browser.end().await.0, 4004);
    let elapsed = started.elapsed();
    assert!((19..25).contains(&elapsed.as_secs()), "{elapsed:?}");
    // Less than one percent: a busy wait would be 2000 ticks.
    assert!(cpu_ticks() - cpu < 20, "{}", cpu_ticks() - cpu);
    until("it is forgotten", || running.proxy.sessions.count() == 0).await;
}

/// Processor time of this thread, in ticks of 10 ms: the runtime of this test has no other.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn half_open_requests_do_not_keep_others_out() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let mut half_open = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(running.site()).await.unwrap();
        stream.write_all(b"GET /?token=").await.unwrap();
        half_open.push(stream);
    }
    let started = tokio::time::Instant::now();
    open(&running, &host, "s1").await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    is_closed(&mut half_open[0]).await; // after ten seconds
    let (status, ..) = get(running.site(), "/", &format!("X: {}\r\n", "x".repeat(20 << 10))).await;
    assert_eq!(status, 431);
}

#[tokio::test]
async fn a_program_that_ends_says_goodbye_and_reports_it() {
    let host = FakeHost::listen().await;
    let running = Running::serving("").await;
    let mut browser = open(&running, &host, "s1").await;
    let (end, ()) = tokio::join!(browser.end(), running.proxy.drain());
    assert_eq!(end, (1001, "proxy shutting down".into()));
    assert_eq!(running.ms.removed(), ["s1"]);
    assert!(TcpStream::connect(running.address(Shows::Site)).await.is_err());
}
