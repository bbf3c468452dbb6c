//! The other types: a VPC router whose NICs come and go, the DHCP server of a basic zone, an internal load balancer.

use std::time::{Duration, Instant};

use anyhow::ensure;
use system_tests::site::{Example, Site};
use system_tests::vm::{Booted, Nic, Ssh};

use crate::board::{Lane, Report};
use crate::checks::Check;
use crate::steps::{configure, eventually, exits, only_open, plug, ready, resume, units_are, within};

/// Item 35.
const USABLE_LIMIT: Duration = Duration::from_secs(5);
const PING_LIMIT: Duration = Duration::from_secs(10);

async fn start(example: Example) -> anyhow::Result<(Site, Ssh, Booted)> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, example.control()).await?;
    let vm = resume(example, &site).await?;
    configure(&vm, &site, &example.line(&host)?, example.control()).await?;
    ready(&host).await?;
    Ok((site, host, vm))
}

pub(crate) async fn vpc(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let (site, host, vm) = start(Example::VpcRouter).await?;
    report.item(26, &vm, units_are(&host, &[("cloud", false)])).await;
    report.item(35, &vm, nics_come_and_go(&report, &site, &host, &vm)).await;
    let ports = only_open(&site, &["169.254.88.19"], &["169.254.88.19 tcp/3922"], &[]);
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;
    Ok(())
}

/// As far as it goes without a router: what a configuration says is for a MAC address must find it.
async fn nics_come_and_go(report: &Report, site: &Site, host: &Ssh, vm: &Booted) -> anyhow::Result<()> {
    let before = host.run("ls /sys/class/net").await?;
    ensure!(before == "eth0\nlo\n", "at the boot there are {before:?}");
    let macs = ["02:00:4c:9f:02:01", "02:00:4c:9f:02:02", "02:00:4c:9f:02:03"];
    for (device, mac, bridge, address) in [
        ("eth1", macs[0], "public", "203.0.113.77"),
        ("eth2", macs[1], "guest", "10.1.1.77"),
    ] {
        let started = Instant::now();
        plug(vm, device, &Nic::on(bridge, mac)).await?;
        exits(
            host,
            &format!("ip address add {address}/24 dev {device} && ip link set {device} up"),
            0,
        )
        .await?;
        // The rest of a configuration would be its firewall; an answer to ARP is enough to see that it is the right NIC.
        let took = started.elapsed();
        report.took(&format!("{device} plugged in to usable"), took);
        within(took, USABLE_LIMIT).await?;
        eventually("an answer", PING_LIMIT, async || {
            let arping = platform::exec::Cmd::new("ping").args(["-c", "1", "-W", "1", address]);
            site.net.run(arping).await.map(drop)
        })
        .await?;
    }
    vm.unplug("eth1").await?;
    // The lowest number that is free.
    plug(vm, "eth1", &Nic::on("public", macs[2])).await?;
    for (device, mac) in [("eth1", macs[2]), ("eth2", macs[1])] {
        let found = host.run(&format!("cat /sys/class/net/{device}/address")).await?;
        ensure!(found.trim() == mac, "{device} is {found}");
    }
    let kept = host.run("ip -brief -4 address show eth2").await?;
    ensure!(kept.contains("10.1.1.77/24"), "eth2 has lost its address: {kept}");
    Ok(())
}

pub(crate) async fn dhcp_server(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let (site, host, vm) = start(Example::DhcpServer).await?;
    let services = [("dnsmasq", true), ("haproxy", false), ("cloud", false)];
    report.item(36, &vm, units_are(&host, &services)).await;
    report.item(26, &vm, units_are(&host, &[("cloud", false)])).await;
    let ports = only_open(
        &site,
        &["203.0.113.40", "169.254.9.9"],
        &["169.254.9.9 tcp/3922", "203.0.113.40 tcp/53"],
        &["203.0.113.40 udp/53", "203.0.113.40 udp/67", "203.0.113.40 tcp/80"],
    );
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;
    let ends = async {
        vm.shut_down().await?;
        vm.ended(Duration::from_mins(1)).await.map(drop)
    };
    report.item(7, &vm, ends).await;
    Ok(())
}

pub(crate) async fn load_balancer(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let (site, host, vm) = start(Example::LoadBalancer).await?;
    // Its network is another one than that of the other examples.
    site.net.ip("address add 10.10.1.1/24 dev guest").await?;
    let services = [
        ("haproxy", true),
        ("dnsmasq", false),
        ("cloud", false),
        ("keepalived", false),
    ];
    report.item(36, &vm, units_are(&host, &services)).await;
    report.item(26, &vm, units_are(&host, &[("cloud", false)])).await;
    let ports = only_open(&site, &["10.10.1.250", "169.254.77.1"], &["169.254.77.1 tcp/3922"], &[]);
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;
    Ok(())
}
