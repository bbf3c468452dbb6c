//! The network of a zone: real bridges, rules, NFS server and packets. VMs are network namespaces whose NICs are plugged in
//! where taps would be.

#![expect(clippy::unwrap_used, reason = "a test may fall over anywhere")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use hypervisor::network::namespace::{Name, Namespace};
use hypervisor::network::{Group, InterfaceName, Network, Port};
use mgmt_stub::zone_network::{CONSOLE_PROXIES, ZoneNetwork, ZoneNetworkOptions};
use platform::exec::{Cmd, Process};
use tempfile::TempDir;

/// All that something listens on at the host, and more.
const PORTS: [u16; 10] = [22, 53, 80, 111, 2049, 3922, 5900, 8089, 8250, 20048];
/// Longer than an answer takes on a busy machine; what is dropped takes as long.
const PATIENCE: Duration = Duration::from_millis(700);

fn options() -> ZoneNetworkOptions {
    ZoneNetworkOptions {
        zone_cidr: "172.31.0.0/16".parse().unwrap(),
        uplink: false,
        nfs_v3: false,
    }
}

/// A zone that is gone with the test, also when that falls over.
struct Zone {
    directory: TempDir,
}

impl Zone {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    async fn open(&self, options: &ZoneNetworkOptions) -> ZoneNetwork {
        ZoneNetwork::open(self.path(), options).await.unwrap()
    }

    fn nfs(&self) -> Process {
        let text = std::fs::read_to_string(self.path().join("nfs/ganesha.process")).unwrap();
        text.parse().unwrap()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        let name = Name::of_directory(self.path());
        if let Ok(Some(namespace)) = Namespace::open(&name) {
            for process in namespace.processes().unwrap_or_default() {
                let pid = nix::unistd::Pid::from_raw(process.pid());
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
            }
            Namespace::drop_name(&name).ok();
        }
    }
}

/// A VM with one NIC.
struct Vm(Namespace);

impl Vm {
    async fn new(
        network: &Network,
        bridge: &str,
        address: Ipv4Addr,
        gateway: Option<Ipv4Addr>,
        groups: &[Group],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let namespace = Namespace::open_or_create(&Name::of_directory(directory.path()))
            .await
            .unwrap();
        let vm = Self(namespace);
        let octets = address.octets();
        let port = Port {
            vm: format!("{bridge}{}", octets[3]),
            device: 0,
            bridge: bridge.parse().unwrap(),
            mac: format!("02:00:00:{:02x}:{:02x}:{:02x}", octets[1], octets[2], octets[3])
                .parse()
                .unwrap(),
            addresses: if bridge == "guest" { Vec::new() } else { vec![address] },
            groups: groups.to_vec(),
        };
        let tap = InterfaceName::of_tap(&port.vm, 0);
        let wire = format!(
            "link add {tap} type veth peer name eth0 address {} netns {}",
            port.mac,
            vm.0.name()
        );
        network.namespace().ip(&wire).await.unwrap();
        network.attach(&port).await.unwrap();
        let prefix = if bridge == "control" { 16 } else { 24 };
        let route = gateway.map_or_else(String::new, |gateway| format!("\nroute add default via {gateway}"));
        let up = format!("address add {address}/{prefix} dev eth0\nlink set eth0 up{route}");
        vm.0.ip(&up).await.unwrap();
        vm
    }

    /// The TCP ports of an address that it reaches.
    fn open(&self, address: Ipv4Addr) -> BTreeSet<u16> {
        let tries = || {
            let tries = PORTS.map(|port| thread::spawn(move || reaches(address, port).then_some(port)));
            tries.into_iter().filter_map(|tried| tried.join().unwrap()).collect()
        };
        self.0.inside(tries).unwrap()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        Namespace::drop_name(self.0.name()).ok();
    }
}

fn reaches(address: Ipv4Addr, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(IpAddr::V4(address), port), PATIENCE).is_ok()
}

/// By UDP.
fn asks_for_a_name() -> bool {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let sent = socket.send_to(b"question", (MANAGEMENT, 53));
    sent.is_ok() && socket.recv(&mut [0; 64]).is_ok()
}

fn listen_everywhere(namespace: &Namespace) -> Vec<TcpListener> {
    let bind = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok();
    namespace
        .inside(|| PORTS.into_iter().filter_map(bind).collect())
        .unwrap()
}

/// Looks for a while: the kernel takes up to a second to see that a wire is connected.
async fn soon(is_so: impl Fn() -> bool) {
    for _ in 0..30 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

const CONTROL: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const MANAGEMENT: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(172, 31, 2, 1);
const STORAGE: Ipv4Addr = Ipv4Addr::new(172, 31, 3, 1);
const NFS: Ipv4Addr = Ipv4Addr::new(172, 31, 3, 5);

#[tokio::test]
async fn each_network_reaches_what_it_is_for_and_users_vms_reach_nothing() {
    let zone = Zone::new();
    let open = zone.open(&options()).await;
    let network = open.network().clone();
    drop(open); // and with it the name server, which would ask others
    let _listeners = listen_everywhere(network.namespace()); // but where something listens already
    let names = network
        .namespace()
        .inside(|| UdpSocket::bind((MANAGEMENT, 53)).unwrap())
        .unwrap();
    thread::spawn(move || {
        let mut packet = [0; 64];
        while let Ok((length, peer)) = names.recv_from(&mut packet) {
            names.send_to(&packet[..length], peer).ok();
        }
    });

    let address = |third, last| Ipv4Addr::new(172, 31, third, last);
    let control = Vm::new(&network, "control", Ipv4Addr::new(169, 254, 14, 87), Some(CONTROL), &[]).await;
    let ssvm = Vm::new(&network, "management", address(1, 21), Some(MANAGEMENT), &[]).await;
    let cpvm = Vm::new(
        &network,
        "management",
        address(1, 22),
        Some(MANAGEMENT),
        &[CONSOLE_PROXIES],
    )
    .await;
    let public = Vm::new(&network, "public", address(2, 21), Some(PUBLIC), &[]).await;
    let public_too = Vm::new(&network, "public", address(2, 22), Some(PUBLIC), &[]).await;
    let storage = Vm::new(&network, "storage", address(3, 21), Some(STORAGE), &[]).await;
    let user = Vm::new(
        &network,
        "guest",
        Ipv4Addr::new(10, 1, 1, 9),
        Some(Ipv4Addr::new(10, 1, 1, 1)),
        &[],
    )
    .await;
    let _inside: Vec<_> = [&control, &ssvm, &cpvm, &public, &public_too, &storage]
        .map(|vm| listen_everywhere(&vm.0))
        .into();
    soon(|| ssvm.open(MANAGEMENT).contains(&8250)).await;
    soon(|| storage.open(NFS).contains(&2049)).await;

    let hosts = [CONTROL, MANAGEMENT, PUBLIC, STORAGE, NFS];
    let seen = |vm: &Vm| -> BTreeMap<Ipv4Addr, BTreeSet<u16>> {
        let asked = hosts.map(|host| (host, vm.open(host)));
        asked.into_iter().filter(|(_, open)| !open.is_empty()).collect()
    };
    let only = |host: Ipv4Addr, ports: &[u16]| BTreeMap::from([(host, ports.iter().copied().collect())]);
    assert_eq!(seen(&control), BTreeMap::new());
    assert_eq!(seen(&ssvm), only(MANAGEMENT, &[53, 8250]));
    assert_eq!(seen(&cpvm), only(MANAGEMENT, &[53, 5900, 8250]));
    assert_eq!(seen(&public), only(PUBLIC, &[8089]));
    assert_eq!(seen(&storage), only(NFS, &[2049]));
    assert_eq!(seen(&user), BTreeMap::new());

    // Each other: by their public addresses only, and not across networks.
    assert_eq!(public.open(address(2, 22)), BTreeSet::from(PORTS));
    assert_eq!(ssvm.open(address(1, 22)), BTreeSet::new());
    for other in [
        address(1, 21),
        address(2, 21),
        address(3, 21),
        Ipv4Addr::new(169, 254, 14, 87),
    ] {
        assert_eq!(user.open(other), BTreeSet::new(), "{other}");
    }
    // A user's VM that pretends to be in the other networks.
    let pretend =
        "address add 172.31.1.66/24 dev eth0\naddress add 172.31.3.66/24 dev eth0\naddress add 169.254.9.9/16 dev eth0";
    user.0.ip(pretend).await.unwrap();
    assert_eq!(seen(&user), BTreeMap::new());
    assert_eq!(user.open(address(1, 21)), BTreeSet::new());
    // The host's way in.
    let ssh = network
        .namespace()
        .inside(|| reaches(Ipv4Addr::new(169, 254, 14, 87), 3922));
    assert!(ssh.unwrap());
    let asked = [&ssvm, &control, &public, &user].map(|vm| vm.0.inside(asks_for_a_name).unwrap());
    assert_eq!(asked, [true, false, false, false]);
    ZoneNetwork::remove(zone.path()).await.unwrap();
}

#[tokio::test]
async fn the_next_server_takes_over_and_removal_leaves_nothing_of_what_was_killed() {
    let zone = Zone::new();
    let first = zone.open(&options()).await;
    let name = Name::of_directory(zone.path());
    let namespace = first.network().namespace().clone();
    let nfs = zone.nfs();
    let vm = Cmd::new("sleep").arg("600"); // in the place of QEMU
    let vm = namespace
        .command(vm)
        .spawn_detached(zone.path().join("vm.log"))
        .unwrap()
        .process()
        .clone();
    let port = Port {
        vm: "s-1-VM".to_owned(),
        device: 0,
        bridge: "control".parse().unwrap(),
        mac: "0e:00:a9:fe:0e:57".parse().unwrap(),
        addresses: vec![Ipv4Addr::new(169, 254, 14, 87)],
        groups: Vec::new(),
    };
    first.network().attach(&port).await.unwrap();
    drop((first, namespace)); // as if it were killed: nothing is done at its end

    let second = zone.open(&options()).await;
    assert_eq!(zone.nfs(), nfs, "the NFS server was not started again");
    assert!(vm.is_alive() && nfs.is_alive());
    assert_eq!(second.nfs().url(), "nfs://172.31.3.5/export/secondary");
    let _agents = second.network().namespace().listen((MANAGEMENT, 8250).into()).unwrap();
    // Killed hard, with everything, so that what it knew is only in files.
    nfs.stop(Duration::ZERO).await;
    drop((second, _agents));

    ZoneNetwork::remove(zone.path()).await.unwrap();
    ZoneNetwork::remove(zone.path()).await.unwrap();
    assert!(!vm.is_alive() && !nfs.is_alive());
    assert!(Namespace::open(&name).unwrap().is_none());
    assert!(!Path::new("/run/netns").join(name.to_string()).exists());
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = zone.path().display().to_string();
    assert!(
        !mounts.contains(&name.to_string()) && !mounts.contains(&own),
        "{mounts}"
    );
}

#[tokio::test]
async fn a_zone_that_does_not_fit_says_so() {
    let zone = Zone::new();
    let small = ZoneNetworkOptions {
        zone_cidr: "172.31.0.0/24".parse().unwrap(),
        ..options()
    };
    let error = ZoneNetwork::open(zone.path(), &small).await.unwrap_err();
    assert!(
        error.to_string().starts_with("172.31.0.0/24 is too small for a zone"),
        "{error}"
    );
}

/// Traffic outside of namespaces is none of a test's: the host is a namespace of the test's own here.
#[tokio::test]
async fn with_an_uplink_and_version_3_there_is_more_and_it_goes_again() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let way_out = "link add eth0 type bridge\naddress add 198.51.100.2/24 dev eth0\nlink set eth0 up\n\
                   route add default via 198.51.100.1";
    Cmd::new("ip").args(["-batch", "-"]).stdin(way_out).run().await.unwrap();
    let zone = Zone::new();
    let more = ZoneNetworkOptions {
        uplink: true,
        nfs_v3: true,
        ..options()
    };
    let open = zone.open(&more).await;
    let storage = Vm::new(open.network(), "storage", Ipv4Addr::new(172, 31, 3, 21), None, &[]).await;
    soon(|| storage.open(NFS).len() == 3).await;
    assert_eq!(storage.open(NFS), BTreeSet::from([111, 2049, 20048]));
    let rules = || async { Cmd::new("nft").args(["list", "tables"]).run().await.unwrap().text() };
    let name = Name::of_directory(zone.path()).to_string().replace('-', "_");
    assert_eq!(rules().await, format!("table inet {name}\n"));
    drop(open);

    // The next server is started without.
    let open = zone.open(&options()).await;
    assert_eq!(rules().await, "");
    assert_eq!(storage.open(NFS), BTreeSet::from([2049]));
    drop(open);
    ZoneNetwork::remove(zone.path()).await.unwrap();
}
