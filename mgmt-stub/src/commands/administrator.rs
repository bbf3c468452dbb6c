//! What commands ask of a server that runs, over its socket.

use std::path::Path;

use anyhow::Context;
use mgmt_stub::client::{Client, ClientError};
use serde_json::Value;

/// Something that has a name and an id in the API.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Lists all of them.
    pub(crate) command: &'static str,
    /// Their key in the answer.
    object: &'static str,
    parameters: &'static [(&'static str, &'static str)],
    /// For people.
    what: &'static str,
    /// What shows them.
    shown_by: &'static str,
}

pub(crate) const ZONES: Kind = Kind {
    command: "listZones",
    object: "zone",
    parameters: &[],
    what: "zone",
    shown_by: "mgmt-stub api listZones",
};
pub(crate) const HOSTS: Kind = Kind {
    command: "listHosts",
    object: "host",
    parameters: &[],
    what: "host",
    shown_by: "mgmt-stub hosts",
};
pub(crate) const IMAGE_STORES: Kind = Kind {
    command: "listImageStores",
    object: "imagestore",
    parameters: &[],
    what: "image store",
    shown_by: "mgmt-stub api listImageStores",
};
pub(crate) const SYSTEM_VMS: Kind = Kind {
    command: "listSystemVms",
    object: "systemvm",
    parameters: &[],
    what: "system VM",
    shown_by: "mgmt-stub sysvm list",
};
pub(crate) const TEMPLATES: Kind = Kind {
    command: "listTemplates",
    object: "template",
    parameters: &[("templatefilter", "all"), ("listall", "true")],
    what: "template",
    shown_by: "mgmt-stub template list",
};
pub(crate) const VMS: Kind = Kind {
    command: "listVirtualMachines",
    object: "virtualmachine",
    parameters: &[("listall", "true")],
    what: "VM",
    shown_by: "mgmt-stub vm list",
};
pub(crate) const OFFERINGS: Kind = Kind {
    command: "listServiceOfferings",
    object: "serviceoffering",
    parameters: &[],
    what: "service offering",
    shown_by: "mgmt-stub api listServiceOfferings",
};

/// The administrator, as who owns the socket is.
pub(crate) struct Administrator(Client);

impl Administrator {
    /// Of the server with this data directory.
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self(Client::new(data_dir))
    }

    /// Calls a command, and waits for its job if it is one.
    pub(crate) async fn call(&self, command: &str, parameters: &[(&str, &str)]) -> Result<Value, ClientError> {
        let owned: Vec<(String, String)> = parameters
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        self.0.call_and_wait(command, &owned).await
    }

    /// All of a kind.
    pub(crate) async fn list(&self, kind: Kind) -> Result<Vec<Value>, ClientError> {
        let mut answer = self.call(kind.command, kind.parameters).await?;
        Ok(match answer.get_mut(kind.object).map(Value::take) {
            Some(Value::Array(objects)) => objects,
            _ => Vec::new(),
        })
    }

    /// The one with this name or id.
    pub(crate) async fn find(&self, kind: Kind, which: &str) -> anyhow::Result<Value> {
        let known = self.list(kind).await?;
        one(known, kind, which)
    }

    /// The zone; there is one.
    pub(crate) async fn zone_id(&self) -> anyhow::Result<String> {
        let zones = self.list(ZONES).await?;
        let zone = zones.first().context("the server has no zone")?;
        Ok(text(zone, "id").to_owned())
    }
}

fn one(known: Vec<Value>, kind: Kind, which: &str) -> anyhow::Result<Value> {
    let is_it = |object: &Value| {
        let is = |field| text(object, field).eq_ignore_ascii_case(which);
        is("id") || is("name") || is("instancename")
    };
    let mut found: Vec<Value> = known.into_iter().filter(is_it).collect();
    let Kind { what, shown_by, .. } = kind;
    anyhow::ensure!(
        found.len() < 2,
        "{} are called {which}; give the id of the one that you mean: `{shown_by} --json` shows it",
        found.len()
    );
    found
        .pop()
        .with_context(|| format!("there is no {what} {which}; `{shown_by}` shows those that there are"))
}

/// A text of an object; empty if it has none.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

/// A number of an object as text; empty if it has none.
pub(crate) fn number(object: &Value, name: &str) -> String {
    match &object[name] {
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// Of a system VM: it runs and its agent is ready.
pub(crate) fn is_up(vm: &Value) -> bool {
    text(vm, "state") == "Running" && text(vm, "agentstate") == "Up"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn things_are_found_by_name_or_id_and_never_guessed() {
        let known = || {
            vec![
                json!({"id": "1", "name": "a"}),
                json!({"id": "2", "name": "b"}),
                json!({"id": "3", "name": "b"}),
            ]
        };
        assert_eq!(one(known(), TEMPLATES, "A").unwrap()["id"], "1");
        assert_eq!(one(known(), TEMPLATES, "2").unwrap()["name"], "b");
        let told = |which| one(known(), TEMPLATES, which).unwrap_err().to_string();
        assert_eq!(
            told("c"),
            "there is no template c; `mgmt-stub template list` shows those that there are"
        );
        assert_eq!(
            told("b"),
            "2 are called b; give the id of the one that you mean: `mgmt-stub template list --json` shows it"
        );
    }
}
