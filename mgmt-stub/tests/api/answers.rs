//! One answer for each object, as JSON and as XML: golden files.

use base64::Engine;
use hyper::Method;
use mgmt_stub::api::command::{Kind, Run};
use mgmt_stub::api::commands;
use mgmt_stub::host_status::HostEvent;
use mgmt_stub::store::host::{HostNic, HostType, StartupFacts};
use serde_json::Value;

use crate::support::{Server, redacted};

/// A zone with something in it.
async fn furnished() -> Server {
    let server = Server::start().await;
    let store = &server.management.store;
    let zone = store.zones().await.unwrap()[0].clone();
    let pod = store.pods().await.unwrap()[0].clone();
    store
        .add_image_store(zone.id, "secondary", "nfs://10.1.4.2/export", None)
        .await
        .unwrap();
    let facts = StartupFacts {
        guid: "s-1-VM-NfsSecondaryStorageResource".into(),
        resource_name: Some("NfsSecondaryStorageResource".into()),
        host_type: HostType::SecondaryStorageVm,
        name: "s-1-VM".into(),
        zone: zone.id,
        pod: Some(pod.id),
        version: "0.1.0".into(),
        arch: "x86_64".into(),
        private: HostNic {
            ip: "10.1.1.20".parse().ok(),
            ..HostNic::default()
        },
        public: HostNic {
            ip: "192.0.2.20".parse().ok(),
            ..HostNic::default()
        },
        storage: HostNic::default(),
        ms_host_list: None,
        proxy_port: None,
    };
    let host = store.find_or_create_host(facts).await.unwrap();
    store
        .apply_host_event(host.id, HostEvent::AgentConnected, "the agent has connected")
        .await
        .unwrap();
    let zone_id = zone.uuid.to_string();
    let tag = [
        ("resourcetype", "Zone"),
        ("resourceids", &*zone_id),
        ("tags[0].key", "a<b"),
        ("tags[0].value", "1 & 2"),
    ];
    server.api("createTags", &tag).await.unwrap();
    let alert = [
        ("type", "14"),
        ("name", "ALERT.MANAGEMENT"),
        ("description", "disk of 10 GB is \"full\""),
    ];
    server.api("generateAlert", &alert).await.unwrap();
    server
}

const OBJECTS: &[(&str, &[(&str, &str)])] = &[
    ("listZones", &[]),
    ("listPods", &[]),
    ("listClusters", &[]),
    ("listHosts", &[]),
    ("listImageStores", &[]),
    ("listHypervisors", &[]),
    ("listOsTypes", &[("description", "Debian GNU/Linux 12 (64-bit)")]),
    ("listOsCategories", &[("name", "Debian")]),
    ("listUsers", &[]),
    ("listAccounts", &[]),
    ("listDomains", &[]),
    ("listTags", &[]),
    ("listAlerts", &[]),
    ("listEvents", &[("type", "CREATE_TAGS")]),
    ("listEventTypes", &[]),
    ("listConfigurations", &[("name", "consoleproxy.session.max")]),
    ("listCapabilities", &[]),
    ("listApis", &[("name", "listAsyncJobs")]),
    ("listVolumes", &[]),
];

#[tokio::test]
async fn every_object_answers_as_its_golden_files_say() {
    let server = furnished().await;
    let keys = keys(&server).await;
    for (command, parameters) in OBJECTS {
        for format in ["json", "xml"] {
            let seen = signed(&server, &keys, command, parameters, format).await;
            let text = match format {
                "json" => format!("{:#}", serde_json::from_str::<Value>(&seen).unwrap()),
                _ => seen.replace("><", ">\n<"),
            };
            let text = redacted(&text.replace(&keys.0, "KEY"));
            insta::assert_snapshot!(format!("{command}.{format}"), text);
        }
    }
}

/// Nothing is answered that `listApis` does not describe.
#[tokio::test]
async fn every_field_is_described() {
    let server = furnished().await;
    for command in commands::all() {
        let is_plain_list = matches!(command.run, Run::List(_)) && !command.takes.iter().any(|one| one.is_required);
        if !is_plain_list {
            continue;
        }
        let seen = server.api(command.name, &[]).await.unwrap();
        let objects = seen.as_object().unwrap().values().filter_map(Value::as_array).flatten();
        for field in objects.flat_map(|object| object.as_object().unwrap().iter()) {
            let described = command.answers.iter().find(|described| described.0 == field.0);
            let Some(described) = described else {
                panic!("{}: field {} is not described", command.name, field.0)
            };
            let is_right = match described.1 {
                Kind::Flag => field.1.is_boolean(),
                Kind::Number => field.1.is_i64(),
                Kind::Fraction => field.1.is_f64(),
                Kind::Object | Kind::Map | Kind::List | Kind::Ids => field.1.is_array() || field.1.is_object(),
                Kind::Text | Kind::Id | Kind::Date => field.1.is_string(),
            };
            assert!(is_right, "{}: field {} is {}", command.name, field.0, field.1);
        }
    }
}

async fn keys(server: &Server) -> (String, String) {
    let users = server.api("listUsers", &[]).await.unwrap();
    let made = server
        .api("registerUserKeys", &[("id", users["user"][0]["id"].as_str().unwrap())])
        .await
        .unwrap();
    let text = |name: &str| made["userkeys"][name].as_str().unwrap().to_owned();
    (text("apikey"), text("secretkey"))
}

async fn signed(
    server: &Server,
    keys: &(String, String),
    command: &str,
    parameters: &[(&str, &str)],
    format: &str,
) -> String {
    use hmac::{Hmac, KeyInit, Mac};

    let mut pairs = vec![("apikey", keys.0.as_str()), ("command", command), ("response", format)];
    pairs.extend(parameters);
    pairs.sort_unstable();
    let encode = |text: &str| {
        text.replace(' ', "%20")
            .replace('/', "%2F")
            .replace('(', "%28")
            .replace(')', "%29")
    };
    let query: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    let query = query.join("&");
    let mut hmac = Hmac::<sha1::Sha1>::new_from_slice(keys.1.as_bytes()).unwrap();
    hmac.update(query.to_lowercase().as_bytes());
    let signature = base64::engine::general_purpose::STANDARD.encode(hmac.finalize().into_bytes());
    let form = format!(
        "{query}&signature={}",
        signature.replace('+', "%2B").replace('=', "%3D")
    );
    let seen = server.request(Method::POST, "", "", Some(&form)).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    seen.text
}
