//! The boot arguments of a system VM, as CloudStack sends them (management.md §5).

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};

use base64::prelude::{BASE64_STANDARD, Engine};
use protocol::secret::Secret;

use crate::store::id::{InstanceId, PodId, ZoneId};

/// Every system VM's.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Management servers.
    pub hosts: Vec<String>,
    /// Their port for agents.
    pub port: u16,
    /// The VM's name.
    pub name: String,
    /// Its zone.
    pub zone: ZoneId,
    /// Its pod.
    pub pod: PodId,
    /// Public key of this server for ssh; `None` where nobody comes by ssh.
    pub authorized_key: Option<String>,
    /// Its NICs in device order: control, management, public, and for an SSVM storage.
    pub nics: Vec<Nic>,
    /// The pod's gateway.
    pub local_gateway: Option<Ipv4Addr>,
    /// Networks of management servers and hosts, such as `192.0.2.0/24`.
    pub management_cidr: Option<String>,
    /// For the VM itself.
    pub internal_dns: Vec<Ipv4Addr>,
    /// For its work.
    pub dns: Vec<Ipv4Addr>,
    /// Of the key store; made for each start.
    pub keystore_password: Secret<String>,
}

/// One NIC. Without an address it gets `0.0.0.0`.
#[derive(Clone, Debug, Default)]
pub struct Nic {
    /// Address and netmask.
    pub address: Option<(IpAddr, IpAddr)>,
    /// Of its network.
    pub gateway: Option<Ipv4Addr>,
    /// Whether it has the default route.
    pub is_default: bool,
}

/// A console proxy's own.
#[derive(Clone, Debug)]
pub struct ConsoleProxy {
    /// Its row.
    pub id: InstanceId,
    /// Where browsers connect.
    pub console_port: u16,
    /// Setting `consoleproxy.disable.rpfilter`.
    pub disable_rp_filter: bool,
}

/// An SSVM's own.
#[derive(Clone, Debug)]
pub struct SecondaryStorage {
    /// `templateProcessor` or `commandExecutor`.
    pub role: String,
    /// Host parts of the image stores' URLs.
    pub store_hosts: Vec<String>,
    /// Setting `secstorage.nfs.version`.
    pub nfs_version: Option<String>,
    /// Setting `secstorage.vm.mtu.size`.
    pub mtu: i64,
}

/// eth1.
const MANAGEMENT: usize = 1;

const RESOURCE: &str = "org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource";

/// The line of a CPVM, **secrets included**.
pub fn console_proxy(machine: &Machine, proxy: &ConsoleProxy) -> Secret<String> {
    let mut line = Line::default();
    line.start(machine, "consoleproxy", &format!("Proxy.{}", proxy.id));
    line.put("proxy_vm", proxy.id);
    if proxy.disable_rp_filter {
        line.put("disable_rp_filter", true);
    }
    line.key(machine);
    line.nics(machine, &[]);
    line.dns(machine);
    line.put("vncport", proxy.console_port);
    line.put("keystore_password", armoured(machine.keystore_password.expose()));
    Secret::new(line.0)
}

/// The line of an SSVM, **secrets included**.
pub fn secondary_storage(machine: &Machine, ssvm: &SecondaryStorage) -> Secret<String> {
    let mut line = Line::default();
    line.start(machine, "secstorage", &machine.name);
    line.put("workers", 5);
    line.key(machine);
    line.put("resource", RESOURCE);
    line.put("instance", "SecStorage");
    line.put("sslcopy", false);
    line.put("role", &ssvm.role);
    line.put("mtu", ssvm.mtu);
    line.nics(machine, &[(1, "private.network.device"), (2, "public.network.device")]);
    if let Some(nic) = machine.nics.get(3)
        && let Some((ip, mask)) = nic.address
    {
        line.put("storageip", ip);
        line.put("storagenetmask", mask);
        if let Some(gateway) = nic.gateway {
            line.put("storagegateway", gateway);
        }
    }
    line.dns(machine);
    if let Some(version) = &ssvm.nfs_version {
        line.put("nfsVersion", version);
    }
    line.put("keystore_password", armoured(machine.keystore_password.expose()));
    line.put("useHttpsToUpload", true);
    if !ssvm.store_hosts.is_empty() {
        line.put("secondaryStorageServerAddress", ssvm.store_hosts.join(","));
    }
    Secret::new(line.0)
}

#[derive(Default)]
struct Line(String);

impl Line {
    fn put(&mut self, key: &str, value: impl std::fmt::Display) {
        write!(self.0, " {key}={value}").expect("a String takes everything");
    }

    fn start(&mut self, machine: &Machine, vm_type: &str, guid: &str) {
        self.put("template", "domP");
        self.put("type", vm_type);
        self.put("host", machine.hosts.join(","));
        self.put("port", machine.port);
        self.put("name", &machine.name);
        self.put("zone", machine.zone);
        self.put("pod", machine.pod);
        self.put("guid", guid);
    }

    fn key(&mut self, machine: &Machine) {
        if let Some(key) = &machine.authorized_key {
            self.put("authorized_key", BASE64_STANDARD.encode(key));
        }
    }

    /// In the order in which CloudStack's servers append them (appliance.md §2.4): the default NIC first.
    fn nics(&mut self, machine: &Machine, named: &[(usize, &str)]) {
        let none = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let nics = || machine.nics.iter().enumerate();
        let default = nics().filter(|(_, nic)| nic.is_default);
        for (device, nic) in default.chain(nics().filter(|(_, nic)| !nic.is_default)) {
            let (ip, mask) = nic.address.unwrap_or(none);
            self.put(&format!("eth{device}ip"), ip);
            self.put(&format!("eth{device}mask"), mask);
            if nic.is_default
                && let Some(gateway) = nic.gateway
            {
                self.put("gateway", gateway);
            }
            if device == MANAGEMENT {
                if let Some(cidr) = &machine.management_cidr {
                    self.put("mgmtcidr", cidr);
                }
                if let Some(gateway) = machine.local_gateway {
                    self.put("localgw", gateway);
                }
            }
            if let Some((_, key)) = named.iter().find(|(wanted, _)| *wanted == device) {
                self.put(key, format!("eth{device}"));
            }
        }
    }

    fn dns(&mut self, machine: &Machine) {
        for (key, servers) in [("internaldns", &machine.internal_dns), ("dns", &machine.dns)] {
            for (index, server) in servers.iter().take(2).enumerate() {
                self.put(&format!("{key}{}", index + 1), server);
            }
        }
    }
}

/// Spaces would end the word.
fn armoured(text: &str) -> String {
    BASE64_STANDARD.encode(text.replace('\n', "^").replace(' ', "~"))
}

#[cfg(test)]
mod tests {
    use protocol::boot::{BootArgs, Role, SystemVm};

    use super::*;

    /// The addresses of appliance.md §2.4.
    fn machine(name: &str) -> Machine {
        let nic = |ip: &str, mask: &str, gateway: &str| Nic {
            address: Some((ip.parse().unwrap(), mask.parse().unwrap())),
            gateway: Some(gateway.parse().unwrap()),
            is_default: false,
        };
        Machine {
            hosts: vec!["192.0.2.10".into()],
            port: 8250,
            name: name.into(),
            zone: ZoneId(1),
            pod: PodId(1),
            authorized_key: Some("ssh-ed25519 AAAA cloud@mgmt".into()),
            nics: vec![
                nic("169.254.14.87", "255.255.0.0", "169.254.0.1"),
                nic("192.0.2.21", "255.255.255.0", "192.0.2.1"),
                Nic {
                    is_default: true,
                    ..nic("203.0.113.21", "255.255.255.0", "203.0.113.1")
                },
            ],
            local_gateway: Some("192.0.2.1".parse().unwrap()),
            management_cidr: Some("192.0.2.0/24".into()),
            internal_dns: vec!["192.0.2.53".parse().unwrap()],
            dns: vec!["198.51.100.53".parse().unwrap(), "198.51.100.54".parse().unwrap()],
            keystore_password: Secret::new("pass word".into()),
        }
    }

    fn read(line: &Secret<String>) -> SystemVm {
        let args = BootArgs::parse(line.expose()).unwrap();
        assert_eq!(args.stray_words(), Vec::<String>::new().as_slice());
        let vm = SystemVm::parse(&args).unwrap();
        assert_eq!(vm.unknown, BootArgs::default());
        assert_eq!(vm.machine.gateway, Some("203.0.113.1".parse().unwrap()));
        vm
    }

    /// appliance.md §2.4, example 2, without user data and NTP servers.
    #[test]
    fn a_console_proxy_gets_the_line_that_cloudstack_sends_and_understands_it() {
        let proxy = ConsoleProxy {
            id: InstanceId(2),
            console_port: 8080,
            disable_rp_filter: true,
        };
        let line = console_proxy(
            &Machine {
                hosts: vec!["192.0.2.10".into(), "192.0.2.11".into()],
                ..machine("v-2-VM")
            },
            &proxy,
        );
        assert_eq!(
            line.expose(),
            " template=domP type=consoleproxy host=192.0.2.10,192.0.2.11 port=8250 name=v-2-VM zone=1 pod=1 \
             guid=Proxy.2 proxy_vm=2 disable_rp_filter=true authorized_key=c3NoLWVkMjU1MTkgQUFBQSBjbG91ZEBtZ210 \
             eth2ip=203.0.113.21 eth2mask=255.255.255.0 gateway=203.0.113.1 \
             eth0ip=169.254.14.87 eth0mask=255.255.0.0 \
             eth1ip=192.0.2.21 eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 \
             internaldns1=192.0.2.53 dns1=198.51.100.53 dns2=198.51.100.54 vncport=8080 \
             keystore_password=cGFzc353b3Jk"
        );
        let vm = read(&line);
        assert_eq!(vm.machine.nics.len(), 3);
        let Role::ConsoleProxy(read) = vm.role else { panic!() };
        assert_eq!(
            (read.proxy_vm, read.console_port.get(), read.agent.guid.as_str()),
            (2, 8080, "Proxy.2")
        );
        assert_eq!(read.agent.keystore_password.unwrap().expose(), "pass word");
    }

    fn ssvm() -> SecondaryStorage {
        SecondaryStorage {
            role: "templateProcessor".into(),
            store_hosts: vec!["198.51.100.5".into()],
            nfs_version: Some("4.1".into()),
            mtu: 1500,
        }
    }

    /// appliance.md §2.4, example 1.
    #[test]
    fn an_ssvm_with_a_storage_nic_gets_the_line_that_cloudstack_sends_and_understands_it() {
        let mut machine = machine("s-1-VM");
        machine.nics.push(Nic {
            address: Some(("198.51.100.30".parse().unwrap(), "255.255.255.0".parse().unwrap())),
            gateway: Some("198.51.100.1".parse().unwrap()),
            is_default: false,
        });
        let line = secondary_storage(&machine, &ssvm());
        assert_eq!(
            line.expose(),
            " template=domP type=secstorage host=192.0.2.10 port=8250 name=s-1-VM zone=1 pod=1 guid=s-1-VM workers=5 \
             authorized_key=c3NoLWVkMjU1MTkgQUFBQSBjbG91ZEBtZ210 \
             resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource instance=SecStorage \
             sslcopy=false role=templateProcessor mtu=1500 \
             eth2ip=203.0.113.21 eth2mask=255.255.255.0 gateway=203.0.113.1 public.network.device=eth2 \
             eth0ip=169.254.14.87 eth0mask=255.255.0.0 \
             eth1ip=192.0.2.21 eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 \
             private.network.device=eth1 eth3ip=198.51.100.30 eth3mask=255.255.255.0 \
             storageip=198.51.100.30 storagenetmask=255.255.255.0 storagegateway=198.51.100.1 \
             internaldns1=192.0.2.53 dns1=198.51.100.53 dns2=198.51.100.54 nfsVersion=4.1 \
             keystore_password=cGFzc353b3Jk useHttpsToUpload=true secondaryStorageServerAddress=198.51.100.5"
        );
        let vm = read(&line);
        assert_eq!(vm.machine.nics.len(), 4);
        let Role::SecondaryStorage(read) = vm.role else {
            panic!()
        };
        assert_eq!(read.agent.guid, "s-1-VM");
        assert_eq!(read.nfs_version.as_deref(), Some("4.1"));
        assert_eq!(read.stores, ["198.51.100.5"]);
    }

    #[test]
    fn without_a_storage_range_and_without_ssh_the_words_for_them_are_absent() {
        let machine = Machine {
            authorized_key: None,
            ..machine("s-1-VM")
        };
        let line = secondary_storage(&machine, &ssvm());
        assert_eq!(read(&line).machine.nics.len(), 3);
        for word in ["storage", "eth3", "authorized_key"] {
            assert!(
                !line.expose().contains(&format!(" {word}")),
                "{word}: {}",
                line.expose()
            );
        }
    }
}
