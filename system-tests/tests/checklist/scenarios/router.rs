//! The router of an isolated network, small and on old hardware: 256 MiB, one processor, IDE, e1000.

mod commands;

use std::time::{Duration, Instant};

use anyhow::ensure;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Bus, Format, Nic, NicModel, Ssh, Vm};

use super::ssvm;
use crate::board::{Lane, Report};
use crate::checks::Check;
use crate::steps::{exits, only_open, units_are};

const VM: Example = Example::Router;
/// Item 21: of the version answer, which waits for the end of the boot.
const VERSION_LIMIT: Duration = Duration::from_mins(4);

pub(crate) async fn run(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, VM.control()).await?.time_limit(VERSION_LIMIT);
    let vm = Vm::new(Format::Qcow2).net(&site.net).memory_mib(256).bus(Bus::Ide);
    let old = |nic: Nic| nic.model(NicModel::E1000);
    let vm = VM.nics().into_iter().map(old).fold(vm, Vm::nic);
    let vm = vm.boot().await?;
    vm.pass_cmdline(&VM.line(&host)?).await?;
    let written = Instant::now();
    site.opens(VM.control(), 3922, BOOT_LIMIT).await?;
    report.took("line to 3922 in 256 MiB", written.elapsed());
    let version = async {
        // Everything in one command: it was called before the boot was over, and answered after it.
        let early = "test -e /var/cache/cloud/boot_up_done && echo too-late; \
                     /opt/cloud/bin/get_template_version.sh >/dev/null && ls /var/cache/cloud/boot_up_done";
        let said = exits(&host, early, 0).await?;
        report.took("line to the first version answer", written.elapsed());
        ensure!(
            said.trim_start_matches("too-late\n") == "/var/cache/cloud/boot_up_done\n",
            "the answer came before the boot was over: {said:?}"
        );
        ssvm::version(&host).await.map(drop)
    };
    report.item(21, &vm, version).await;
    report.item(11, &vm, is_well(&vm)).await;
    report.item(32, &vm, is_a_router(&site, &host)).await;
    let services = [
        ("dnsmasq", true),
        ("haproxy", true),
        ("cloud", false),
        ("keepalived", false),
    ];
    let runs = async {
        units_are(&host, &services).await?;
        for (unit, file) in [
            ("dnsmasq", "/var/run/dnsmasq/dnsmasq.pid"),
            ("haproxy", "/var/run/haproxy.pid"),
        ] {
            let names = host.run(&format!("cat /proc/$(cat {file})/comm")).await?;
            ensure!(names == format!("{unit}\n"), "{file} is the process id of {names:?}");
        }
        Ok(())
    };
    report.item(36, &vm, runs).await;
    report.item(26, &vm, units_are(&host, &[("cloud", false)])).await;
    report.item(33, &vm, commands::answer(&host)).await;
    report.item(34, &vm, commands::configuration_is_refused(&host)).await;
    report
        .item(37, &vm, commands::a_read_only_file_system_is_noticed(&host))
        .await;
    let ports = async {
        let addresses = ["10.1.1.1", VM.control(), "203.0.113.31"];
        let wanted = ["169.254.3.7 tcp/3922", "10.1.1.1 tcp/53"];
        // DHCP answers only who asks as clients do; the web server of user data comes with the router.
        let maybe = ["10.1.1.1 udp/53", "10.1.1.1 udp/67", "10.1.1.1 tcp/80"];
        only_open(&site, &addresses, &wanted, &maybe).await
    };
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;
    Ok(())
}

async fn is_well(vm: &Booted) -> anyhow::Result<()> {
    vm.up().await?;
    let kernel = vm
        .text(&["journalctl", "--boot", "--dmesg", "--quiet", "--output=cat"])
        .await?;
    let bad: Vec<_> = kernel
        .lines()
        .filter(|line| line.contains("Out of memory") || line.contains("oom-kill"))
        .collect();
    ensure!(bad.is_empty(), "the memory did not suffice: {bad:?}");
    let driver = vm.text(&["readlink", "/sys/class/net/eth0/device/driver"]).await?;
    ensure!(driver.trim().ends_with("/e1000"), "eth0 is driven by {driver}");
    Ok(())
}

async fn is_a_router(site: &Site, host: &Ssh) -> anyhow::Result<()> {
    let addresses = host.run("ip -brief -4 address").await?;
    let addresses: Vec<Vec<&str>> = addresses
        .lines()
        .map(|line| line.split_ascii_whitespace().collect())
        .collect();
    for (device, address) in [
        ("eth0", "10.1.1.1/24"),
        ("eth1", "169.254.3.7/16"),
        ("eth2", "203.0.113.31/24"),
    ] {
        let wanted = vec![device, "UP", address];
        ensure!(addresses.contains(&wanted), "no {wanted:?} in {addresses:?}");
    }
    let routes = host.run("ip route show default").await?;
    ensure!(routes.starts_with("default via 203.0.113.1 dev eth2"), "{routes:?}");
    ensure!(routes.lines().count() == 1, "{routes:?}");
    let forwards = host.run("cat /proc/sys/net/ipv4/ip_forward").await?;
    ensure!(forwards == "1\n", "ip_forward is {forwards}");
    for (address, port, is_open) in [
        ("10.1.1.1", 53, true),
        ("203.0.113.31", 53, false),
        ("10.1.1.1", 3922, false),
        ("203.0.113.31", 3922, false),
    ] {
        ensure!(
            site.is_open(address, port)? == is_open,
            "{address} port {port}: open is {}",
            !is_open
        );
    }
    Ok(())
}
