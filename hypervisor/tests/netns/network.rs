//! Who reaches whom, and what is left of it.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use hypervisor::network::namespace::Namespace;
use hypervisor::network::{Bridge, Group, Neighbours, Network, NetworkError, Opening, Port, Service};
use platform::exec::Cmd;

use super::net::{Guard, PATIENCE, Zone, name, reaches, soon};

const HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 1, 1);
const SCREENS: Group = Group(0);

/// A network in which VMs are apart, one in which they are together, and one that the host is not in.
fn bridges() -> Vec<Bridge> {
    let apart = Bridge {
        addresses: vec!["172.31.1.1/24".parse().unwrap()],
        neighbours: Neighbours::Apart,
        openings: vec![
            Opening::to(HOST, Service::Tcp(8250..=8250)),
            Opening::to(HOST, Service::Udp(53..=53)),
            Opening::to(HOST, Service::Tcp(5900..=5999)).only_for(SCREENS),
        ],
        ..Bridge::new("management".parse().unwrap())
    };
    let together = Bridge {
        addresses: vec!["172.31.2.1/24".parse().unwrap()],
        ..Bridge::new("public".parse().unwrap())
    };
    vec![apart, together, Bridge::new("guest".parse().unwrap())]
}

fn port(vm: &str, bridge: &str, last: u8, addresses: &[Ipv4Addr]) -> Port {
    Port {
        vm: vm.to_owned(),
        device: 0,
        bridge: bridge.parse().unwrap(),
        mac: format!("02:00:4c:9f:00:{last:02x}").parse().unwrap(),
        addresses: addresses.to_vec(),
        groups: Vec::new(),
    }
}

fn listen(namespace: &Namespace, port: u16) -> TcpListener {
    namespace
        .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        .unwrap()
}

fn echo(namespace: &Namespace, port: u16) {
    let socket = namespace
        .inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
        .unwrap();
    thread::spawn(move || {
        let mut packet = [0; 64];
        while let Ok((length, peer)) = socket.recv_from(&mut packet) {
            socket.send_to(&packet[..length], peer).ok();
        }
    });
}

/// Names, numbers and addresses: an interface that is made anew has another number.
async fn interfaces(namespace: &Namespace) -> Vec<[serde_json::Value; 3]> {
    let printed = namespace.ip_json(&["address", "show"]).await.unwrap();
    let links: Vec<serde_json::Value> = serde_json::from_slice(&printed).unwrap();
    let of = |link: &serde_json::Value| ["ifname", "ifindex", "addr_info"].map(|key| link[key].clone());
    links.iter().map(of).collect()
}

#[tokio::test]
async fn vms_reach_what_is_open_for_them_and_nothing_else() {
    let zone = Zone::new(bridges()).await;
    let own = Ipv4Addr::new(172, 31, 1, 10);
    let vm = zone
        .vm(&port("s-1-VM", "management", 10, &[own]), "172.31.1.10/24")
        .await;
    let proxy = Port {
        groups: vec![SCREENS],
        ..port("v-2-VM", "management", 11, &[Ipv4Addr::new(172, 31, 1, 11)])
    };
    let proxy = zone.vm(&proxy, "172.31.1.11/24").await;
    let host = zone.network.namespace();
    let _listeners = [22, 8250, 5900].map(|port| listen(host, port));
    echo(host, 53);
    echo(host, 123);

    assert!(soon(|| vm.reaches(HOST, 8250)).await);
    assert!(soon(|| proxy.reaches(HOST, 8250)).await);
    assert!(vm.asks(HOST, 53));
    assert!(!vm.asks(HOST, 123));
    assert!(!vm.reaches(HOST, 22));
    assert!(!vm.reaches(HOST, 5900));
    assert!(proxy.reaches(HOST, 5900));
    // The host's address in another network is the same host.
    vm.namespace().ip("route add default via 172.31.1.1").await.unwrap();
    assert!(!vm.reaches([172, 31, 2, 1], 8250));

    // The host reaches VMs, and they answer.
    let _ssh = listen(vm.namespace(), 3922);
    assert!(reaches(host, own, 3922));
    // They do not see each other.
    let _theirs = listen(proxy.namespace(), 3922);
    assert!(reaches(host, [172, 31, 1, 11], 3922));
    assert!(!vm.reaches([172, 31, 1, 11], 3922));
}

#[tokio::test]
async fn a_vm_is_nobody_else() {
    let zone = Zone::new(bridges()).await;
    let own = Ipv4Addr::new(172, 31, 1, 10);
    let vm = zone
        .vm(&port("s-1-VM", "management", 10, &[own]), "172.31.1.10/24")
        .await;
    let host = zone.network.namespace();
    let _listener = listen(host, 8250);
    assert!(soon(|| vm.reaches(HOST, 8250)).await);

    // Another address of the same network.
    vm.namespace()
        .ip("address del 172.31.1.10/24 dev eth0\naddress add 172.31.1.77/24 dev eth0")
        .await
        .unwrap();
    assert!(!vm.reaches(HOST, 8250));
    // The right one with another hardware address.
    vm.namespace()
        .ip("address del 172.31.1.77/24 dev eth0\naddress add 172.31.1.10/24 dev eth0\nlink set eth0 address 02:00:4c:9f:00:99")
        .await
        .unwrap();
    assert!(!vm.reaches(HOST, 8250));
    let neighbours = String::from_utf8(host.ip_json(&["neighbour", "show"]).await.unwrap()).unwrap();
    assert!(!neighbours.contains("02:00:4c:9f:00:99"), "{neighbours}");
    assert!(!neighbours.contains("172.31.1.77"), "{neighbours}");
    // And right again.
    vm.namespace()
        .ip("link set eth0 address 02:00:4c:9f:00:0a")
        .await
        .unwrap();
    assert!(soon(|| vm.reaches(HOST, 8250)).await);
}

#[tokio::test]
async fn who_is_in_a_network_without_the_host_reaches_neither_it_nor_other_networks() {
    let zone = Zone::new(bridges()).await;
    let host = zone.network.namespace();
    let _listeners = [22, 8250].map(|port| listen(host, port));
    let system = zone
        .vm(
            &port("s-1-VM", "management", 10, &[Ipv4Addr::new(172, 31, 1, 10)]),
            "172.31.1.10/24",
        )
        .await;
    let _ssh = listen(system.namespace(), 3922);
    let one = zone.vm(&port("i-2-3-VM", "guest", 3, &[]), "10.1.1.3/24").await;
    let two = zone.vm(&port("i-2-4-VM", "guest", 4, &[]), "10.1.1.4/24").await;
    let _listener = listen(two.namespace(), 80);

    assert!(soon(|| one.reaches([10, 1, 1, 4], 80)).await, "guests see each other");
    // Also when another program of the machine loads br_netfilter, which looks at them as if they were routed.
    host.set_parameters(&[("bridge/bridge-nf-call-iptables", "1")]).unwrap();
    assert!(one.reaches([10, 1, 1, 4], 80));
    // As if it were in each of the other networks: nobody answers, not even to ARP.
    one.namespace()
        .ip("address add 172.31.1.50/24 dev eth0\naddress add 172.31.2.50/24 dev eth0")
        .await
        .unwrap();
    for (address, port) in [([172, 31, 1, 1], 8250), ([172, 31, 2, 1], 22), ([172, 31, 1, 10], 3922)] {
        assert!(!one.reaches(address, port), "{address:?}");
    }
    let neighbours = String::from_utf8(one.namespace().ip_json(&["neighbour", "show"]).await.unwrap()).unwrap();
    assert!(!neighbours.contains("fe:73:76"), "{neighbours}");
}

#[tokio::test]
async fn vms_go_on_while_the_network_is_built_again() {
    let zone = Zone::new(bridges()).await;
    let vm = zone
        .vm(
            &port("s-1-VM", "management", 10, &[Ipv4Addr::new(172, 31, 1, 10)]),
            "172.31.1.10/24",
        )
        .await;
    let listener = listen(zone.network.namespace(), 8250);
    assert!(soon(|| vm.reaches(HOST, 8250)).await);
    let to = (HOST, 8250).into();
    let mut connection = vm
        .namespace()
        .inside(|| std::net::TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()
        .unwrap();

    let before = interfaces(zone.network.namespace()).await;
    let again = Network::build(&zone.name, bridges()).await.unwrap();
    assert_eq!(interfaces(again.namespace()).await, before);
    assert!(vm.reaches(HOST, 8250));
    let talk = thread::spawn(move || {
        use std::io::Read;
        let mut last = None;
        while let Ok((mut stream, _)) = listener.accept() {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut word = [0; 5];
            if stream.read_exact(&mut word).is_ok() {
                last = Some(word);
                break;
            }
        }
        last
    });
    std::io::Write::write_all(&mut connection, b"still").unwrap();
    assert_eq!(talk.join().unwrap(), Some(*b"still"));

    // A network that shall be different becomes so.
    let mut fewer = bridges();
    fewer[0].openings.clear();
    let _changed = Network::build(&zone.name, fewer).await.unwrap();
    assert!(!vm.reaches(HOST, 8250));
}

#[tokio::test]
async fn taps_are_real_and_go_with_their_vm() {
    let zone = Zone::new(bridges()).await;
    let network = &zone.network;
    let ports = [
        port("s-1-VM", "management", 10, &[Ipv4Addr::new(172, 31, 1, 10)]),
        port("s-12-VM", "guest", 12, &[]),
    ];
    for port in &ports {
        let tap = network.attach(port).await.unwrap();
        assert_eq!(tap.as_str(), format!("{}.0", port.vm));
        assert_eq!(network.attach(port).await.unwrap(), tap, "twice is fine");
    }
    let taps = |json: Vec<u8>| {
        String::from_utf8(json)
            .unwrap()
            .matches("\"info_kind\":\"tun\"")
            .count()
    };
    assert_eq!(taps(network.namespace().ip_json(&["link", "show"]).await.unwrap()), 2);

    network.detach("s-1-VM").await.unwrap();
    network.detach("s-1-VM").await.unwrap();
    assert_eq!(taps(network.namespace().ip_json(&["link", "show"]).await.unwrap()), 1);
    let rules = String::from_utf8(network.namespace().nft_json(&["list", "ruleset"]).await.unwrap()).unwrap();
    assert!(!rules.contains("s-1-VM") && rules.contains("s-12-VM.0"), "{rules}");

    // A server that does not know the second VM any more.
    network.detach_others(&["s-1-VM"]).await.unwrap();
    assert_eq!(taps(network.namespace().ip_json(&["link", "show"]).await.unwrap()), 0);
    let rules = String::from_utf8(network.namespace().nft_json(&["list", "ruleset"]).await.unwrap()).unwrap();
    assert!(!rules.contains("s-12-VM"), "{rules}");
    let nowhere = network.attach(&port("s-1-VM", "storage", 1, &[])).await;
    assert!(matches!(nowhere, Err(NetworkError::NoSuchBridge(_))), "{nowhere:?}");
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let namespace = Namespace::open_or_create(&name()).await.unwrap();
    let _guard = Guard(namespace.clone());
    let log = tempfile::tempdir().unwrap();
    let sleeping = namespace.command(Cmd::new("sleep").arg("600"));
    let stubborn = namespace.command(Cmd::new("env").args(["--ignore-signal=TERM", "sleep", "600"]));
    let mut inside = Vec::new();
    for program in [sleeping, stubborn] {
        inside.push(
            program
                .spawn_detached(log.path().join("log"))
                .unwrap()
                .process()
                .clone(),
        );
    }
    assert!(soon(|| namespace.processes().unwrap().len() == 2).await);
    let (name, path) = (namespace.name().clone(), namespace.path().to_owned());
    namespace.remove().await.unwrap();
    assert!(inside.iter().all(|process| !process.is_alive()));
    assert!(!path.exists());
    assert!(Namespace::open(&name).unwrap().is_none());
}

#[tokio::test]
async fn a_file_that_a_reboot_has_left_is_no_namespace() {
    let name = name();
    std::fs::File::create(format!("/run/netns/{name}")).unwrap();
    assert!(Namespace::open(&name).unwrap().is_none());
    let namespace = Namespace::open_or_create(&name).await.unwrap();
    let _guard = Guard(namespace.clone());
    let listener = namespace.listen((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let address = listener.local_addr().unwrap();
    let connected = namespace.connect(address, Duration::from_secs(5)).await;
    assert!(connected.is_ok(), "the loopback interface is up: {connected:?}");
    let taken = namespace.listen(address).unwrap_err().to_string();
    assert!(
        taken.starts_with(&format!("cannot listen on {address} in the network namespace {name};")),
        "{taken}"
    );
}
