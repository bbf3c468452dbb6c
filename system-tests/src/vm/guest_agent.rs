//! The guest agent of QEMU, as a hypervisor host talks to it: lines of JSON over the socket of a virtio-serial port.
//!
//! Requests that were sent before the guest opened its port wait in the port and are answered in a burst, in order. So
//! the client asks for a sign of life with one id, again and again, and then throws away every answer until that to a
//! second, new id has come; after a call that was given up it does the latter again (vm-test-harness.md §4,
//! appliance.md §3.2).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// For the answer to one request that does no work. A guest under emulation on a busy machine takes a second.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Between two signs of life that we ask for.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks whether a program has ended: the first, and the longest. The agent logs each.
const LOOK: (Duration, Duration) = (Duration::from_millis(30), Duration::from_secs(1));
/// Between two tries of the host's script: patch.sh.
const HOST_PAUSE: Duration = Duration::from_millis(100);
/// The id that the host's script synchronises with: patch.sh.
const HOST_ID: u64 = 1_234_567_890;
/// Where the host leaves the boot arguments: patch.sh.
const CMDLINE: &str = "/var/cache/cloud/cmdline";
/// Bytes of a file in one request.
const CHUNK: usize = 128 * 1024;
/// One answer: 16 MiB of a program's output, as base64, twice. The agent cuts output there.
const LINE_LIMIT: u64 = 64 * 1024 * 1024;
/// Stands before an answer when the two ends get in step: guest-sync-delimited.
const SENTINEL: u8 = 0xff;

/// A connection to the agent. QEMU serves one at a time.
#[derive(Debug)]
pub struct GuestAgent {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
    /// A call was given up: its answer may still come.
    is_behind: bool,
    next_id: u64,
}

/// What a program in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i64>,
    /// What it printed. Bytes that are not UTF-8 become `�`.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

impl GuestAgent {
    /// Connects to the socket, once it is there. Nobody may have answered yet.
    ///
    /// # Errors
    /// It is not there within `limit`.
    pub async fn connect(socket: &Path, limit: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + limit;
        let stream = loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => break stream,
                Err(_) if Instant::now() < deadline => sleep(HOST_PAUSE).await,
                Err(error) => return Err(error).with_context(|| format!("connecting to {}", socket.display())),
            }
        };
        // Two clients of one agent, one after the other, must not take each other's answers for their own.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        Ok(Self {
            stream: BufReader::new(stream),
            socket: socket.to_owned(),
            is_behind: false,
            next_id: now.as_secs() << 20 | u64::from(now.subsec_micros()),
        })
    }

    /// Waits until the agent answers, and drops what it answers to others.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub async fn up(&mut self, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let id = self.fresh_id();
        self.is_behind = true;
        let first_sign = async {
            loop {
                self.send("guest-sync", &json!({"id": id})).await?;
                let again = Instant::now() + ASK_AGAIN;
                while let Ok(line) = timeout_at(again, self.line()).await {
                    if line?["return"] == id {
                        return anyhow::Ok(());
                    }
                }
            }
        };
        let answered = timeout_at(deadline, first_sign).await;
        answered.with_context(|| format!("the guest agent did not answer within {limit:?}"))??;
        self.catch_up().await
    }

    /// One request; its answer.
    ///
    /// # Errors
    /// The agent refuses it, or does not answer within 30 s.
    pub async fn call(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        if self.is_behind {
            self.catch_up().await?;
        }
        self.is_behind = true;
        let mut answer = timeout(CALL_LIMIT, async {
            self.send(command, &arguments).await?;
            self.line().await
        })
        .await
        .with_context(|| format!("the guest agent did not answer {command} within {CALL_LIMIT:?}"))??;
        self.is_behind = false;
        if let Some(error) = answer.get("error") {
            let why = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            bail!("the guest agent refuses {command}: {why}");
        }
        Ok(answer["return"].take())
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// There is none.
    pub async fn ping(&mut self) -> anyhow::Result<()> {
        self.call("guest-ping", json!({})).await.map(drop)
    }

    /// Runs a program to its end: its name or path, then its arguments; no shell. It reads `stdin`.
    ///
    /// # Errors
    /// It cannot be started, prints more than 16 MiB, or has not ended within `limit`; then it goes on in the guest.
    pub async fn exec(&mut self, words: &[&str], stdin: &[u8], limit: Duration) -> anyhow::Result<Ran> {
        let started = Instant::now();
        let (program, arguments) = words.split_first().context("no program to run")?;
        let mut request = json!({"path": program, "arg": arguments, "capture-output": true});
        if !stdin.is_empty() {
            request["input-data"] = BASE64_STANDARD.encode(stdin).into();
        }
        let shown = words.join(" ");
        let running = self.call("guest-exec", request).await;
        let pid = running.with_context(|| format!("starting `{shown}` in the guest"))?["pid"].take();
        let mut pause = LOOK.0;
        loop {
            let mut status = self.call("guest-exec-status", json!({"pid": pid})).await?;
            if status["exited"] == true {
                let is_cut = |stream: &str| status[stream] == true;
                ensure!(
                    !is_cut("out-truncated") && !is_cut("err-truncated"),
                    "`{shown}` printed more in the guest than its agent keeps"
                );
                return Ok(Ran {
                    code: status["exitcode"].as_i64(),
                    stdout: text(status["out-data"].take())?,
                    stderr: text(status["err-data"].take())?,
                });
            }
            ensure!(
                started.elapsed() < limit,
                "`{shown}` has not ended in the guest within {limit:?}"
            );
            sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }

    /// Writes a whole file. An existing one keeps its mode; a new one can be written by everybody.
    ///
    /// # Errors
    /// The guest cannot.
    pub async fn write(&mut self, path: &str, contents: &[u8]) -> anyhow::Result<()> {
        let handle = self.open(path, "w").await?;
        for chunk in contents.chunks(CHUNK) {
            self.write_chunk(&handle, chunk).await?;
        }
        self.close(handle).await
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// The guest cannot.
    pub async fn read(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let handle = self.open(path, "r").await?;
        let mut contents = Vec::new();
        loop {
            let request = json!({"handle": handle, "count": CHUNK});
            let chunk = self.call("guest-file-read", request).await?;
            let bytes = chunk["buf-b64"].as_str().context("the agent sent no bytes")?;
            contents.extend(BASE64_STANDARD.decode(bytes)?);
            if chunk["eof"] == true || chunk["count"] == 0 {
                break;
            }
        }
        self.close(handle).await?;
        Ok(contents)
    }

    /// Gives the guest its boot arguments exactly as the script of a KVM host does (appliance.md §3.2, 2b–2f): ping,
    /// synchronise, open, one write of the line and a newline, close.
    ///
    /// # Errors
    /// A step fails, or the first two do not succeed within `limit`.
    pub async fn pass_cmdline(&mut self, line: &str, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        while let Err(error) = self.ping().await {
            ensure!(Instant::now() < deadline, error.context("passing the boot arguments"));
            sleep(HOST_PAUSE).await;
        }
        loop {
            let answer = self.call("guest-sync", json!({"id": HOST_ID})).await;
            if answer.as_ref().is_ok_and(|id| *id == HOST_ID) {
                break;
            }
            ensure!(Instant::now() < deadline, "guest-sync with {HOST_ID}: {answer:?}");
            sleep(HOST_PAUSE).await;
        }
        let handle = self.open(CMDLINE, "w+").await?;
        self.write_chunk(&handle, format!("{line}\n").as_bytes()).await?;
        self.close(handle).await
    }

    /// Asks the guest to power off. There is no answer: QEMU ends.
    ///
    /// # Errors
    /// The request cannot be sent.
    pub async fn shutdown(&mut self) -> anyhow::Result<()> {
        if self.is_behind {
            self.catch_up().await?;
        }
        self.is_behind = true;
        self.send("guest-shutdown", &json!({"mode": "powerdown"})).await
    }

    async fn open(&mut self, path: &str, mode: &str) -> anyhow::Result<Value> {
        let handle = self.call("guest-file-open", json!({"path": path, "mode": mode})).await;
        handle.with_context(|| format!("opening {path} in the guest"))
    }

    async fn write_chunk(&mut self, handle: &Value, chunk: &[u8]) -> anyhow::Result<()> {
        let request = json!({"handle": handle, "buf-b64": BASE64_STANDARD.encode(chunk)});
        let written = self.call("guest-file-write", request).await?;
        ensure!(
            written["count"] == chunk.len(),
            "the guest took {} of {} bytes",
            written["count"],
            chunk.len()
        );
        Ok(())
    }

    async fn close(&mut self, handle: Value) -> anyhow::Result<()> {
        self.call("guest-file-close", json!({"handle": handle})).await.map(drop)
    }

    /// Drops what the agent answers to requests that nobody waits for any more.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        let id = self.fresh_id();
        let in_step = async {
            self.send("guest-sync", &json!({"id": id})).await?;
            while self.line().await?["return"] != id {}
            anyhow::Ok(())
        };
        timeout(CALL_LIMIT, in_step)
            .await
            .context("the guest agent does not get in step")??;
        self.is_behind = false;
        Ok(())
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    async fn send(&mut self, command: &str, arguments: &Value) -> anyhow::Result<()> {
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        let sent = timeout(CALL_LIMIT, self.stream.get_mut().write_all(request.as_bytes())).await;
        sent.with_context(|| format!("nobody takes {command} from {}", self.socket.display()))??;
        Ok(())
    }

    /// The next answer. Lines that are none come from a client before us that left in the middle of one.
    async fn line(&mut self) -> anyhow::Result<Value> {
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut self.stream).take(LINE_LIMIT);
            limited.read_until(b'\n', &mut line).await?;
            ensure!(line.ends_with(b"\n"), "{} was closed", self.socket.display());
            let start = line.iter().position(|byte| *byte != SENTINEL).unwrap_or_default();
            if let Ok(answer) = serde_json::from_slice(&line[start..]) {
                return Ok(answer);
            }
        }
    }
}

impl Ran {
    /// What it printed, when its exit code is 0.
    ///
    /// # Errors
    /// It is not.
    pub fn success(self, words: &[&str]) -> anyhow::Result<String> {
        let Self { code, stdout, stderr } = self;
        ensure!(
            code == Some(0),
            "`{}` failed in the guest (exit code {code:?}): {stderr}{stdout}",
            words.join(" ")
        );
        Ok(stdout)
    }
}

/// Output of a program; the field is absent when it printed nothing.
fn text(encoded: Value) -> anyhow::Result<String> {
    let Value::String(encoded) = encoded else {
        return Ok(String::new());
    };
    Ok(String::from_utf8_lossy(&BASE64_STANDARD.decode(encoded)?).into_owned())
}
