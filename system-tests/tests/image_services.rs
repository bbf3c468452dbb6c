//! The programs of the image as its units run them: with the rights, the ports and the files that they have in a VM.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

use std::net::TcpListener;
use std::time::Duration;

use system_tests::vm::{Booted, Format, Net, Nic, Vm};
use system_tests::wait::until;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

/// The NICs of a VM as CloudStack gives them: bridge, MAC.
const NICS: [(&str, &str); 3] = [
    ("control", "0e:00:a9:fe:0e:57"),
    ("management", "02:00:4c:9f:00:05"),
    ("public", "02:00:4c:9f:00:06"),
];
/// For a program to start and to connect, under emulation.
const LIMIT: Duration = Duration::from_mins(1);
/// The first byte of a TLS handshake: RFC 8446 §5.1.
const HANDSHAKE: u8 = 22;

const CONF: &str = "/usr/local/cloud/systemvm/conf";
const BOTH: &str = "host=192.0.2.10 port=8250 zone=1 pod=1 eth0ip=169.254.14.87 eth0mask=255.255.0.0 eth1ip=192.0.2.22 \
                    eth1mask=255.255.255.0 eth2ip=203.0.113.22 eth2mask=255.255.255.0 gateway=203.0.113.1";

/// A VM with three NICs that has booted before, and its networks.
async fn vm() -> (Net, Booted) {
    let net = Net::new().await.unwrap();
    net.bridge("control", "169.254.0.1/16").await.unwrap();
    net.bridge("management", "192.0.2.10/24").await.unwrap();
    net.bridge("public", "203.0.113.1/24").await.unwrap();
    let with_nic = |vm: Vm, (bridge, mac)| vm.nic(Nic::on(bridge, mac));
    let vm = NICS.into_iter().fold(Vm::new(Format::Qcow2).net(&net), with_nic);
    let vm = vm.resume().await.unwrap();
    (net, vm)
}

/// Waits until something in the VM begins TLS with a management server at this address.
async fn is_called(listener: TcpListener) {
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let first = async {
        let (mut connection, peer) = listener.accept().await.unwrap();
        assert_eq!(peer.ip().to_string(), "192.0.2.22");
        connection.read_u8().await.unwrap()
    };
    assert_eq!(timeout(LIMIT, first).await.expect("nobody connects to 8250"), HANDSHAKE);
}

/// Gives the VM boot arguments, as a host does, and waits until the program for them serves.
async fn becomes(net: &Net, vm: &Booted, line: &str, unit: &str) {
    let server = net.inside(|| TcpListener::bind("192.0.2.10:8250")).unwrap().unwrap();
    vm.pass_cmdline(line).await.unwrap();
    is_called(server).await;
    for name in [unit, "cloud"] {
        until(name, LIMIT, async || {
            match vm.run(&["systemctl", "is-active", name]).await.unwrap().stdout.trim() {
                "active" => Ok(()),
                other => Err(other.to_owned()),
            }
        })
        .await;
    }
}

async fn stops(vm: &Booted, unit: &str) {
    vm.text(&["systemctl", "stop", unit]).await.unwrap();
    let state = vm
        .text(&["systemctl", "show", "--property=ActiveState,Result,NRestarts", unit])
        .await
        .unwrap();
    for line in ["ActiveState=inactive", "Result=success", "NRestarts=0"] {
        assert!(state.lines().any(|found| found == line), "{unit}: {state}");
    }
}

/// Of the main process of a unit.
async fn status_of(vm: &Booted, unit: &str) -> String {
    let pid = vm
        .text(&["systemctl", "show", "--property=MainPID", "--value", unit])
        .await
        .unwrap();
    vm.read(&format!("/proc/{}/status", pid.trim())).await.unwrap()
}

fn has(status: &str, field: &str, wanted: &str) {
    let found = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let found = found.unwrap_or_else(|| panic!("no {field} in {status}"));
    assert_eq!(found.split_ascii_whitespace().next(), Some(wanted), "{field}");
}

#[tokio::test]
async fn each_program_runs_as_the_service_of_a_vm_with_the_rights_it_needs() {
    let (net, vm) = vm().await;
    // Without boot arguments there is nothing to do, and that is no failure.
    vm.text(&["systemctl", "start", "cs-console-proxy"]).await.unwrap();
    stops(&vm, "cs-console-proxy").await;

    let line = format!("type=consoleproxy name=v-2-VM guid=Proxy.2 proxy_vm=2 vncport=8080 {BOTH}");
    becomes(&net, &vm, &line, "cs-console-proxy").await;
    let uid = vm.text(&["id", "-u", "console-proxy"]).await.unwrap();
    assert_ne!(uid, "0\n");
    let status = status_of(&vm, "cs-console-proxy").await;
    has(&status, "Uid", uid.trim());
    has(&status, "CapEff", "0000000000000400"); // CAP_NET_BIND_SERVICE
    has(&status, "NoNewPrivs", "1");
    // As CloudStack's host does it over ssh: the request comes from a program under CloudStack's name.
    let request = vm
        .text(&[
            "/opt/cloud/bin/keystore-setup",
            &format!("{CONF}/agent.properties"),
            &format!("{CONF}/cloud.jks"),
            "password",
            "365",
            &format!("{CONF}/cloud.csr"),
        ])
        .await
        .unwrap();
    assert!(
        request.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"),
        "{request}"
    );

    // What root wrote there is the program's after a restart.
    vm.text(&["systemctl", "restart", "cloud"]).await.unwrap();
    let owners = vm.text(&["find", CONF, "!", "-user", "console-proxy"]).await.unwrap();
    assert_eq!(owners, "");
    stops(&vm, "cs-console-proxy").await;

    let line = format!("type=secstorage name=s-1-VM guid=s-1-VM {BOTH}");
    becomes(&net, &vm, &line, "cs-ssvm").await;
    let status = status_of(&vm, "cs-ssvm").await;
    has(&status, "Uid", "0");
    // CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_NET_BIND_SERVICE, CAP_SYS_ADMIN
    has(&status, "CapEff", "000000000020040a");
    stops(&vm, "cs-ssvm").await;
    ssvm_may_mount(&vm).await;
}

/// What mount(8) does with exactly the rights that `ssvm` has: it mounts, and the NFS client of the kernel gets as far as a
/// server that is not there.
async fn ssvm_may_mount(vm: &Booted) {
    const STORE: &str = "/mnt/SecStorage/store";
    let unit = vm.read("/etc/systemd/system/cs-ssvm.service").await.unwrap();
    let (mut lines, mut replaced) = (Vec::new(), 0);
    for line in unit.lines() {
        match line.split_once('=') {
            // In one process: each command of a unit has mounts of its own.
            Some(("ExecStart", _)) => {
                replaced += 1;
                lines.push(format!(
                    "ExecStart=/bin/bash -ec \"mkdir {STORE}; \
                     mount -t nfs -o vers=4.2,retry=0 -- 192.0.2.10:/store {STORE} || true; \
                     mount -t tmpfs -- store {STORE}; findmnt --mountpoint {STORE}\""
                ));
            }
            Some(("Type", _)) => lines.push("Type=oneshot".to_owned()),
            Some(("Restart", _)) => lines.push("Restart=no".to_owned()),
            _ => lines.push(line.to_owned()),
        }
    }
    assert_eq!(replaced, 1, "{unit}");
    let text = lines.join("\n") + "\n";
    vm.write("/run/systemd/system/try-mount.service", text.as_bytes())
        .await
        .unwrap();
    vm.text(&["systemctl", "daemon-reload"]).await.unwrap();
    let ran = vm.run(&["systemctl", "start", "try-mount"]).await.unwrap();
    let said = vm
        .text(&["journalctl", "--boot", "--output=cat", "--unit=try-mount"])
        .await
        .unwrap();
    assert_eq!(ran.code, Some(0), "{said}");
    assert!(said.contains("Connection refused"), "{said}");
    // It was the unit's own.
    assert_ne!(vm.run(&["findmnt", "--mountpoint", STORE]).await.unwrap().code, Some(0));
}

#[tokio::test]
async fn the_system_is_as_small_and_closed_as_its_manual_says() {
    let (_net, vm) = vm().await;
    let units = [
        "cs-ssvm.service",
        "cs-console-proxy.service",
        "cs-host-key@ed25519.service",
        "cs-setup.service",
        "cs-grow-disk.service",
        "cs-host-clock.service",
        "cs-user-data.service",
        "dnsmasq.service",
        "ssh.service",
    ];
    vm.text(
        &[
            &["systemd-analyze", "verify", "--man=no", "--recursive-errors=one"][..],
            &units,
        ]
        .concat(),
    )
    .await
    .unwrap();

    let sshd = vm.text(&["/usr/sbin/sshd", "-T"]).await.unwrap();
    for line in [
        "port 3922",
        "permitrootlogin without-password",
        "passwordauthentication no",
        "authenticationmethods publickey",
        "subsystem sftp /usr/lib/openssh/sftp-server",
        "maxsessions 1000",
        "persourcepenalties no",
    ] {
        assert!(sshd.lines().any(|found| found == line), "{line}: {sshd}");
    }

    // Nothing that the machine was given, and no way to become another user that has no reason.
    let keys = vm
        .run(&[
            "grep",
            "-rlE",
            "-e",
            "-----BEGIN ([A-Z]+ )?PRIVATE KEY-----",
            "--exclude=ssh_host_*_key",
            "/etc",
            "/root",
            "/usr/local",
            "/usr/share",
            "/opt",
            "/var",
        ])
        .await
        .unwrap();
    assert_eq!(keys.stdout, "");
    let timers = vm
        .text(&["systemctl", "list-timers", "--no-legend", "--plain"])
        .await
        .unwrap();
    let timers: Vec<_> = timers
        .lines()
        .filter(|line| !line.contains("systemd-tmpfiles-clean.timer"))
        .collect();
    assert_eq!(timers, [""; 0]);

    let settings = [
        ("net.ipv4.conf.all.arp_ignore", "2"),
        ("net.netfilter.nf_conntrack_max", "65536"),
        ("net.ipv6.conf.eth0.disable_ipv6", "1"),
        ("kernel.panic", "10"),
        ("kernel.core_pattern", "|/bin/false"),
        ("fs.protected_symlinks", "1"),
    ];
    for (name, wanted) in settings {
        assert_eq!(
            vm.text(&["sysctl", "--values", name]).await.unwrap().trim(),
            wanted,
            "{name}"
        );
    }
    // /tmp is on disk.
    assert_eq!(
        vm.text(&["findmnt", "--noheadings", "--output=FSTYPE", "--target=/tmp"])
            .await
            .unwrap(),
        "ext4\n"
    );
}
