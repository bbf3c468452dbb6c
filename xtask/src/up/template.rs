//! The demo template: registered by URL, as an operator does, and watched until it is there.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;
use tokio::time::sleep;

use super::api::{Api, text};
use super::progress::Progress;
use super::source::Source;
use super::{LOOK, Zone, zone_id};
use crate::guest;

const NAME: &str = "demo";
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
    let source = Source::start(&demo.disk, PACE).await?;
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

/// All templates of the zone.
pub(super) async fn list(api: &Api) -> anyhow::Result<Vec<Value>> {
    api.list("listTemplates", "template", &[("templatefilter", "all")])
        .await
}
