//! Downloads through a real proxy, tinyproxy.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use platform::exec::{Cmd, Running};
use platform::files;
use protocol::secondary_storage::{DownloadCommand, DownloadStatus, Proxy};
use protocol::secret::Secret;
use protocol::transfer::ImageFormat;

use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, STORE, template};
use crate::tls::Authority;

const PASSWORD: &str = "only-for-the-proxy";

struct Tinyproxy {
    port: u16,
    log: PathBuf,
    _running: Running,
}

impl Tinyproxy {
    async fn start(directory: &Path) -> Self {
        let port = free_port();
        let log = directory.join("tinyproxy.log");
        let settings = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 60\nLogLevel Connect\nLogFile {log:?}\nBasicAuth cloud {PASSWORD}\n"
        );
        let file = directory.join("tinyproxy.conf");
        let _ = files::replace(&file, settings, 0o600).unwrap();
        let running = Cmd::new("tinyproxy")
            .args(["-d", "-c"])
            .arg(file)
            .spawn(directory.join("tinyproxy.out"))
            .unwrap();
        let started = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "tinyproxy does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Self {
            port,
            log,
            _running: running,
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn through(port: u16, password: Option<&str>, url: &str) -> DownloadCommand {
    DownloadCommand {
        proxy: Some(Proxy {
            host: Some("localhost".into()),
            port: port.into(),
            user_name: password.map(|_| "cloud".to_owned()),
            password: password.map(|password| Secret::new(password.to_owned())),
        }),
        ..template(url, ImageFormat::Raw)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_asked_and_resumed_through_by_http_and_by_https() {
    platform::crypto::install();
    let ours = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let _ = files::replace(&ca, ours.issuer.pem(), 0o644).unwrap();
    let proxy = Tinyproxy::start(directory.path()).await;
    let machine = Machine::start_with(&format!("extra_ca_files = [{ca:?}]")).await;
    machine.controller.set_up(STORE, &["127.0.0.1/32", "::1/128"]).await;
    let plain = Source::start().await;
    let secure = Source::start_tls(ours.server("localhost", 2100)).await;
    let body = noise(3 << 20);
    for source in [&plain, &secure] {
        let cut = File {
            cuts: vec![1 << 20],
            ..File::new(body.clone())
        };
        source.put("/a.raw", cut);
    }

    let command = through(proxy.port, Some(PASSWORD), &plain.url("/a.raw"));
    let answer = machine.download(&command).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == body);
    assert_eq!(plain.asked().len(), 2);
    for asked in plain.asked() {
        assert!(asked.headers["via"].contains("tinyproxy"), "{asked:?}");
        assert!(!asked.headers.contains_key("proxy-authorization"), "{asked:?}");
    }

    let url = format!("https://localhost:{}/a.raw", secure.port);
    let answer = machine.download(&through(proxy.port, Some(PASSWORD), &url)).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == body);
    let tunnel = format!("CONNECT localhost:{} HTTP/1.1", secure.port);
    assert!(proxy.log().contains(&tunnel), "{}", proxy.log());
    assert_eq!(secure.asked()[1].headers["range"], "bytes=1048576-");
    assert!(!machine.log().contains(PASSWORD));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_proxy_is_told_as_such() {
    let directory = tempfile::tempdir().unwrap();
    let proxy = Tinyproxy::start(directory.path()).await;
    let machine = Machine::start().await;
    let source = Source::start().await;
    source.put("/a.raw", File::new(noise(1 << 20)));
    let (closed, elsewhere) = (free_port(), free_port());
    let plain = source.url("/a.raw");
    let secure = format!("https://127.0.0.1:{}/a.raw", source.port);
    let (right, wrong) = (Some(PASSWORD), Some("wrong"));
    let nobody_listens = format!("https://127.0.0.1:{elsewhere}/a.raw");
    let cases = [
        (
            proxy.port,
            None,
            &plain,
            "it answered 407 Proxy Authentication Required",
        ),
        (
            proxy.port,
            None,
            &secure,
            "it answered 407 Proxy Authentication Required",
        ),
        (proxy.port, wrong, &secure, "it answered 401 Unauthorized"), // tinyproxy says so, where others say 407
        (closed, right, &plain, "Connection refused"),
        (closed, right, &secure, "Connection refused"),
        (proxy.port, right, &nobody_listens, "it answered 5"),
    ];
    for (port, password, url, why) in cases {
        let text = machine.refusal(&through(port, password, url)).await;
        let start = format!("the proxy localhost:{port} does not lead to {url}: {why}");
        assert!(text.starts_with(&start), "{text}\n{}", proxy.log());
        assert!(text.ends_with("check the setting secstorage.proxy"), "{text}");
    }
    // What a user must not reach directly is not reached through the proxy either.
    let inside = through(proxy.port, Some(PASSWORD), "http://169.254.169.254/a.raw");
    let text = machine.refusal(&inside).await;
    assert!(text.starts_with("Illegal host specified in URL."), "{text}");
    assert!(source.asked().is_empty());
}
