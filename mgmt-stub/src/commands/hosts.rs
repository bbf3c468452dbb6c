//! `hosts`: the agents that have ever connected.

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use mgmt_stub::store::Store;
use mgmt_stub::store::host::Host;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::print;
use super::table::Table;

/// Lists them.
pub(crate) async fn run(data_dir: &Path, json: bool) -> anyhow::Result<()> {
    let hosts = Store::open_read_only(data_dir)
        .context("opening the database")?
        .hosts()
        .await?;
    let text = if json { hosts_json(&hosts) } else { hosts_table(&hosts) };
    print(&text)
}

fn hosts_json(hosts: &[Host]) -> String {
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            serde_json::json!({
                "id": host.id.0,
                "uuid": host.uuid.to_string(),
                "name": host.name,
                "type": host.host_type.as_str(),
                "status": host.status.as_str(),
                "reason": host.status_reason,
                "zoneid": host.zone.0,
                "podid": host.pod.map(|pod| pod.0),
                "version": host.version,
                "arch": host.arch,
                "privateip": host.private.ip,
                "publicip": host.public.ip,
                "lastping": host.last_ping.and_then(|time| time.format(&Rfc3339).ok()),
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::from(rows))
}

fn hosts_table(hosts: &[Host]) -> String {
    if hosts.is_empty() {
        return "No agent has connected yet.\n".into();
    }
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "TYPE",
        "STATUS",
        "PRIVATE IP",
        "PUBLIC IP",
        "LAST PING",
        "REASON",
    ]);
    for host in hosts {
        let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
        table.row([
            &host.id.to_string(),
            &host.name,
            host.host_type.as_str(),
            host.status.as_str(),
            &ip(host.private.ip),
            &ip(host.public.ip),
            &host.last_ping.map_or_else(|| "never".into(), ago),
            &host.status_reason,
        ]);
    }
    table.to_string()
}

/// How long ago, in one unit.
fn ago(time: OffsetDateTime) -> String {
    let seconds = (OffsetDateTime::now_utc() - time).whole_seconds().max(0);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}
