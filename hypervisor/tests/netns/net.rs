//! Namespaces of a test's own.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hypervisor::network::namespace::{Name, Namespace};
use hypervisor::network::{Bridge, InterfaceName, Network, Port};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Longer than an answer takes on a busy machine; what is dropped takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has.
pub(crate) fn name() -> Name {
    remove_abandoned();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("sysvm-hvtest-{}-{number}", std::process::id()).parse().unwrap()
}

/// Removes namespaces of test runs that were killed.
fn remove_abandoned() {
    let entries = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let owner = name
            .strip_prefix("sysvm-hvtest-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name.parse().unwrap());
        }
    }
}

/// With whoever is inside.
fn remove(name: &Name) {
    let namespace = Namespace::open(name).ok().flatten();
    let inside = namespace.and_then(|namespace| namespace.processes().ok());
    for process in inside.unwrap_or_default() {
        kill(Pid::from_raw(process.pid()), Signal::SIGKILL).ok();
    }
    Namespace::drop_name(name).ok();
}

/// Removes a namespace also when the test falls over.
pub(crate) struct Guard(pub(crate) Namespace);

impl Drop for Guard {
    fn drop(&mut self) {
        remove(self.0.name());
    }
}

/// A network that goes with the test.
pub(crate) struct Zone {
    pub(crate) network: Network,
    pub(crate) name: Name,
    _guard: Guard,
}

impl Zone {
    pub(crate) async fn new(bridges: Vec<Bridge>) -> Self {
        let name = name();
        let network = Network::build(&name, bridges).await.unwrap();
        let guard = Guard(network.namespace().clone());
        Self {
            network,
            name,
            _guard: guard,
        }
    }

    /// A VM with one NIC, which has its port's hardware address, and this IPv4 address.
    pub(crate) async fn vm(&self, port: &Port, address: &str) -> Peer {
        let peer = Peer::new().await;
        let tap = InterfaceName::of_tap(&port.vm, port.device);
        let wire = format!(
            "link add {tap} type veth peer name eth0 address {} netns {}",
            port.mac,
            peer.0.0.name()
        );
        self.network.namespace().ip(&wire).await.unwrap();
        assert_eq!(self.network.attach(port).await.unwrap(), tap);
        let up = format!("address add {address} dev eth0\nlink set eth0 up");
        peer.namespace().ip(&up).await.unwrap();
        peer
    }
}

/// A VM.
pub(crate) struct Peer(Guard);

impl Peer {
    async fn new() -> Self {
        let namespace = Namespace::open_or_create(&name()).await.unwrap();
        Self(Guard(namespace))
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.0.0
    }

    /// Whether a TCP connection comes about.
    pub(crate) fn reaches(&self, address: impl Into<Ipv4Addr>, port: u16) -> bool {
        reaches(self.namespace(), address, port)
    }

    /// Whether a datagram is answered.
    pub(crate) fn asks(&self, address: impl Into<Ipv4Addr>, port: u16) -> bool {
        let to = SocketAddr::from((address.into(), port));
        let asked = self.namespace().inside(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let sent = socket.send_to(b"question", to);
            sent.and_then(|_| socket.recv(&mut [0; 16]))
        });
        asked.unwrap().is_ok()
    }
}

/// Waits for the kernel to see that the wire is connected, which takes up to a second.
pub(crate) fn reaches(from: &Namespace, address: impl Into<Ipv4Addr>, port: u16) -> bool {
    let to = SocketAddr::from((address.into(), port));
    from.inside(|| TcpStream::connect_timeout(&to, PATIENCE))
        .unwrap()
        .is_ok()
}

/// Looks for a while until it is so.
pub(crate) async fn soon(is_so: impl Fn() -> bool) -> bool {
    for _ in 0..20 {
        if is_so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}
