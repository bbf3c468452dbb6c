//! The demo guest as a process: QEMU with a VNC screen that has a password.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use hypervisor::qmp::Qmp;
use platform::exec::Cmd;
use platform::files;
use platform::logging::chain;
use serde_json::json;

use super::end_of;
use super::state::{Guest, Running};
use crate::guest::{self, KERNEL_ARGUMENTS};

const MEMORY_MIB: &str = "128";
const QEMU_LIMIT: Duration = Duration::from_secs(15);
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
    let asking = async {
        let qmp = Qmp::connect(&guest.qmp, QEMU_LIMIT).await?;
        qmp.call("query-vnc", json!({})).await
    };
    let ending = async {
        if let Some(process) = guest.process.alive() {
            while !process.ended(QEMU_LIMIT).await {}
        }
    };
    let log = &guest.process.log;
    let vnc = tokio::select! {
        answer = asking => match answer {
            Ok(vnc) => vnc,
            Err(error) => bail!("{}; {}", chain(&error), end_of(log)?),
        },
        () = ending => bail!("QEMU has ended; {}", end_of(log)?),
    };
    let port = vnc["service"].as_str().and_then(|port| port.parse().ok());
    port.with_context(|| format!("QEMU tells no port of its VNC server: {vnc}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_guest_that_does_not_start_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let nothing = guest::Guest {
            kernel: "/no/such/kernel".into(),
            initramfs: "/no/such/initramfs".into(),
            disk: "/no/such/disk".into(),
        };
        let guest = start(&nothing, directory.path()).unwrap();
        let error = vnc_port(&guest).await.unwrap_err().to_string();
        assert!(error.starts_with("QEMU has ended; "), "{error}");
        assert!(error.contains("/no/such/kernel"), "{error}");
    }
}
