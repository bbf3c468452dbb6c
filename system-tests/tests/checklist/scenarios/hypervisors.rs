//! The other hypervisors, as far as they can be played: a program of theirs answers from a file of the test.

use std::time::Duration;

use anyhow::ensure;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Ssh};

use crate::board::{Lane, Report};
use crate::steps::{eventually, resume};

/// Programs of the test come before those of the image.
const PROGRAMS: &str = "/var/lib/fake-hypervisor";
const DROP_IN: &str = "/etc/systemd/system/cs-preinit.service.d";
const LIMIT: Duration = Duration::from_mins(1);
/// Of the VMware router, as the management network gives it.
const VMWARE_CONTROL: &str = "192.0.2.77";
/// What `resume` gives to the first NIC that the machine finds.
const FIRST: &str = "0e:00:a9:fe:0e:57";

pub(crate) async fn run(report: Report, _lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    {
        let host = Ssh::new(&site.net, Example::Router.control()).await?;
        let line = Example::Router.line(&host)?.replace(' ', "%");
        let vm = resume(Example::Router, &site).await?;
        let xen = async {
            play(&vm, "xen", "xenstore-read", &line).await?;
            site.opens(Example::Router.control(), 3922, BOOT_LIMIT).await?;
            let name = host.run("hostname && cat /var/cache/cloud/cmdline").await?;
            ensure!(name.starts_with("r-4-VM\n") && name.contains(" type=router "), "{name}");
            Ok(())
        };
        report.item(40, &vm, xen).await;
    }

    let host = Ssh::new(&site.net, VMWARE_CONTROL).await?;
    let line = Example::VmwareRouter.line(&host)?;
    let line = line.replace(&Example::VmwareRouter.mac(0), FIRST);
    let vm = resume(Example::VmwareRouter, &site).await?;
    let vmware = async {
        play(&vm, "vmware", "vmtoolsd", &line).await?;
        site.opens(VMWARE_CONTROL, 3922, BOOT_LIMIT).await?;
        let macs = [&Example::VmwareRouter.mac(2), &Example::VmwareRouter.mac(1), FIRST];
        for (device, mac) in ["eth0", "eth1", "eth2"].iter().zip(macs) {
            let found = host.run(&format!("cat /sys/class/net/{device}/address")).await?;
            ensure!(found.trim() == mac, "{device} is {found}");
        }
        eventually("the addresses", LIMIT, async || {
            let addresses = host.run("ip -brief -4 address").await?;
            for (device, address) in [("eth0", "10.1.1.1/24"), ("eth2", "203.0.113.33/24")] {
                let is_it = |line: &str| line.starts_with(device) && line.contains(address);
                ensure!(addresses.lines().any(is_it), "{device} has no {address}: {addresses}");
            }
            Ok(())
        })
        .await
    };
    report.item(40, &vm, vmware).await;
    Ok(())
}

/// Starts `agent boot` anew on what seems to be this hypervisor.
async fn play(vm: &Booted, hypervisor: &str, program: &str, line: &str) -> anyhow::Result<()> {
    vm.text(&["mkdir", "-p", PROGRAMS, DROP_IN]).await?;
    let path = format!("{PROGRAMS}/{program}");
    vm.write(&path, format!("#!/bin/bash\necho '{line}'\n").as_bytes())
        .await?;
    vm.text(&["chmod", "755", &path]).await?;
    let unit = format!(
        "[Service]\n\
         Environment=PATH={PROGRAMS}:/usr/sbin:/usr/bin\n\
         ExecStart=\n\
         ExecStart=/usr/lib/sysvm/bin/agent boot --hypervisor {hypervisor}\n"
    );
    vm.write(&format!("{DROP_IN}/fake.conf"), unit.as_bytes()).await?;
    vm.text(&["systemctl", "daemon-reload"]).await?;
    vm.text(&["systemctl", "restart", "cs-preinit"]).await.map(drop)
}
