//! An SSVM from its power-on to its end, in the middle of a zone: management server, NFS server, resolver.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use platform::exec::{Cmd, ExecError};
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Format, Ssh, Vm};

use crate::board::{Lane, Report};

/// Appliance.md §14, items 1, 4, 7.
const PING_LIMIT: Duration = Duration::from_secs(30);
const SSH_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_mins(1);

const VM: Example = Example::Ssvm;
/// Its addresses on other networks than the control network.
const ELSEWHERE: [&str; 3] = ["192.0.2.21", "203.0.113.21", "198.51.100.30"];

pub(crate) async fn run(report: Report, _lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, VM.control()).await?;
    let line = VM.line(&host)?;
    let mut vm = Vm::new(Format::Qcow2).net(&site.net).no_rng();
    for nic in VM.nics() {
        vm = vm.nic(nic);
    }
    let power_on = Instant::now();
    let vm = vm.start().await?;
    vm.agent_up(BOOT_LIMIT).await?;
    let answered = power_on.elapsed();
    report.took("power-on to guest-ping", answered);
    report.item(1, &vm, within(answered, PING_LIMIT)).await;

    let written = Instant::now();
    vm.pass_cmdline(&line).await?;
    let opened = site
        .opens(VM.control(), 3922, BOOT_LIMIT)
        .await
        .map(|_| written.elapsed());
    // Before anything else is asked of the VM: it counts that it answers at this moment.
    report.item(13, &vm, ping(&site, VM.control())).await;
    let opened = opened?;
    report.took("line to 3922", opened);
    report.item(2, &vm, the_line_is_there(&vm, &line)).await;
    let opens_only_there = async {
        within(opened, SSH_LIMIT).await?;
        for address in ELSEWHERE {
            ensure!(!site.is_open(address, 3922)?, "3922 is open at {address}");
        }
        Ok(())
    };
    report.item(4, &vm, opens_only_there).await;
    report.item(5, &vm, only_the_key_opens(&site, &host)).await;
    report.item(12, &vm, has_no_random_numbers(&vm)).await;

    let ends = async {
        vm.shut_down().await?;
        let took = vm.ended(END_LIMIT).await?;
        report.took("guest-shutdown to the end of QEMU", took);
        Ok(())
    };
    report.item(7, &vm, ends).await;
    Ok(())
}

async fn within(took: Duration, limit: Duration) -> anyhow::Result<()> {
    ensure!(took <= limit, "it took {took:?}, and may take {limit:?}");
    Ok(())
}

async fn ping(site: &Site, address: &str) -> anyhow::Result<()> {
    site.net
        .run(Cmd::new("ping").args(["-c", "1", "-W", "5", address]))
        .await
        .map(drop)
}

async fn the_line_is_there(vm: &Booted, line: &str) -> anyhow::Result<()> {
    let found = vm.read("/var/cache/cloud/cmdline").await?;
    ensure!(found == format!("{line}\n"), "it reads {found:?}");
    let mode = vm.text(&["stat", "--format=%a %U", "/var/cache/cloud/cmdline"]).await?;
    ensure!(mode == "600 root\n", "it has {mode}");
    Ok(())
}

async fn only_the_key_opens(site: &Site, host: &Ssh) -> anyhow::Result<()> {
    let who = host.run("whoami").await?;
    ensure!(who == "root\n", "{who}");
    let stranger = Ssh::new(&site.net, VM.control()).await?;
    let password = host.clone().option("PubkeyAuthentication=no");
    for (other, what) in [(stranger, "another key"), (password, "no key")] {
        match other.run("whoami").await {
            Err(ExecError::Failed { printed, .. }) if printed.ends_with("Permission denied (publickey).") => {}
            other => bail!("{what} is answered with {other:?}"),
        }
    }
    Ok(())
}

/// Items 1 to 5 happened on this VM, whose networks have neither DHCP nor a way out.
async fn has_no_random_numbers(vm: &Booted) -> anyhow::Result<()> {
    let source = vm.run(&["cat", "/sys/class/misc/hw_random/rng_current"]).await?;
    ensure!(
        source.stdout.trim().is_empty() || source.stdout.trim() == "none",
        "there is a source of random numbers: {}",
        source.stdout
    );
    let state = vm.text(&["systemctl", "is-active", "ssh"]).await.context("of sshd")?;
    ensure!(state == "active\n", "sshd is {state}");
    Ok(())
}
