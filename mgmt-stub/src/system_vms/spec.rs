//! What a system VM is made of: its NICs with their addresses, its boot arguments, its certificate (management.md §4, §5).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::Ipv4Net;
use protocol::secret::Secret;

use super::place::{AddressRange, Network, Networks};
use super::{SystemVmError, SystemVms};
use crate::boot_line;
use crate::ca::Request;
use crate::configuration::{
    CONSOLEPROXY_DISABLE_RP_FILTER, CONSOLEPROXY_RAM_SIZE, Configuration, MANAGEMENT_IP_STRICTNESS,
    PUBLIC_IP_STRICTNESS, RELEASE_CONTROL_IP, SECSTORAGE_NFS_VERSION, SECSTORAGE_VM_MTU_SIZE, SECSTORAGE_VM_RAM_SIZE,
};
use crate::driver::{self, Purpose, Traffic, VmSpec};
use crate::random;
use crate::store::StoreError;
use crate::store::instance::{Instance, InstanceType};
use crate::store::nic::{Nic, WantedNic};

/// Where a console proxy with addresses of its own serves browsers (management.md §5, `vncport`).
const CONSOLE_PORT: u16 = 8080;

/// RFB's VncAuth counts eight characters (RFC 6143 §7.2.2).
const VNC_PASSWORD_LEN: usize = 8;

/// The networks of a system VM in the order of its devices (management.md §4).
fn nic_plan(kind: InstanceType, networks: &Networks) -> Vec<Traffic> {
    let mut plan = vec![Traffic::Control, Traffic::Management, Traffic::Public];
    if kind == InstanceType::SecondaryStorageVm && networks.storage.is_some() {
        plan.push(Traffic::Storage);
    }
    plan
}

fn wanted(traffic: Traffic, network: &Network, configuration: &Configuration) -> WantedNic {
    let (own, general): (Vec<AddressRange>, Vec<AddressRange>) =
        network.ranges.iter().partition(|range| range.is_for_system_vms);
    let is_strict = match traffic {
        Traffic::Public => configuration.flag(&PUBLIC_IP_STRICTNESS),
        Traffic::Management => configuration.flag(&MANAGEMENT_IP_STRICTNESS),
        _ => false,
    };
    let bounds = |ranges: Vec<AddressRange>| ranges.iter().map(|range| (range.first, range.last)).collect();
    let mut ranges = vec![bounds(own)];
    if !is_strict {
        ranges.push(bounds(general));
    }
    WantedNic {
        traffic,
        subnet: network.subnet,
        gateway: network.gateway,
        is_default: traffic == Traffic::Public,
        ranges,
    }
}

/// What a VM that is Stopped gives back (management.md §4); a public address stays until it is expunged.
pub(super) fn released_on_stop(configuration: &Configuration) -> &'static [Traffic] {
    if configuration.flag(&RELEASE_CONTROL_IP) {
        &[Traffic::Control, Traffic::Management, Traffic::Storage]
    } else {
        &[Traffic::Management, Traffic::Storage]
    }
}

impl SystemVms {
    /// The NICs of a VM that is being started. None, where VMs are programs.
    pub(super) async fn reserve_nics(&self, vm: &Instance) -> Result<Vec<Nic>, StoreError> {
        let Some(networks) = &self.inner.place.networks else {
            return Ok(Vec::new());
        };
        let plan = nic_plan(vm.kind, networks).into_iter();
        let nics = plan.filter_map(|traffic| {
            let network = networks.network(traffic)?;
            Some(wanted(traffic, network, &self.inner.configuration))
        });
        self.inner.store.reserve_nics(vm.id, nics.collect()).await
    }

    /// Also issues its certificate.
    pub(super) async fn spec(&self, vm: &Instance, nics: &[Nic]) -> Result<VmSpec, SystemVmError> {
        let configuration = &self.inner.configuration;
        let machine = self.machine(vm, nics);
        let (purpose, boot_args, memory) = if vm.kind == InstanceType::ConsoleProxy {
            let listen = self.console_of(vm, nics);
            let proxy = boot_line::ConsoleProxy {
                id: vm.id,
                console_port: listen.port(),
                disable_rp_filter: configuration.flag(&CONSOLEPROXY_DISABLE_RP_FILTER),
            };
            let boot_args = boot_line::console_proxy(&machine, &proxy);
            (Purpose::ConsoleProxy { listen }, boot_args, &CONSOLEPROXY_RAM_SIZE)
        } else {
            let stores = self.inner.store.image_stores(self.inner.place.zone).await?;
            let version = configuration.text(&SECSTORAGE_NFS_VERSION);
            let ssvm = boot_line::SecondaryStorage {
                role: vm.role.clone().unwrap_or_else(|| "templateProcessor".into()),
                store_hosts: stores.iter().filter_map(|store| host_part(&store.url)).collect(),
                nfs_version: Some(version).filter(|version| !version.is_empty()),
                mtu: configuration.number(&SECSTORAGE_VM_MTU_SIZE),
            };
            let local = stores
                .into_iter()
                .filter_map(|store| Some((store.url, PathBuf::from(store.local_directory?))));
            let purpose = Purpose::SecondaryStorage {
                stores: local.collect(),
            };
            (
                purpose,
                boot_line::secondary_storage(&machine, &ssvm),
                &SECSTORAGE_VM_RAM_SIZE,
            )
        };
        let request = Request::new(vm.name.clone(), vec![vm.name.clone()], self.certified(nics));
        let identity = self.inner.ca.issue(&request)?;
        self.inner.store.record_certificate(&identity.signed, None).await?;
        Ok(VmSpec {
            name: vm.name.clone(),
            purpose,
            boot_args,
            identity: Some(identity),
            nics: nics.iter().filter_map(driver_nic).collect(),
            cpus: 1,
            memory_mib: u32::try_from(configuration.number(memory)).unwrap_or(512),
            vnc_password: Secret::new(random::letters(VNC_PASSWORD_LEN)),
        })
    }

    fn machine(&self, vm: &Instance, nics: &[Nic]) -> boot_line::Machine {
        let place = &self.inner.place;
        let networks = place.networks.as_ref();
        let nics = if networks.is_some() {
            nics.iter().map(line_nic).collect()
        } else {
            process_nics(place.console.ip())
        };
        boot_line::Machine {
            hosts: place.servers.clone(),
            port: place.port,
            name: vm.name.clone(),
            zone: place.zone,
            pod: place.pod,
            authorized_key: place.authorized_key.clone(),
            nics,
            local_gateway: networks.map(|networks| networks.management.gateway),
            management_cidr: networks.map(|networks| networks.management.subnet.trunc().to_string()),
            internal_dns: networks
                .map(|networks| networks.internal_dns.clone())
                .unwrap_or_default(),
            dns: networks.map(|networks| networks.dns.clone()).unwrap_or_default(),
            keystore_password: Secret::new(random::letters(16)),
        }
    }

    /// Where a console proxy serves browsers, as it sees it itself.
    fn console_of(&self, vm: &Instance, nics: &[Nic]) -> SocketAddr {
        let console = self.inner.place.console;
        let public = nics.iter().find(|nic| nic.traffic == Traffic::Public);
        match public.and_then(|nic| nic.address) {
            Some(address) => SocketAddr::new(address.addr().into(), CONSOLE_PORT),
            None => SocketAddr::new(console.ip(), vm.console_port.unwrap_or(console.port())),
        }
    }

    /// The addresses that its certificate is for: those that its links may come from.
    fn certified(&self, nics: &[Nic]) -> Vec<IpAddr> {
        if self.inner.place.networks.is_none() {
            return vec![self.inner.place.console.ip()];
        }
        let reaches_others = nics.iter().filter(|nic| nic.traffic != Traffic::Control);
        reaches_others
            .filter_map(|nic| Some(nic.address?.addr().into()))
            .collect()
    }
}

/// A process has this machine's addresses: no control NIC, the others are the one it is reached by.
fn process_nics(public: IpAddr) -> Vec<boot_line::Nic> {
    let mask = if public.to_canonical().is_loopback() {
        Ipv4Addr::new(255, 0, 0, 0)
    } else {
        Ipv4Addr::BROADCAST
    };
    let nic = boot_line::Nic {
        address: Some((public, mask.into())),
        ..boot_line::Nic::default()
    };
    vec![boot_line::Nic::default(), nic.clone(), nic]
}

fn driver_nic(nic: &Nic) -> Option<driver::Nic> {
    Some(driver::Nic {
        traffic: nic.traffic,
        mac: nic.mac?,
        address: nic.address,
        gateway: nic.gateway.filter(|_| nic.is_default),
    })
}

fn line_nic(nic: &Nic) -> boot_line::Nic {
    let both = |net: Ipv4Net| (net.addr().into(), net.netmask().into());
    boot_line::Nic {
        address: nic.address.map(both),
        gateway: nic.gateway,
        is_default: nic.is_default,
    }
}

fn host_part(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    (!host.is_empty()).then(|| host.to_owned())
}
