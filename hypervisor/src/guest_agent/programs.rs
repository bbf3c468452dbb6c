//! Running programs in a guest. For tests: a host gives a system VM its work by ssh.

use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{AgentError, GuestAgent, MAX_LINE, nonsense};

/// Between two looks whether a program has ended: the first, and the longest. The agent logs each.
const LOOK: (Duration, Duration) = (Duration::from_millis(30), Duration::from_secs(1));
/// One answer: 16 MiB of a program's output, as base64, twice. The agent cuts output there.
const MAX_OUTPUT: usize = 64 * 1024 * 1024;

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

/// `guest-exec`.
#[derive(Deserialize)]
struct Started {
    pid: i64,
}

/// `guest-exec-status`. Output is absent when there is none.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    exited: bool,
    #[serde(rename = "exitcode")]
    exit_code: Option<i64>,
    #[serde(default)]
    out_data: String,
    #[serde(default)]
    err_data: String,
    #[serde(default)]
    out_truncated: bool,
    #[serde(default)]
    err_truncated: bool,
}

impl GuestAgent {
    /// Runs a program to its end: its name or path, then its arguments; no shell. It reads `stdin`. One that has not ended
    /// within `limit` goes on in the guest.
    pub async fn exec(&mut self, words: &[&str], stdin: &[u8], limit: Duration) -> Result<Ran, AgentError> {
        self.lines.set_limit(MAX_OUTPUT);
        let ran = self.exec_to_end(words, stdin, limit).await;
        self.lines.set_limit(MAX_LINE);
        ran
    }

    async fn exec_to_end(&mut self, words: &[&str], stdin: &[u8], limit: Duration) -> Result<Ran, AgentError> {
        let started = Instant::now();
        let command = words.join(" ");
        let (program, arguments) = words.split_first().unwrap_or((&"", &[]));
        let mut request = json!({"path": program, "arg": arguments, "capture-output": true});
        if !stdin.is_empty() {
            request["input-data"] = Value::String(BASE64_STANDARD.encode(stdin));
        }
        let Started { pid } = match self.ask("guest-exec", request).await {
            Ok(started) => started,
            Err(source) => {
                let source = Box::new(source);
                return Err(AgentError::Start { command, source });
            }
        };
        let mut pause = LOOK.0;
        loop {
            let status: Status = self.ask("guest-exec-status", json!({"pid": pid})).await?;
            if status.exited {
                if status.out_truncated || status.err_truncated {
                    return Err(AgentError::Cut { command });
                }
                return Ok(Ran {
                    code: status.exit_code,
                    stdout: text(&status.out_data)?,
                    stderr: text(&status.err_data)?,
                });
            }
            if started.elapsed() >= limit {
                return Err(AgentError::Endless { command, limit });
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOK.1);
        }
    }
}

impl Ran {
    /// What it printed, when its exit code is 0.
    pub fn success(self, words: &[&str]) -> Result<String, AgentError> {
        let Self { code, stdout, stderr } = self;
        if code == Some(0) {
            return Ok(stdout);
        }
        Err(AgentError::Failed {
            command: words.join(" "),
            code,
            printed: format!("{stderr}{stdout}"),
        })
    }
}

fn text(encoded: &str) -> Result<String, AgentError> {
    let bytes = BASE64_STANDARD.decode(encoded);
    let bytes = bytes.map_err(|error| nonsense("guest-exec-status", &error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
