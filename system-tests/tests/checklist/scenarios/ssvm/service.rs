//! What an SSVM is for, and what is asked of every system VM: appliance.md §14, items 24, 26, 27, 29 to 31, 38, 39.

use std::time::Duration;

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use system_tests::management::Certificate;
use system_tests::vm::{Booted, Ssh};

use super::{NAME, SERVER, UP_LIMIT, Zone};
use crate::board::Report;
use crate::steps::{eventually, exits, units_are};

const CONF: &str = "/usr/local/cloud/systemvm/conf";
const CHECK: &str = "/usr/local/cloud/systemvm/ssvm-check.sh";
/// For the stores to be mounted and the check to run.
const CHECK_LIMIT: Duration = Duration::from_mins(1);

/// Ports where an SSVM may serve what was extracted, once the management server asks for it.
pub(super) const SERVICES: [&str; 2] = ["203.0.113.21 tcp/80", "203.0.113.21 tcp/443"];

/// Of the collector, for system VMs and for routers: appliance.md §8.2.
const LISTS: [&str; 2] = [
    "iptables ipaddr iprule iproute /etc/cloudstack-release /usr/local/cloud/systemvm/conf/agent.properties \
     /usr/local/cloud/systemvm/conf/consoleproxy.properties /var/log/cloud.log /var/log/patchsystemvm.log \
     /var/log/daemon.log",
    "iptables ipaddr iprule iproute /etc/cloudstack-release /etc/dnsmasq.conf /etc/dhcphosts.txt /etc/dhcpopts.txt \
     /etc/dnsmasq.d/cloud.conf /etc/dnsmasq-resolv.conf /var/lib/misc/dnsmasq.leases /var/log/dnsmasq.log /etc/hosts \
     /etc/resolv.conf /etc/haproxy/haproxy.cfg /var/log/haproxy.log /etc/ipsec.d/l2tp.conf /var/log/cloud.log \
     /var/log/routerServiceMonitor.log /var/log/daemon.log",
];

pub(super) async fn check(report: &Report, vm: &Booted, zone: &Zone) -> anyhow::Result<()> {
    let host = &zone.host;
    report.item(26, vm, units_are(host, &[("cloud", true)])).await;
    report.item(27, vm, routes(host)).await;
    report.item(30, vm, storage_nic(host)).await;
    report.item(31, vm, copy_of_the_line(host)).await;
    report.item(29, vm, all_is_well(host)).await;
    report.item(38, vm, diagnostics(host)).await;
    report.item(39, vm, diagnostics_files(host)).await;
    Ok(())
}

/// After the other items: from here on the server lets in nobody without a certificate.
pub(super) async fn certificate(report: &Report, vm: &Booted, zone: &mut Zone) {
    let work = async {
        let addresses = ["169.254.14.87", "192.0.2.21", "203.0.113.21", "198.51.100.30"];
        let issued = zone.server.certificate(NAME, &addresses).await?;
        zone.server.kill();
        zone.serve.push("--require-client-certificate".to_owned());
        zone.server.start_again(SERVER, &zone.serve).await?;
        let [certificate, authority, key] =
            [&issued.certificate, &issued.authority, &issued.key].map(|pem| Certificate::as_argument(pem));
        let import = format!(
            "/opt/cloud/bin/keystore-cert-import {CONF}/agent.properties 0123456789abcdef {CONF}/cloud.jks ssh \
             {CONF}/cloud.crt \"{certificate}\" {CONF}/cloud.ca.crt \"{authority}\" {CONF}/cloud.key \"{key}\""
        );
        exits(&zone.host, &import, 0).await?;
        let found = zone
            .host
            .run(&format!("stat -c %a {CONF}/cloud.key && cat {CONF}/cloud.key"))
            .await?;
        ensure!(
            found == format!("600\n{}", issued.key),
            "the key is stored as {}",
            found.lines().next().unwrap_or_default()
        );
        // The server takes nobody without one, from the address that is in it.
        zone.server.agent_up(NAME, UP_LIMIT).await?;
        units_are(&zone.host, &[("cloud", true)]).await
    };
    report.item(24, vm, work).await;
}

async fn routes(host: &Ssh) -> anyhow::Result<()> {
    let routes = host.run("ip route").await?;
    // The management network is the eth1's own here; there is no way to it but directly or by its gateway.
    for wanted in [
        "default via 203.0.113.1 dev eth2",
        "192.0.2.0/24 dev eth1",
        "10.0.0.0/8 via 192.0.2.1 dev eth1",
        "172.16.0.0/12 via 192.0.2.1 dev eth1",
        "192.168.0.0/16 via 192.0.2.1 dev eth1",
    ] {
        ensure!(
            routes.lines().any(|line| line.starts_with(wanted)),
            "no route {wanted:?} in\n{routes}"
        );
    }
    Ok(())
}

async fn storage_nic(host: &Ssh) -> anyhow::Result<()> {
    let nic = host.run("ip address show eth3").await?;
    ensure!(nic.contains("inet 198.51.100.30/24 "), "{nic}");
    ensure!(nic.contains(" mtu 1400 "), "{nic}");
    let others = host.run("ip address show eth2").await?;
    ensure!(
        others.contains(" mtu 1500 "),
        "the MTU is for the storage NIC only: {others}"
    );
    Ok(())
}

async fn copy_of_the_line(host: &Ssh) -> anyhow::Result<()> {
    exits(
        host,
        "cp -f /var/cache/cloud/cmdline /var/cache/cloud/cmdline.backup",
        0,
    )
    .await?;
    exits(
        host,
        "cmp /var/cache/cloud/cmdline /var/cache/cloud/cmdline.backup && rm /var/cache/cloud/cmdline.backup",
        0,
    )
    .await
    .map(drop)
}

async fn all_is_well(host: &Ssh) -> anyhow::Result<()> {
    // CloudStack's own test mounts nothing either: the agent does, a moment after it is Up.
    let said = eventually("a healthy SSVM", CHECK_LIMIT, async || exits(host, CHECK, 0).await).await?;
    for word in ["ERROR", "WARNING"] {
        ensure!(
            said.matches(word).count() == 1,
            "{word} is there {} times:\n{said}",
            said.matches(word).count()
        );
    }
    ensure!(!said.contains("FAIL"), "it says FAIL:\n{said}");
    let last = said.trim_end().lines().next_back().unwrap_or_default();
    ensure!(
        last.contains("ERROR") && last.contains("WARNING"),
        "the last line is {last:?}"
    );
    Ok(())
}

async fn diagnostics(host: &Ssh) -> anyhow::Result<()> {
    for (command, code) in [
        ("ping 127.0.0.1", "0"),
        ("arping -I eth1 192.0.2.10", "0"),
        ("traceroute 192.0.2.10", "0"),
        ("ping 192.0.2.199", "1"),
    ] {
        let said = exits(host, &format!("/opt/cloud/bin/diagnostics.py {command}"), 0).await?;
        let parts: Vec<_> = said.split("&&").map(str::trim).collect();
        ensure!(parts.len() == 3 && parts[2] == code, "`{command}` prints {said:?}");
        ensure!(!parts[0].is_empty(), "`{command}` prints nothing: {said:?}");
    }
    Ok(())
}

async fn diagnostics_files(host: &Ssh) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    for list in LISTS {
        let said = exits(host, &format!("/opt/cloud/bin/get_diagnostics_files.py {list}"), 0).await?;
        let zip = said.trim_end().lines().next_back().unwrap_or_default();
        let name = zip
            .strip_prefix("/root/diagnostics_files_")
            .and_then(|rest| rest.strip_suffix(".zip"));
        ensure!(name.is_some_and(|name| name.len() == 15), "the last line is {zip:?}");
        let here = directory.path().join("diagnostics.zip");
        host.download(zip, &here, true).await?;
        let listed = Cmd::new("unzip").args(["-Z1"]).arg(&here).run().await?.text();
        for wanted in [
            "fileinfo.txt",
            "iptables.log",
            "ipaddr.log",
            "iproute.log",
            "cloudstack-release",
        ] {
            ensure!(
                listed.lines().any(|file| file == wanted),
                "no {wanted} in the zip: {listed}"
            );
        }
        let all = Cmd::new("unzip").arg("-p").arg(&here).run().await?.text();
        for secret in ["WmszdlE4bllwMkxyVDZ4Vw", "Zk3vQ8nYp2LrT6xW"] {
            ensure!(!all.contains(secret), "the zip has a secret in it");
        }
        exits(host, &format!("/opt/cloud/bin/cleanup.sh {zip}"), 0).await?;
        exits(host, &format!("test -e {zip}"), 1).await?;
    }
    let kept = exits(
        host,
        "/opt/cloud/bin/cleanup.sh /etc/hostname; test -e /etc/hostname",
        0,
    )
    .await;
    kept.context("cleanup.sh removes what is not a zip of diagnostics")
        .map(drop)
}
