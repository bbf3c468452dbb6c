//! What is up, in lines for a person.

use serde_json::Value;

use super::api::{Api, text};
use super::template;

/// System VMs, guests and templates.
pub(super) async fn rows(api: &Api) -> anyhow::Result<Vec<[String; 3]>> {
    let mut rows = Vec::new();
    for vm in api.list("listSystemVms", "systemvm", &[]).await? {
        let kind = match text(&vm, "systemvmtype") {
            "consoleproxy" => "console proxy",
            _ => "secondary storage VM",
        };
        rows.push([kind.into(), text(&vm, "name").into(), state_of(&vm)]);
    }
    let everybodys = [("listall", "true")];
    for vm in api.list("listVirtualMachines", "virtualmachine", &everybodys).await? {
        rows.push(["guest".into(), text(&vm, "name").into(), text(&vm, "state").into()]);
    }
    for template in template::list(api).await? {
        let state = if template["isready"] == true {
            "Ready"
        } else {
            text(&template, "status")
        };
        rows.push(["template".into(), text(&template, "name").into(), state.into()]);
    }
    Ok(rows)
}

pub(super) fn is_up(vm: &Value) -> bool {
    text(vm, "state") == "Running" && text(vm, "agentstate") == "Up"
}

pub(super) fn system_vm_line(vm: &Value) -> String {
    format!("{}: {}", text(vm, "name"), state_of(vm))
}

/// State, agent, and the reason if it is not Up.
pub(super) fn state_of(vm: &Value) -> String {
    let (state, agent, reason) = (text(vm, "state"), text(vm, "agentstate"), text(vm, "reason"));
    if !is_up(vm) && reason.starts_with(state) {
        return reason.to_owned();
    }
    let agent = if agent.is_empty() {
        String::new()
    } else {
        format!(", agent {agent}")
    };
    let reason = if is_up(vm) || reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    format!("{state}{agent}{reason}")
}

/// Cells one below the other.
pub(super) fn columns(rows: &[[String; 3]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let (first, second) = (width(0), width(1));
    let line = |[kind, name, state]: &[String; 3]| format!("{kind:first$}  {name:second$}  {state}\n");
    rows.iter().map(line).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_system_vm_that_is_not_up_says_why() {
        let down = json!({"name": "s-1-VM", "state": "Running", "agentstate": "Disconnected", "reason": "no ping"});
        assert_eq!(system_vm_line(&down), "s-1-VM: Running, agent Disconnected: no ping");
        let up = json!({"name": "s-1-VM", "state": "Running", "agentstate": "Up", "reason": "Up"});
        assert_eq!(system_vm_line(&up), "s-1-VM: Running, agent Up");
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [
            ["guest".into(), "demo-guest".into(), "Running".into()],
            ["template".into(), "demo".into(), "Ready".into()],
        ];
        assert_eq!(
            columns(&rows),
            "guest     demo-guest  Running\ntemplate  demo        Ready\n"
        );
    }
}
