//! NICs whose addresses come from a DHCP server (`bootproto=dhcp`): systemd-networkd asks for them, and touches nothing
//! else.

use std::fs;
use std::io::ErrorKind;

use platform::exec::Cmd;
use platform::files;

use super::ApplyError;
use crate::appliance::plan::Plan;
use crate::appliance::plan::network::{Link, Traffic};
use crate::appliance::root::Root;

/// Of this boot only: the next one decides anew.
const NETWORKS: &str = "/run/systemd/network";
const SETTINGS: &str = "/run/systemd/networkd.conf.d";
const SETTINGS_FILE: &str = "10-sysvm.conf";
/// Routes and rules that others made stay.
const LEAVE_OTHERS: &str = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
const UNIT: &str = "systemd-networkd.service";

/// Starts it when a NIC needs it, and ends it when none does any more.
pub async fn apply(plan: &Plan, root: &Root) -> Result<(), ApplyError> {
    let was_used = root.path(SETTINGS).join(SETTINGS_FILE).exists();
    let links: Vec<&Link> = plan.links.iter().filter(|link| link.dhcp && link.up).collect();
    if links.is_empty() && !was_used {
        return Ok(());
    }
    forget(root)?;
    if links.is_empty() {
        Cmd::new("systemctl").args(["stop", "--no-block", UNIT]).run().await?;
        return Ok(());
    }
    for directory in [NETWORKS, SETTINGS] {
        super::make(&root.path(directory))?;
    }
    let _ = files::replace(root.path(SETTINGS).join(SETTINGS_FILE), LEAVE_OTHERS, 0o644)?;
    for link in &links {
        let _ = files::replace(root.path(NETWORKS).join(file_name(link)), network(link, &links), 0o644)?;
    }
    Cmd::new("systemctl")
        .args(["restart", "--no-block", UNIT])
        .run()
        .await?;
    Ok(())
}

fn file_name(link: &Link) -> String {
    format!("10-sysvm-{}.network", link.name)
}

/// The default route is the public NIC's, or the first one's where there is none.
fn network(link: &Link, links: &[&Link]) -> String {
    let public = links.iter().find(|link| link.traffic == Traffic::Public);
    let has_default = public.or(links.first()).is_some_and(|first| first.name == link.name);
    let gateway = if has_default { "yes" } else { "no" };
    let mtu = link
        .mtu
        .map(|mtu| format!("\n[Link]\nMTUBytes={mtu}\n"))
        .unwrap_or_default();
    format!(
        "[Match]\nName={}\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nKeepConfiguration=static\n\n\
         [DHCPv4]\nUseGateway={gateway}\nUseDNS=no\nUseNTP=no\nUseHostname=no\nUseDomains=no\nUseMTU=no\n{mtu}",
        link.name
    )
}

fn forget(root: &Root) -> Result<(), ApplyError> {
    let ours = fs::read_dir(root.path(NETWORKS))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let ours = ours.filter(|entry| entry.file_name().to_string_lossy().starts_with("10-sysvm-"));
    let ours = ours
        .map(|entry| entry.path())
        .chain([root.path(SETTINGS).join(SETTINGS_FILE)]);
    for path in ours {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(ApplyError::Remove { path, source }),
            _ => {}
        }
    }
    Ok(())
}
