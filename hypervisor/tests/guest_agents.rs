//! The client of the guest agent against the real agent, and against guests that lie.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use hypervisor::guest_agent::GuestAgent;
use platform::exec::{Cmd, Running};
use platform::logging::chain;
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_mins(1);

/// The real agent of QEMU as a program of this machine, on a socket instead of a port.
struct Agent {
    socket: PathBuf,
    _running: Running,
    directory: TempDir,
}

impl Agent {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let running = Cmd::new("/usr/sbin/qemu-ga")
            .args(["--method", "unix-listen", "--path"])
            .arg(&socket)
            .arg("--statedir")
            .arg(directory.path())
            // This machine is not a guest.
            .args([
                "--block-rpcs",
                "guest-shutdown,guest-suspend-disk,guest-suspend-ram,guest-set-time",
            ])
            .spawn(directory.path().join("log"))
            .unwrap();
        Self {
            socket,
            _running: running,
            directory,
        }
    }

    async fn client(&self) -> GuestAgent {
        let mut client = GuestAgent::connect(&self.socket, LIMIT).await.unwrap();
        client.up(LIMIT).await.unwrap();
        client
    }
}

#[tokio::test]
async fn a_program_answers_with_its_exit_code_and_both_outputs() {
    let agent = Agent::start();
    let mut client = agent.client().await;
    let ran = client
        .exec(&["sh", "-c", "cat; echo problem >&2; exit 3"], b"in, \xff", LIMIT)
        .await
        .unwrap();
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(3), "in, \u{fffd}", "problem\n")
    );
    let error = ran.success(&["sh"]).unwrap_err().to_string();
    assert_eq!(
        error,
        "`sh` failed in the guest (exit code Some(3)): problem\nin, \u{fffd}"
    );

    let error = client.exec(&["no-such-program"], b"", LIMIT).await.unwrap_err();
    assert!(
        chain(&error)
            .to_string()
            .starts_with("starting `no-such-program` in the guest: "),
        "{error:#}"
    );
    let killed = client.exec(&["sh", "-c", "kill -9 $$"], b"", LIMIT).await.unwrap();
    assert_eq!(killed.code, None);
    let limit = Duration::from_millis(100);
    let error = client.exec(&["sleep", "5"], b"", limit).await.unwrap_err().to_string();
    assert_eq!(error, "`sleep 5` has not ended in the guest within 100ms");
}

#[tokio::test]
async fn files_go_in_and_come_out_whole() {
    let agent = Agent::start();
    let mut client = agent.client().await;
    let contents: Vec<u8> = (0..1_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    for contents in [contents.as_slice(), b""] {
        let file = agent.directory.path().join("file");
        client.write(file.to_str().unwrap(), contents).await.unwrap();
        assert!(fs::read(&file).unwrap() == contents);
        assert!(client.read(file.to_str().unwrap()).await.unwrap() == contents);
    }
    let error = client.read("/nowhere").await.unwrap_err();
    assert!(
        chain(&error).to_string().starts_with("opening /nowhere in the guest: "),
        "{error:#}"
    );
}

/// What a client before us asked and did not wait for, or cut in the middle, is not taken for our answer.
#[tokio::test]
async fn stale_answers_are_dropped() {
    let agent = Agent::start();
    drop(agent.client().await); // it listens
    let mut impatient = UnixStream::connect(&agent.socket).unwrap();
    impatient
        .write_all(b"{\"execute\":\"guest-info\"}\n{\"execute\":\"guest-ping\"}\n{\"execute\":\"guest-sy")
        .unwrap();
    drop(impatient);

    let mut client = agent.client().await;
    // Given up when it has been sent: the next call must not get its answer.
    tokio::select! {
        biased;
        _ = client.call("guest-get-osinfo", json!({})) => {}
        () = std::future::ready(()) => {}
    }
    assert_eq!(client.call("guest-ping", json!({})).await.unwrap(), json!({}));
    let error = client.call("guest-shutdown", json!({})).await.unwrap_err().to_string();
    assert!(error.starts_with("the guest agent refuses guest-shutdown: "), "{error}");
    client.ping().await.unwrap();
}

/// A guest that answers requests to synchronise as it should, and everything else with this.
async fn lying_guest(directory: &TempDir, lie: Vec<u8>) -> GuestAgent {
    let socket = directory.path().join("socket");
    fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|read| read > 0) {
            let request: Value = serde_json::from_str(&line).unwrap();
            let answer = match request["arguments"]["id"].as_u64() {
                Some(id) => format!("{}\n", json!({"return": id})).into_bytes(),
                None => lie.clone(),
            };
            if stream.get_mut().write_all(&answer).await.is_err() {
                return; // the client has had enough
            }
            line.clear();
        }
    });
    let mut client = GuestAgent::connect(&socket, LIMIT).await.unwrap();
    client.up(LIMIT).await.unwrap();
    client
}

#[tokio::test]
async fn a_guest_that_lies_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    for (lie, wanted) in [
        (
            &b"{\"return\": \"1000\"}\n"[..],
            "opening /file in the guest: the guest agent answers guest-file-open with something else: ",
        ),
        (
            b"{\"return\": [[1]]}\n",
            "opening /file in the guest: the guest agent answers guest-file-open with something else: ",
        ),
        (
            b"{\"return\": 18446744073709551616}\n",
            "opening /file in the guest: the guest agent answers guest-file-open with something else: ",
        ),
        // The handle is good, the rest is not.
        (
            b"{\"return\": 7}\n",
            "the guest agent answers guest-file-write with something else: ",
        ),
        (
            b"{\"error\": {\"desc\": \"\\u001b[2Jgone\"}}\n",
            "opening /file in the guest: the guest agent refuses guest-file-open: \u{fffd}[2Jgone",
        ),
    ] {
        let mut client = lying_guest(&directory, lie.to_vec()).await;
        let error = client.write("/file", b"contents").await.unwrap_err();
        let text = chain(&error).to_string();
        assert!(text.starts_with(wanted), "{text}");
    }
    // Not base64, and no state of a program.
    let mut client = lying_guest(
        &directory,
        b"{\"return\": {\"count\": 3, \"eof\": false, \"buf-b64\": \"?\", \"pid\": 1}}\n".to_vec(),
    )
    .await;
    let error = client.exec(&["true"], b"", LIMIT).await.unwrap_err().to_string();
    assert!(
        error.starts_with("the guest agent answers guest-exec-status with something else: "),
        "{error}"
    );
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let mut client = lying_guest(&directory, vec![b'x'; 8 * 1024 * 1024]).await;
    let error = client.ping().await.unwrap_err();
    let text = chain(&error).to_string();
    assert!(
        text.ends_with("was closed: a line has more than 524288 bytes"),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn noise_of_a_guest_is_an_error_in_time(noise: Vec<u8>, name in "return|error|desc", value in "[\\[\\{\"0-9a-z:,]{0,12}") {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let line = format!("{{\"{name}\": {value}}}\n");
        for lie in [noise, line.into_bytes()] {
            runtime.block_on(async {
                let directory = tempfile::tempdir().unwrap();
                let mut client = lying_guest(&directory, lie).await;
                let tried = client.pass_cmdline("type=router", Duration::ZERO);
                // A lie that is no answer at all is waited for, up to a limit; none is success.
                let done = timeout(Duration::from_millis(20), tried).await;
                assert!(!matches!(done, Ok(Ok(()))));
            });
        }
    }
}
