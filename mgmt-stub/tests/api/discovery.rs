//! The table describes itself.

use std::collections::BTreeSet;

use mgmt_stub::api::command::{Command, Parameter, Run};
use mgmt_stub::api::commands;
use mgmt_stub::api::parameters::all_of;
use serde_json::Value;

use crate::support::Server;

#[tokio::test]
async fn list_apis_is_the_table() {
    let server = Server::start().await;
    let apis = server.api("listApis", &[("listall", "true")]).await.unwrap();
    let apis = apis["api"].as_array().unwrap();
    assert_eq!(apis.len(), commands::all().count());
    for (api, command) in apis.iter().zip(commands::all()) {
        assert_eq!(api["name"], command.name);
        assert_eq!(api["isasync"], command.is_async());
        let names = |list: &Value| -> Vec<String> {
            list.as_array()
                .unwrap()
                .iter()
                .map(|one| one["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(
            names(&api["params"]),
            all_of(command).map(|one| one.name).collect::<Vec<_>>()
        );
        for list in [&api["params"], &api["response"]] {
            for one in list.as_array().unwrap() {
                assert!(
                    one["type"].is_string() && one["description"].is_string(),
                    "{}: {one}",
                    command.name
                );
            }
        }
    }
    let one = server.api("listApis", &[("name", "listzones")]).await.unwrap();
    assert_eq!(one["api"][0]["name"], "listZones");
    assert_eq!(one["count"], 1);
}

#[test]
fn every_row_of_the_table_is_sound() {
    let mut names = BTreeSet::new();
    for command in commands::all() {
        assert!(
            names.insert(command.name.to_lowercase()),
            "{} is there twice",
            command.name
        );
        let mut parameters = BTreeSet::new();
        for parameter in all_of(command) {
            let name = parameter.name;
            assert!(parameters.insert(name), "{}: {name} is there twice", command.name);
            assert_eq!(name, name.to_lowercase(), "{}: names are lower case", command.name);
            assert!(!["command", "response", "apikey", "signature", "sessionkey"].contains(&name));
        }
        assert!(
            command.description.ends_with('.'),
            "{}: a sentence ends with a full stop",
            command.name
        );
    }
}

#[tokio::test]
async fn capabilities_have_all_that_clients_look_for() {
    let server = Server::start().await;
    let seen = server.api("listCapabilities", &[]).await.unwrap();
    let described = commands::find("listCapabilities").unwrap().answers;
    let seen: BTreeSet<&String> = seen["capability"].as_object().unwrap().keys().collect();
    let described: BTreeSet<String> = described.iter().map(|field| field.0.to_owned()).collect();
    assert_eq!(seen, described.iter().collect());
}

/// docs/api.md has one line for each command. `INSTA_UPDATE=always` writes them, as it does golden files.
#[test]
fn the_manual_lists_every_command() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    let manual = std::fs::read_to_string(path).unwrap();
    let mut parts = manual.splitn(2, HEADER);
    let (before, rest) = (parts.next().unwrap(), parts.next().unwrap());
    let is_row = |line: &&str| line.starts_with('|');
    let after: Vec<&str> = rest.lines().skip_while(is_row).collect();
    let rows: String = commands::all().map(row).collect();
    let wanted = format!("{before}{HEADER}{rows}{}", after.join("\n"));
    if std::env::var("INSTA_UPDATE").as_deref() == Ok("always") {
        let _ = platform::files::replace(path, format!("{}\n", wanted.trim_end()), 0o644).unwrap();
        return;
    }
    let found: Vec<&str> = rest.lines().take_while(is_row).collect();
    let rows: Vec<&str> = rows.lines().collect();
    assert_eq!(
        found, rows,
        "docs/api.md is old: INSTA_UPDATE=always cargo test -p mgmt-stub --test api"
    );
}

const HEADER: &str = "| Command | Kind | Parameters | What it does |\n|---|---|---|---|\n";

fn row(command: &'static Command) -> String {
    let parameter = |one: &Parameter| {
        if one.is_required {
            format!("**{}**", one.name)
        } else {
            one.name.to_owned()
        }
    };
    let parameters: Vec<String> = command.takes.iter().map(parameter).collect();
    let kind = match command.run {
        Run::Sync(_) => "",
        Run::List(_) => "list",
        Run::Job(_) => "job",
    };
    let name = command.name;
    format!(
        "| {name} | {kind} | {} | {} |\n",
        parameters.join(" "),
        command.description
    )
}
