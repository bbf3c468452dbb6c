//! What a VM is made of, and the command line of QEMU for it: the hardware that CloudStack's KVM hosts give to a system VM
//! (appliance.md §3.2). Pure: the same machine gives the same words.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use platform::exec::Cmd;
use protocol::boot::MacAddr;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::accelerator::Accelerator;
use crate::vm::Places;

/// The port of QEMU's guest agent; in the guest `/dev/virtio-ports/NAME`.
pub const GUEST_AGENT_PORT: &str = "org.qemu.guest_agent.0";
/// The port of the guest channel (docs/guest-channel.md).
pub const GUEST_CHANNEL_PORT: &str = "org.sysvm.agent.0";
/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// MiB of translated code that QEMU keeps without KVM. Its own default is 1 GiB, which a few VMs would fill one after the
/// other; a Linux that boots and serves needs a quarter of this.
pub(crate) const TRANSLATED_MIB: u32 = 256;
/// Bytes in a name: it is in file names, and in the name of a thread.
const MAX_NAME: usize = 63;
/// The largest VM that is not a typing error.
const MAX_MEMORY_MIB: u32 = 4 * 1024 * 1024;
/// The least that the firmware starts with.
const MIN_MEMORY_MIB: u32 = 16;
/// What `-machine pc` takes.
const MAX_CPUS: u32 = 255;
/// Slots of the one PCI bus of `-machine pc` that are left for disks and NICs.
const MAX_DEVICES: usize = 20;
/// Ports after 5900 among which QEMU looks for a free one: as many as the zone's firewall lets console proxies reach.
const SCREENS: u16 = 999;

/// A VM. Kept in a file beside its sockets; has no secrets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Letters, digits, `-`, `_` and `.`, such as `v-2-VM`.
    pub name: String,
    /// In the guest `/sys/class/dmi/id/product_uuid`.
    pub uuid: Uuid,
    /// What runs its processors.
    pub accelerator: Accelerator,
    /// MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// The first one is booted from.
    pub disks: Vec<Disk>,
    /// The first one is eth0.
    pub nics: Vec<Nic>,
    /// Where its VNC screen listens, in its network namespace, on a free port from 5900; nobody gets in before
    /// [`Vm::set_screen_password`](crate::vm::Vm::set_screen_password).
    pub screen: Option<Ipv4Addr>,
}

/// A virtio disk.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file; absolute.
    pub path: PathBuf,
    /// What is in it. It is never guessed: a guest writes what it likes into a raw disk.
    pub format: Format,
}

/// How a disk is kept in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Bytes as the guest sees them.
    Raw,
    /// QEMU's.
    Qcow2,
}

/// A virtio NIC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddr,
    /// The tap, there already, in the VM's network namespace.
    pub tap: String,
}

/// A machine that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMachine {
    /// It is in paths.
    #[error(
        "{0:?} is no name for a VM; use 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`, the first not a `.` or `-`"
    )]
    Name(String),
    /// MiB.
    #[error("a VM cannot have {0} MiB of memory; give it {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}")]
    Memory(u32),
    /// Processors.
    #[error("a VM cannot have {0} processors; give it 1 to {MAX_CPUS}")]
    Cpus(u32),
    /// Slots.
    #[error("a VM cannot have {0} disks and NICs; at most {MAX_DEVICES} fit")]
    Devices(usize),
    /// QEMU runs in another directory.
    #[error("the disk {} needs an absolute path", .0.display())]
    Disk(PathBuf),
    /// IFNAMSIZ.
    #[error("{0:?} is no name for a tap; use 1 to 15 letters, digits, `-`, `_` and `.`")]
    Tap(String),
}

impl Format {
    /// Its name in QEMU.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl Machine {
    /// Whether QEMU can make such a machine.
    pub fn check(&self) -> Result<(), BadMachine> {
        if !is_word(&self.name, MAX_NAME) {
            return Err(BadMachine::Name(self.name.clone()));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(BadMachine::Memory(self.memory_mib));
        }
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(BadMachine::Cpus(self.cpus));
        }
        let devices = self.disks.len() + self.nics.len();
        if devices > MAX_DEVICES {
            return Err(BadMachine::Devices(devices));
        }
        if let Some(disk) = self.disks.iter().find(|disk| !disk.path.is_absolute()) {
            return Err(BadMachine::Disk(disk.path.clone()));
        }
        if let Some(nic) = self.nics.iter().find(|nic| !is_word(&nic.tap, 15)) {
            return Err(BadMachine::Tap(nic.tap.clone()));
        }
        Ok(())
    }

    /// The command line, for a VM whose files are at `places`.
    pub fn command(&self, places: &Places) -> Cmd {
        Cmd::new(QEMU).args(self.arguments(places))
    }

    /// QEMU's arguments.
    fn arguments(&self, places: &Places) -> Vec<String> {
        let mut words = Words::default();
        words.option("-name", format!("guest={},debug-threads=on", self.name));
        words.option("-uuid", self.uuid.to_string());
        words.option("-machine", "pc");
        words.option("-accel", self.accelerator.argument());
        words.option("-cpu", "max");
        words.option("-m", self.memory_mib.to_string());
        words.option("-smp", self.cpus.to_string());
        words.flag("-no-user-config");
        words.flag("-nodefaults");
        // A guest that breaks out of its devices cannot run programs, and neither change its rights nor its limits.
        words.option(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        words.option("-msg", "timestamp=on");
        words.option("-rtc", "base=utc");
        words.option("-vga", "std");
        words.option("-display", "none");
        if let Some(address) = self.screen {
            words.option("-vnc", format!("{address}:0,to={SCREENS},password=on"));
        }
        // Appended to: it is cut while QEMU writes.
        let console = shown(&places.console());
        words.option("-chardev", format!("file,id=console,append=on,path={console}"));
        words.option("-serial", "chardev:console");
        words.option("-qmp", format!("unix:{},server=on,wait=off", shown(&places.qmp())));
        for (number, disk) in self.disks.iter().enumerate() {
            disk.add(number, &mut words);
        }
        words.option("-device", "virtio-serial-pci");
        for (id, socket, name) in [
            ("agent", places.guest_agent(), GUEST_AGENT_PORT),
            ("channel", places.channel(), GUEST_CHANNEL_PORT),
        ] {
            let socket = shown(&socket);
            words.option("-chardev", format!("socket,id={id},server=on,wait=off,path={socket}"));
            words.option("-device", format!("virtserialport,chardev={id},name={name}"));
        }
        for (number, Nic { mac, tap }) in self.nics.iter().enumerate() {
            words.option(
                "-netdev",
                format!("tap,id=net{number},ifname={tap},script=no,downscript=no"),
            );
            // No ROM: nobody boots from the network, and the firmware would look.
            let device = format!("virtio-net-pci,id=nic{number},netdev=net{number},mac={mac},romfile=");
            words.option("-device", device);
        }
        words.option("-device", "virtio-balloon-pci,id=balloon");
        words.option("-device", "virtio-rng-pci");
        words.option("-device", "i6300esb");
        words.option("-action", "watchdog=none");
        words.0
    }
}

impl Disk {
    fn add(&self, number: usize, words: &mut Words) {
        let Self { path, format } = self;
        let (path, format) = (shown(path), format.name());
        // Written when the guest flushes: what it was promised survives a power cut of ours.
        words.option(
            "-drive",
            format!("if=none,id=disk{number},format={format},cache=writeback,discard=unmap,file={path}"),
        );
        let boot = if number == 0 { ",bootindex=0" } else { "" };
        words.option("-device", format!("virtio-blk-pci,drive=disk{number}{boot}"));
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

fn is_word(text: &str, max: usize) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=max).contains(&text.len()) && text.bytes().all(is_fine) && !text.starts_with(['.', '-'])
}

/// A path in an option. QEMU ends a value at a comma, and takes two for one.
fn shown(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            name: "v-2-VM".into(),
            uuid: "6f1c2ab4-1df3-4a31-9d54-0f8f1b2e7c90".parse().unwrap(),
            accelerator: Accelerator::Kvm,
            memory_mib: 512,
            cpus: 2,
            disks: vec![Disk {
                path: "/data/a,b.qcow2".into(),
                format: Format::Qcow2,
            }],
            nics: vec![Nic {
                mac: "02:00:00:00:00:01".parse().unwrap(),
                tap: "v-2-VM.0".into(),
            }],
            screen: Some(Ipv4Addr::new(172, 31, 1, 1)),
        }
    }

    #[test]
    fn a_vm_is_what_cloudstack_gives_a_system_vm() {
        let command = machine().command(&Places::new(Path::new("/run/vm"))).to_string();
        let wanted = "qemu-system-x86_64 -name guest=v-2-VM,debug-threads=on \
             -uuid 6f1c2ab4-1df3-4a31-9d54-0f8f1b2e7c90 -machine pc -accel kvm -cpu max -m 512 -smp 2 -no-user-config \
             -nodefaults -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -msg timestamp=on -rtc base=utc -vga std -display none -vnc 172.31.1.1:0,to=999,password=on \
             -chardev file,id=console,append=on,path=/run/vm/console.log -serial chardev:console \
             -qmp unix:/run/vm/qmp,server=on,wait=off \
             -drive if=none,id=disk0,format=qcow2,cache=writeback,discard=unmap,file=/data/a,,b.qcow2 \
             -device virtio-blk-pci,drive=disk0,bootindex=0 -device virtio-serial-pci \
             -chardev socket,id=agent,server=on,wait=off,path=/run/vm/guest-agent \
             -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
             -chardev socket,id=channel,server=on,wait=off,path=/run/vm/channel \
             -device virtserialport,chardev=channel,name=org.sysvm.agent.0 \
             -netdev tap,id=net0,ifname=v-2-VM.0,script=no,downscript=no \
             -device virtio-net-pci,id=nic0,netdev=net0,mac=02:00:00:00:00:01,romfile= \
             -device virtio-balloon-pci,id=balloon -device virtio-rng-pci -device i6300esb -action watchdog=none";
        assert_eq!(command, wanted);
    }

    #[test]
    fn what_cannot_be_is_refused_before_qemu_sees_it() {
        let with = |change: fn(&mut Machine)| {
            let mut machine = machine();
            change(&mut machine);
            machine.check()
        };
        assert_eq!(machine().check(), Ok(()));
        for name in ["", "a/b", "..", "-x", "a b", "a,b=c"] {
            let mut machine = machine();
            machine.name = name.to_owned();
            assert_eq!(machine.check(), Err(BadMachine::Name(name.to_owned())));
        }
        assert_eq!(with(|machine| machine.memory_mib = 8), Err(BadMachine::Memory(8)));
        assert_eq!(with(|machine| machine.cpus = 0), Err(BadMachine::Cpus(0)));
        let relative = with(|machine| machine.disks[0].path = "disk".into());
        assert_eq!(relative, Err(BadMachine::Disk("disk".into())));
        let tap = with(|machine| machine.nics[0].tap = "a,script=/bin/sh".into());
        assert_eq!(tap, Err(BadMachine::Tap("a,script=/bin/sh".into())));
        let nics = with(|machine| machine.nics = vec![machine.nics[0].clone(); 20]);
        assert_eq!(nics, Err(BadMachine::Devices(21)));
    }

    #[test]
    fn a_machine_is_found_again_in_its_file() {
        let text = serde_json::to_string(&machine()).unwrap();
        assert_eq!(serde_json::from_str::<Machine>(&text).unwrap(), machine());
    }
}
