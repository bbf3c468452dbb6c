//! Real hosts: QEMU with every way to log in that a console proxy meets.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::client::Browser;
use crate::proxy::{Running, write};
use crate::qemu::Qemu;
use crate::token::{PASSWORD, content, seal};

/// What the management server sends along is longer than what VNC compares.
const SECRET: &str = "secret,id=vnc,file={dir}/password";

fn password(word: &'static str) -> impl FnOnce(&Path) {
    move |directory| write(&directory.join("password"), word)
}

async fn connect(running: &Running, port: u16, session: &str) -> Browser {
    running.allow(session).await;
    Browser::connect(running.site(), &seal(&content(port, session)))
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_browser_sees_the_screen_pixel_by_pixel() {
    let mut qemu = Qemu::start("", &[], |_| {}).await;
    qemu.settle().await;
    let (width, height, wanted) = qemu.screen().await;
    let running = Running::serving("").await;
    let mut browser = connect(&running, qemu.port, "s1").await;
    assert_eq!(browser.open().await, (width, height, "web-01 ".to_owned()));
    assert!(browser.screen(width, height).await == wanted, "the pixels differ");
    let asked = running.ms.asked();
    let access = &asked[0];
    assert_eq!(
        (access.host.as_deref(), access.port.as_deref()),
        (Some("127.0.0.1"), Some(qemu.port.to_string().as_str()))
    );
    assert_eq!(
        (access.session_uuid.as_deref(), access.client_address.as_deref()),
        (Some("s1"), Some("127.0.0.1"))
    );
    assert_eq!(access.sid.as_ref().unwrap().expose(), PASSWORD);
    assert!(!access.is_reauthenticating && asked.len() == 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_a_password_is_logged_in_to_and_the_browser_is_asked_for_none() {
    let qemu = Qemu::start(",password-secret=vnc", &[SECRET], password(PASSWORD)).await;
    let running = Running::serving("").await;
    let mut browser = connect(&running, qemu.port, "s1").await;
    assert_eq!(browser.open().await.2, "web-01 ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_another_password_ends_it_and_says_so() {
    let qemu = Qemu::start(",password-secret=vnc", &[SECRET], password("another")).await;
    let running = Running::serving("").await;
    let mut browser = connect(&running, qemu.port, "s1").await;
    assert_eq!(&browser.read::<12>().await, b"RFB 003.008\n");
    browser.send(b"RFB 003.008\n").await;
    assert_eq!(browser.end().await, (4005, "host refused password".into()));
    // A viewer that knows none of our codes shows the sentence.
    assert_eq!(browser.unread(), b"\0\0\0\0\x15host refused password");
    assert!(
        running
            .proxy
            .metrics
            .text()
            .contains("end=\"host_refused_password\"} 1")
    );
}

/// A CA, a host's and a client's certificate, in files with the names that QEMU and the agent look for.
fn certificates(host: &Path, agent: &Path) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let sign = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()])
            .unwrap()
            .signed_by(&key, &ca)
            .unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = sign("kvm-01.example.com"); // not the address that is connected to
    write(&host.join("ca-cert.pem"), &ca.pem());
    write(&host.join("server-cert.pem"), &certificate);
    write(&host.join("server-key.pem"), &key);
    let (certificate, key) = sign("v-2-VM");
    write(&agent.join("cloud.ca.crt"), &ca.pem());
    write(&agent.join("cloud.crt"), &certificate);
    write(&agent.join("cloud.key"), &key);
}

const X509: &str = "tls-creds-x509,id=tls,dir={dir},endpoint=server,verify-peer=on";

#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_tls_gets_our_certificate_and_the_page_can_tell() {
    let running = Running::serving("").await;
    let agent = running.files.path().join("state");
    let with_password = Qemu::start(",tls-creds=tls,password-secret=vnc", &[X509, SECRET], |directory| {
        certificates(directory, &agent);
        password(PASSWORD)(directory);
    });
    let with_password = with_password.await;
    let mut browser = connect(&running, with_password.port, "s1").await;
    assert_eq!(browser.open().await.2, "web-01 (TLS backend)");
    drop(browser);

    let mut without = Qemu::start(",tls-creds=tls", &[X509], |directory| certificates(directory, &agent)).await;
    without.settle().await;
    let mut browser = connect(&running, without.port, "s2").await;
    let (width, height, name) = browser.open().await;
    assert_eq!(name, "web-01 (TLS backend)");
    assert_eq!(
        browser.screen(width, height).await.len(),
        usize::from(width) * usize::from(height) * 3
    );
}

/// Checks what a XenServer checks, and leads to a console.
async fn fake_xen(console: u16) -> SocketAddr {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["xen-01".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let tls = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let wanted =
                "CONNECT /console?uuid=2c3a HTTP/1.0\r\nHost: 127.0.0.1\r\nCookie: session_id=OpaqueRef:1\r\n\r\n";
            let is_right = String::from_utf8(head).unwrap() == wanted;
            let status = if is_right { "200 OK" } else { "401 Unauthorized" };
            stream
                .write_all(format!("HTTP/1.1 {status}\r\nServer: xapi\r\n\r\n").as_bytes())
                .await
                .unwrap();
            if is_right {
                let mut console = TcpStream::connect(("127.0.0.1", console)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut console).await;
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_behind_a_xenservers_tunnel_is_logged_in_to_by_rfb_3_3() {
    let mut qemu = Qemu::start(",password-secret=vnc", &[SECRET], password(PASSWORD)).await;
    qemu.settle().await;
    let xen = fake_xen(qemu.port).await;
    let running = Running::serving("").await;
    let open = async |session: &str, cookie: &str| {
        running.allow(session).await;
        let mut token = content(1, session);
        token["clientHostPort"] = json!(-1);
        token["clientTunnelUrl"] = json!(format!("https://{xen}/console?uuid=2c3a"));
        token["clientTunnelSession"] = json!(cookie);
        Browser::connect(running.site(), &seal(&token)).await.unwrap()
    };
    let mut browser = open("s1", "OpaqueRef:1").await;
    let (width, height, name) = browser.open().await;
    assert_eq!(name, "web-01 (TLS backend)");
    browser.screen(width, height).await;
    assert_eq!(running.ms.asked()[0].port.as_deref(), Some("-1"));
    let mut browser = open("s2", "OpaqueRef:another").await;
    browser.read::<12>().await;
    browser.send(b"RFB 003.008\n").await;
    assert_eq!(browser.end().await.0, 4004);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_does_not_know_our_certificate_or_that_we_do_not_know_is_not_shown() {
    let running = Running::serving("").await;
    let (agent, other) = (running.files.path().join("state"), running.files.path().join("other"));
    let qemu = Qemu::start(",tls-creds=tls", &[X509], |directory| certificates(directory, &other)).await;
    let refused = async |session: &str| {
        let mut browser = connect(&running, qemu.port, session).await;
        browser.read::<12>().await;
        browser.send(b"RFB 003.008\n").await;
        assert_eq!(browser.end().await.0, 4004, "{session}");
    };
    refused("without-any-ca").await;
    let strangers = tempfile::tempdir().unwrap();
    certificates(strangers.path(), &agent);
    refused("another-ca").await;
    // The right CA, and no certificate of ours.
    write(
        &agent.join("cloud.ca.crt"),
        &std::fs::read_to_string(other.join("cloud.ca.crt")).unwrap(),
    );
    for file in ["cloud.crt", "cloud.key"] {
        std::fs::remove_file(agent.join(file)).unwrap();
    }
    refused("no-certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_tls_and_no_tls_where_it_is_required_are_refused() {
    let running = Running::serving("console.vnc_tls = \"require\"").await;
    let plain = Qemu::start("", &[], |_| {}).await;
    let anonymous = Qemu::start(",tls-creds=tls", &["tls-creds-anon,id=tls,endpoint=server"], |_| {}).await;
    for (port, session) in [(plain.port, "plain"), (anonymous.port, "anonymous")] {
        let mut browser = connect(&running, port, session).await;
        browser.read::<12>().await;
        browser.send(b"RFB 003.008\n").await;
        assert_eq!(browser.end().await.0, 4004, "{session}");
    }
}
