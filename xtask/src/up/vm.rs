//! The demo guest as a process: QEMU with a VNC screen that has a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use platform::files;
use tokio::time::sleep;

use super::state::{Guest, Running};
use super::{end_of, qmp};
use crate::guest::{self, KERNEL_ARGUMENTS};

const MEMORY_MIB: &str = "128";
const QEMU_LIMIT: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(200);
/// A path of a Unix socket has at most 107 bytes: unix(7).
const MAX_SOCKET_PATH: usize = 107;

/// Starts it. Its files are in `directory`.
pub(super) fn start(demo: &guest::Guest, directory: &Path) -> anyhow::Result<Guest> {
    fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let qmp = directory.join("qmp.sock");
    ensure!(
        qmp.as_os_str().len() <= MAX_SOCKET_PATH,
        "{} is too long for a socket; choose a shorter --dir",
        qmp.display()
    );
    let _ = fs::remove_file(&qmp);
    let log = directory.join("qemu.log");
    let _ = files::replace(password_file(directory), password()?, 0o600)?;
    let qemu = Cmd::new("qemu-system-x86_64")
        .args(["-name", "demo-guest", "-machine", "pc", "-m", MEMORY_MIB, "-nodefaults"])
        // Emulation is quick enough for a shell, and works also where KVM is missing or half there.
        .args(["-accel", "tcg", "-cpu", "max"])
        .args(["-vga", "std", "-display", "none"])
        .arg("-kernel")
        .arg(&demo.kernel)
        .arg("-initrd")
        .arg(&demo.initramfs)
        .args(["-append", KERNEL_ARGUMENTS])
        .arg("-object")
        .arg(format!("secret,id=vnc,file={}", password_file(directory).display()))
        .args(["-vnc", "127.0.0.1:0,to=999,password-secret=vnc"])
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", qmp.display()));
    let process = qemu.spawn_detached(&log)?.process().clone();
    Ok(Guest {
        process: Running::new(&process, log),
        qmp,
        id: None,
    })
}

/// Where the password of its screen is.
pub(super) fn password_file(directory: &Path) -> PathBuf {
    directory.join("vnc-password")
}

/// VNC takes eight characters, not more: RFC 6143 §7.2.2.
fn password() -> anyhow::Result<String> {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("getting random digits")?;
    Ok(uuid.chars().filter(char::is_ascii_hexdigit).take(8).collect())
}

/// The port that it has found free, once it listens.
pub(super) async fn vnc_port(guest: &Guest) -> anyhow::Result<u16> {
    let started = Instant::now();
    loop {
        match qmp::ask(&guest.qmp, "query-vnc").await {
            Ok(vnc) => {
                let port = vnc["service"].as_str().and_then(|port| port.parse().ok());
                return port.with_context(|| format!("QEMU tells no port of its VNC server: {vnc}"));
            }
            Err(error) => {
                let log = &guest.process.log;
                ensure!(guest.process.alive().is_some(), "QEMU has ended; {}", end_of(log)?);
                ensure!(started.elapsed() < QEMU_LIMIT, "{error:#}; {}", end_of(log)?);
            }
        }
        sleep(LOOK).await;
    }
}
