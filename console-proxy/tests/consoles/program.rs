//! The program as an operator runs it, on a real agent link.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use platform::exec::{Cmd, ExecError};
use protocol::console_proxy::AllowConsoleAccessCommand;

use crate::client::{Browser, Status};
use crate::fake_server::{FakeLink, FakeServer};
use crate::proxy::{BOOT, LIMIT, fake_novnc, start, write};
use crate::qemu::Qemu;
use crate::token::{ENCRYPTOR, PASSWORD, TICKET, content, seal};

fn program(directory: &Path) -> Cmd {
    let at = |name: &str| directory.join(name);
    Cmd::new(env!("CARGO_BIN_EXE_console-proxy"))
        .args([
            "--boot-args".into(),
            at("cmdline"),
            "--settings".into(),
            at("settings.toml"),
        ])
        .env("SYSVM_LOG", "debug")
}

/// Writes what the program reads.
fn prepare(directory: &Path, server_port: u16, listen: SocketAddr) {
    let boot = BOOT.replace("host=192.0.2.10,192.0.2.11", "host=127.0.0.1");
    write(
        &directory.join("cmdline"),
        &boot.replace("port=8250", &format!("port={server_port}")),
    );
    fake_novnc(&directory.join("novnc"));
    let directories = directory.display();
    let directories = format!(
        "state_dir = \"{directories}/state\"
novnc = \"{directories}/novnc\"
"
    );
    write(
        &directory.join("settings.toml"),
        &format!("{directories}listen.http = \"{listen}\"\n"),
    );
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn connect(link: &mut FakeLink, site: SocketAddr, token: &str) -> (Browser, (u16, u16)) {
    let asked = link.asked.len();
    // The server must answer while the browser opens its console.
    let open = async {
        let mut browser = Browser::connect(site, token).await.unwrap();
        let (width, height, _) = browser.open().await;
        (browser, (width, height))
    };
    let (opened, ()) = tokio::join!(open, link.serve_until(|link| link.asked.len() > asked));
    opened
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_life_with_a_server_that_comes_and_goes_and_no_secret_in_the_log() {
    let qemu = Qemu::start(
        ",password-secret=vnc",
        &["secret,id=vnc,file={dir}/password"],
        |directory| {
            write(&directory.join("password"), PASSWORD);
        },
    );
    let mut qemu = qemu.await;
    qemu.settle().await; // a picture of one size
    let server = FakeServer::listen().await;
    let files = tempfile::tempdir().unwrap();
    let site = free_port();
    prepare(files.path(), server.port(), site);
    let log = files.path().join("log");
    let running = program(files.path()).spawn(&log).unwrap();

    let (mut link, port) = server.accept().await;
    assert_eq!(port, i64::from(site.port()));
    assert!(link.execute(start()).await.result);
    let allow = |session: &str| AllowConsoleAccessCommand {
        session_uuid: Some(session.to_owned()),
    };
    assert!(link.execute(allow("s1")).await.result);
    let token = seal(&content(qemu.port, "s1"));
    let (mut browser, (width, height)) = connect(&mut link, site, &token).await;
    assert_eq!(link.asked[0].ticket.as_ref().unwrap().expose(), TICKET);
    assert_eq!(Browser::connect(site, &token).await.err(), Some(Status(403)));
    link.serve_until(|link| link.told.last().is_some_and(|told| told["connections"][0]["id"] == 1))
        .await;

    // The server goes away: the console stays, and its end is told to the next one, once.
    drop(link);
    browser.screen(width, height).await;
    browser.socket.close(None).await.unwrap();
    assert_eq!(browser.end().await.0, 1000);
    let (mut link, _) = server.accept().await;
    assert!(link.execute(start()).await.result, "as at every connect");
    link.serve_until(|link| link.told.iter().any(|told| told["removedSessions"][0] == "s1"))
        .await;

    assert!(link.execute(allow("s2")).await.result);
    let second = seal(&content(qemu.port, "s2"));
    let (mut browser, _) = connect(&mut link, site, &second).await;
    let (end, (), ()) = tokio::join!(browser.end(), running.stop(LIMIT), link.serve_until(|_| false));
    assert_eq!(end, (1001, "proxy shutting down".into()));
    let removed: Vec<_> = link
        .told
        .iter()
        .filter_map(|told| told["removedSessions"][0].as_str())
        .collect();
    assert_eq!(removed, ["s1", "s2"]);

    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("Session granted") && log.contains("DEBUG"), "{log}");
    for secret in [
        PASSWORD,
        TICKET,
        &token,
        &second,
        ENCRYPTOR,
        "AAECAwQFBgcICQoLDA0ODw",
        &token[..24],
    ] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

#[tokio::test]
async fn check_says_what_is_wrong_and_how_to_repair_it() {
    let files = tempfile::tempdir().unwrap();
    prepare(files.path(), 8250, free_port());
    program(files.path()).arg("--check").run().await.unwrap();
    assert!(!files.path().join("state").exists(), "a check makes nothing");

    let wrong = async |file: &str, text: &str| {
        write(&files.path().join(file), text);
        match program(files.path()).arg("--check").run().await.unwrap_err() {
            ExecError::Failed { status, printed, .. } => {
                assert_eq!(status.code(), Some(78), "{printed}");
                printed
            }
            other => panic!("{other}"),
        }
    };
    let printed = wrong("settings.toml", "novnc = \"/nowhere\"").await;
    assert!(
        printed.contains("there is no core/rfb.js in /nowhere; set `novnc`"),
        "{printed}"
    );
    let printed = wrong("settings.toml", "[listen]\nhttp = \"6080\"").await;
    assert!(
        printed.contains("settings.toml: TOML parse error at line 2"),
        "{printed}"
    );
    prepare(files.path(), 8250, free_port());
    let printed = wrong(
        "cmdline",
        "type=router name=r-4-VM eth0ip=10.1.1.1 eth0mask=255.255.255.0",
    )
    .await;
    assert!(
        printed.contains("type=router, and this program is for type=consoleproxy"),
        "{printed}"
    );
    let printed = wrong("cmdline", "type=consoleproxy guid=Proxy.2 host=127.0.0.1 vncport=99999").await;
    assert!(
        printed.contains("vncport=\"99999\": expected a port number"),
        "{printed}"
    );
}

#[tokio::test]
async fn a_port_of_another_program_is_named_at_the_start() {
    let files = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    prepare(files.path(), 8250, address);
    let error = program(files.path()).run().await.unwrap_err().to_string();
    assert!(
        error.contains(&format!(
            "cannot listen on {address}; is another program using the port?"
        )),
        "{error}"
    );
}
