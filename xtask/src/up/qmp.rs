//! Asks QEMU over its monitor protocol (QMP): JSON lines on a Unix socket.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of one answer.
const MAX_LINE: u64 = 1 << 20;

/// Connects, asks one thing, and leaves: QEMU serves one client at a time.
pub(crate) async fn ask(socket: &Path, command: &str) -> anyhow::Result<Value> {
    let asking = async {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        let mut stream = BufReader::new(stream);
        line(&mut stream).await?; // its greeting
        answer(&mut stream, "qmp_capabilities").await?;
        answer(&mut stream, command).await
    };
    timeout(LIMIT, asking)
        .await
        .with_context(|| format!("QEMU did not answer {command} within {LIMIT:?}"))?
}

async fn answer(stream: &mut BufReader<UnixStream>, command: &str) -> anyhow::Result<Value> {
    let request = format!("{}\n", json!({"execute": command}));
    stream.get_mut().write_all(request.as_bytes()).await?;
    loop {
        let mut line = line(stream).await?;
        if let Some(error) = line.get("error") {
            bail!("QEMU refuses {command}: {error}");
        }
        if let Some(answer) = line.get_mut("return") {
            return Ok(answer.take());
        }
        // Else an event: they come at any time.
    }
}

async fn line(stream: &mut BufReader<UnixStream>) -> anyhow::Result<Value> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        bail!("QEMU has closed its monitor socket");
    }
    Ok(serde_json::from_slice(&line)?)
}
