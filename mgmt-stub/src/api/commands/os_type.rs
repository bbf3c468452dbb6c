//! Operating systems of guests. Their ids are made of their names (UUID version 5), so that they never change.

use std::sync::LazyLock;

use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use uuid::{Builder, Uuid};

use crate::api::command::Kind::{Flag, Id, Ids, Text};
use crate::api::command::{Call, Command, Field, Outcome, Who, optional, ready};
use crate::api::error::ApiError;
use crate::api::list;

pub(super) const COMMANDS: &[Command] = &[
    Command::list("listOsTypes", "Lists operating systems of guests.", |call| {
        ready(list_os_types(&call))
    })
    .open_to(Who::User)
    .takes(&[
        optional("id", Id, "one operating system"),
        optional("ids", Ids, "these"),
        optional("oscategoryid", Id, "those of a category"),
        optional("description", Text, "its whole name"),
    ])
    .answers(&[
        Field("id", Text, "the operating system"),
        Field("name", Text, "its name"),
        Field("description", Text, "its name"),
        Field("oscategoryid", Text, "id of its category"),
        Field("oscategoryname", Text, "name of its category"),
        Field("isuserdefined", Flag, "whether somebody added it"),
    ]),
    Command::list("listOsCategories", "Lists categories of operating systems.", |call| {
        ready(list_categories(&call))
    })
    .open_to(Who::User)
    .takes(&[optional("id", Id, "one category"), optional("name", Text, "its name")])
    .answers(&[Field("id", Text, "the category"), Field("name", Text, "its name")]),
];

/// By category; names as CloudStack has them.
const TABLE: &[(&str, &[&str])] = &[
    (
        "CentOS",
        &[
            "CentOS 6 (64-bit)",
            "CentOS 7",
            "CentOS 8",
            "CentOS Stream 8",
            "CentOS Stream 9",
            "CentOS Stream 10",
        ],
    ),
    (
        "Debian",
        &[
            "Debian GNU/Linux 9 (64-bit)",
            "Debian GNU/Linux 10 (64-bit)",
            "Debian GNU/Linux 11 (64-bit)",
            "Debian GNU/Linux 12 (64-bit)",
            "Debian GNU/Linux 13 (64-bit)",
        ],
    ),
    ("Oracle", &["Oracle Linux 7", "Oracle Linux 8", "Oracle Linux 9"]),
    (
        "RedHat",
        &[
            "Red Hat Enterprise Linux 7",
            "Red Hat Enterprise Linux 8",
            "Red Hat Enterprise Linux 9",
            "Rocky Linux 8",
            "Rocky Linux 9",
            "Alma Linux 8",
            "Alma Linux 9",
            "Fedora Linux (64 bit)",
        ],
    ),
    (
        "SUSE",
        &[
            "SUSE Linux Enterprise Server 12 (64-bit)",
            "SUSE Linux Enterprise Server 15 (64-bit)",
            "openSUSE Leap 15 (64-bit)",
        ],
    ),
    (
        "Windows",
        &[
            "Windows 10 (64-bit)",
            "Windows 11 (64-bit)",
            "Windows Server 2016 (64-bit)",
            "Windows Server 2019 (64-bit)",
            "Windows Server 2022 (64-bit)",
            "Windows PV",
            "Other Windows (64-bit)",
        ],
    ),
    (
        "Other",
        &[
            "Other (32-bit)",
            "Other (64-bit)",
            "Other PV (32-bit)",
            "Other PV (64-bit)",
        ],
    ),
    (
        "Unix",
        &["FreeBSD 13 (64-bit)", "FreeBSD 14 (64-bit)", "OpenBSD 7 (64-bit)"],
    ),
    (
        "Ubuntu",
        &[
            "Ubuntu 18.04 LTS",
            "Ubuntu 20.04 LTS",
            "Ubuntu 22.04 LTS",
            "Ubuntu 24.04 LTS",
            "Other Ubuntu (64-bit)",
        ],
    ),
    (
        "None",
        &[
            "None",
            "Other Linux (32-bit)",
            "Other Linux (64-bit)",
            "Linux 5.x Kernel (64-bit)",
            "Linux 6.x Kernel (64-bit)",
        ],
    ),
];

/// One operating system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OsType {
    /// The same in every installation.
    pub id: Uuid,
    /// Such as `Debian GNU/Linux 12 (64-bit)`.
    pub name: &'static str,
    category: &'static str,
}

static ALL: LazyLock<Vec<OsType>> = LazyLock::new(|| {
    let of = |(category, names): &(&'static str, &'static [&'static str])| {
        let category = *category;
        names.iter().map(move |name| OsType {
            id: id_of("ostype", name),
            name,
            category,
        })
    };
    TABLE.iter().flat_map(of).collect()
});

/// The operating system with this id.
pub fn find(id: Uuid) -> Option<&'static OsType> {
    ALL.iter().find(|os_type| os_type.id == id)
}

/// Of whom nobody said what he runs: libcloud expects that every template has an operating system.
pub fn unknown() -> Uuid {
    id_of("ostype", "Other (64-bit)")
}

/// UUID version 5 (RFC 9562 §5.5) in the name space of URLs.
fn id_of(kind: &str, name: &str) -> Uuid {
    let mut hash = Sha1::new();
    hash.update(Uuid::NAMESPACE_URL.as_bytes());
    hash.update(format!("sysvm:{kind}/{name}"));
    let digest = hash.finalize();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_sha1_bytes(bytes).into_uuid()
}

fn list_os_types(call: &Call) -> Result<Outcome, ApiError> {
    let rows = ALL
        .iter()
        .filter(|os_type| list::is_id(call.id("oscategoryid"), Some(id_of("oscategory", os_type.category))))
        .filter(|os_type| call.text("description").is_none_or(|text| text == os_type.name))
        .map(|os_type| {
            json!({
                "id": os_type.id,
                "name": os_type.name,
                "description": os_type.name,
                "oscategoryid": id_of("oscategory", os_type.category),
                "oscategoryname": os_type.category,
                "isuserdefined": false,
            })
        })
        .collect();
    list::answer(call, "ostype", rows)
}

fn list_categories(call: &Call) -> Result<Outcome, ApiError> {
    let rows: Vec<Value> = TABLE
        .iter()
        .map(|(name, _)| json!({ "id": id_of("oscategory", name), "name": name }))
        .collect();
    list::answer(call, "oscategory", rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_same_for_ever() {
        assert_eq!(unknown().to_string(), "3164362e-c511-54d9-b8b2-e894a3cb15be");
        assert_eq!(find(unknown()).map(|os_type| os_type.name), Some("Other (64-bit)"));
        assert!(ALL.iter().all(|os_type| os_type.id.get_version_num() == 5));
    }
}
