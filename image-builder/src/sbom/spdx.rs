//! SPDX 2.3 in JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Bill, Crate, Item, cargo_purl, deb_purl};

const IMAGE: &str = "SPDXRef-image";

pub(super) fn document(bill: &Bill, time: &str) -> Value {
    let mut packages = vec![json!({
        "SPDXID": IMAGE,
        "name": "sysvm-image",
        "versionInfo": env!("CARGO_PKG_VERSION"),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "primaryPackagePurpose": "OPERATING-SYSTEM",
    })];
    let mut relationships = vec![relationship("SPDXRef-DOCUMENT", "DESCRIBES", IMAGE)];
    let mut references = BTreeMap::new();
    for (number, item) in bill.packages.iter().enumerate() {
        let id = format!("SPDXRef-deb-{number}-{}", id_part(&item.package.name));
        relationships.push(relationship(IMAGE, "CONTAINS", &id));
        packages.push(debian_package(item, &id, &bill.distribution));
        references.extend(&item.licence.references);
    }
    for (number, krate) in bill.crates.iter().enumerate() {
        let id = format!("SPDXRef-crate-{number}-{}", id_part(&krate.name));
        relationships.push(relationship(IMAGE, "CONTAINS", &id));
        packages.push(rust_crate(krate, &id));
    }
    let extracted = references.into_iter().map(|(id, name)| {
        let text =
            format!("What Debian's copyright files call {name:?}: its text is in those of the packages that name it.");
        json!({ "licenseId": id, "name": name, "extractedText": text })
    });
    let extracted: Vec<_> = extracted.collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": "sysvm-image",
        "documentNamespace": format!("urn:sysvm:sbom:{}", bill.id()),
        "creationInfo": {
            "created": time,
            "creators": [concat!("Tool: image-builder-", env!("CARGO_PKG_VERSION"))],
        },
        "packages": packages,
        "relationships": relationships,
        "hasExtractedLicensingInfos": extracted,
    })
}

fn debian_package(item: &Item, id: &str, distribution: &str) -> Value {
    let package = &item.package;
    let mut value = json!({
        "SPDXID": id,
        "name": package.name,
        "versionInfo": package.version,
        "supplier": "Organization: Debian",
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "sourceInfo": format!("built from the Debian source package {} {}", package.source, package.source_version),
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": item.licence.expression,
        "copyrightText": "NOASSERTION",
        "externalRefs": [purl(&deb_purl(package, distribution))],
    });
    if let Some(sha256) = &item.sha256 {
        value["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": sha256 }]);
    }
    value
}

fn rust_crate(krate: &Crate, id: &str) -> Value {
    let mut value = json!({
        "SPDXID": id,
        "name": krate.name,
        "versionInfo": krate.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": krate.licence,
        "copyrightText": "NOASSERTION",
    });
    // Ours are in no registry, so they have no place there.
    if !krate.is_ours {
        value["externalRefs"] = json!([purl(&cargo_purl(krate))]);
    }
    value
}

fn purl(locator: &str) -> Value {
    json!({ "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator })
}

fn relationship(from: &str, kind: &str, to: &str) -> Value {
    json!({ "spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to })
}

/// Letters, digits, dots and hyphens may be in an id.
fn id_part(name: &str) -> String {
    name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-")
}
