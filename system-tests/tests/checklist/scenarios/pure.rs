//! What needs no VM: `agent boot --plan` on this machine, as anybody.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use serde_json::Value;
use system_tests::programs::built;

use crate::board::{Lane, Report};
use crate::checks::Check;

/// `nobody`.
const UID: &str = "65534";

pub(crate) async fn run(report: Report, _lane: Lane) -> anyhow::Result<()> {
    report.check(Check::Item(41), None, golden_plans()).await;
    report.check(Check::Item(6), None, spellings()).await;
    Ok(())
}

/// Golden files that the agent's own tests have, too: each names the file with its line.
const PLANS: &str = "agent/tests/plans";

/// The plan of a line, by a user without rights, who may not even write into the directory he is in.
async fn plan(line: &str, hypervisor: &str) -> anyhow::Result<Value> {
    let plan = Cmd::new(built("agent"))
        .args(["boot", "--plan", "--hypervisor", hypervisor, "--cmdline-file", "-"])
        .stdin(line)
        .through(Cmd::new("setpriv").args(["--reuid", UID, "--regid", UID, "--clear-groups", "--inh-caps=-all"]))
        .through(Cmd::new("env").arg("--chdir=/"));
    Ok(serde_json::from_slice(&plan.run().await?.stdout)?)
}

async fn golden_plans() -> anyhow::Result<()> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut seen = 0;
    for entry in fs::read_dir(repository.join(PLANS)).context("reading the golden plans")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.starts_with("plan@") {
            continue;
        }
        // Two lines of dashes stand around what insta has to say.
        let snapshot = fs::read_to_string(&path)?;
        let mut parts = snapshot.splitn(3, "---\n").skip(1);
        let (header, golden) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let line = header.lines().find_map(|line| line.strip_prefix("input_file: "));
        let line = fs::read_to_string(repository.join(line.with_context(|| format!("{name} names no line"))?))?;
        let golden: Value = serde_json::from_str(golden).with_context(|| name.clone())?;
        let hypervisor = golden["hypervisor"].as_str().unwrap_or_default();
        ensure!(
            plan(&line, hypervisor).await? == golden,
            "the plan of {name} is another one"
        );
        seen += 1;
    }
    ensure!(seen >= 7, "only {seen} golden plans");
    Ok(())
}

/// Item 6, from outside: ways to write a line that mean the same.
async fn spellings() -> anyhow::Result<()> {
    let line = "type=consoleproxy name=v-2-VM host=192.0.2.10 port=8250 zone=1 pod=1 guid=Proxy.2 proxy_vm=2 \
                eth0ip=169.254.201.3 eth0mask=255.255.0.0 eth1ip=192.0.2.22 eth1mask=255.255.255.0 localgw=192.0.2.1 \
                mgmtcidr=198.51.100.0/24 eth2ip=203.0.113.22 eth2mask=255.255.255.0 gateway=203.0.113.1 \
                dns1=198.51.100.53 vncport=8080 authorized_key=c3NoLWVkMjU1MTkgQUFBQUMzTnphQzFsWkRJMU5URTVBQUFBSUE9PSBjMQ";
    let wanted = plan(line, "kvm").await?;
    for (what, other) in [
        ("double spaces", line.replace(' ', "  ")),
        ("a space before and a newline after", format!(" {line}\n")),
        ("another order", line.split(' ').rev().collect::<Vec<_>>().join(" ")),
        (
            "null for what is not there",
            format!("{line} internaldns1=null dns2=null gateway6=null"),
        ),
        ("an empty value", format!("{line} dns2=")),
        ("an unknown key", format!("{line} some.new.key=with=signs")),
        (
            "a key twice, of which the last counts",
            format!("vncport=8443 dns1=192.0.2.1 {line}"),
        ),
        ("padded base64", format!("{line}==")),
        (
            "a NIC without an address",
            format!("{line} eth3ip=0.0.0.0 eth3mask=0.0.0.0"),
        ),
    ] {
        let found = plan(&other, "kvm").await.with_context(|| what.to_owned())?;
        if what == "a NIC without an address" {
            // It is there, and has nothing.
            ensure!(
                !found.to_string().contains("0.0.0.0/0\",\"dev\":\"eth3"),
                "{what}: {found}"
            );
            continue;
        }
        ensure!(found == wanted, "{what} makes another plan: {found:#}");
    }
    ensure!(
        plan(&line.replace("v-2-VM", "v-3-VM"), "kvm").await? != wanted,
        "all lines make the same plan"
    );
    Ok(())
}
