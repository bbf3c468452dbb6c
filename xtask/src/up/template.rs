//! The demo template: registered by URL, as an operator does, and watched until it is there.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hypervisor::network::namespace::{Name, Namespace};
use ipnet::Ipv4Net;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::api::{Api, text};
use super::progress::Progress;
use super::source::Source;
use super::{LOOK, Zone, zone_id};
use crate::guest;

pub(super) const NAME: &str = "demo";
/// The one port of the host that VMs reach on the public network, for this: `mgmt_stub::zone_network::SOURCE_PORT`.
const SOURCE_PORT: u16 = 8089;
/// For it to come, without any progress.
const LIMIT: Duration = Duration::from_mins(3);
/// Bytes per second at which it is served: it takes long enough to be watched.
const PACE: u32 = 8 << 20;

/// Registers it unless it is ready, and waits until it is. What it comes from ends with us.
pub(super) async fn ready(zone: &Zone, demo: &guest::Guest) -> anyhow::Result<()> {
    let api = zone.api();
    // The server that it comes from ends with us: one that has not come whole is registered anew.
    let known = list(&api).await?;
    for old in known.iter().filter(|template| text(template, "name") == NAME) {
        if old["isready"] == true {
            eprintln!("{NAME} is ready.");
            return Ok(());
        }
        api.call("deleteTemplate", &[("id", text(old, "id"))]).await?;
    }
    let source = Source::start(listener(zone).await?, &demo.disk, PACE).await?;
    let (url, zone_id) = (source.url(), zone_id(&api).await?);
    let checksum = format!("{{SHA-256}}{}", source.sha256);
    let parameters = [
        ("name", NAME),
        ("displaytext", "Demo: a small Linux that boots from this disk"),
        ("format", "QCOW2"),
        ("hypervisor", "KVM"),
        ("url", &url),
        ("checksum", &checksum),
        ("zoneid", &zone_id),
    ];
    api.call("registerTemplate", &parameters).await?;
    eprintln!("{NAME} comes from {url}, at {} MiB/s at most", PACE >> 20);

    let mut progress = Progress::new();
    let (mut last, mut moved) = (Value::Null, Instant::now());
    loop {
        let found = list(&api).await?.into_iter().find(|found| text(found, "name") == NAME);
        let template = found.context("the template was deleted")?;
        if template["isready"] == true {
            progress.finish(&template);
            return Ok(());
        }
        progress.show(&template);
        if template["downloadbytes"] != last {
            (last, moved) = (template["downloadbytes"].clone(), Instant::now());
        }
        zone.check_server()?;
        ensure!(
            moved.elapsed() < LIMIT,
            "the template does not come any further: {}; {}",
            text(&template, "status"),
            zone.server_log()?
        );
        sleep(LOOK).await;
    }
}

/// Where it is served: on a free port of loopback, or inside of the zone's network.
async fn listener(zone: &Zone) -> anyhow::Result<TcpListener> {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    if zone.state.processes {
        return TcpListener::bind(loopback).await.context("finding a free port");
    }
    // As the server does: the name of its network comes from it.
    let name = Name::of_directory(&zone.state.data_dir.canonicalize()?);
    let namespace = Namespace::open(&name)?;
    let namespace = namespace.with_context(|| format!("the zone has no network namespace {name}"))?;
    let address = source_address(zone.arguments.vms.zone_cidr);
    Ok(namespace.listen(address)?)
}

/// Where a zone with virtual machines lets SSVMs take templates from: the host's address on the public network.
pub(super) fn source_address(zone: Ipv4Net) -> SocketAddr {
    let host = u32::from(zone.network()) | 0x0201;
    SocketAddr::from((Ipv4Addr::from(host), SOURCE_PORT))
}

/// All templates of the zone.
pub(super) async fn list(api: &Api) -> anyhow::Result<Vec<Value>> {
    api.list("listTemplates", "template", &[("templatefilter", "all")])
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_come_from_the_hosts_address_on_the_public_network() {
        let address = source_address("172.31.9.9/16".parse().unwrap());
        assert_eq!(address, "172.31.2.1:8089".parse().unwrap());
    }
}
