//! A real QEMU that shows its firmware's screen.

use std::path::{Path, PathBuf};

use platform::exec::{Cmd, Running};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::proxy::{LIMIT, until};

pub(crate) struct Qemu {
    _running: Running,
    lines: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
    pub(crate) port: u16,
    pub(crate) files: TempDir,
}

impl Qemu {
    /// With these words behind `-vnc 127.0.0.1:…`; `{dir}` is its directory, in which `prepare` puts what QEMU reads.
    pub(crate) async fn start(vnc: &str, objects: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let files = tempfile::tempdir().unwrap();
        let directory = files.path().display().to_string();
        prepare(files.path());
        let qmp = files.path().join("qmp");
        let objects = objects
            .iter()
            .flat_map(|object| ["-object".to_owned(), object.replace("{dir}", &directory)]);
        // The first free display; QMP tells which.
        let running = Cmd::new("qemu-system-x86_64")
            .args([
                "-M",
                "pc",
                "-m",
                "32",
                "-display",
                "none",
                "-nodefaults",
                "-vga",
                "std",
                "-net",
                "none",
            ])
            .args(objects)
            .args(["-vnc", &format!("127.0.0.1:0,to=90{vnc}")])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .spawn(files.path().join("log"))
            .unwrap();
        // The socket's file is there before QEMU listens on it.
        let mut connection = None;
        until("QEMU listens", || {
            connection = std::os::unix::net::UnixStream::connect(&qmp).ok();
            connection.is_some()
        })
        .await;
        let connection = connection.unwrap();
        connection.set_nonblocking(true).unwrap();
        let (read, commands) = UnixStream::from_std(connection).unwrap().into_split();
        let mut qemu = Self {
            _running: running,
            lines: BufReader::new(read).lines(),
            commands,
            port: 0,
            files,
        };
        qemu.command("qmp_capabilities", json!({})).await;
        let vnc = qemu.command("query-vnc-servers", json!({})).await;
        qemu.port = vnc[0]["server"][0]["service"].as_str().unwrap().parse().unwrap();
        qemu
    }

    pub(crate) async fn command(&mut self, name: &str, arguments: Value) -> Value {
        let command = json!({ "execute": name, "arguments": arguments });
        self.commands
            .write_all(format!("{command}\n").as_bytes())
            .await
            .unwrap();
        loop {
            let line = timeout(LIMIT, self.lines.next_line())
                .await
                .unwrap()
                .unwrap()
                .expect("QEMU lives");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{name}: {answer}");
            if let Some(found) = answer.get("return") {
                return found.clone();
            }
        }
    }

    /// The firmware has written something, and time stands still: its cursor blinks.
    pub(crate) async fn settle(&mut self) {
        for _ in 0..300 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if self.screen().await.2.iter().any(|byte| *byte != 0) {
                self.command("stop", json!({})).await;
                return;
            }
        }
        panic!("the firmware never showed itself");
    }

    /// Width, height, and each pixel's red, green, blue: QEMU's own word for it.
    pub(crate) async fn screen(&mut self) -> (u16, u16, Vec<u8>) {
        let file: PathBuf = self.files.path().join("screen.ppm");
        self.command("screendump", json!({ "filename": file })).await;
        let ppm = std::fs::read(file).unwrap();
        let mut words = ppm.splitn(4, u8::is_ascii_whitespace);
        let mut number = || -> u16 {
            std::str::from_utf8(words.next().unwrap())
                .unwrap()
                .parse()
                .unwrap_or_default()
        };
        let (_p6, width, height) = (number(), number(), number());
        let pixels = words.next().unwrap();
        let behind = pixels.iter().position(|byte| *byte == b'\n').unwrap() + 1; // the line "255"
        (width, height, pixels[behind..].to_vec())
    }
}
