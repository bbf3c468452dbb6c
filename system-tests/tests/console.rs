//! What an open console survives, what ends it, and who never gets one.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use futures_util::StreamExt;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::{digest, hmac};
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use system_tests::browser::Browser;
use system_tests::console::{LIMIT, same_picture, status};
use system_tests::page;
use system_tests::up::UpZone;
use system_tests::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Seconds; a ticket is good in the minute it was made for and in the next.
const MINUTE: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_console_goes_on_while_the_management_server_is_killed_and_restarted() {
    let zone = UpZone::new();
    zone.start().await;
    let mut monitor = zone.monitor().await;
    let browser = Browser::start().await.unwrap();
    let password = zone.state()["password"].as_str().unwrap().to_owned();
    let management = page::logged_in(&browser, zone.http(), &password).await.unwrap();
    page::open_view(&management, "systemvms").await.unwrap();
    let console = browser.open(&zone.console_url().await).await.unwrap();
    status(&console, "Connected").await;
    let idle = same_picture(&console, &mut monitor, None).await;
    zone.consoles_are(1).await;

    zone.kill("mgmt-stub").await;
    management.wait_for_text("Reconnecting…", LIMIT).await.unwrap();
    console.type_text("echo nobody manages me").await.unwrap();
    console.press("Enter").await.unwrap();
    let typed = same_picture(&console, &mut monitor, Some(&idle)).await;
    status(&console, "Connected").await;
    console.screenshot("console-without-server").await.unwrap();

    let printed = zone.start().await;
    assert!(printed.contains("Running, agent Up"), "{printed}");
    management.wait_for_text("Live", LIMIT).await.unwrap();
    zone.consoles_are(1).await;
    console.type_text("echo somebody does again").await.unwrap();
    console.press("Enter").await.unwrap();
    same_picture(&console, &mut monitor, Some(&typed)).await;
    status(&console, "Connected").await;
    console.check_clean().unwrap();
    management.check_clean().unwrap();

    // The count is not just remembered: the proxy reports the end of a session from before the restart.
    console.close().await.unwrap();
    zone.consoles_are(0).await;

    // Killed programs: the page says what happened, and the next console works.
    let console = browser.open(&zone.console_url().await).await.unwrap();
    status(&console, "Connected").await;
    zone.kill("console-proxy").await;
    console.wait_for_text("The connection was lost", LIMIT).await.unwrap();
    console.screenshot("console-proxy-killed").await.unwrap();
    zone.consoles_are(0).await;
    let console = browser.open(&zone.console_url().await).await.unwrap();
    status(&console, "Connected").await;
    zone.kill("qemu-system-x86_64").await;
    console
        .wait_for_text("The machine closed its console", LIMIT)
        .await
        .unwrap();
    zone.down().await;
    assert_eq!(zone.processes(), []);
}

/// How a try to open a console ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The screen's first message came.
    Screen,
    /// No WebSocket: status, headers (but for the date) and body, all of it.
    Refused(u16, BTreeMap<String, String>, String),
    /// A WebSocket, then this close code and reason.
    Closed(u16, String),
}

type Socket = WebSocketStream<TcpStream>;

async fn connect(console: SocketAddr, token: &str) -> Result<Socket, Outcome> {
    let stream = TcpStream::connect(console).await.unwrap();
    let token = token.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let url = format!("ws://{console}/websockify?token={token}");
    match timeout(LIMIT, client_async(url, stream)).await.unwrap() {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(response)) => {
            let headers = response.headers().iter().filter(|(name, _)| *name != "date");
            let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
            let body = String::from_utf8(response.body().clone().unwrap_or_default()).unwrap();
            Err(Outcome::Refused(response.status().as_u16(), headers.collect(), body))
        }
        Err(error) => panic!("{error}"),
    }
}

/// Tries a token, and hangs up.
async fn attempt(console: SocketAddr, token: &str) -> Outcome {
    let mut socket = match connect(console, token).await {
        Ok(socket) => socket,
        Err(refused) => return refused,
    };
    loop {
        match timeout(LIMIT, socket.next()).await.unwrap() {
            Some(Ok(Message::Binary(bytes))) => {
                assert!(bytes.starts_with(b"RFB "), "{bytes:?}");
                return Outcome::Screen;
            }
            Some(Ok(Message::Close(Some(frame)))) => {
                return Outcome::Closed(frame.code.into(), frame.reason.to_string());
            }
            Some(Ok(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The secrets of a zone, as its server keeps them.
struct Keys {
    seal: LessSafeKey,
    additional: Vec<u8>,
    sign: hmac::Key,
}

impl Keys {
    /// Reads them beside the running server, which makes them for its first console.
    fn of(data_dir: &Path) -> Self {
        let file = data_dir.join("mgmt-stub.sqlite3");
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let setting = |name: &str| -> String {
            let sql = "SELECT value FROM setting WHERE name = ?";
            database.query_row(sql, [name], |row| row.get(0)).unwrap()
        };
        let key = BASE64_URL_SAFE_NO_PAD
            .decode(setting("security.encryption.key"))
            .unwrap();
        let key = digest::digest(&digest::SHA256, &key);
        Self {
            seal: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_ref()).unwrap()),
            additional: BASE64_URL_SAFE_NO_PAD
                .decode(setting("security.encryption.iv"))
                .unwrap(),
            sign: hmac::Key::new(hmac::HMAC_SHA512, setting("security.hash.key").as_bytes()),
        }
    }

    fn open(&self, token: &str) -> Value {
        let mut sealed = BASE64_STANDARD.decode(token).unwrap();
        let (nonce, content) = sealed.split_at_mut(12);
        let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
        let opened = self
            .seal
            .open_in_place(nonce, Aad::from(&self.additional), content)
            .unwrap();
        serde_json::from_slice(opened).unwrap()
    }

    /// `number` makes the nonce: each only once.
    fn seal(&self, content: &Value, number: u8) -> String {
        let nonce = [number; 12];
        let mut sealed = serde_json::to_vec(content).unwrap();
        let additional = Aad::from(&self.additional);
        self.seal
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), additional, &mut sealed)
            .unwrap();
        BASE64_STANDARD.encode([&nonce[..], &sealed].concat())
    }

    /// The ticket that the server would have made at `now`.
    fn ticket(&self, content: &Value, now: SystemTime) -> String {
        let text = |member: &str| content[member].as_str().unwrap();
        let minute = now.duration_since(UNIX_EPOCH).unwrap().as_secs() / MINUTE;
        let message = format!(
            "host={}&port={}&sid={}&tag={}&session={}{minute}",
            text("clientHostAddress"),
            content["clientHostPort"],
            text("clientHostPassword"),
            text("clientTag"),
            text("sessionUuid"),
        );
        BASE64_STANDARD.encode(hmac::sign(&self.sign, message.as_bytes()))
    }
}

/// The token in a console's URL, no longer escaped.
fn token_of(url: &str) -> String {
    let token = url.split_once("token=").unwrap().1.split('&').next().unwrap();
    token.replace("%2B", "+").replace("%2F", "/").replace("%3D", "=")
}

/// A real token of another zone, whose machine nobody has to reach.
async fn foreign_token() -> String {
    let zone = Zone::start().await;
    let id = zone.id().await;
    let parameters = [
        ("zoneid", id.as_str()),
        ("name", "foreign"),
        ("vncaddress", "127.0.0.1"),
        ("vncport", "5900"),
    ];
    let vm = zone.api("registerExternalVirtualMachine", &parameters).await.unwrap();
    let id = vm["virtualmachine"]["id"].as_str().unwrap();
    let endpoint = zone
        .api("createConsoleEndpoint", &[("virtualmachineid", id)])
        .await
        .unwrap();
    token_of(endpoint["consoleendpoint"]["url"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_good_token_is_refused_without_a_hint_and_the_vnc_password_is_nowhere() {
    let zone = UpZone::new();
    let (printed, foreign) = tokio::join!(zone.start(), foreign_token());
    let site = zone.console();
    let noise = attempt(site, "").await;
    let Outcome::Refused(status, headers, body) = &noise else {
        panic!("{noise:?}");
    };
    assert_eq!((*status, body.as_str()), (403, "forbidden\n"), "{headers:?}");

    // Before the WebSocket is opened: all refusals are the same to the last byte.
    let good = token_of(&zone.console_url().await);
    let keys = Keys::of(&zone.path().join("data"));
    let mut flipped = BASE64_STANDARD.decode(&good).unwrap();
    *flipped.last_mut().unwrap() ^= 1;
    let content = keys.open(&good);
    let mut unknown = content.clone();
    unknown["sessionUuid"] = "0f0e0d0c-0b0a-4908-8706-050403020100".into();
    let mut nameless = content.clone();
    nameless.as_object_mut().unwrap().remove("sessionUuid");
    let refused = [
        ("nonsense", "AAAA".to_owned()),
        ("half", good[..good.len() / 2].to_owned()),
        ("one bit", BASE64_STANDARD.encode(flipped)),
        ("foreign zone", foreign),
        ("unknown session", keys.seal(&unknown, 1)),
        ("no session", keys.seal(&nameless, 2)),
    ];
    for (what, token) in refused {
        assert_eq!(attempt(site, &token).await, noise, "{what}");
    }
    // None of that has used up the good one; then it is used up.
    assert_eq!(attempt(site, &good).await, Outcome::Screen);
    assert_eq!(attempt(site, &good).await, noise, "replayed");
    assert_eq!(
        attempt(site, &keys.seal(&content, 3)).await,
        noise,
        "replayed in another wrapping"
    );

    // What only the management server can see: right in everything but the time, or the machine's address.
    let not_authorised = Outcome::Closed(1008, "not authorised".into());
    let now = SystemTime::now();
    let mut expired = keys.open(&token_of(&zone.console_url().await));
    expired["ticket"] = keys.ticket(&expired, now - Duration::from_secs(2 * MINUTE)).into();
    let expired = keys.seal(&expired, 4);
    assert_eq!(attempt(site, &expired).await, not_authorised, "expired");
    assert_eq!(attempt(site, &expired).await, noise, "expired, again");
    let mut led_astray = keys.open(&token_of(&zone.console_url().await));
    led_astray["clientHostPort"] = 1.into();
    assert_eq!(attempt(site, &keys.seal(&led_astray, 5)).await, not_authorised, "port");
    // The test signs and seals as the server does: with the time of now its own token is good.
    let mut ours = keys.open(&token_of(&zone.console_url().await));
    ours["ticket"] = keys.ticket(&ours, SystemTime::now()).into();
    assert_eq!(attempt(site, &keys.seal(&ours, 6)).await, Outcome::Screen, "signed now");

    let secret = content["clientHostPassword"].as_str().unwrap().to_owned();
    let stored = fs::read_to_string(zone.path().join("guest/vnc-password")).unwrap();
    assert_eq!(stored.trim(), secret, "it is looked for what there is");
    assert!(secret.len() >= 8, "short ones are found by chance");
    nowhere(&zone, &secret, &printed).await;
}

/// Looks for the secret where it must not be: logs, process table, answers, pages.
async fn nowhere(zone: &UpZone, secret: &str, printed: &str) {
    let mut places = vec![("what `up` printed".to_owned(), printed.as_bytes().to_vec())];
    let mut files = Vec::new();
    walk(zone.path(), &mut files);
    let is_kept_in = |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("mgmt-stub.sqlite3") || name == "vnc-password"
    };
    // Images are large, and written by others.
    let looked_at = files
        .iter()
        .filter(|path| !is_kept_in(path) && !path.starts_with(zone.path().join("store")));
    places.extend(looked_at.map(|path| (path.display().to_string(), fs::read(path).unwrap_or_default())));
    let logs = places.iter().filter(|(place, _)| place.ends_with("log")).count();
    assert!(logs >= 4, "logs of server, two system VMs and guest: {files:?}");

    for (pid, line) in zone.processes() {
        places.push((format!("ps, process {pid}"), line.into_bytes()));
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        places.push((format!("environment of {pid}"), environment));
    }
    for command in [
        "listVirtualMachines",
        "listSystemVms",
        "listHosts",
        "listEvents",
        "listAlerts",
        "listConfigurations",
        "listZones",
        "listAsyncJobs",
        "listApis",
        "createConsoleEndpoint",
    ] {
        let id = format!(
            "virtualmachineid={}",
            zone.state()["guest"]["id"].as_str().unwrap_or_default()
        );
        let parameters: &[&str] = match command {
            "createConsoleEndpoint" => &[&id],
            "listApis" | "listZones" | "listConfigurations" => &[],
            _ => &["listall=true"],
        };
        let answer = zone.api(command, parameters).await.unwrap();
        places.push((command.to_owned(), answer.to_string().into_bytes()));
    }
    for (address, path) in [
        (zone.http(), "/client/"),
        (zone.http(), "/client/live"),
        (zone.http(), "/metrics"),
        (zone.console(), "/resource/noVNC/vnc.html"),
    ] {
        places.push((format!("{address}{path}"), get(address, path).await));
    }
    // As the administrator's browser is shown it.
    let browser = Browser::start().await.unwrap();
    let password = zone.state()["password"].as_str().unwrap().to_owned();
    let page = page::logged_in(&browser, zone.http(), &password).await.unwrap();
    for view in ["overview", "systemvms", "templates", "instances", "events"] {
        page::open_view(&page, view).await.unwrap();
        let html = page.evaluate("document.documentElement.outerHTML").await.unwrap();
        places.push((format!("view {view}"), html.to_string().into_bytes()));
    }
    let console = browser.open(&zone.console_url().await).await.unwrap();
    status(&console, "Connected").await;
    let html = console.evaluate("document.documentElement.outerHTML").await.unwrap();
    places.push(("console page".into(), html.to_string().into_bytes()));

    let encoded = BASE64_STANDARD.encode(secret);
    for (place, bytes) in &places {
        for form in [secret, encoded.trim_end_matches('=')] {
            let is_there = bytes.windows(form.len()).any(|window| window == form.as_bytes());
            assert!(!is_there, "the VNC password is in {place}");
        }
    }
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            walk(&entry.path(), found);
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
}

/// All that the server sends to a plain GET.
async fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(LIMIT, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 "), "{path}");
    answer
}
