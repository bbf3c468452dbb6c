//! A VM whose boot arguments make no sense.

use std::time::Duration;

use anyhow::ensure;
use hypervisor::guest_channel::BootProgress;
use system_tests::site::{Example, Site};
use system_tests::vm::guest_channel::{GuestChannel, PORT};
use system_tests::vm::{BOOT_LIMIT, Ssh};

use crate::board::{Lane, Report};
use crate::checks::Check;
use crate::steps::{eventually, like, ready};

const VM: Example = Example::ConsoleProxy;
const LIMIT: Duration = Duration::from_mins(1);
/// A program that starts again and again has done so a few times by then.
const CALM: Duration = Duration::from_secs(20);
/// What is wrong with the line, as it should be told.
const PROBLEMS: [&str; 3] = ["eth2ip", "vncport", "eth1mask"];

pub(crate) async fn run(report: Report, _lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, VM.control()).await?;
    let good = VM.line(&host)?;
    let bad = good
        .replace("eth2ip=203.0.113.22", "eth2ip=203.0.113.300")
        .replace("vncport=8080", "vncport=99999")
        .replace("eth1mask=255.255.255.0", "eth1mask=255.0.255.0");
    let vm = like(VM, &site).port(PORT).boot().await?;
    let all = async {
        vm.pass_cmdline(&bad).await?;
        let mut channel = GuestChannel::connect(&vm).await?;
        let tells_all = |progress: &BootProgress| {
            let told = progress.problem.as_deref().unwrap_or_default();
            PROBLEMS.iter().all(|problem| told.contains(problem))
        };
        let told = channel.boot_until(LIMIT, tells_all).await?;
        let told = told.problem.unwrap_or_default();
        ensure!(!told.contains("keystore_password=W"), "a secret is told: {told}");
        let screen = eventually("the problems on the screen", LIMIT, async || {
            // What the virtual terminal shows, as the kernel has it.
            let screen = vm.text(&["cat", "/dev/vcs1"]).await?;
            ensure!(screen.contains(PROBLEMS[0]), "{PROBLEMS:?} is not in {screen:?}");
            Ok(screen)
        })
        .await?;
        ensure!(!screen.contains("keystore_password=W"), "a secret is shown: {screen}");

        ensure!(
            !site.is_open(VM.control(), 3922)?,
            "3922 is open with a line that makes no sense"
        );
        let starts = async || {
            let words = [
                "systemctl",
                "show",
                "--property=NRestarts,MainPID,ActiveState",
                "cs-preinit",
            ];
            vm.text(&words).await
        };
        let before = starts().await?;
        tokio::time::sleep(CALM).await;
        let after = starts().await?;
        ensure!(
            before == after && before.contains("NRestarts=0"),
            "it starts again and again: {before} {after}"
        );
        vm.up().await?;

        vm.pass_cmdline(&good).await?;
        report.took("better line to 3922", site.opens(VM.control(), 3922, BOOT_LIMIT).await?);
        ready(&host).await?;
        vm.up().await
    };
    report.check(Check::BadLine, Some(&vm), all).await;
    Ok(())
}
