//! The demo guest of a zone with virtual machines: an instance that is deployed from the demo template, as a user does.

use anyhow::Context;

use super::api::text;
use super::{GUEST_NAME, Zone, template, zone_id};

/// Of 512 MiB; the guest needs less, but it is the smallest that every zone has.
const OFFERING: &str = "Small Instance";

/// Deploys it, or starts it when it is there.
pub(super) async fn running(zone: &Zone) -> anyhow::Result<()> {
    let api = zone.api();
    let everybodys = [("listall", "true")];
    let known = api.list("listVirtualMachines", "virtualmachine", &everybodys).await?;
    if let Some(guest) = known.iter().find(|vm| text(vm, "name") == GUEST_NAME) {
        if text(guest, "state") == "Running" {
            eprintln!("It runs.");
        } else {
            api.call("startVirtualMachine", &[("id", text(guest, "id"))]).await?;
            eprintln!("It boots.");
        }
        return Ok(());
    }
    let templates = template::list(&api).await?;
    let template = templates
        .iter()
        .find(|template| text(template, "name") == template::NAME);
    let template = template.context("the demo template was deleted")?;
    let offerings = api.list("listServiceOfferings", "serviceoffering", &[]).await?;
    let offering = offerings.iter().find(|offering| text(offering, "name") == OFFERING);
    let offering = offering.with_context(|| format!("the zone has no offering {OFFERING:?}"))?;
    let zone_id = zone_id(&api).await?;
    let parameters = [
        ("zoneid", zone_id.as_str()),
        ("templateid", text(template, "id")),
        ("serviceofferingid", text(offering, "id")),
        ("name", GUEST_NAME),
        ("displayname", "Demo guest"),
    ];
    api.call("deployVirtualMachine", &parameters).await?;
    eprintln!("It boots from a disk of its own, made of the template.");
    Ok(())
}
