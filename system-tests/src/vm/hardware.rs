//! What a VM is made of, and the command line of QEMU for it. Pure: the same parts give the same words.

use std::path::{Path, PathBuf};

use super::network::Net;

/// Seconds after which a VM is killed, whatever its test does: no test takes that long.
const TIME_LIMIT: &str = "1200";

/// The mainboard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Machine {
    /// i440FX: what CloudStack gives a system VM. NICs can be plugged in while it runs.
    #[default]
    Pc,
    /// Q35.
    Q35,
}

/// What starts the boot loader.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Firmware {
    /// A BIOS.
    #[default]
    SeaBios,
    /// UEFI.
    Ovmf,
}

/// The controller that the root disk is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Bus {
    #[default]
    Virtio,
    VirtioScsi,
    /// The mainboard's own: PIIX on [`Machine::Pc`], AHCI on [`Machine::Q35`].
    Ide,
    /// VMware's paravirtual SCSI.
    PvScsi,
    /// LSI Logic 53C895A.
    Lsi53c895a,
    /// LSI Logic SAS 1068.
    MptSas1068,
}

/// The kind of a NIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NicModel {
    #[default]
    Virtio,
    E1000,
    E1000e,
    Vmxnet3,
    Pcnet,
    Rtl8139,
}

/// A NIC and what it is attached to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its kind.
    pub model: NicModel,
    /// Its address, as `02:00:0a:4d:00:10`.
    pub mac: String,
    /// The bridge it is on; `None` is an unplugged cable.
    pub bridge: Option<String>,
}

/// A file system on a CD.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Iso {
    pub(super) label: String,
    /// Names and contents.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

/// The parts.
#[derive(Clone, Debug)]
pub(super) struct Hardware {
    pub(super) machine: Machine,
    pub(super) firmware: Firmware,
    pub(super) bus: Bus,
    pub(super) memory_mib: u32,
    pub(super) cpus: u32,
    pub(super) nics: Vec<Nic>,
    pub(super) ports: Vec<String>,
    pub(super) oem_strings: Vec<String>,
    pub(super) fw_cfg: Vec<(String, String)>,
    pub(super) iso: Option<Iso>,
    pub(super) has_rng: bool,
    pub(super) has_watchdog: bool,
    pub(super) may_reboot: bool,
}

/// Where one run of a VM keeps its files and sockets.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) directory: PathBuf,
    /// Names of the taps, one for each NIC that is on a bridge.
    pub(super) taps: Vec<String>,
    pub(super) has_kvm: bool,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            machine: Machine::default(),
            firmware: Firmware::default(),
            bus: Bus::default(),
            memory_mib: 512,
            cpus: 1,
            nics: Vec::new(),
            ports: Vec::new(),
            oem_strings: Vec::new(),
            fw_cfg: Vec::new(),
            iso: None,
            has_rng: true,
            has_watchdog: false,
            may_reboot: false,
        }
    }
}

impl Nic {
    /// One on a bridge of the VM's [`Net`].
    pub fn on(bridge: &str, mac: &str) -> Self {
        Self {
            model: NicModel::Virtio,
            mac: mac.to_owned(),
            bridge: Some(bridge.to_owned()),
        }
    }

    /// One whose cable is not plugged in.
    pub fn unplugged(mac: &str) -> Self {
        Self {
            model: NicModel::Virtio,
            mac: mac.to_owned(),
            bridge: None,
        }
    }

    /// The same of another kind.
    #[must_use]
    pub fn model(self, model: NicModel) -> Self {
        Self { model, ..self }
    }

    /// The tap for it, when it is on a bridge.
    pub(super) async fn tap(&self, net: Option<&Net>) -> anyhow::Result<Option<String>> {
        match (&self.bridge, net) {
            (None, _) => Ok(None),
            (Some(bridge), Some(net)) => net.tap(bridge).await.map(Some),
            (Some(bridge), None) => {
                anyhow::bail!("a NIC is on {bridge}, but the VM has no network; give it one with Vm::net")
            }
        }
    }
}

impl NicModel {
    /// Its name in QEMU.
    pub(super) fn device(self) -> &'static str {
        match self {
            Self::Virtio => "virtio-net-pci",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
            Self::Pcnet => "pcnet",
            Self::Rtl8139 => "rtl8139",
        }
    }

    /// The kernel's driver for it, as the link `/sys/class/net/eth0/device/driver` names it.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Virtio => "virtio_net",
            Self::E1000 => "e1000",
            Self::E1000e => "e1000e",
            Self::Vmxnet3 => "vmxnet3",
            Self::Pcnet => "pcnet32",
            Self::Rtl8139 => "8139cp",
        }
    }
}

impl Places {
    /// What only serves to compare the command lines of two VMs.
    pub(super) fn nowhere(nics: &[Nic], has_kvm: bool) -> Self {
        Self {
            directory: PathBuf::new(),
            taps: nics.iter().map(|_| "tap".to_owned()).collect(),
            has_kvm,
        }
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    pub(super) fn iso(&self) -> PathBuf {
        self.directory.join("config.iso")
    }

    pub(super) fn uefi_variables(&self) -> PathBuf {
        self.directory.join("uefi-variables.fd")
    }

    pub(super) fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    pub(super) fn monitor(&self) -> PathBuf {
        self.directory.join("monitor")
    }

    pub(super) fn guest_agent(&self) -> PathBuf {
        self.directory.join("guest-agent")
    }

    /// The socket of the port with this number.
    pub(super) fn port(&self, number: usize) -> PathBuf {
        self.directory.join(format!("port{number}"))
    }
}

/// UEFI of Debian's package `ovmf`.
pub(super) const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Its settings as they are on a new mainboard; each VM has a copy.
pub(super) const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// The words before QEMU's: it ends with the test run, however that ends, and after some time in any case.
pub(super) const LEASH: [&str; 9] = [
    "--pdeathsig",
    "KILL", // of timeout, when the thread that runs the test ends
    "timeout",
    "--signal=KILL",
    TIME_LIMIT, // of QEMU
    "setpriv",
    "--pdeathsig",
    "KILL", // of QEMU, when timeout ends
    "qemu-system-x86_64",
];

impl Hardware {
    /// QEMU's arguments.
    pub(super) fn arguments(&self, places: &Places) -> Vec<String> {
        let mut words = Words::default();
        words.option("-machine", if self.machine == Machine::Pc { "pc" } else { "q35" });
        words.option("-accel", if places.has_kvm { "kvm" } else { "tcg,thread=multi" });
        words.option("-cpu", "max");
        words.option("-m", self.memory_mib.to_string());
        words.option("-smp", self.cpus.to_string());
        words.0.push("-nodefaults".into());
        words.option("-vga", "std");
        words.option("-display", "none");
        words.option("-serial", format!("file:{}", shown(&places.console())));
        words.option("-qmp", format!("unix:{},server=on,wait=off", shown(&places.monitor())));
        if !self.may_reboot {
            words.0.push("-no-reboot".into());
        }
        if self.firmware == Firmware::Ovmf {
            words.option("-drive", format!("if=pflash,format=raw,readonly=on,file={OVMF_CODE}"));
            let variables = shown(&places.uefi_variables());
            words.option("-drive", format!("if=pflash,format=raw,file={variables}"));
        }
        self.disk(places, &mut words);
        if self.iso.is_some() {
            let iso = shown(&places.iso());
            words.option(
                "-drive",
                format!("if=none,id=cd,media=cdrom,readonly=on,format=raw,file={iso}"),
            );
            words.option("-device", "ide-cd,drive=cd");
        }
        self.serial_ports(places, &mut words);
        let mut taps = places.taps.iter();
        for (number, nic) in self.nics.iter().enumerate() {
            let tap = nic.bridge.as_ref().and_then(|_| taps.next());
            let backend = match tap {
                Some(tap) => format!("tap,id=net{number},ifname={tap},script=no,downscript=no"),
                None => format!("hubport,id=net{number},hubid={number}"),
            };
            words.option("-netdev", backend);
            let device = nic.model.device();
            // No ROM: nobody boots from the network, and the firmware would look.
            words.option(
                "-device",
                format!("{device},id=nic{number},netdev=net{number},mac={},romfile=", nic.mac),
            );
        }
        if !self.oem_strings.is_empty() {
            let values = self.oem_strings.iter().map(|text| format!(",value={}", quoted(text)));
            words.option("-smbios", format!("type=11{}", values.collect::<String>()));
        }
        for (name, text) in &self.fw_cfg {
            words.option("-fw_cfg", format!("name={},string={}", quoted(name), quoted(text)));
        }
        if self.has_rng {
            words.option("-device", "virtio-rng-pci");
        }
        if self.has_watchdog {
            words.option("-device", "i6300esb");
            words.option("-action", "watchdog=none"); // as CloudStack's hosts have it
        }
        words.0
    }

    fn disk(&self, places: &Places, words: &mut Words) {
        let disk = shown(&places.disk());
        // The file is this VM's alone. QEMU's lock on it outlives a QEMU that was killed for a moment, in which the next one
        // would not start.
        words.option(
            "-drive",
            format!("if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file={disk},file.locking=off"),
        );
        let controller = match self.bus {
            Bus::Virtio | Bus::Ide => None,
            Bus::VirtioScsi => Some("virtio-scsi-pci,id=scsi"),
            Bus::PvScsi => Some("pvscsi,id=scsi"),
            Bus::Lsi53c895a => Some("lsi53c895a,id=scsi"),
            Bus::MptSas1068 => Some("mptsas1068,id=scsi"),
        };
        if let Some(controller) = controller {
            words.option("-device", controller);
        }
        let device = match self.bus {
            Bus::Virtio => "virtio-blk-pci,drive=disk,bootindex=0",
            Bus::Ide => "ide-hd,drive=disk,bootindex=0",
            Bus::VirtioScsi | Bus::PvScsi | Bus::Lsi53c895a => "scsi-hd,bus=scsi.0,drive=disk,bootindex=0",
            // Without a name of its own the disk never appears in the guest.
            Bus::MptSas1068 => "scsi-hd,bus=scsi.0,drive=disk,bootindex=0,wwn=0x5000c50015ea71aa",
        };
        words.option("-device", device);
    }

    fn serial_ports(&self, places: &Places, words: &mut Words) {
        words.option("-device", "virtio-serial-pci");
        let ports = self.ports.iter().enumerate();
        let others = ports.map(|(number, name)| (format!("port{number}"), places.port(number), name.as_str()));
        let agent = ("agent".to_owned(), places.guest_agent(), "org.qemu.guest_agent.0");
        for (id, socket, name) in [agent].into_iter().chain(others) {
            words.option(
                "-chardev",
                format!("socket,id={id},server=on,wait=off,path={}", shown(&socket)),
            );
            words.option("-device", format!("virtserialport,chardev={id},name={}", quoted(name)));
        }
    }
}

#[derive(Default)]
struct Words(Vec<String>);

impl Words {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }
}

/// QEMU ends a value at a comma, and takes two for one.
fn quoted(value: &str) -> String {
    value.replace(',', ",,")
}

fn shown(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_vm_is_what_cloudstack_gives_a_system_vm() {
        let places = Places {
            directory: "/run/a,b".into(),
            taps: vec!["tap7".into()],
            has_kvm: false,
        };
        let hardware = Hardware {
            nics: vec![
                Nic::unplugged("02:00:00:00:00:01"),
                Nic::on("control", "02:00:00:00:00:02"),
            ],
            oem_strings: vec!["a=1,b=2".into()],
            ..Hardware::default()
        };
        let words = hardware.arguments(&places).join(" ");
        assert_eq!(
            words,
            "-machine pc -accel tcg,thread=multi -cpu max -m 512 -smp 1 -nodefaults -vga std -display none \
             -serial file:/run/a,,b/console.log -qmp unix:/run/a,,b/monitor,server=on,wait=off -no-reboot \
             -drive if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap,file=/run/a,,b/disk.qcow2,file.locking=off \
             -device virtio-blk-pci,drive=disk,bootindex=0 -device virtio-serial-pci \
             -chardev socket,id=agent,server=on,wait=off,path=/run/a,,b/guest-agent \
             -device virtserialport,chardev=agent,name=org.qemu.guest_agent.0 \
             -netdev hubport,id=net0,hubid=0 -device virtio-net-pci,id=nic0,netdev=net0,mac=02:00:00:00:00:01,romfile= \
             -netdev tap,id=net1,ifname=tap7,script=no,downscript=no \
             -device virtio-net-pci,id=nic1,netdev=net1,mac=02:00:00:00:00:02,romfile= \
             -smbios type=11,value=a=1,,b=2 -device virtio-rng-pci"
        );
    }
}
