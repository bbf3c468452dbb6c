//! Methods, forms, parameters, errors.

use std::os::unix::fs::PermissionsExt;

use hyper::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::support::Server;

#[tokio::test]
async fn who_does_not_prove_who_he_is_is_refused_in_the_form_he_asked_for() {
    let server = Server::start().await;
    let text = "unable to verify user credentials and/or request signature";
    let seen = server.get("command=listZones&response=json").await;
    assert_eq!(
        seen.text,
        format!(r#"{{"listzonesresponse":{{"cserrorcode":9999,"errorcode":401,"errortext":"{text}","uuidList":[]}}}}"#)
    );
    assert_eq!(seen.status, 401);
    assert_eq!(seen.headers["content-type"], "application/json; charset=UTF-8");
    assert_eq!(seen.headers["x-description"], text);

    let seen = server.get("command=listZones").await;
    assert_eq!(
        seen.text,
        format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><listzonesresponse cloud-stack-version=\"4.23.0\">\
             <cserrorcode>9999</cserrorcode><errorcode>401</errorcode><errortext>{text}</errortext></listzonesresponse>"
        )
    );
    assert_eq!(seen.headers["content-type"], "text/xml; charset=UTF-8");
}

#[tokio::test]
async fn an_unknown_command_is_432_whoever_asks() {
    let server = Server::start().await;
    let wanted = r#"{"errorresponse":{"cserrorcode":9999,"errorcode":432,"errortext":"The given command 'frobnicate' either does not exist, is not available for user, or not available from ip address","uuidList":[]}}"#;
    let seen = server.get("command=frobnicate&response=json").await;
    assert_eq!((seen.status, seen.text.as_str()), (432, wanted));
    let error = server.api("frobnicate", &[]).await.unwrap_err().to_string();
    assert!(error.ends_with("(errorcode 432)"), "{error}");
}

#[tokio::test]
async fn only_get_and_post_and_only_forms_of_a_sane_size() {
    let server = Server::start().await;
    let seen = server
        .request(Method::PUT, "command=listZones&response=json", "", None)
        .await;
    assert_eq!(seen.refusal(), (405, "the API takes GET and POST".into()));
    let seen = server
        .post(&format!("response=json&command={}", "x".repeat(2 << 20)))
        .await;
    assert_eq!(seen.status, 400);
    assert!(
        seen.text.contains("the body is longer than 262144 bytes"),
        "{}",
        seen.text
    );
    let seen = server.get("command=listZones&response=json&a=%zz").await;
    assert_eq!(
        seen.refusal(),
        (430, "a % is not followed by two hexadecimal digits".into())
    );
}

#[tokio::test]
async fn query_and_form_are_one_and_names_have_no_case() {
    let server = Server::start().await;
    let password = server.one_time_password().await;
    let form = format!("PassWord={}&Response=json&USERNAME=admin", password.expose());
    let seen = server.request(Method::POST, "CoMMand=LOGIN", "", Some(&form)).await;
    assert_eq!(seen.status, 200, "{}", seen.text);
    assert_eq!(seen.json()["loginresponse"]["username"], "admin");
}

#[tokio::test]
async fn texts_that_clients_compare() {
    let server = Server::start().await;
    let refused =
        async |command, parameters: &[(&str, &str)]| server.api(command, parameters).await.unwrap_err().to_string();
    assert_eq!(
        refused("updateConfiguration", &[]).await,
        "Unable to execute API command updateconfiguration due to missing parameter name (errorcode 431)"
    );
    for id in ["12", "0a31f5e2-6b0f-4d0c-9a55-0f0000000000"] {
        let wanted = format!(
            "Invalid parameter id value={id} due to incorrect long value format, or entity does not exist (errorcode 431)"
        );
        assert_eq!(refused("listZones", &[("id", id)]).await, wanted);
    }
    assert_eq!(
        refused("listZones", &[("page", "1")]).await,
        "page needs pagesize, too (errorcode 431)"
    );
    assert_eq!(
        refused("listZones", &[("pagesize", "1")]).await,
        "pagesize needs page, too (errorcode 431)"
    );
    assert_eq!(
        refused("listZones", &[("page", "1"), ("pagesize", "501")]).await,
        "pagesize 501 is more than 500, the setting default.page.size (errorcode 431)"
    );
    assert_eq!(
        refused("listZones", &[("available", "maybe")]).await,
        "Invalid value \"maybe\" for parameter available: true or false is expected (errorcode 431)"
    );
    assert_eq!(
        refused(
            "createTags",
            &[("resourcetype", "Zone"), ("resourceids", "x"), ("tags[a].key", "k")]
        )
        .await,
        "Invalid parameter \"tags[a].key\": write it like tags[0].key=value (errorcode 430)"
    );
    assert_eq!(
        refused(
            "listTrafficTypes",
            &[("physicalnetworkid", "0a31f5e2-6b0f-4d0c-9a55-0f0000000000")]
        )
        .await,
        "Invalid parameter physicalnetworkid value=0a31f5e2-6b0f-4d0c-9a55-0f0000000000 due to incorrect long value \
         format, or entity does not exist (errorcode 431)"
    );
}

#[tokio::test]
async fn none_and_empty_are_absent() {
    let server = Server::start().await;
    let all = server.api("listZones", &[]).await.unwrap();
    assert_eq!(
        server.api("listZones", &[("id", "None"), ("name", "")]).await.unwrap(),
        all
    );
    assert_eq!(server.api("listZones", &[("id", "-1")]).await.unwrap(), all);
}

#[tokio::test]
async fn pages_are_stable_and_beyond_the_end_there_is_only_the_count() {
    let server = Server::start().await;
    let mut names = Vec::new();
    for page in 1..=10 {
        let seen = server
            .api("listOsTypes", &[("page", &page.to_string()), ("pagesize", "5")])
            .await
            .unwrap();
        names.extend(seen["ostype"].as_array().unwrap().iter().map(|row| row["name"].clone()));
    }
    let all = server.api("listOsTypes", &[]).await.unwrap();
    let wanted: Vec<_> = all["ostype"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].clone())
        .collect();
    assert_eq!(names, wanted);
    let beyond = server
        .api("listOsTypes", &[("page", "11"), ("pagesize", "5")])
        .await
        .unwrap();
    assert_eq!(beyond, serde_json::json!({ "count": wanted.len() }));
    assert_eq!(server.api("listVolumes", &[]).await.unwrap(), serde_json::json!({}));
    let everything = server.api("listOsTypes", &[("pagesize", "-1")]).await.unwrap();
    assert_eq!(everything, all);
}

#[tokio::test]
async fn an_address_that_is_not_allowed_is_refused_but_the_socket_is_open() {
    let server = Server::start().await;
    let setting = [
        ("name", "api.allowed.source.cidr.list"),
        ("value", "10.0.0.0/8,::1/128"),
    ];
    server.api("updateConfiguration", &setting).await.unwrap();
    let refused = server.get("command=listZones&response=json").await.refusal();
    let text = "this address may not call the API; the setting api.allowed.source.cidr.list says which may";
    assert_eq!(refused, (401, text.into()));
    server.api("resetConfiguration", &setting[..1]).await.unwrap();
    assert_ne!(server.get("command=listZones&response=json").await.refusal().1, text);
}

#[tokio::test]
async fn the_socket_is_for_its_owner_only() {
    let server = Server::start().await;
    let socket = server.data_dir().join("api.sock");
    assert_eq!(std::fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_is_answered_is_counted_and_shown_to_the_owner_of_the_socket() {
    let server = Server::start().await;
    server.api("listZones", &[]).await.unwrap();
    server.api("listZones", &[("page", "1")]).await.unwrap_err();
    server.get("command=frobnicate&response=json").await;
    let mut socket = UnixStream::connect(server.data_dir().join("api.sock")).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    socket.write_all(request).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    for line in [
        "mgmt_api_requests_total{command=\"listZones\",code=\"200\"} 1",
        "mgmt_api_requests_total{command=\"listZones\",code=\"431\"} 1",
        "mgmt_api_requests_total{command=\"unknown\",code=\"432\"} 1",
        "mgmt_api_answer_seconds_count 3",
        "mgmt_agents_connected 0",
        "mgmt_jobs_pending 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}
