//! A VM on a large disk, through its starts: with its line late, with another line, with none.

use std::time::{Duration, Instant};

use anyhow::ensure;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Ssh};

use crate::board::{Lane, Report};
use crate::steps::{like, ready, within};

/// Appliance.md §14, items 3, 7, 9.
const LATE: Duration = Duration::from_mins(3);
const END_LIMIT: Duration = Duration::from_mins(1);
const REBOOT_LIMIT: Duration = Duration::from_mins(1);

const VM: Example = Example::ConsoleProxy;
const OTHER_CONTROL: &str = "169.254.77.78";
/// A GiB less than the disk: file systems need something for themselves.
const GROWN_BYTES: u64 = 7 << 30;

pub(crate) async fn run(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, VM.control()).await?;
    let line = VM.line(&host)?;
    let vm = like(VM, &site).disk_gib(8).may_reboot().boot().await?;
    vm.up().await?;
    report.aside(&mut lane, tokio::time::sleep(LATE)).await;
    let waits = async {
        let state = vm.text(&["systemctl", "is-system-running"]).await?;
        ensure!(state == "running\n", "after three minutes without a line it is {state}");
        ensure!(!site.is_open(VM.control(), 3922)?, "3922 is open without a line");
        vm.pass_cmdline(&line).await?;
        let took = site.opens(VM.control(), 3922, BOOT_LIMIT).await?;
        report.took("late line to 3922", took);
        is_ready(&vm, &host).await
    };
    report.item(3, &vm, waits).await;
    report.item(10, &vm, has_grown(&vm)).await;

    for (what, reboot) in [("system_reset", true), ("guest reboot", false)] {
        let again = async {
            vm.text(&["sync"]).await?;
            let started = Instant::now();
            if reboot {
                vm.reset().await?;
            } else {
                host.run("systemctl reboot").await?;
                // Still open for a moment: wait until it is gone.
                while site.is_open(VM.control(), 3922)? {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
            site.opens(VM.control(), 3922, BOOT_LIMIT).await?;
            let took = started.elapsed();
            report.took(&format!("{what} to 3922, without a line"), took);
            within(took, REBOOT_LIMIT).await?;
            vm.agent_up(BOOT_LIMIT).await?;
            is_ready(&vm, &host).await
        };
        report.item(9, &vm, again).await;
    }

    let ends = async {
        vm.press_power_button().await?;
        let took = vm.ended(BOOT_LIMIT).await?;
        report.took("power button to the end of QEMU", took);
        within(took, END_LIMIT).await
    };
    report.item(7, &vm, ends).await;

    let vm = vm.start_again().await?;
    let moves = async {
        vm.agent_up(BOOT_LIMIT).await?;
        vm.pass_cmdline(&line.replace(VM.control(), OTHER_CONTROL)).await?;
        report.took(
            "another line to 3922 there",
            site.opens(OTHER_CONTROL, 3922, BOOT_LIMIT).await?,
        );
        is_ready(&vm, &host.at(OTHER_CONTROL)).await?;
        ensure!(
            !site.is_open(VM.control(), 3922)?,
            "the old control address answers, too"
        );
        Ok(())
    };
    report.item(8, &vm, moves).await;
    Ok(())
}

async fn is_ready(vm: &Booted, host: &Ssh) -> anyhow::Result<()> {
    ready(host).await?;
    vm.up().await
}

async fn has_grown(vm: &Booted) -> anyhow::Result<()> {
    let size = vm
        .text(&["findmnt", "--noheadings", "--bytes", "--output=SIZE", "/"])
        .await?;
    let size: u64 = size.trim().parse()?;
    ensure!(
        size >= GROWN_BYTES,
        "the root file system has {size} bytes on a disk of 8 GiB"
    );
    Ok(())
}
