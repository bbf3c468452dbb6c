//! `agent boot` itself, with real NICs, nft and ip, and with programs of hypervisors that are not here played by `fake_…`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use agent::appliance::plan::current::CurrentLink;
use platform::exec::{Cmd, Running};
use tempfile::TempDir;

use super::net::Machine;

/// For the daemon to do something, on a busy machine.
const LIMIT: Duration = Duration::from_mins(1);
const KEY: &str = "c3NoLWVkMjU1MTkgQUFBQSB0ZXN0Cg";

/// A VM's files, and programs in front of this machine's own.
struct Vm {
    directory: TempDir,
}

impl Vm {
    fn new() -> Self {
        let vm = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        for directory in [
            "bin",
            "etc/ssh/sshd_config.d",
            "etc/cloudstack",
            "run/sysvm",
            "var/cache/cloud",
        ] {
            fs::create_dir_all(vm.path(directory)).unwrap();
        }
        // What the kernel says inside of the namespace.
        for real in ["proc", "sys"] {
            std::os::unix::fs::symlink(format!("/{real}"), vm.path(real)).unwrap();
        }
        vm.fake("systemctl", "echo \"$*\" >> \"$ROOT/systemctl.log\"");
        vm
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn fake(&self, program: &str, script: &str) {
        let script = format!("#!/bin/sh\n{script}\n");
        let _ = platform::files::replace(self.path("bin").join(program), script, 0o755).unwrap();
    }

    /// As the guest agent does it.
    fn host_writes(&self, line: &str) {
        use std::io::Write;
        let mut file = fs::File::create(self.path("var/cache/cloud/cmdline")).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    fn boots(&self, machine: &Machine, hypervisor: &str) -> Running {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let boot = Cmd::new("unshare")
            .args([
                "--uts",
                "--",
                env!("CARGO_BIN_EXE_agent"),
                "boot",
                "--hypervisor",
                hypervisor,
            ])
            .arg("--root")
            .arg(self.directory.path())
            .env("PATH", path)
            .env("ROOT", self.directory.path());
        machine.spawn(boot, &self.path("log"))
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default()
    }

    /// The NICs, as soon as they are as they should be.
    async fn nics(&self, machine: &Machine, is_right: impl Fn(&[CurrentLink]) -> bool) -> Vec<CurrentLink> {
        let started = Instant::now();
        loop {
            let links = machine.current().await.links;
            if is_right(&links) {
                return links;
            }
            assert!(started.elapsed() < LIMIT, "{links:#?}\n{}", self.read("log"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The last thing that the daemon does before it waits.
    async fn asks_systemd(&self, wanted: &str) {
        let started = Instant::now();
        while self.read("systemctl.log") != wanted {
            assert!(
                started.elapsed() < LIMIT,
                "{}\n{}",
                self.read("systemctl.log"),
                self.read("log")
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn address(links: &[CurrentLink], name: &str) -> String {
    let link = links.iter().find(|link| link.name == name);
    let nets = link
        .into_iter()
        .flat_map(|link| &link.ipv4)
        .map(|(net, _order)| net.to_string());
    nets.collect::<Vec<_>>().join(" ")
}

/// §14, item 40: lines by xenstore and by VMware's tool, with NICs in the reversed order.
async fn nics_are_found_by_their_addresses(hypervisor: &str, program: &str, separator: &str) {
    let (machine, _wires) = Machine::with_nics::<3>().await;
    let macs: Vec<_> = machine
        .current()
        .await
        .links
        .iter()
        .map(|link| link.mac.unwrap())
        .collect();
    let reversed: Vec<_> = macs.iter().rev().map(ToString::to_string).collect();
    let line = format!(
        " template=domP name=r-8-VM authorized_key={KEY} eth2ip=203.0.113.33 eth2mask=255.255.255.0 gateway=203.0.113.1 \
         eth0ip=10.1.1.1 eth0mask=255.255.255.0 eth1ip=192.0.2.77 eth1mask=255.255.255.0 type=router  nic_macs={}",
        reversed.join("|")
    );
    let vm = Vm::new();
    let _ = platform::files::replace(vm.path("line"), line.replace(' ', separator), 0o600).unwrap();
    let _ = platform::files::replace(vm.path("etc/cloudstack/ips.json"), "{}", 0o600).unwrap();
    vm.fake(program, "echo \"$*\" > \"$ROOT/asked\"; cat \"$ROOT/line\"");
    let _daemon = vm.boots(&machine, hypervisor);

    vm.asks_systemd("restart --no-block ssh.service cs-setup.service\n")
        .await;
    let links = machine.current().await.links;
    let mac = |name: &str| links.iter().find(|link| link.name == name).unwrap().mac.unwrap();
    assert_eq!(["eth2", "eth1", "eth0"].map(mac), macs[..]);
    assert_eq!(address(&links, "eth0"), "10.1.1.1/24");
    assert_eq!(address(&links, "eth1"), "192.0.2.77/24");
    assert_eq!(address(&links, "eth2"), "203.0.113.33/24");
    assert!(machine.rules().await.contains("iifname \"eth1\" tcp dport 3922"));
    assert_eq!(vm.read("root/.ssh/authorized_keys"), "ssh-ed25519 AAAA test\n");
    assert_eq!(vm.read("etc/hostname"), "r-8-VM\n");
    assert_eq!(vm.read("var/cache/cloud/cmdline").trim_end(), line);
    assert!(!vm.path("etc/cloudstack/ips.json").exists());
}

#[tokio::test]
async fn on_xen_the_line_comes_from_xenstore() {
    nics_are_found_by_their_addresses("xen", "xenstore-read", "%").await;
}

#[tokio::test]
async fn on_vmware_the_line_comes_from_its_tool() {
    nics_are_found_by_their_addresses("vmware", "vmtoolsd", " ").await;
}

#[tokio::test]
async fn a_nic_that_comes_late_is_configured_late_and_another_line_takes_over() {
    let (machine, _wires) = Machine::with_nics::<2>().await;
    let vm = Vm::new();
    let line = "type=router name=r-4-VM eth0ip=10.1.1.1 eth0mask=255.255.255.0 eth1ip=169.254.3.7 eth1mask=255.255.0.0 \
                eth2ip=203.0.113.31 eth2mask=255.255.255.0 gateway=203.0.113.1\n";
    let _daemon = vm.boots(&machine, "kvm");
    let started = Instant::now();
    while !vm.read("run/sysvm/boot.json").contains("no boot arguments") {
        assert!(started.elapsed() < LIMIT, "{}", vm.read("log"));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    vm.host_writes(line);
    vm.asks_systemd("restart --no-block ssh.service cs-setup.service\n")
        .await;
    assert_eq!(address(&machine.current().await.links, "eth1"), "169.254.3.7/16");
    assert!(vm.read("run/sysvm/boot.json").contains("this machine has no eth2"));

    machine.ip("link add eth2 type veth peer name late").await;
    let links = vm.nics(&machine, |links| !address(links, "eth2").is_empty()).await;
    assert_eq!(address(&links, "eth2"), "203.0.113.31/24");
    assert_eq!(address(&links, "eth1"), "169.254.3.7/16");

    vm.host_writes(&line.replace("169.254.3.7", "169.254.3.8"));
    let links = vm
        .nics(&machine, |links| address(links, "eth1") == "169.254.3.8/16")
        .await;
    assert_eq!(address(&links, "eth0"), "10.1.1.1/24");
    let config = vm.read("etc/ssh/sshd_config.d/20-address.conf");
    assert!(config.ends_with("ListenAddress 169.254.3.8:3922\n"), "{config}");
}
