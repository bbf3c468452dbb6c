//! The demo template: registered by URL, as an operator does, and watched until it is there.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use hypervisor::network::namespace::{Name, Namespace};
use ipnet::Ipv4Net;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::Zone;
use super::api::{Api, text};
use super::source::Source;
use crate::guest;

pub(super) const NAME: &str = "demo";
/// The one port of the host that VMs reach on the public network, for this: `mgmt_stub::zone_network::SOURCE_PORT`.
const SOURCE_PORT: u16 = 8089;
/// For it to come, also to an emulated VM.
const LIMIT: Duration = Duration::from_mins(15);
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
    eprintln!("{NAME} comes from {}, at {} MiB/s at most", source.url(), PACE >> 20);
    let register = api
        .mgmt_stub()
        .args(["template", "register", &source.url(), "--name", NAME, "--wait"])
        .args(["--description", "Demo: a small Linux that boots from this disk"])
        .args(["--checksum", &format!("{{SHA-256}}{}", source.sha256)]);
    let ended = timeout(LIMIT, register.run_inherited()).await;
    let ended = ended.with_context(|| format!("the template is not there after {LIMIT:?}"))??;
    zone.check_server()?;
    ensure!(ended.success(), "the template did not come; {}", zone.server_log()?);
    Ok(())
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
