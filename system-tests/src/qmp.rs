//! QEMU's own view of a machine, over its monitor protocol (QMP): what the browser shows is compared with this, and
//! what a host does to a machine goes through it.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use hypervisor::qmp::{Event, Events, Qmp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// For QEMU to open its monitor.
const LIMIT: Duration = Duration::from_secs(30);
/// For QEMU to write or read the whole state of a machine.
const STATE_LIMIT: Duration = Duration::from_mins(2);

/// Keeps the connections: QEMU serves one at a time, and who asks why a test has failed must have it when the runtime of
/// that test stands still.
static KEEPER: LazyLock<Runtime> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("threads can be started")
});

/// A connection to the monitor. QEMU serves one at a time.
#[derive(Debug)]
pub struct Monitor {
    qmp: Qmp,
    events: Events,
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
    /// Connects to the socket, once QEMU listens.
    ///
    /// # Errors
    /// QEMU does not run.
    pub async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let socket = socket.to_owned();
        let connecting = KEEPER.spawn(async move { Qmp::connect_and_listen(&socket, LIMIT).await });
        let (qmp, events) = connecting.await??;
        Ok(Self { qmp, events })
    }

    /// One command; its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or does not answer.
    pub async fn call(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        Ok(self.qmp.call(command, arguments).await?)
    }

    /// Waits for an event of this kind. Those before it are dropped.
    ///
    /// # Errors
    /// There is none within `limit`.
    pub async fn event(&mut self, limit: Duration, is_it: impl Fn(&Event) -> bool) -> anyhow::Result<Event> {
        let waiting = async {
            loop {
                let event = self.events.next().await.context("QEMU has ended")?;
                if is_it(&event) {
                    return Ok(event);
                }
            }
        };
        timeout(limit, waiting).await.context("waiting for an event of QEMU")?
    }

    /// A command of the monitor for people (HMP).
    ///
    /// # Errors
    /// It prints something: those used here only do when they fail.
    async fn quiet(&mut self, line: &str) -> anyhow::Result<()> {
        let arguments = json!({"command-line": line});
        let command = "human-monitor-command";
        let printed = self.qmp.call_within(STATE_LIMIT, command, arguments).await?;
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
