//! Live upgrades of a VM that serves: over an open SSH session, with a program that does not run, and through a power cut.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use system_tests::bundle::{Maker, TRUSTED_KEY, UPLOADED};
use system_tests::management::ManagementServer;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Format, Ssh, Vm};
use system_tests::wait;

const NAME: &str = "s-1-VM";
const SERVER: &str = "192.0.2.10";
/// For an upgrade under emulation: it waits for services, and looks on for ten seconds.
const LIMIT: Duration = Duration::from_mins(6);

struct Zone {
    host: Ssh,
    server: ManagementServer,
    vm: Booted,
}

impl Zone {
    async fn start() -> Self {
        let site = Site::new().await.unwrap();
        let server = ManagementServer::start(&site.net, SERVER, &[]).await.unwrap();
        let host = Ssh::new(&site.net, Example::Ssvm.control())
            .await
            .unwrap()
            .time_limit(LIMIT);
        let vm = Vm::new(Format::Qcow2).net(&site.net);
        let vm = Example::Ssvm.nics().into_iter().fold(vm, Vm::nic).boot().await.unwrap();
        vm.pass_cmdline(&Example::Ssvm.line(&host).unwrap()).await.unwrap();
        server.agent_up(NAME, BOOT_LIMIT).await.unwrap();
        Self { host, server, vm }
    }

    async fn upload(&self, bundle: &Path, to: &str) {
        self.host.upload(&[bundle], to, false).await.unwrap();
    }

    async fn status(&self) -> Result<Value, String> {
        let said = self.host.run("agent upgrade --status --json").await;
        let said = said.map_err(|error| format!("{error:#}"))?;
        serde_json::from_str(&said).map_err(|error| format!("{error}: {said}"))
    }

    /// Waits until an upgrade to this version has ended; how.
    async fn ended(&self, outcome: &str) -> Value {
        wait::until("the upgrade ends", LIMIT, async || {
            let status = self.status().await?;
            let has_ended = status["last"]["outcome"] == outcome && status["pending"].is_null();
            has_ended.then(|| status.clone()).ok_or_else(|| status.to_string())
        })
        .await
    }

    /// What the process of the service really is, once it runs.
    async fn runs(&self) -> String {
        wait::until("the service runs", LIMIT, async || {
            let show = ["systemctl", "show", "--property=MainPID", "--value", "cs-ssvm"];
            let pid = self.vm.run(&show).await.map_err(|error| format!("{error:#}"))?.stdout;
            let program = self.vm.run(&["readlink", &format!("/proc/{}/exe", pid.trim())]).await;
            let program = program.map_err(|error| format!("{error:#}"))?;
            // Before that it is systemd's, which sets up the sandbox.
            let is_ours = program.stdout.ends_with("/ssvm\n");
            is_ours.then(|| program.stdout.trim().to_owned()).ok_or(program.stdout)
        })
        .await
    }
}

#[tokio::test]
async fn a_vm_takes_new_programs_refuses_bad_ones_and_loses_nothing_in_a_power_cut() {
    let maker = Maker::new().await.unwrap();
    let zone = Zone::start().await;
    assert_eq!(zone.runs().await, "/usr/lib/sysvm/bin/ssvm");

    // Nobody is trusted unless the image says so.
    let good = maker.bundle("0.1.1", None).await.unwrap();
    zone.upload(&good, "/root/").await;
    let upgrade = "agent upgrade /root/sysvm-bundle";
    let refused = zone.host.exec(upgrade, b"").await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    zone.vm.write(TRUSTED_KEY, &maker.public_key().unwrap()).await.unwrap();

    // A session that is open stays open, and the management server has the VM again.
    let session = zone.host.clone();
    let open = tokio::spawn(async move { session.run("echo \"still here\"; sleep 45; echo \"and here\"").await });
    let done = zone.host.exec(upgrade, b"").await.unwrap();
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(open.await.unwrap().unwrap(), "still here\nand here\n");
    let first = zone.runs().await;
    assert!(
        first.starts_with("/var/lib/sysvm/bundles/") && first.ends_with("/ssvm"),
        "{first}"
    );
    assert_eq!(zone.server.agent(NAME).await.unwrap().as_deref(), Some("Up"));
    let status = zone.status().await.unwrap();
    assert_eq!(status["version"], "0.1.1", "{status}");
    let again = zone.host.exec(upgrade, b"").await.unwrap();
    assert_eq!(again.status.code(), Some(0), "nothing to do is no failure: {again:?}");

    // A program that starts, and then does not run. By an upload, as a host would do it.
    let script = "#!/bin/bash\ntest \"$1\" = --version && exit 0\nexit 1\n";
    let broken = maker.bundle("0.1.2", Some(("ssvm", script))).await.unwrap();
    zone.upload(&broken, "/var/cache/cloud/").await;
    let status = zone.ended("rolled-back").await;
    assert!(
        status["last"]["why"].as_str().unwrap().starts_with("cs-ssvm.service"),
        "{status}"
    );
    assert_eq!(status["version"], "0.1.1", "{status}");
    assert_eq!(zone.runs().await, first);
    zone.server.agent_up(NAME, LIMIT).await.unwrap();
    let left = zone.host.run("ls /var/cache/cloud").await.unwrap();
    assert!(!left.contains(UPLOADED), "{left}");
    let kept = zone.host.run("ls -A /var/lib/sysvm/bundles | wc -l").await.unwrap();
    assert!(kept.trim().parse::<u32>().unwrap() <= 2, "{kept}");

    // The power goes away while the next one is tried.
    let next = maker.bundle("0.1.3", None).await.unwrap();
    zone.upload(&next, "/var/cache/cloud/").await;
    wait::until("it is tried", LIMIT, async || {
        let status = zone.status().await?;
        (!status["pending"].is_null())
            .then_some(())
            .ok_or_else(|| status.to_string())
    })
    .await;
    zone.vm.cut_power().await.unwrap();
    let Zone { host, server, vm } = zone;
    let vm = vm.start_again().await.unwrap();
    vm.agent_up(BOOT_LIMIT).await.unwrap();
    let zone = Zone { host, server, vm };
    let status = wait::until("the VM is back", BOOT_LIMIT, async || zone.status().await).await;
    assert!(status["pending"].is_null(), "{status}");
    assert_eq!(status["last"]["outcome"], "rolled-back", "{status}");
    assert_eq!(status["version"], "0.1.1", "{status}");
    zone.server.agent_up(NAME, LIMIT).await.unwrap();
    assert_eq!(zone.runs().await, first);

    // And back to what the image came with.
    let back = zone.host.exec("agent upgrade --rollback", b"").await.unwrap();
    assert_eq!(back.status.code(), Some(0), "{back:?}");
    assert_eq!(zone.runs().await, "/usr/lib/sysvm/bin/ssvm");
}
