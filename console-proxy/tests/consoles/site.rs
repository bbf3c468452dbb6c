//! Page, redirects, certificates (§5, §9, §12).

use std::sync::Arc;

use console_proxy::proxy::Shows;
use platform::exec::Cmd;
use protocol::console_proxy::StartConsoleProxyAgentHttpHandlerCommand;
use protocol::secret::Secret;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::client::{Browser, get, request};
use crate::fake_host::FakeHost;
use crate::proxy::{Running, start, until};
use crate::token::{content, seal};

const JKS: &[u8] = include_bytes!("../vectors/cpvm.jks");
const JKS_PASSWORD: &str = "q83vASNFZ4mrze8BI0VniQ==";
const ROOT: &[u8] = include_bytes!("../vectors/root.pem");

#[tokio::test]
async fn the_page_comes_with_everything_it_needs_and_safe_headers() {
    let running = Running::serving("console.frame_ancestors = \"'self'\"").await;
    let page = async |path: &str, headers: &str| get(running.site(), path, headers).await;
    let (status, head, body) = page("/resource/noVNC/vnc.html?autoconnect=true&token=x", "").await;
    assert_eq!(status, 200);
    assert!(body.starts_with(b"<!doctype html>") || body.starts_with(b"<!DOCTYPE html>"));
    for line in [
        "content-type: text/html; charset=utf-8",
        "cache-control: no-cache",
        "referrer-policy: no-referrer",
        "x-content-type-options: nosniff",
        "frame-ancestors 'self'",
    ] {
        assert!(head.contains(line), "{line} is missing in {head}");
    }
    let etag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let (status, _, body) = page("/resource/noVNC/vnc.html", &format!("If-None-Match: {etag}\r\n")).await;
    assert_eq!((status, body.len()), (304, 0));
    let (status, head, _) = page("/resource/noVNC/core/rfb.js", "").await;
    assert!(
        status == 200 && head.contains("content-type: text/javascript"),
        "{head}"
    );
    let (status, _, body) = page("/resource/noVNC/LICENSE.txt", "").await;
    assert_eq!((status, body.as_slice()), (200, b"MPL-2.0".as_slice()));
    for absent in [
        "/",
        "/getscreen",
        "/resource/noVNC/",
        "/resource/noVNC/../../etc/passwd",
        "/resource/noVNC/core/..%2f..%2fsettings.toml",
        "/metrics",
        "/cmd/getstatus",
    ] {
        assert_eq!(page(absent, "").await.0, 404, "{absent}");
    }
}

#[tokio::test]
async fn old_addresses_lead_to_the_page() {
    let running = Running::serving("").await;
    let token = seal(&content(5900, "s1"));
    let (status, head, _) = get(
        running.site(),
        &format!("/ajax?token={token}&extra=a+b&guest=windows"),
        "",
    )
    .await;
    assert_eq!(status, 302);
    let location = head.lines().find_map(|line| line.strip_prefix("location: ")).unwrap();
    let port = running.proxy.console_port(false);
    let others = format!("token={}&extra=a+b&guest=windows", token.to_lowercase());
    assert_eq!(
        location,
        format!("/resource/novnc/vnc.html?autoconnect=true&port={port}&{others}")
    );
    let (status, head, body) = get(running.site(), &format!("/ajaximg?token={token}&w=80&h=60&key=0"), "").await;
    assert!(
        status == 200 && head.contains("content-type: image/jpeg") && head.contains("no-store"),
        "{head}"
    );
    assert!(body.starts_with(&[0xff, 0xd8]) && body.ends_with(&[0xff, 0xd9]));
    for path in ["/ajax?token=AAAA", "/ajaximg?w=1&h=1", "/ajax"] {
        assert_eq!(get(running.site(), path, "").await.0, 403, "{path}");
    }
    let no_websocket = "Upgrade: websocket\r\nConnection: upgrade\r\n";
    assert_eq!(
        get(running.site(), &format!("/?token={token}"), no_websocket).await.0,
        400
    );
    let old = "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 8\r\n";
    let (status, head, _) = get(running.site(), "/", old).await;
    assert!(status == 426 && head.contains("sec-websocket-version: 13"), "{head}");
}

#[tokio::test]
async fn operators_find_metrics_and_health_on_their_own_port() {
    let running = Running::serving("").await;
    let commands = running.address(Shows::Commands);
    assert_eq!(get(commands, "/healthz", "").await.2, b"ok\n");
    let (status, _, body) = get(commands, "/metrics", "").await;
    assert!(status == 200 && String::from_utf8(body).unwrap().contains("console_bytes_total"));
    assert_eq!(get(commands, "/resource/noVNC/vnc.html", "").await.0, 404);
}

fn with_key_store(bytes: &[u8], password: &str) -> StartConsoleProxyAgentHttpHandlerCommand {
    StartConsoleProxyAgentHttpHandlerCommand {
        keystore_bits: Some(Secret::new(bytes.to_vec())),
        keystore_password: Some(Secret::new(password.to_owned())),
        ..start()
    }
}

/// The certificate must lead to `root`, by TLS as browsers speak it.
async fn tls(running: &Running, root: &CertificateDer<'_>, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned()).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(running.address(Shows::EncryptedSite)).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

const TLS_LISTENERS: &str = "https = \"127.0.0.1:0\"\nhttp = \"127.0.0.2:0\"";

#[tokio::test]
async fn the_servers_certificate_is_shown_with_its_chain_and_replaced_while_sessions_go_on() {
    let running = Running::with_listeners(TLS_LISTENERS, "");
    running.start().await; // no key store yet
    assert!(
        TcpStream::connect(running.address(Shows::EncryptedSite)).await.is_err(),
        "nothing without a certificate"
    );
    assert!(running.execute(with_key_store(JKS, JKS_PASSWORD)).await.result);
    let root = CertificateDer::from_pem_slice(ROOT).unwrap();
    let mut host = FakeHost::listen().await;
    running.allow("s1").await;
    let stream = tls(&running, &root, "203-0-113-10.console.example.com").await.unwrap();
    assert_eq!(
        stream.get_ref().1.peer_certificates().unwrap().len(),
        2,
        "leaf and intermediate, no root"
    );
    let path = format!("/websockify?token={}", seal(&content(host.address.port(), "s1")));
    let mut browser = Browser::over(stream, "wss", &path, &[]).await.unwrap();
    browser.open().await;

    // A damaged one changes nothing; another one is used at once.
    running.execute(with_key_store(&JKS[..3000], JKS_PASSWORD)).await;
    tls(&running, &root, "203-0-113-10.console.example.com").await.unwrap();
    let (bits, certificate) = keytool().await;
    assert!(running.execute(with_key_store(&bits, "changeit")).await.result);
    let other = CertificateDer::from_pem_slice(&certificate).unwrap();
    until("it is there", || {
        running.proxy.metrics.text().contains("tls_cert_not_after")
    })
    .await;
    let mut stream = None;
    for _ in 0..100 {
        stream = tls(&running, &other, "console.example.net").await.ok();
        if stream.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let (status, ..) = request(stream.expect("the new certificate"), "/resource/noVNC/vnc.html", "").await;
    assert_eq!(status, 200);
    host.next().await.write_all(b"\x02").await.unwrap();
    assert_eq!(browser.read().await, [2], "the session of before goes on");

    let plain = running.address_of(|shows| matches!(shows, Shows::ToHttps(_)));
    let (status, head, _) = get(plain, "/resource/noVNC/vnc.html?token=a+b", "").await;
    assert_eq!(status, 308);
    assert!(
        head.contains("location: https://console.example.com:0/resource/novnc/vnc.html?token=a+b"),
        "{head}"
    );
}

/// A key store as Java itself makes it, and its certificate.
async fn keytool() -> (Vec<u8>, Vec<u8>) {
    let files = tempfile::tempdir().unwrap();
    let store = files.path().join("made.jks");
    let keytool = || {
        Cmd::new("keytool")
            .args(["-storepass", "changeit", "-keystore"])
            .arg(&store)
    };
    let make = keytool().args([
        "-genkeypair",
        "-storetype",
        "JKS",
        "-alias",
        "cpvmcertificate",
        "-keyalg",
        "RSA",
    ]);
    let make = make.args([
        "-keysize",
        "2048",
        "-dname",
        "CN=console.example.net",
        "-keypass",
        "changeit",
    ]);
    make.args(["-ext", "SAN=dns:console.example.net", "-validity", "30"])
        .run()
        .await
        .unwrap();
    let export = keytool()
        .args(["-exportcert", "-rfc", "-alias", "cpvmcertificate"])
        .run()
        .await
        .unwrap();
    (std::fs::read(&store).unwrap(), export.stdout)
}

#[tokio::test]
async fn a_proxy_can_make_its_own_certificate() {
    let running = Running::with_listeners(TLS_LISTENERS, "tls = \"self-signed\"");
    running.start().await;
    let pem = std::fs::read(running.files.path().join("state/browser.crt")).unwrap();
    let own = CertificateDer::from_pem_slice(&pem).unwrap();
    let stream = tls(&running, &own, "localhost").await.unwrap();
    assert_eq!(request(stream, "/resource/noVNC/vnc.html", "").await.0, 200);
}
