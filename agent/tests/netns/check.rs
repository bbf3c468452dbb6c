//! `agent check` on a machine with a network that works, and with one that does not.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::symlink;
use std::thread;

use agent::appliance::check::{Finding, Outcome, Report};
use platform::exec::Cmd;
use platform::files;

use super::net::Machine;
use super::{stock, stock_lines};

/// The files of a VM: its own boot arguments and name servers, and the kernel's of the machine that runs it.
fn root(line: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for directory in ["var/cache/cloud", "etc"] {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    for of_the_kernel in ["proc", "sys"] {
        symlink(format!("/{of_the_kernel}"), root.path().join(of_the_kernel)).unwrap();
    }
    let _ = files::replace(root.path().join("var/cache/cloud/cmdline"), line, 0o600).unwrap();
    let _ = files::replace(root.path().join("etc/resolv.conf"), "nameserver 192.0.2.53\n", 0o644).unwrap();
    root
}

async fn check(machine: &Machine, root: &tempfile::TempDir) -> Report {
    let agent = Cmd::new(env!("CARGO_BIN_EXE_agent"));
    let words = ["check", "--json", "--exit-zero", "--root"];
    let printed = machine.run(agent.args(words).arg(root.path())).await;
    serde_json::from_slice(&printed.stdout).unwrap()
}

/// What a check found, in order of what it is about.
fn of(report: &Report, check: &str) -> Vec<(String, Outcome)> {
    let found = report.findings.iter().filter(|finding| finding.check == check);
    let mut found: Vec<_> = found
        .map(|Finding { about, outcome, .. }| (about.clone().unwrap_or_default(), *outcome))
        .collect();
    found.sort();
    found
}

/// A name server that knows every name, until the test ends.
fn serve_names(socket: UdpSocket) {
    thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut packet) {
            packet[2..4].copy_from_slice(&[0x81, 0x80]);
            packet[7] = 1;
            socket.send_to(&packet[..length], peer).ok();
        }
    });
}

fn all(about: &[&str], outcome: Outcome) -> Vec<(String, Outcome)> {
    about.iter().map(|about| ((*about).to_owned(), outcome)).collect()
}

#[tokio::test]
async fn an_ssvm_knows_what_of_its_network_works_and_what_does_not() {
    let lines = stock_lines();
    let line = lines
        .iter()
        .find(|line| line.ends_with("secondary-storage.cmdline"))
        .unwrap();
    let root = root(&std::fs::read_to_string(line).unwrap());
    let (machine, [_control, management, public, storage]) = Machine::with_nics::<4>().await;
    machine.apply(&stock("secondary-storage.cmdline")).await;
    for (wire, address) in [
        (&management, "192.0.2.1/24"),
        (&management, "192.0.2.10/24"),
        (&management, "192.0.2.53/24"),
        (&public, "203.0.113.1/24"),
        (&storage, "198.51.100.1/24"),
    ] {
        wire.ip(&format!("address add {address} dev wire")).await;
    }
    serve_names(management.inside(|| UdpSocket::bind("192.0.2.53:53")).unwrap());
    let server: SocketAddr = "192.0.2.10:8250".parse().unwrap();
    let _server = management.inside(|| TcpListener::bind(server)).unwrap();
    let _ssh = machine.inside(|| TcpListener::bind("169.254.14.87:3922")).unwrap();

    // The kernel tells up to a second later that a wire has two ends.
    let mut report = check(&machine, &root).await;
    for _ in 0..3 {
        if of(&report, "nics").iter().any(|(_, outcome)| *outcome != Outcome::Ok) {
            report = check(&machine, &root).await;
        }
    }
    let gateways = ["192.0.2.1", "198.51.100.1", "203.0.113.1"];
    assert_eq!(
        of(&report, "nics"),
        all(&["eth0", "eth1", "eth2", "eth3"], Outcome::Ok),
        "{report}"
    );
    assert_eq!(of(&report, "gateway"), all(&gateways, Outcome::Ok), "{report}");
    assert_eq!(of(&report, "dns"), all(&["192.0.2.53"], Outcome::Ok), "{report}");
    assert_eq!(
        of(&report, "management-server"),
        all(&["192.0.2.10:8250"], Outcome::Ok),
        "{report}"
    );
    assert_eq!(of(&report, "listening"), all(&["TCP 3922"], Outcome::Ok), "{report}");

    // The cable of the management network is pulled out at the other end.
    management.ip("link set wire down").await;
    let report = check(&machine, &root).await;
    let mut nics = all(&["eth0", "eth1", "eth2", "eth3"], Outcome::Ok);
    nics[1].1 = Outcome::Error;
    assert_eq!(of(&report, "nics"), nics, "{report}");
    let mut found = all(&gateways, Outcome::Ok);
    found[0].1 = Outcome::Error;
    assert_eq!(of(&report, "gateway"), found, "{report}");
    assert_eq!(of(&report, "dns"), all(&["192.0.2.53"], Outcome::Error), "{report}");
    assert_eq!(
        of(&report, "management-server"),
        all(&["192.0.2.10:8250"], Outcome::Error),
        "{report}"
    );
    assert_eq!(report.outcome, Outcome::Error);
    assert!(report.took_ms < 15_500, "{} ms", report.took_ms);
}
