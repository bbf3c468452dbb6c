//! VMs that start within two seconds: one like them has booted before, and its state is kept in `target/vm-snapshots`.
//!
//! The state has everything in it: memory, disk, the addresses of the NICs, the machine's identity. So two VMs from one
//! snapshot are twins: give each role its own addresses ([`super::Nic::on`]), which gives it a snapshot of its own, or
//! change what must differ inside. The clock is set when the VM starts.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, OnceCell};

use super::hardware::{Firmware, Places};
use super::{BOOT_LIMIT, Booted, Vm, has_kvm, run_directory};
use crate::programs::target_dir;

/// The state's name in the disk.
const STATE: &str = "booted";
/// Bytes read at once.
const CHUNK: usize = 1024 * 1024;
/// Digits of a digest in a file name.
const DIGITS: usize = 16;

impl Vm {
    /// As [`Vm::boot`] and [`Booted::up`], but from the state of a VM like this one that has booted before. The first
    /// one boots.
    ///
    /// # Errors
    /// As [`Vm::boot`]; also for [`Firmware::Ovmf`], whose settings have no room for a state.
    pub async fn resume(self) -> anyhow::Result<Booted> {
        ensure!(
            self.hardware.firmware != Firmware::Ovmf,
            "a VM with UEFI cannot be resumed; use Vm::boot"
        );
        let snapshot = self.snapshot().await?;
        let directory = run_directory()?;
        let places = Places {
            directory: directory.path().to_owned(),
            taps: Vec::new(),
            has_kvm: has_kvm().await,
        };
        let disk = places.disk();
        tokio::task::spawn_blocking(move || fs::copy(snapshot, disk)).await??;
        let vm = Booted::start(self, directory, places, &["-loadvm", STATE]).await?;
        vm.agent_up(BOOT_LIMIT).await?;
        vm.set_clock().await?;
        Ok(vm)
    }

    /// The disk with the state of a VM like this; made if need be, by one test while the others wait.
    async fn snapshot(&self) -> anyhow::Result<PathBuf> {
        let directory = target_dir().join("vm-snapshots");
        fs::create_dir_all(&directory)?;
        let image = self
            .image
            .file_name()
            .context("the image has no name")?
            .to_string_lossy();
        let digest = image_digest(&self.image).await?;
        let prefix = format!("{image}-{digest}-");
        let key = format!("{prefix}{}", self.key().await?);
        let snapshot = directory.join(format!("{key}.qcow2"));

        let lock = directory.join(format!("{key}.lock"));
        let _locked = tokio::task::spawn_blocking(move || {
            let file = File::create(lock)?;
            file.lock()?;
            Ok::<_, std::io::Error>(file)
        })
        .await??;
        if !snapshot.exists() {
            remove_others(&directory, &format!("{image}-"), &prefix)?;
            let beside = directory.join(format!("{key}.new"));
            self.clone().make_snapshot(&beside).await?;
            fs::rename(&beside, &snapshot)?;
        }
        Ok(snapshot)
    }

    async fn make_snapshot(self, beside: &Path) -> anyhow::Result<()> {
        let vm = self.boot().await?;
        vm.up().await?;
        let disk = vm.disk();
        vm.with_monitor(async |monitor| {
            monitor.save(STATE).await?;
            monitor.call("quit", serde_json::json!({})).await
        })
        .await?;
        vm.ended(BOOT_LIMIT).await?;
        fs::copy(disk, beside).with_context(|| format!("writing {}", beside.display()))?;
        Ok(())
    }

    /// What a state depends on besides the image: QEMU and everything it was told.
    async fn key(&self) -> anyhow::Result<String> {
        let version = Cmd::new("qemu-system-x86_64").arg("--version").run().await?;
        let hardware = &self.hardware;
        let arguments = hardware.arguments(&Places::nowhere(&hardware.nics, has_kvm().await));
        let parts = format!(
            "{:?}",
            (version.text(), arguments, &hardware.iso, self.disk_gib, self.format)
        );
        Ok(digits(Sha256::digest(parts).as_slice()))
    }
}

/// Removes what was made of another build of the same image.
fn remove_others(directory: &Path, image: &str, current: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(image) && !name.starts_with(current) {
            fs::remove_file(entry.path()).ok(); // another test may have been faster
        }
    }
    Ok(())
}

/// Of the image's bytes; taken once in a test run.
async fn image_digest(image: &Path) -> anyhow::Result<String> {
    static KNOWN: OnceCell<Mutex<Vec<(PathBuf, String)>>> = OnceCell::const_new();
    let known = KNOWN.get_or_init(async || Mutex::new(Vec::new())).await;
    let mut known = known.lock().await;
    if let Some((_, digest)) = known.iter().find(|(path, _)| path == image) {
        return Ok(digest.clone());
    }
    let path = image.to_owned();
    let digest = tokio::task::spawn_blocking(move || {
        let mut file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let mut digest = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk)? {
                0 => break,
                length => digest.update(&chunk[..length]),
            }
        }
        anyhow::Ok(digits(digest.finalize().as_slice()))
    })
    .await??;
    known.push((image.to_owned(), digest.clone()));
    Ok(digest)
}

fn digits(digest: &[u8]) -> String {
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    hex.collect::<String>()[..DIGITS].to_owned()
}
