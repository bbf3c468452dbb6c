//! What the management server wants to be checked: `/root/health_checks_data.json`.

use std::collections::BTreeMap;

use platform::files;
use serde::Deserialize;
use serde_json::Value;

use crate::appliance::root::Root;

const FILE: &str = "/root/health_checks_data.json";
/// Of a network with some thousand VMs.
const MAX_FILE: u64 = 16 << 20;

/// `key=value` of one record.
pub(super) type Record = BTreeMap<String, String>;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Data {
    /// Else only services are looked at.
    pub(super) is_enabled: bool,
    /// Names of checks that are not run.
    pub(super) excluded: Vec<String>,
    records: BTreeMap<String, Vec<Record>>,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    health_checks_enabled: Value,
    #[serde(default)]
    excluded_health_checks: Value,
    #[serde(default)]
    health_checks_config: BTreeMap<String, Value>,
}

impl Data {
    /// Without the file, or when it makes no sense, nothing is to be checked.
    pub(super) fn read(root: &Root) -> Self {
        let bytes = files::read_limited(root.path(FILE), MAX_FILE).ok().flatten();
        Self::parse(&bytes.unwrap_or_default())
    }

    fn parse(json: &[u8]) -> Self {
        let Ok(wire) = serde_json::from_slice::<Wire>(json) else {
            return Self::default();
        };
        Self {
            is_enabled: matches!(&wire.health_checks_enabled, Value::Bool(true))
                || wire
                    .health_checks_enabled
                    .as_str()
                    .is_some_and(|text| text.eq_ignore_ascii_case("true")),
            excluded: words(&wire.excluded_health_checks),
            records: wire
                .health_checks_config
                .into_iter()
                .filter_map(|(key, text)| Some((key, records(text.as_str()?))))
                .collect(),
        }
    }

    /// The records of a key; empty when the server sent none.
    pub(super) fn records(&self, key: &str) -> &[Record] {
        self.records.get(key).map_or(&[], Vec::as_slice)
    }

    /// A field of the first record.
    pub(super) fn field(&self, key: &str, field: &str) -> Option<&str> {
        let first = self.records(key).first()?;
        first.get(field).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// A list, or a text with commas.
fn words(value: &Value) -> Vec<String> {
    let split = |text: &str| {
        let words = text.split(',').map(|word| word.trim().to_owned());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>()
    };
    match value {
        Value::String(text) => split(text),
        Value::Array(words) => words.iter().filter_map(Value::as_str).flat_map(split).collect(),
        _ => Vec::new(),
    }
}

/// `k=v,k=v;k=v,…`.
fn records(text: &str) -> Vec<Record> {
    let record = |text: &str| {
        let fields = text.split(',').filter_map(|field| field.split_once('='));
        fields
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect::<Record>()
    };
    text.split(';')
        .map(record)
        .filter(|record| !record.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_are_read_as_the_server_writes_them() {
        let data = Data::parse(
            br#"{"health_checks_enabled":true,"excluded_health_checks":"a.py, b.py","health_checks_config":{
            "gateways":"gatewaysIps=203.0.113.1 ",
            "virtualMachines":"vmName=web-1,ip=10.1.1.11;vmName=app-1,ip=10.1.1.12;",
            "routerVersion":"templateVersion=CloudStack Release 4.23.0 Mon Jan 1 00:00:00 UTC 2026,scriptsVersion=0123abcd"}}"#,
        );
        assert!(data.is_enabled);
        assert_eq!(data.excluded, ["a.py", "b.py"]);
        assert_eq!(data.field("gateways", "gatewaysIps"), Some("203.0.113.1"));
        assert_eq!(data.records("virtualMachines").len(), 2);
        assert_eq!(data.records("virtualMachines")[1]["vmName"], "app-1");
        let version = "CloudStack Release 4.23.0 Mon Jan 1 00:00:00 UTC 2026";
        assert_eq!(data.field("routerVersion", "templateVersion"), Some(version));
        assert_eq!(data.records("nothing"), []);
        assert_eq!(Data::parse(b"no json"), Data::default());
    }

    proptest! {
        #[test]
        fn every_text_is_read(text: String) {
            let _records = records(&text);
        }
    }
}
