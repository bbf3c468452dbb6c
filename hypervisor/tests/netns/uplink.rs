//! The way out, with a namespace as the host, another as the world, and a third behind the host that is nobody's business.

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use hypervisor::network::namespace::Namespace;
use hypervisor::network::{Bridge, Neighbours, Port};
use hypervisor::uplink::{self, Uplink, UplinkError};
use nix::sched::{CloneFlags, unshare};
use platform::exec::Cmd;

use super::net::{Guard, PATIENCE, Zone, name, soon};

const WORLD: [u8; 4] = [198, 51, 100, 1];

/// From here on this thread, and what it starts, is on another host.
async fn become_another_host() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip("link set lo up").await;
}

async fn ip(batch: &str) {
    Cmd::new("ip").args(["-batch", "-"]).stdin(batch).run().await.unwrap();
}

/// A machine on a wire of the host.
async fn machine(wire: &str, host: &str, own: &str) -> (Namespace, Guard) {
    let namespace = Namespace::open_or_create(&name()).await.unwrap();
    let guard = Guard(namespace.clone());
    ip(&format!(
        "link add {wire} type veth peer name eth0 netns {}\naddress add {host} dev {wire}\nlink set {wire} up",
        namespace.name()
    ))
    .await;
    namespace
        .ip(&format!("address add {own} dev eth0\nlink set eth0 up"))
        .await
        .unwrap();
    (namespace, guard)
}

fn uplink() -> Uplink {
    Uplink {
        outside: "172.31.0.253/30".parse().unwrap(),
        inside: "172.31.0.254/30".parse().unwrap(),
    }
}

fn bridges() -> Vec<Bridge> {
    let public = Bridge {
        addresses: vec!["172.31.2.1/24".parse().unwrap()],
        may_leave: true,
        ..Bridge::new("public".parse().unwrap())
    };
    let management = Bridge {
        addresses: vec!["172.31.1.1/24".parse().unwrap()],
        neighbours: Neighbours::Apart,
        ..Bridge::new("management".parse().unwrap())
    };
    vec![public, management]
}

fn port(vm: &str, bridge: &str, address: [u8; 4]) -> Port {
    Port {
        vm: vm.to_owned(),
        device: 0,
        bridge: bridge.parse().unwrap(),
        mac: format!("02:00:00:00:00:{:02x}", address[2]).parse().unwrap(),
        addresses: vec![address.into()],
        groups: Vec::new(),
    }
}

/// As this thread's host has it.
fn forwarding(interface: &str) -> String {
    let value = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/forwarding"));
    value.unwrap().trim().to_owned()
}

#[tokio::test]
async fn vms_reach_the_world_and_not_the_host_and_nobody_reaches_them() {
    become_another_host().await;
    let (world, _world) = machine("eth0", "198.51.100.2/24", "198.51.100.1/24").await;
    let (other, _other) = machine("eth1", "10.9.9.1/24", "10.9.9.9/24").await;
    ip("route add default via 198.51.100.1").await;
    let zone = Zone::new(bridges()).await;
    let vm = zone
        .vm(&port("s-1-VM", "public", [172, 31, 2, 10]), "172.31.2.10/24")
        .await;
    let inner = zone
        .vm(&port("s-2-VM", "management", [172, 31, 1, 10]), "172.31.1.10/24")
        .await;
    vm.namespace().ip("route add default via 172.31.2.1").await.unwrap();
    inner.namespace().ip("route add default via 172.31.1.1").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("uplink.json");
    let listen = |namespace: &Namespace| {
        namespace
            .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap())
            .unwrap()
    };
    let (at_world, _at_other) = (listen(&world), listen(&other));
    let _at_host = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
    let _at_vm = listen(vm.namespace());
    assert!(!vm.reaches(WORLD, 80), "there is no way yet");

    uplink().build(zone.network.namespace(), &state).await.unwrap();
    assert!(soon(|| vm.reaches(WORLD, 80)).await);
    at_world.set_nonblocking(true).unwrap();
    let (_, from) = at_world.accept().unwrap();
    assert_eq!(from.ip(), Ipv4Addr::new(198, 51, 100, 2), "the host's address");
    for (host, port) in [
        ([198, 51, 100, 2], 80),
        ([172, 31, 0, 253], 80),
        ([10, 9, 9, 1], 80),
        ([10, 9, 9, 9], 80),
    ] {
        assert!(!vm.reaches(host, port), "{host:?}");
    }
    assert!(!inner.reaches(WORLD, 80), "only the public network may leave");
    // From outside, with a route to it.
    world
        .ip("route add 172.31.0.0/16 via 198.51.100.2\nroute add 10.9.9.0/24 via 198.51.100.2")
        .await
        .unwrap();
    other.ip("route add default via 10.9.9.1").await.unwrap();
    for from in [&world, &other] {
        let to = SocketAddr::from(([172, 31, 2, 10], 80));
        assert!(
            from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))
                .unwrap()
                .is_err()
        );
    }
    // The host has become nobody else's router.
    let to = SocketAddr::from(([10, 9, 9, 9], 80));
    assert!(
        world
            .inside(|| TcpStream::connect_timeout(&to, PATIENCE))
            .unwrap()
            .is_err()
    );
    assert_eq!((forwarding("eth0").as_str(), forwarding("eth1").as_str()), ("1", "0"));

    // Built again, as by the next server, while something goes on.
    let to = SocketAddr::from((WORLD, 80));
    let mut stream = vm
        .namespace()
        .inside(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()
        .unwrap();
    uplink().build(zone.network.namespace(), &state).await.unwrap();
    assert!(vm.reaches(WORLD, 80));
    at_world.set_nonblocking(false).unwrap();
    let (mut accepted, _) = (0..8)
        .map(|_| at_world.accept().unwrap())
        .find(|(_, from)| *from == at(&stream))
        .unwrap();
    std::io::Write::write_all(&mut accepted, b"still").unwrap();
    let mut word = [0; 5];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"still");

    uplink::remove(&zone.name, &state).await.unwrap();
    uplink::remove(&zone.name, &state).await.unwrap();
    assert!(!vm.reaches(WORLD, 80));
    assert_eq!(forwarding("eth0"), "0");
    assert!(!state.exists());
    let left = Cmd::new("nft").args(["list", "ruleset"]).run().await.unwrap().text();
    assert_eq!(left, "");
    let links = Cmd::new("ip").args(["-br", "link"]).run().await.unwrap().text();
    assert!(!links.contains("sv-") && links.lines().count() == 3, "{links}");
}

/// As the world sees a connection: NAT keeps the port where it can.
fn at(stream: &TcpStream) -> SocketAddr {
    (Ipv4Addr::new(198, 51, 100, 2), stream.local_addr().unwrap().port()).into()
}

#[tokio::test]
async fn a_host_without_a_way_out_has_none_for_vms() {
    become_another_host().await;
    let zone = Zone::new(bridges()).await;
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("uplink.json");
    let error = uplink().build(zone.network.namespace(), &state).await.unwrap_err();
    assert!(matches!(error, UplinkError::NoRoute), "{error:?}");
    uplink::remove(&zone.name, &state).await.unwrap();
    assert!(!state.exists());
}
