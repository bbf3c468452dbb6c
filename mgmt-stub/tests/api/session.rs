//! Logging in and out.

use std::time::Duration;

use hyper::Method;
use serde_json::json;

use crate::support::{Seen, Server, redacted};

async fn login(server: &Server, password: &str) -> Seen {
    server
        .post(&format!(
            "command=login&username=admin&password={password}&response=json"
        ))
        .await
}

fn key(seen: &Seen) -> String {
    seen.json()["loginresponse"]["sessionkey"].as_str().unwrap().to_owned()
}

async fn list_users(server: &Server, cookies: &str, key: &str) -> u16 {
    let query = format!("command=listUsers&response=json&sessionkey={key}");
    server.request(Method::GET, &query, cookies, None).await.status
}

/// A session with a password of the user's own.
async fn session(server: &Server) -> (String, String) {
    let once = server.one_time_password().await;
    let seen = login(server, once.expose()).await;
    let (cookies, key) = (seen.cookies(), key(&seen));
    let id = seen.json()["loginresponse"]["userid"].as_str().unwrap().to_owned();
    let form = format!(
        "command=updateUser&id={id}&password=my+own+words&currentpassword={}&sessionkey={key}&response=json",
        once.expose()
    );
    let changed = server.request(Method::POST, "", &cookies, Some(&form)).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    (cookies, key)
}

#[tokio::test]
async fn the_first_login_needs_a_one_time_password_and_then_ones_own() {
    let server = Server::start().await;
    let refused = login(&server, "").await;
    assert_eq!(refused.status, 431);
    let refused = login(&server, "password").await.refusal();
    let text = "Failed to authenticate user admin in domain /; please provide valid credentials";
    assert_eq!(refused, (531, text.into()));

    let once = server.one_time_password().await;
    let seen = login(&server, once.expose()).await;
    let mut fields = seen.json()["loginresponse"].clone();
    fields["sessionkey"] = "KEY".into();
    let wanted = json!({
        "username": "admin", "userid": "UUID2", "domainid": "UUID0", "timeout": "1800", "account": "admin",
        "firstname": "Admin", "lastname": "User", "type": "1", "timezoneoffset": "0.0", "registered": "true",
        "sessionkey": "KEY", "is2faenabled": "false", "is2faverified": "true", "issuerfor2fa": "CloudStack",
        "managementserverid": "UUID1", "passwordchangerequired": "true",
    });
    assert_eq!(redacted(&fields.to_string()), wanted.to_string());
    for cookie in seen.headers.get_all("set-cookie") {
        let cookie = cookie.to_str().unwrap();
        assert!(cookie.ends_with("; Path=/client; HttpOnly; SameSite=Lax"), "{cookie}");
    }
    assert_eq!(
        login(&server, once.expose()).await.refusal(),
        (531, text.into()),
        "it is good once"
    );

    let query = format!("command=listZones&response=json&sessionkey={}", key(&seen));
    let refused = server
        .request(Method::GET, &query, &seen.cookies(), None)
        .await
        .refusal();
    let wanted = "this session was opened with a one-time password; choose a password first: updateUser with \
                  currentpassword and password";
    assert_eq!(refused, (531, wanted.into()));

    let (cookies, key) = session(&server).await;
    let query = format!("command=listZones&response=json&sessionkey={key}");
    assert_eq!(server.request(Method::GET, &query, &cookies, None).await.status, 200);
    let again = login(&server, "my+own+words").await;
    assert_eq!(again.json()["loginresponse"]["passwordchangerequired"], "false");
}

#[tokio::test]
async fn a_session_needs_both_cookies_and_the_key_and_ends_at_a_mismatch() {
    let server = Server::start().await;
    let (cookies, key) = session(&server).await;
    assert_eq!(list_users(&server, &cookies, &key).await, 200);
    assert_eq!(list_users(&server, &cookies, "wrong").await, 401);
    assert_eq!(
        list_users(&server, &cookies, &key).await,
        401,
        "the mismatch has ended it"
    );

    for cookie in ["JSESSIONID", "sessionkey"] {
        let seen = login(&server, "my+own+words").await;
        let (all, key) = (seen.cookies(), self::key(&seen));
        let only: Vec<&str> = all.split("; ").filter(|pair| pair.starts_with(cookie)).collect();
        assert_eq!(list_users(&server, &only.join("; "), &key).await, 401, "only {cookie}");
    }
}

#[tokio::test]
async fn the_key_as_a_parameter_alone_is_a_setting() {
    let server = Server::start().await;
    let (cookies, key) = session(&server).await;
    let setting = [("name", "api.sessionkey.check.locations"), ("value", "ParameterOnly")];
    server.api("updateConfiguration", &setting).await.unwrap();
    let id = cookies.split("; ").next().unwrap();
    assert!(id.starts_with("JSESSIONID="));
    assert_eq!(list_users(&server, id, &key).await, 200);
    assert_eq!(list_users(&server, id, "").await, 401);
}

#[tokio::test]
async fn login_takes_a_post_only() {
    let server = Server::start().await;
    let seen = server
        .get("command=login&username=admin&password=x&response=json")
        .await;
    assert_eq!(seen.status, 405);
}

#[tokio::test]
async fn logout_ends_the_session_and_takes_the_cookies_back() {
    let server = Server::start().await;
    let (cookies, key) = session(&server).await;
    let query = format!("command=logout&response=json&sessionkey={key}");
    let seen = server.request(Method::GET, &query, &cookies, None).await;
    assert_eq!(seen.text, r#"{"logoutresponse":{"description":"success"}}"#);
    assert_eq!(seen.cookies(), "JSESSIONID=; sessionkey=");
    assert_eq!(list_users(&server, &cookies, &key).await, 401);
    let without = server.get("command=logout&response=json").await;
    assert_eq!(without.text, r#"{"logoutresponse":{"description":"success"}}"#);
}

#[tokio::test]
async fn a_session_survives_a_restart_and_ends_when_it_is_not_used() {
    let server = Server::start().await;
    let (cookies, key) = session(&server).await;
    let server = server.restart().await;
    assert_eq!(list_users(&server, &cookies, &key).await, 200);
    server
        .api("updateConfiguration", &[("name", "session.timeout"), ("value", "0")])
        .await
        .unwrap();
    assert_eq!(list_users(&server, &cookies, &key).await, 401);
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let server = Server::start().await;
    let (cookies, key) = session(&server).await;
    let other = login(&server, "my+own+words").await;
    let id = other.json()["loginresponse"]["userid"].as_str().unwrap().to_owned();
    let change = async |current: &str, new: &str| {
        let form = format!(
            "command=updateUser&id={id}&password={new}&currentpassword={current}&sessionkey={key}&response=json"
        );
        server.request(Method::POST, "", &cookies, Some(&form)).await
    };
    assert_eq!(
        change("wrong+words", "another+one").await.refusal(),
        (431, "Current password is incorrect.".into())
    );
    assert_eq!(
        change("my+own+words", "short").await.refusal(),
        (431, "a password has 8 to 200 characters".into())
    );
    assert_eq!(change("my+own+words", "another+one").await.status, 200);
    assert_eq!(list_users(&server, &cookies, &key).await, 200);
    assert_eq!(list_users(&server, &other.cookies(), &self::key(&other)).await, 401);
    assert_eq!(login(&server, "my+own+words").await.status, 531);
    assert_eq!(login(&server, "another+one").await.status, 200);
}

#[tokio::test]
async fn after_ten_wrong_passwords_even_the_right_one_has_to_wait() {
    let server = Server::start().await;
    let once = server.one_time_password().await;
    for _ in 0..10 {
        assert_eq!(login(&server, "wrong").await.status, 531);
    }
    let started = std::time::Instant::now();
    let refused = login(&server, once.expose()).await.refusal();
    assert_eq!(refused.0, 429);
    assert!(
        refused
            .1
            .starts_with("too many wrong passwords for this user; try again in "),
        "{}",
        refused.1
    );
    assert!(
        started.elapsed() < Duration::from_mins(1),
        "the password is not even looked at"
    );
    let other = server
        .post("command=login&username=root&password=x&response=json")
        .await;
    assert_eq!(other.status, 531, "another name is not concerned");
}

#[tokio::test]
async fn domains_are_paths_or_ids() {
    let server = Server::start().await;
    for domain in ["domain=/", "domain=ROOT", "domain=%2FROOT%2F", "domain="] {
        let once = server.one_time_password().await;
        let form = format!(
            "command=login&username=admin&password={}&{domain}&response=json",
            once.expose()
        );
        assert_eq!(server.post(&form).await.status, 200, "{domain}");
    }
    let once = server.one_time_password().await;
    let form = format!(
        "command=login&username=admin&password={}&domain=/sales&response=json",
        once.expose()
    );
    assert_eq!(server.post(&form).await.status, 531);
    let domains = server.api("listDomains", &[]).await.unwrap();
    let id = domains["domain"][0]["id"].as_str().unwrap();
    let form = format!(
        "command=login&username=admin&password={}&domainId={id}&response=json",
        once.expose()
    );
    assert_eq!(server.post(&form).await.status, 200);
}
