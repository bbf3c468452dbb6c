//! QEMU's own view of a machine, over its monitor protocol (QMP): what the browser shows is compared with this.

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

/// A connection to the monitor. QEMU serves one at a time.
#[derive(Debug)]
pub struct Monitor(BufReader<UnixStream>);

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
        let mut monitor = Self(BufReader::new(stream));
        monitor.line().await?; // its greeting
        monitor.call("qmp_capabilities", json!({})).await?;
        Ok(monitor)
    }

    /// One command; its answer.
    ///
    /// # Errors
    /// QEMU refuses it, or does not answer.
    pub async fn call(&mut self, command: &str, arguments: Value) -> anyhow::Result<Value> {
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.0.get_mut().write_all(request.as_bytes()).await?;
        loop {
            let mut line = self.line().await?;
            if let Some(error) = line.get("error") {
                bail!("QEMU refuses {command}: {error}");
            }
            if let Some(answer) = line.get_mut("return") {
                return Ok(answer.take());
            }
        }
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

    async fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        timeout(LIMIT, self.0.read_line(&mut line))
            .await
            .context("waiting for QEMU")??;
        Ok(serde_json::from_str(&line)?)
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
