//! What the management server has a router do over ssh, and its own parsers of the answers (appliance.md §8.2, §8.3), written
//! once more.

use anyhow::{Context, ensure};
use serde_json::Value;
use system_tests::vm::Ssh;

use crate::steps::exits;

const BIN: &str = "/opt/cloud/bin";

pub(super) async fn answer(host: &Ssh) -> anyhow::Result<()> {
    let said = exits(host, &format!("{BIN}/checkrouter.sh"), 0).await?;
    let state = said.trim().strip_prefix("Status: ");
    ensure!(
        state.is_some_and(|state| ["PRIMARY", "BACKUP", "FAULT", "UNKNOWN"].contains(&state)),
        "checkrouter.sh prints {said:?}"
    );

    exits(host, &format!("{BIN}/netusage.sh -c"), 0).await?;
    exits(host, &format!("{BIN}/netusage.sh -a eth2"), 0).await?;
    let said = exits(host, &format!("{BIN}/netusage.sh -g"), 0).await?;
    ensure!(usage(&said).is_some(), "netusage.sh -g prints {said:?}");

    let said = exits(host, &format!("{BIN}/getRouterAlerts.sh"), 0).await?;
    ensure!(said.trim() == "No Alerts", "getRouterAlerts.sh prints {said:?}");
    let said = exits(host, &format!("{BIN}/getRouterAlerts.sh 2026-01-01 00:00:00"), 0).await?;
    ensure!(said.trim() == "No Alerts", "getRouterAlerts.sh prints {said:?}");

    let said = exits(host, &format!("{BIN}/filesystem_writable_check.py"), 0).await?;
    ensure!(!said.contains("Read-only"), "{said:?}");

    for run_now in ["true", "false"] {
        let said = exits(host, &format!("{BIN}/getRouterMonitorResults.sh {run_now}"), 0).await?;
        monitor_results(&said).with_context(|| format!("getRouterMonitorResults.sh {run_now} prints {said:?}"))?;
    }

    exits(host, &format!("{BIN}/manage_service.sh restart haproxy"), 0).await?;
    let state = exits(host, "systemctl is-active haproxy", 0).await?;
    ensure!(state == "active\n", "haproxy is {state}");
    let unknown = host
        .exec(&format!("{BIN}/manage_service.sh restart nothing-like-this"), b"")
        .await?;
    ensure!(!unknown.status.success(), "a unit that is not there can be restarted");
    Ok(())
}

/// Sum of sent and of received bytes: NetworkUsageCommand's parser takes pairs.
fn usage(said: &str) -> Option<(u64, u64)> {
    let numbers: Option<Vec<u64>> = said
        .trim()
        .strip_suffix(':')?
        .split(':')
        .map(|number| number.parse().ok())
        .collect();
    let numbers = numbers?;
    if numbers.len() % 2 != 0 {
        return None;
    }
    let sum = |offset: usize| numbers.iter().skip(offset).step_by(2).sum();
    Some((sum(0), sum(1)))
}

/// As GetRouterMonitorResultsCommand's answer is read: a header, a line of names for each part that has failures (router.md
/// §4.16), a header, JSON over all further lines.
fn monitor_results(said: &str) -> anyhow::Result<()> {
    let mut lines = said.lines();
    ensure!(lines.next() == Some("FAILING CHECKS:"), "the first header is missing");
    let failing = lines.by_ref().take_while(|line| *line != "MONITOR RESULTS:").count();
    ensure!(failing <= 2, "the second header is missing");
    let results: Value = serde_json::from_str(&lines.collect::<String>()).context("reading the results")?;
    for part in ["basic", "advanced"] {
        let checks = results[part].as_object().with_context(|| format!("no {part} part"))?;
        for (name, check) in checks.iter().filter(|(name, _)| *name != "lastRun") {
            let status = check["success"].as_str().unwrap_or_default();
            ensure!(
                ["SUCCESS", "FAILED", "WARNING", "UNKNOWN"].contains(&status),
                "{name} is {status:?}"
            );
            for number in ["lastUpdate", "lastRunDuration"] {
                let text = check[number]
                    .as_str()
                    .with_context(|| format!("{name} has no {number}"))?;
                text.parse::<u64>()
                    .with_context(|| format!("{name}: {number} is {text:?}"))?;
            }
            ensure!(check["message"].is_string(), "{name} has no message");
        }
        let last = &checks
            .get("lastRun")
            .with_context(|| format!("{part} has no lastRun"))?;
        ensure!(
            last["start"].is_string() && last["duration"].is_string(),
            "{part}: lastRun is {last}"
        );
    }
    Ok(())
}

/// Configuration of routers is not there yet: nothing may look as if it were.
pub(super) async fn configuration_is_refused(host: &Ssh) -> anyhow::Result<()> {
    let before = host.run("nft list ruleset | sha256sum; ip address | sha256sum").await?;
    for command in [
        "vr_cfg.sh -c /var/cache/cloud/VR-0e8a3a1f.cfg",
        "update_config.py ip_associations.json.0e8a3a1f",
    ] {
        let said = host.exec(&format!("{BIN}/{command}"), b"").await?;
        ensure!(said.status.code() == Some(1), "`{command}` ends with {}", said.status);
        let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), said.stderr);
        ensure!(
            text.trim().lines().count() == 1 && text.len() > 20,
            "`{command}` says {text:?}"
        );
    }
    let after = host.run("nft list ruleset | sha256sum; ip address | sha256sum").await?;
    ensure!(before == after, "something was changed");
    Ok(())
}

pub(super) async fn a_read_only_file_system_is_noticed(host: &Ssh) -> anyhow::Result<()> {
    exits(host, "mount --bind /root /root && mount -o remount,bind,ro /root", 0).await?;
    let said = exits(host, &format!("{BIN}/filesystem_writable_check.py"), 1).await;
    exits(host, "cd / && umount /root", 0).await?;
    let said = said?;
    ensure!(said.contains("Read-only file system"), "it says {said:?}");
    exits(host, &format!("{BIN}/filesystem_writable_check.py"), 0)
        .await
        .map(drop)
}
