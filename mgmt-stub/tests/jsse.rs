//! CloudStack's ends of the agent link are Java: our server and our agent talk to Java's TLS (`java/ChunkPeer.java`).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a helper that fails is a test that fails, and one that cannot run says so"
)]

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent::keystore::KeyStore;
use agent::link::{Link, LinkError};
use agent::trust::{TrustUnknown, client_config};
use mgmt_stub::ca::{Ca, Presented, Request};
use mgmt_stub::client_auth::{self, Expired, Strictness};
use mgmt_stub::hooks::NoInstances;
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::Store;
use platform::duplex::{Duplex, Progress};
use platform::exec::{Cmd, ExecError, Output, Running};
use platform::files;
use protocol::channel::{Channel, Event};
use protocol::packet::Packet;
use rustls::ServerConfig;
use serde_json::Value;
use tempfile::{TempDir, tempdir};
use tokio::net::TcpListener;
use tokio::sync::{OnceCell, oneshot};
use tokio::time::{sleep, timeout};

/// For everything that is waited for. A JVM starts within a second if it is alone.
const LIMIT: Duration = Duration::from_mins(1);

const LOCALHOST: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Around the size of a TLS record, and many of them.
const SIZES: [usize; 4] = [1, 16_384, 16_385, 100_000];

const STOCK_SUBJECT: &str = "CN=ca.cloudstack.apache.org";

/// `None` if there is no such program on this machine, and not all tests are required.
fn unless_missing(result: Result<Output, ExecError>) -> Option<Output> {
    match result {
        Ok(output) => Some(output),
        Err(error @ ExecError::Start { .. }) if env::var_os("REQUIRE_ALL_TESTS").is_none() => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

// ---- Java --------------------------------------------------------------------------------------------------------------

/// Where the compiled class is; `None` without a JDK.
async fn class_path() -> Option<&'static Path> {
    static COMPILED: OnceCell<Option<PathBuf>> = OnceCell::const_new();
    let compile = async || {
        let classes = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jsse");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/java/ChunkPeer.java");
        let javac = Cmd::new("javac").args(["-Xlint:all", "-Werror", "-d"]);
        let compiled = javac.arg(&classes).arg(source).time_limit(LIMIT).run().await;
        unless_missing(compiled).map(|_| classes)
    };
    COMPILED.get_or_init(compile).await.as_deref()
}

/// The program, running.
struct Java {
    running: Running,
    log: PathBuf,
}

impl Java {
    fn start(class_path: &Path, dir: &Path, args: &[&str], script: impl Into<Vec<u8>>) -> Self {
        let log = dir.join("java.log");
        let java = Cmd::new("java").arg("-cp").arg(class_path).arg("ChunkPeer").args(args);
        let running = java.stdin(script).spawn(&log).unwrap();
        Self { running, log }
    }

    /// What it has printed so far: whole lines.
    fn lines(&self) -> Vec<String> {
        let printed = std::fs::read_to_string(&self.log).unwrap();
        let whole = printed.rfind('\n').map_or("", |end| &printed[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits until what it has printed gives a value.
    async fn until<T>(&self, look: impl Fn(&[String]) -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(found) = look(&self.lines()) {
                    return found;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let found = timeout(LIMIT, looking).await;
        found.unwrap_or_else(|_| panic!("Java printed only {:#?}", self.lines()))
    }

    /// Waits for its end, and takes what it printed.
    async fn end(mut self) -> Vec<String> {
        let status = timeout(LIMIT, self.running.wait()).await;
        let lines = self.lines();
        assert!(
            matches!(&status, Ok(Ok(status)) if status.success()),
            "{status:?}: {lines:#?}"
        );
        lines
    }
}

// ---- keys and messages -------------------------------------------------------------------------------------------------

/// A CA like the one that a stock management server makes, given to ours by an administrator: `ca.crt`, `ca.key`.
async fn rsa_4096_ca() -> Option<TempDir> {
    let dir = tempdir().unwrap();
    openssl(
        dir.path(),
        &format!(
            "req -x509 -newkey rsa:4096 -nodes -sha256 -days 30 -subj /{STOCK_SUBJECT} -keyout @ca.key -out @ca.crt \
             -addext keyUsage=critical,keyCertSign,cRLSign"
        ),
    )
    .await?;
    Some(dir)
}

/// Each word is an argument; `@` stands for the directory.
async fn openssl(dir: &Path, line: &str) -> Option<Output> {
    let at = format!("{}/", dir.display());
    let words = line.split_whitespace().map(|word| word.replace('@', &at));
    unless_missing(Cmd::new("openssl").args(words).time_limit(LIMIT).run().await)
}

fn vector(name: &str) -> Value {
    let path = format!(
        "{}/../protocol/tests/vectors/agent-protocol/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .concat()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|two| u8::from_str_radix(str::from_utf8(two).unwrap(), 16).unwrap())
        .collect()
}

/// Messages of [`SIZES`]. No two pieces of them are the same by accident.
fn messages(first_byte: u8) -> Vec<Vec<u8>> {
    let message = |size| (first_byte..=250).cycle().take(size).collect();
    SIZES.into_iter().map(message).collect()
}

fn hex_lines(messages: &[Vec<u8>]) -> Vec<String> {
    messages.iter().map(|message| hex(message)).collect()
}

// ---- Java as the agent -------------------------------------------------------------------------------------------------

/// A Java agent connects, answers what it is asked, and its host is Up.
async fn becomes_ready(class_path: &Path, ca: &Ca, presented: Presented, suite: &str, subject: &str) {
    let dir = tempdir().unwrap();
    let store = Store::open(dir.path().join("data")).unwrap();
    let answer = vector("startup-ssvm-answer.json");
    let fixed = Fixed {
        server_id: Some(answer["header"]["mgmt_id"].as_str().unwrap().parse().unwrap()),
        sequence_base: None,
    };
    let (settings, hooks) = (Settings::default(), Arc::new(NoInstances));
    let server = Server::bind(LOCALHOST, store.clone(), ca.clone(), presented, settings, hooks, fixed);
    let server = server.await.unwrap();
    let port = server.local_addr().unwrap().port().to_string();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async { stopped.await.unwrap_or_default() }));

    let startup = vector("startup-ssvm-request.json")["hex"].as_str().unwrap().to_owned();
    let java = Java::start(class_path, dir.path(), &["agent", "127.0.0.1", &port], startup);
    let is_ready = |lines: &[String]| (classes(lines).last()? == "ReadyCommand" && lines.len() == 7).then_some(());
    java.until(is_ready).await;
    let hosts = store.hosts().await.unwrap();
    assert_eq!(hosts.len(), 1);
    assert_eq!((hosts[0].name.as_str(), hosts[0].status), ("s-1-VM", HostStatus::Up));

    stop.send(()).unwrap();
    serving.await.unwrap();
    let lines = java.end().await;
    let greeting = [format!("established {suite}"), format!("peer {subject}")];
    assert_eq!(lines[..2], greeting);
    assert_eq!(lines[2], answer["hex"], "the StartupAnswer, byte for byte");
    let asked = [
        "StartupAnswer",
        "SecStorageFirewallCfgCommand",
        "SecStorageVMSetupCommand",
        "ReadyCommand",
        "ReadyCommand",
    ];
    assert_eq!(classes(&lines), asked);
    assert_eq!(lines.last().unwrap(), "closed");
}

/// The classes of the messages among the lines, without their packages.
fn classes(lines: &[String]) -> Vec<String> {
    let messages = lines
        .iter()
        .filter(|line| line.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let class = |line: &String| match Packet::decode(&unhex(line)).unwrap() {
        Packet::Request(request) => request.commands[0].body.class().name,
        Packet::Response(response) => response.answers[0].body.class().name,
    };
    messages
        .map(|line| class(line).rsplit('.').next().unwrap().to_owned())
        .collect()
}

fn leaf() -> Presented {
    Presented::Leaf {
        names: vec!["mgmt-stub".into()],
        addresses: vec![Ipv4Addr::LOCALHOST.into()],
    }
}

#[tokio::test]
async fn a_java_agent_becomes_ready_with_our_own_ca() {
    let Some(class_path) = class_path().await else { return };
    let dir = tempdir().unwrap();
    let ca = Ca::open_or_create(dir.path()).unwrap();
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    becomes_ready(class_path, &ca, Presented::CaCertificate, suite, STOCK_SUBJECT).await;
    becomes_ready(class_path, &ca, leaf(), suite, "CN=mgmt-stub").await;
}

#[tokio::test]
async fn a_java_agent_becomes_ready_with_an_administrators_rsa_ca() {
    let Some(class_path) = class_path().await else { return };
    let Some(dir) = rsa_4096_ca().await else { return };
    let ca = Ca::open_or_create(dir.path()).unwrap();
    let suite = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384";
    becomes_ready(class_path, &ca, Presented::CaCertificate, suite, STOCK_SUBJECT).await;
    // Its key is ours, and ECDSA.
    let suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384";
    becomes_ready(class_path, &ca, leaf(), suite, "CN=mgmt-stub").await;
}

#[tokio::test]
async fn long_messages_of_a_java_client_arrive_and_come_back() {
    let Some(class_path) = class_path().await else { return };
    let dir = tempdir().unwrap();
    let ca = Ca::open_or_create(dir.path()).unwrap();
    let verifier = client_auth::verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
    let tls = ca.server_config(Presented::CaCertificate, verifier).unwrap();
    let listener = TcpListener::bind(LOCALHOST).await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let echo = tokio::spawn(echo(listener, tls));

    let sent = hex_lines(&messages(0));
    let script = [sent.join("\n"), format!("expect {}", sent.len())].join("\n");
    let lines = Java::start(class_path, dir.path(), &["client", "127.0.0.1", &port], script)
        .end()
        .await;
    assert!(lines[2..] == sent, "Java got something else back");
    assert_eq!(timeout(LIMIT, echo).await.unwrap().unwrap(), SIZES);
}

/// Sends back what one client sends, until that closes its socket; then tells the sizes.
async fn echo(listener: TcpListener, tls: Arc<ServerConfig>) -> Vec<usize> {
    let mut duplex = Duplex::new(listener.accept().await.unwrap().0);
    let mut channel = Channel::server(tls).unwrap();
    let mut sizes = Vec::new();
    loop {
        while let Some(event) = channel.receive(&mut duplex.input, &mut duplex.output).unwrap() {
            if let Event::Message(message) = event {
                sizes.push(message.len());
                channel.send(&message, &mut duplex.output).unwrap();
            }
        }
        if duplex.progress().await.unwrap() == Progress::Closed {
            return sizes;
        }
    }
}

// ---- Java as the management server -------------------------------------------------------------------------------------

/// The certificate is the CA's own, RSA 4096, as at a stock server.
#[tokio::test]
async fn our_agent_talks_to_a_java_server_with_and_without_a_key_store() {
    let Some(class_path) = class_path().await else { return };
    let Some(dir) = rsa_4096_ca().await else { return };
    openssl(
        dir.path(),
        "pkcs12 -export -in @ca.crt -inkey @ca.key -out @server.p12 -passout pass:secret",
    )
    .await;
    let p12 = dir.path().join("server.p12");
    let (from_server, from_agent) = (messages(1), messages(2));
    let script = [hex_lines(&from_server).join("\n"), format!("expect {}", SIZES.len())].join("\n");
    let args = ["server", "0", p12.to_str().unwrap(), "secret"];
    let java = Java::start(class_path, dir.path(), &args, script);
    let port = java
        .until(|lines| lines.first()?.strip_prefix("listening ")?.parse().ok())
        .await;

    let [absent, pinned, of_another] = ["absent", "pinned", "another"].map(|name| dir.path().join(name));
    import(&Ca::open_or_create(dir.path()).unwrap(), &pinned);
    import(&Ca::open_or_create(dir.path().join("other-ca")).unwrap(), &of_another);

    let refused = open(port, &of_another, TrustUnknown::Refuse).await.err().unwrap();
    assert!(matches!(refused, LinkError::Broken(_)), "{refused:?}");
    let mut wanted = vec![format!("listening {port}")];
    for (key_store, when_unknown, name) in [
        (absent, TrustUnknown::Accept, "without certificate"),
        (pinned, TrustUnknown::Refuse, "CN=s-1-VM"),
    ] {
        let mut link = open(port, &key_store, when_unknown).await.unwrap();
        for message in &from_agent {
            link.send(message).unwrap();
        }
        let (received, end) = timeout(LIMIT, all(&mut link)).await.unwrap();
        assert!(received == from_server, "{name}: we got something else");
        assert!(
            matches!(
                end,
                LinkError::Closed {
                    during_handshake: false
                }
            ),
            "{name}: {end}"
        );
        wanted.push("established TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384".to_owned());
        wanted.push(format!("peer {name}"));
        wanted.extend(hex_lines(&from_agent));
    }
    let mut lines = java.lines();
    let refusal = lines.remove(1);
    assert!(
        refusal.starts_with("broken javax.net.ssl.SSLHandshakeException"),
        "{refusal}"
    );
    assert!(
        lines == wanted,
        "Java got something else: {:?}",
        lines.iter().map(String::len).collect::<Vec<_>>()
    );
}

/// Key and certificate of a system VM, where its agent looks for them.
fn import(ca: &Ca, directory: &Path) {
    std::fs::create_dir(directory).unwrap();
    let name = "s-1-VM".to_owned();
    let issued = ca.issue(&Request::new(name.clone(), vec![name], Vec::new())).unwrap();
    for (name, contents) in [
        ("cloud.crt", &issued.signed.certificate),
        ("cloud.ca.crt", &issued.signed.ca),
        ("cloud.key", issued.private_key.expose()),
    ] {
        let _ = files::replace(directory.join(name), contents, 0o600).unwrap();
    }
}

async fn open(port: u16, key_store: &Path, when_unknown: TrustUnknown) -> Result<Link, LinkError> {
    let identity = KeyStore::in_directory(key_store).load().unwrap();
    let tls = client_config(identity.as_ref(), when_unknown).unwrap();
    Link::open("127.0.0.1", port, tls, LIMIT, LIMIT).await
}

/// What arrives, and why no more does.
async fn all(link: &mut Link) -> (Vec<Vec<u8>>, LinkError) {
    let mut received = Vec::new();
    loop {
        match link.next().await {
            Ok(message) => received.extend(message),
            Err(end) => return (received, end),
        }
    }
}
