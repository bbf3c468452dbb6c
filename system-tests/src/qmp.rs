//! QEMU's own view of a machine, over its monitor protocol (QMP): what the browser shows is compared with this, and
//! what a host does to a machine goes through it.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(20);
/// For QEMU to write or read the whole state of a machine.
const STATE_LIMIT: Duration = Duration::from_mins(2);
/// Events that nobody has asked for yet; the oldest are dropped.
const MAX_EVENTS: usize = 1000;

/// A connection to the monitor. QEMU serves one at a time.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
    /// What has arrived of the next line.
    line: Vec<u8>,
    events: VecDeque<Value>,
}

/// What a machine shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Screen {
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// SHA-256, in hexadecimal digits, of red, green and blue of each pixel, row by row.
    pub digest: String,
}

impl Monitor {
    /// Connects to the socket.
    ///
    /// # Errors
    /// QEMU does not run.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
            line: Vec::new(),
            events: VecDeque::new(),
        };
        monitor.line(LIMIT).await?; // its greeting
        monitor.call("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// One command; its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or does not answer.
    pub async fn call(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        self.call_within(LIMIT, command, arguments).await
    }

    async fn call_within(&mut self, limit: Duration, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        loop {
            let mut line = self.line(limit).await?;
            if let Some(error) = line.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
            self.keep(line);
        }
    }

    /// Waits for an event of this name whose data `is_it`, or takes one that has come since it was last asked for; its
    /// data.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub async fn event(
        &mut self,
        name: &str,
        limit: Duration,
        is_it: impl Fn(&Value) -> bool,
    ) -> anyhow::Result<Value> {
        let waiting = async {
            loop {
                let is_wanted = |event: &Value| event["event"] == name && is_it(&event["data"]);
                if let Some(at) = self.events.iter().position(is_wanted) {
                    let event = self.events.remove(at).map(|mut event| event["data"].take());
                    return anyhow::Ok(event.unwrap_or_default());
                }
                let line = self.line(limit).await?;
                self.keep(line);
            }
        };
        timeout(limit, waiting)
            .await
            .with_context(|| format!("waiting for QEMU's event {name}"))?
    }

    /// A command of the monitor for people (HMP).
    ///
    /// # Errors
    /// It prints something: those used here only do when they fail.
    async fn quiet(&mut self, line: &str) -> anyhow::Result<()> {
        let arguments = json!({"command-line": line});
        let printed = self
            .call_within(STATE_LIMIT, "human-monitor-command", arguments)
            .await?;
        let printed = printed.as_str().unwrap_or_default().trim();
        ensure!(printed.is_empty(), "QEMU fails at {line}: {printed}");
        Ok(())
    }

    /// Writes the machine's whole state, memory and disks, into its disk under a name, to be started from with
    /// `-loadvm`.
    ///
    /// # Errors
    /// A device of it cannot be saved.
    pub async fn save(&mut self, name: &str) -> anyhow::Result<()> {
        self.quiet(&format!("savevm {name}")).await
    }

    /// Puts the machine back into a state that was saved.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn load(&mut self, name: &str) -> anyhow::Result<()> {
        self.quiet(&format!("loadvm {name}")).await
    }

    fn keep(&mut self, event: Value) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Writes a picture of what the machine shows now.
    ///
    /// # Errors
    /// QEMU cannot.
    pub async fn picture(&mut self, png: &Path) -> anyhow::Result<()> {
        let arguments = json!({"filename": png, "format": "png"});
        self.call("screendump", arguments).await.map(drop)
    }

    /// What the machine shows now.
    ///
    /// # Errors
    /// QEMU cannot write the picture, or it is none.
    pub async fn screen(&mut self) -> anyhow::Result<Screen> {
        let directory = tempfile::tempdir()?;
        let file = directory.path().join("screen.ppm");
        self.call("screendump", json!({"filename": file})).await?;
        Screen::of_ppm(&fs::read(&file)?)
    }

    /// The next line. May be dropped and called again.
    async fn line(&mut self, limit: Duration) -> anyhow::Result<Value> {
        timeout(limit, self.stream.read_until(b'\n', &mut self.line))
            .await
            .context("waiting for QEMU")??;
        ensure!(self.line.ends_with(b"\n"), "QEMU has ended");
        let line = serde_json::from_slice(&self.line);
        self.line.clear();
        Ok(line?)
    }
}

impl Screen {
    /// Reads a binary PPM (`P6`) with one byte for each colour, as QEMU writes it.
    ///
    /// # Errors
    /// It is none.
    pub fn of_ppm(ppm: &[u8]) -> anyhow::Result<Self> {
        let mut fields = Vec::new();
        let mut rest = ppm;
        while fields.len() < 4 {
            let end = rest
                .iter()
                .position(u8::is_ascii_whitespace)
                .context("the picture has no head")?;
            fields.push(std::str::from_utf8(&rest[..end])?);
            rest = &rest[end + 1..];
        }
        ensure!(
            fields[0] == "P6" && fields[3] == "255",
            "not a PPM as QEMU writes it: {fields:?}"
        );
        let (width, height): (usize, usize) = (fields[1].parse()?, fields[2].parse()?);
        ensure!(
            rest.len() == width * height * 3,
            "{} bytes for {width} x {height} pixels",
            rest.len()
        );
        let digest = Sha256::digest(rest).iter().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        Ok(Self { width, height, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ppm_is_read() {
        let screen = Screen::of_ppm(b"P6\n2 1\n255\nabcdef").unwrap();
        assert_eq!((screen.width, screen.height), (2, 1));
        assert!(screen.digest.starts_with("bef57ec7f53a6d40"), "{}", screen.digest);
        assert!(Screen::of_ppm(b"P6\n2 1\n255\nabc").is_err());
        assert!(Screen::of_ppm(b"P6").is_err());
    }
}
