//! CycloneDX 1.6 in JSON.

use serde_json::{Value, json};

use super::{Bill, Crate, Item, cargo_purl, deb_purl};

const IMAGE: &str = "image";

pub(super) fn document(bill: &Bill, time: &str) -> Value {
    let packages = bill
        .packages
        .iter()
        .map(|item| debian_package(item, &bill.distribution));
    let crates = bill.crates.iter().map(rust_crate);
    let components: Vec<_> = packages.chain(crates).collect();
    let references: Vec<_> = components
        .iter()
        .map(|component| component["bom-ref"].clone())
        .collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": bill.uuid().urn().to_string(),
        "version": 1,
        "metadata": {
            "timestamp": time,
            "tools": { "components": [
                { "type": "application", "name": "image-builder", "version": env!("CARGO_PKG_VERSION") },
            ] },
            "component": {
                "type": "operating-system",
                "bom-ref": IMAGE,
                "name": "sysvm-image",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "components": components,
        "dependencies": [{ "ref": IMAGE, "dependsOn": references }],
    })
}

fn debian_package(item: &Item, distribution: &str) -> Value {
    let package = &item.package;
    let purl = deb_purl(package, distribution);
    let mut value = json!({
        "type": "library",
        "bom-ref": purl,
        "name": package.name,
        "version": package.version,
        "purl": purl,
        "properties": [
            { "name": "debian:source", "value": package.source },
            { "name": "debian:source-version", "value": package.source_version },
        ],
    });
    if let Some(sha256) = &item.sha256 {
        value["hashes"] = json!([{ "alg": "SHA-256", "content": sha256 }]);
    }
    with_licence(value, &item.licence.expression)
}

fn rust_crate(krate: &Crate) -> Value {
    let mut value = json!({
        "type": "library",
        "bom-ref": format!("crate:{}@{}", krate.name, krate.version),
        "name": krate.name,
        "version": krate.version,
    });
    if !krate.is_ours {
        value["purl"] = json!(cargo_purl(krate));
    }
    with_licence(value, &krate.licence)
}

/// CycloneDX says nothing where SPDX says `NOASSERTION`.
fn with_licence(mut component: Value, expression: &str) -> Value {
    if expression != "NOASSERTION" {
        component["licenses"] = json!([{ "expression": expression }]);
    }
    component
}
