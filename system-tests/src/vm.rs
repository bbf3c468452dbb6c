//! System VMs under QEMU, as a hypervisor host starts and treats them.
//!
//! ```no_run
//! # async fn test() -> anyhow::Result<()> {
//! use system_tests::vm::{Format, Vm};
//!
//! let vm = Vm::new(Format::Qcow2).boot().await?;
//! vm.up().await?;
//! assert_eq!(vm.text(&["systemctl", "is-system-running"]).await?, "running\n");
//! # Ok(()) }
//! ```
//!
//! | module | |
//! |---|---|
//! | [`hardware`] | what a VM is made of, and QEMU's command line for it |
//! | [`network`] | a network of the test's own, that VMs are attached to |
//! | [`booted`] | a running VM: its console, monitor, guest agent, ports |
//! | [`guest_channel`] | the host's end of the guest channel |
//! | [`ssh`] | the host's way into a VM, over a network |
//! | [`scan`] | which ports of a VM are open |
//! | [`snapshot`] | VMs that start within seconds because they have booted before |
//! | `evidence` | what is kept of a VM whose test fails |
//!
//! Nothing is left behind: QEMU ends and its files go when the [`Booted`] is dropped, also by a panic; if the test run
//! is killed, the kernel kills QEMU with it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use platform::exec::Cmd;
use platform::files;
use tokio::sync::OnceCell;

mod evidence;
mod leftovers;

pub mod booted;
pub mod guest_channel;
pub mod hardware;
pub mod network;
pub mod scan;
pub mod snapshot;
pub mod ssh;

pub use booted::Booted;
pub use hardware::{Bus, Firmware, Machine, Nic, NicModel};
pub use hypervisor::guest_agent::Ran;
pub use network::Net;
pub use ssh::Ssh;

use crate::programs;
use hardware::{Hardware, Iso, Places};

/// For a guest to answer from a cold start: four times what three at once take on two cores.
pub const BOOT_LIMIT: Duration = Duration::from_mins(6);

/// The forms in which `cargo xtask image` makes the image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    Raw,
    Qcow2,
    /// Without compression, for old hosts.
    Qcow2Plain,
    Vhd,
    Ova,
}

impl Format {
    /// The file in `target/image`.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Raw => "sysvm.raw",
            Self::Qcow2 => "sysvm.qcow2",
            Self::Qcow2Plain => "sysvm-plain.qcow2",
            Self::Vhd => "sysvm.vhd",
            Self::Ova => "sysvm.ova",
        }
    }

    /// QEMU's name for it; an OVA is unpacked first.
    fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 | Self::Qcow2Plain => "qcow2",
            Self::Vhd => "vpc",
            Self::Ova => "vmdk",
        }
    }
}

/// A VM to be started: one processor, 512 MiB, a virtio disk, no NIC, until told otherwise.
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is booted"]
pub struct Vm {
    image: PathBuf,
    format: Format,
    disk_gib: Option<u32>,
    net: Option<Net>,
    hardware: Hardware,
}

impl Vm {
    /// One of our image.
    ///
    /// # Panics
    /// The image is not there.
    pub fn new(format: Format) -> Self {
        Self::of(programs::image(format), format)
    }

    /// One of any image.
    pub fn of(image: PathBuf, format: Format) -> Self {
        Self {
            image,
            format,
            disk_gib: None,
            net: None,
            hardware: Hardware::default(),
        }
    }

    /// Its mainboard.
    pub fn machine(mut self, machine: Machine) -> Self {
        self.hardware.machine = machine;
        self
    }

    /// Its firmware.
    pub fn firmware(mut self, firmware: Firmware) -> Self {
        self.hardware.firmware = firmware;
        self
    }

    /// The controller of its disk.
    pub fn bus(mut self, bus: Bus) -> Self {
        self.hardware.bus = bus;
        self
    }

    /// Its memory.
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.hardware.memory_mib = memory;
        self
    }

    /// Its processors.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.hardware.cpus = cpus;
        self
    }

    /// A disk larger than the image, as an offering may give it.
    pub fn disk_gib(mut self, size: u32) -> Self {
        self.disk_gib = Some(size);
        self
    }

    /// The network that its NICs are in: QEMU runs inside.
    pub fn net(mut self, net: &Net) -> Self {
        self.net = Some(net.clone());
        self
    }

    /// One more NIC. The first is eth0.
    pub fn nic(mut self, nic: Nic) -> Self {
        self.hardware.nics.push(nic);
        self
    }

    /// One more virtio-serial port, to be used with [`Booted::port`]; in the guest `/dev/virtio-ports/NAME`.
    pub fn port(mut self, name: &str) -> Self {
        self.hardware.ports.push(name.to_owned());
        self
    }

    /// One more OEM string (SMBIOS type 11); in the guest `/sys/firmware/dmi/entries/11-0/raw`.
    pub fn oem_string(mut self, text: &str) -> Self {
        self.hardware.oem_strings.push(text.to_owned());
        self
    }

    /// One more item of QEMU's firmware configuration; in the guest `/sys/firmware/qemu_fw_cfg/by_name/NAME/raw`.
    pub fn fw_cfg(mut self, name: &str, text: &str) -> Self {
        self.hardware.fw_cfg.push((name.to_owned(), text.to_owned()));
        self
    }

    /// A CD with these files (names without directories, and contents).
    pub fn iso(mut self, label: &str, files: &[(&str, &[u8])]) -> Self {
        let files = files
            .iter()
            .map(|(name, contents)| ((*name).to_owned(), contents.to_vec()));
        self.hardware.iso = Some(Iso {
            label: label.to_owned(),
            files: files.collect(),
        });
        self
    }

    /// Without a source of random numbers, as most hosts give it.
    pub fn no_rng(mut self) -> Self {
        self.hardware.has_rng = false;
        self
    }

    /// With the watchdog that CloudStack's KVM hosts give.
    pub fn watchdog(mut self) -> Self {
        self.hardware.has_watchdog = true;
        self
    }

    /// A reset starts the guest anew. Without this it ends QEMU.
    pub fn may_reboot(mut self) -> Self {
        self.hardware.may_reboot = true;
        self
    }

    /// Starts it and waits until its guest agent answers.
    ///
    /// # Errors
    /// QEMU ends or the guest does not answer; what is known of it is in `target/vm-logs`.
    pub async fn boot(self) -> anyhow::Result<Booted> {
        let vm = self.start().await?;
        vm.agent_up(BOOT_LIMIT).await?;
        Ok(vm)
    }

    /// Starts it and waits for nothing.
    ///
    /// # Errors
    /// Its disk cannot be made, or QEMU does not start.
    pub async fn start(self) -> anyhow::Result<Booted> {
        let directory = run_directory()?;
        let places = Places {
            directory: directory.path().to_owned(),
            taps: Vec::new(),
            has_kvm: has_kvm().await,
        };
        self.make_disk(directory.path(), &places.disk()).await?;
        Booted::start(self, directory, places, &[]).await
    }

    /// The VM's own disk, empty over the image.
    async fn make_disk(&self, scratch: &Path, disk: &Path) -> anyhow::Result<()> {
        let image = match self.format {
            Format::Ova => {
                let (ova, scratch) = (self.image.clone(), scratch.to_owned());
                tokio::task::spawn_blocking(move || disk_in_ova(&ova, &scratch)).await??
            }
            _ => std::path::absolute(&self.image)?,
        };
        let size = self.disk_gib.map(|size| format!("{size}G"));
        Cmd::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", self.format.driver(), "-b"])
            .arg(&image)
            .arg(disk)
            .args(size)
            .run()
            .await
            .context("making the disk of a VM")?;
        Ok(())
    }

    /// Files that QEMU reads besides the disk, and a tap for each NIC on a bridge.
    async fn make_parts(&self, places: &mut Places) -> anyhow::Result<()> {
        // A VM that starts again keeps them.
        if self.hardware.firmware == Firmware::Ovmf && !places.uefi_variables().exists() {
            let variables = std::fs::read(hardware::OVMF_VARIABLES)
                .with_context(|| format!("reading {}; is the package ovmf installed?", hardware::OVMF_VARIABLES))?;
            let _ = files::replace(places.uefi_variables(), variables, 0o600)?;
        }
        if let Some(iso) = &self.hardware.iso {
            iso.make(&places.iso()).await?;
        }
        for nic in &self.hardware.nics {
            places.taps.extend(nic.tap(self.net.as_ref()).await?);
        }
        Ok(())
    }
}

impl Iso {
    async fn make(&self, path: &Path) -> anyhow::Result<()> {
        let tree = tempfile::tempdir()?;
        for (name, contents) in &self.files {
            let _ = files::replace(tree.path().join(name), contents, 0o644)?;
        }
        Cmd::new("genisoimage")
            .args(["-quiet", "-J", "-R", "-V", &self.label, "-o"])
            .arg(path)
            .arg(tree.path())
            .run()
            .await
            .context("making a CD")?;
        Ok(())
    }
}

/// Where one run of a VM (or of a server) has its files and sockets. Short, since the path of a socket has at most 107 bytes.
pub(crate) fn run_directory() -> anyhow::Result<Arc<tempfile::TempDir>> {
    const KIND: &str = "vm";
    for entry in std::fs::read_dir(std::env::temp_dir())?.filter_map(Result::ok) {
        if leftovers::is_abandoned(KIND, &entry.file_name().to_string_lossy()) {
            std::fs::remove_dir_all(entry.path()).ok(); // another test may have been faster
        }
    }
    let directory = tempfile::Builder::new().prefix(&leftovers::prefix(KIND)).tempdir();
    Ok(Arc::new(directory.context("making a directory for a VM")?))
}

/// Takes the disk out of an OVA (a tar archive); its path.
fn disk_in_ova(ova: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let file = std::fs::File::open(ova).with_context(|| format!("opening {}", ova.display()))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries()? {
        let mut entry = entry?;
        if entry.path()?.extension().is_some_and(|extension| extension == "vmdk") {
            let disk = directory.join("image.vmdk");
            entry.unpack(&disk)?;
            return Ok(disk);
        }
    }
    anyhow::bail!("{} has no disk in it", ova.display())
}

/// Whether QEMU can use the processor's virtualisation here: only trying tells, the device may be there and useless.
pub async fn has_kvm() -> bool {
    static ANSWER: OnceCell<bool> = OnceCell::const_new();
    let arguments = "-machine pc -accel kvm -cpu max -m 16 -S -nodefaults -display none -qmp stdio";
    let quit = r#"{"execute": "qmp_capabilities"} {"execute": "quit"}"#;
    let probe = Cmd::new("qemu-system-x86_64").args(arguments.split(' ')).stdin(quit);
    *ANSWER.get_or_init(async || probe.run().await.is_ok()).await
}
