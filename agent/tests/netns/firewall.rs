//! What the rules let in and through, asked with real sockets and packets.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use agent::appliance::plan::{Link, Plan};
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use platform::exec::Cmd;

use super::net::Machine;
use super::{further, further_lines, plan, stock, stock_lines};

/// All that any type opens, and some that none does.
const PORTS: [u16; 13] = [22, 53, 80, 111, 443, 3128, 3922, 5900, 8000, 8001, 8080, 8443, 10086];
/// Longer than an answer takes on a busy machine; what is dropped takes as long.
const PATIENCE: Duration = Duration::from_millis(700);

/// Types of ICMP messages, RFC 792.
const ECHO: u8 = 8;
const TIMESTAMP: u8 = 13;

/// A machine after its plan was carried out, and whom its NICs lead to.
struct Site<const N: usize> {
    machine: Machine,
    others: [Machine; N],
    plan: Plan,
    /// Kept: something is behind every port.
    _listeners: Vec<TcpListener>,
}

impl<const N: usize> Site<N> {
    /// `others` get these addresses.
    async fn new(plan: Plan, addresses: [&str; N]) -> Self {
        let (machine, others) = Machine::with_nics::<N>().await;
        for (other, address) in others.iter().zip(addresses) {
            other.ip(&format!("address add {address} dev wire")).await;
        }
        machine.load(&plan).await;
        machine.apply(&plan).await;
        for (other, link) in others.iter().zip(&plan.links) {
            wait_for(other, link);
        }
        let listeners = machine.inside(|| PORTS.map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
        Self {
            machine,
            others,
            plan,
            _listeners: listeners.into(),
        }
    }

    fn address(&self, link: usize) -> Ipv4Addr {
        self.plan.links[link].address().unwrap()
    }

    /// The TCP ports that answer at the NIC's address for whoever is on its wire.
    fn open(&self, link: usize) -> BTreeSet<u16> {
        let address = self.address(link);
        self.others[link].inside(|| {
            let tries = PORTS.map(|port| thread::spawn(move || reaches(address, port).then_some(port)));
            tries.into_iter().filter_map(|tried| tried.join().unwrap()).collect()
        })
    }

    /// The same for all NICs, at once: most of the time goes into waiting for what is dropped.
    fn all_open(&self) -> BTreeMap<String, BTreeSet<u16>> {
        thread::scope(|scope| {
            let links = self.plan.links.iter().enumerate();
            let asked = links.map(|(index, link)| (link.name.to_string(), scope.spawn(move || self.open(index))));
            let asked: Vec<_> = asked.collect();
            asked
                .into_iter()
                .map(|(link, open)| (link, open.join().unwrap()))
                .collect()
        })
    }
}

/// The kernel takes up to a second to see that a wire is connected.
fn wait_for(other: &Machine, link: &Link) {
    let address = link.address().unwrap();
    let answers = (0..50).any(|_| other.inside(|| asks(address, ECHO, PATIENCE / 5)));
    assert!(answers, "{link:?}");
}

fn reaches(address: impl Into<IpAddr>, port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), PATIENCE).is_ok()
}

fn ports<const N: usize>(links: [(&str, &[u16]); N]) -> BTreeMap<String, BTreeSet<u16>> {
    links
        .into_iter()
        .map(|(link, ports)| (link.to_owned(), ports.iter().copied().collect()))
        .collect()
}

const CONSOLE_WIRES: [&str; 3] = ["169.254.0.1/16", "192.0.2.1/24", "203.0.113.1/24"];
const ROUTER_WIRES: [&str; 3] = ["10.1.1.50/24", "169.254.0.1/16", "203.0.113.1/24"];

#[tokio::test]
async fn a_console_proxy_is_open_for_its_host_its_servers_and_browsers() {
    let site = Site::new(stock("console-proxy.cmdline"), CONSOLE_WIRES).await;
    assert_eq!(
        site.all_open(),
        ports([("eth0", &[3922, 8001]), ("eth1", &[8001]), ("eth2", &[80, 443, 8080])])
    );
}

#[tokio::test]
async fn an_ssvm_is_open_for_its_host_and_for_what_it_asks() {
    let wires = ["169.254.0.1/16", "192.0.2.1/24", "203.0.113.1/24", "198.51.100.1/24"];
    let site = Site::new(stock("secondary-storage.cmdline"), wires).await;
    assert_eq!(
        site.all_open(),
        ports([("eth0", &[3922]), ("eth1", &[]), ("eth2", &[]), ("eth3", &[])])
    );
    let asked = "add element inet sysvm services { eth2 . 80, eth2 . 443 }";
    site.machine.run(Cmd::new("nft").arg(asked)).await;
    let wanted = ports([("eth0", &[3922]), ("eth1", &[]), ("eth2", &[80, 443]), ("eth3", &[])]);
    assert_eq!(site.all_open(), wanted);
    site.machine.load(&site.plan).await;
    assert_eq!(
        site.all_open(),
        wanted,
        "what a program has opened stays open when the rules are loaded again"
    );
}

#[tokio::test]
async fn a_router_is_open_for_its_host_and_its_guests() {
    let site = Site::new(stock("isolated-router.cmdline"), ROUTER_WIRES).await;
    assert_eq!(
        site.all_open(),
        ports([("eth0", &[53, 80]), ("eth1", &[3922]), ("eth2", &[])])
    );
}

#[tokio::test]
async fn other_types_are_open_for_their_host_and_little_else() {
    let basic = Site::new(
        stock("basic-zone-dhcp-server.cmdline"),
        ["203.0.113.50/24", "169.254.0.1/16"],
    )
    .await;
    assert_eq!(basic.all_open(), ports([("eth0", &[53, 80]), ("eth1", &[3922])]));
    let balancer = Site::new(stock("internal-lb.cmdline"), ["10.10.1.50/24", "169.254.0.1/16"]).await;
    assert_eq!(balancer.all_open(), ports([("eth0", &[]), ("eth1", &[3922])]));
    let vpc = Site::new(stock("redundant-vpc-router.cmdline"), ["169.254.0.1/16"]).await;
    assert_eq!(vpc.all_open(), ports([("eth0", &[3922])]));
    let node = Site::new(further("kubernetes-node.cmdline"), ["10.1.1.50/24"]).await;
    assert_eq!(node.all_open(), ports([("eth0", &[22])]));
}

#[tokio::test]
async fn without_a_control_network_hosts_come_by_the_management_network() {
    let mut plan = further("secondary-storage-on-vmware.cmdline");
    let control = plan.links.remove(0);
    assert_eq!(control.address(), None); // nobody can ask there
    let (machine, [_control, management, public]) = Machine::with_nics::<3>().await;
    for (other, address) in [(&management, "192.0.2.1/24"), (&public, "10.5.0.1/24")] {
        other.ip(&format!("address add {address} dev wire")).await;
    }
    machine.load(&plan).await;
    machine.apply(&plan).await;
    for (other, link) in [&management, &public].into_iter().zip(&plan.links) {
        wait_for(other, link);
    }
    let _listener = machine.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 3922)).unwrap());
    assert!(management.inside(|| reaches([192, 0, 2, 23], 3922)));
    assert!(!public.inside(|| reaches([10, 5, 0, 9], 3922)));
}

#[tokio::test]
async fn names_are_for_the_networks_own_guests_only() {
    let site = Site::new(stock("isolated-router.cmdline"), ROUTER_WIRES).await;
    // Somebody on the guests' wire with an address of elsewhere, whom the router can answer.
    site.others[0]
        .ip("address del 10.1.1.50/24 dev wire\naddress add 10.9.9.9/32 dev wire\nroute add 10.1.1.1 dev wire")
        .await;
    site.machine.ip("route add 10.9.9.9 dev eth0").await;
    assert_eq!(site.open(0), BTreeSet::from([80]));
}

#[tokio::test]
async fn a_routers_guests_get_dhcp_and_dns_by_udp_and_others_do_not() {
    let site = Site::new(stock("isolated-router.cmdline"), ROUTER_WIRES).await;
    let asked = [53, 67, 68, 123, 547];
    let mut seen = BTreeMap::new();
    for (index, link) in site.plan.links.iter().enumerate() {
        let sockets = site
            .machine
            .inside(|| asked.map(|port| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()));
        let address = site.address(index);
        site.others[index].inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            for port in asked {
                socket.send_to(b"?", (address, port)).unwrap();
            }
        });
        let heard = asked.iter().zip(&sockets).filter_map(|(port, socket)| {
            socket.set_read_timeout(Some(PATIENCE / 3)).unwrap();
            socket.recv(&mut [0; 8]).is_ok().then_some(*port)
        });
        seen.insert(link.name.to_string(), heard.collect());
    }
    assert_eq!(seen, ports([("eth0", &[53, 67]), ("eth1", &[]), ("eth2", &[])]));
}

#[tokio::test]
async fn guests_reach_the_world_by_the_router_and_nobody_reaches_them() {
    let site = Site::new(stock("isolated-router.cmdline"), ROUTER_WIRES).await;
    let [guest, host, world] = &site.others;
    guest.ip("route add default via 10.1.1.1").await;
    host.ip("route add 10.1.1.0/24 via 169.254.3.7").await;
    world.ip("route add 10.1.1.0/24 via 203.0.113.31").await;
    let mut listeners = Vec::new();
    for machine in &site.others {
        listeners.push(machine.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7)).unwrap()));
    }
    let reaches = |from: &Machine, to: [u8; 4]| from.inside(|| reaches(Ipv4Addr::from(to), 7));
    assert!(reaches(guest, [203, 0, 113, 1]), "a guest reaches the world");
    assert!(!reaches(guest, [169, 254, 0, 1]), "a guest reaches the host");
    assert!(!reaches(world, [10, 1, 1, 50]), "the world reaches a guest");
    assert!(!reaches(host, [10, 1, 1, 50]), "the host reaches a guest");
}

#[tokio::test]
async fn only_types_that_route_let_anything_through() {
    let site = Site::new(stock("console-proxy.cmdline"), CONSOLE_WIRES).await;
    site.machine
        .run(Cmd::new("sysctl").args(["-q", "-w", "net.ipv4.ip_forward=1"]))
        .await;
    let [_host, server, browser] = &site.others;
    browser.ip("route add 192.0.2.0/24 via 203.0.113.22").await;
    server.ip("route add 203.0.113.0/24 via 192.0.2.22").await;
    let _listener = server.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7)).unwrap());
    assert!(!browser.inside(|| reaches([192, 0, 2, 1], 7)));
}

#[tokio::test]
async fn every_line_has_rules_that_nft_takes_again_and_again() {
    for line in stock_lines().into_iter().chain(further_lines()) {
        let plan = plan(&line);
        let machine = Machine::new().await;
        machine.load(&plan).await;
        let rules = machine.rules().await;
        assert!(rules.contains("policy drop;"), "{rules}");
        machine.load(&plan).await;
        assert_eq!(machine.rules().await, rules, "{}", line.display());
        assert_eq!(plan.firewall.render(), plan.clone().firewall.render());
    }
}

#[tokio::test]
async fn the_rules_of_a_plan_take_the_place_of_the_images() {
    let image = include_str!("../../../image-builder/recipe/overlay/etc/nftables.conf");
    let machine = Machine::new().await;
    let plan = stock("secondary-storage.cmdline");
    machine.load(&plan).await;
    let rules = machine.rules().await;
    machine.run(Cmd::new("nft").args(["-f", "-"]).stdin(image)).await;
    assert_ne!(machine.rules().await, rules);
    machine.load(&plan).await;
    assert_eq!(machine.rules().await, rules);
}

#[tokio::test]
async fn a_connection_outlives_other_rules_and_the_next_one_meets_them() {
    let site = Site::new(stock("console-proxy.cmdline"), CONSOLE_WIRES).await;
    let listener = site
        .machine
        .inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8088)).unwrap());
    site.machine
        .run(Cmd::new("nft").arg("add element inet sysvm services { eth2 . 8088 }"))
        .await;
    let mut near =
        site.others[2].inside(|| TcpStream::connect_timeout(&"203.0.113.22:8088".parse().unwrap(), PATIENCE).unwrap());
    let (mut far, _peer) = listener.accept().unwrap();

    site.machine
        .run(Cmd::new("nft").arg("flush set inet sysvm services"))
        .await;
    site.machine.load(&stock("internal-lb.cmdline")).await;

    near.write_all(b"still there?").unwrap();
    let mut heard = [0; 12];
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still there?");
    assert!(
        !site.others[2].inside(|| reaches([203, 0, 113, 22], 8088)),
        "a new connection"
    );
}

#[tokio::test]
async fn pings_are_answered_and_clocks_are_not_told() {
    let site = Site::new(stock("console-proxy.cmdline"), CONSOLE_WIRES).await;
    let asked = |kind| site.others[0].inside(|| asks(site.address(0), kind, PATIENCE));
    assert!(asked(ECHO), "echo");
    assert!(!asked(TIMESTAMP), "timestamp");
    site.machine.run(Cmd::new("nft").arg("flush ruleset")).await;
    assert!(asked(TIMESTAMP), "timestamp, without rules");
}

/// Sends an ICMP message of a type and tells whether anything came back.
fn asks(address: Ipv4Addr, kind: u8, patience: Duration) -> bool {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )
    .unwrap();
    setsockopt(
        &socket,
        ReceiveTimeout,
        &TimeVal::milliseconds(patience.as_millis().try_into().unwrap()),
    )
    .unwrap();
    let mut message = [0; 20];
    message[0] = kind;
    let sum = !(u16::from(kind) << 8); // of the only word that is not zero
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let peer = SockaddrIn::from(SocketAddrV4::new(address, 0));
    let sent = sendto(socket.as_raw_fd(), &message, &peer, MsgFlags::empty()).unwrap();
    assert_eq!(sent, message.len());
    let mut answer = [0; 64];
    recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()).is_ok()
}

#[tokio::test]
async fn sshd_listens_on_the_control_address_and_nowhere_else_although_the_image_names_the_port() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("key");
    let keygen = Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&key);
    keygen.run().await.unwrap();
    for (name, wanted) in [
        ("console-proxy.cmdline", "listenaddress 169.254.201.3:3922"),
        ("isolated-router.cmdline", "listenaddress 169.254.3.7:3922"),
    ] {
        let ours = stock(name).sshd.unwrap().sshd_config();
        let path = directory.path().join("sshd_config");
        let config = format!("Port 3922\nHostKey {}\n{ours}", key.display());
        let _ = platform::files::replace(&path, config, 0o600).unwrap();
        let output = Cmd::new("/usr/sbin/sshd")
            .args(["-T", "-f"])
            .arg(&path)
            .run()
            .await
            .unwrap();
        let text = output.text();
        let listens: Vec<_> = text.lines().filter(|line| line.starts_with("listenaddress")).collect();
        assert_eq!(listens, [wanted]);
    }
}
