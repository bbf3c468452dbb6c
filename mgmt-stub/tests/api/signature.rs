//! Signed requests through the whole server. The vectors themselves are in `api/signature.rs`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use time::{Duration, OffsetDateTime};

use crate::support::Server;

struct Keys {
    api: String,
    secret: String,
}

async fn keys(server: &Server) -> Keys {
    let users = server.api("listUsers", &[]).await.unwrap();
    let id = users["user"][0]["id"].as_str().unwrap().to_owned();
    let made = server.api("registerUserKeys", &[("id", &id)]).await.unwrap();
    let shown = server.api("getUserKeys", &[("id", &id)]).await.unwrap();
    assert_eq!(made, shown);
    let text = |name: &str| made["userkeys"][name].as_str().unwrap().to_owned();
    Keys {
        api: text("apikey"),
        secret: text("secretkey"),
    }
}

/// A query with its signature; the query is sorted and encoded as it has to be for that.
fn signed(query: &str, secret: &str) -> String {
    let mut hmac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).unwrap();
    hmac.update(query.to_lowercase().as_bytes());
    let signature = STANDARD.encode(hmac.finalize().into_bytes());
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("{query}&signature={signature}")
}

fn expires(after: Duration) -> String {
    mgmt_stub::api::date::format(OffsetDateTime::now_utc() + after)
        .replace(':', "%3A")
        .replace('+', "%2B")
}

#[tokio::test]
async fn a_signed_request_is_its_users_and_a_tampered_one_nobodys() {
    let server = Server::start().await;
    let Keys { api, secret } = keys(&server).await;
    let query = format!("apikey={api}&command=listZones&name=zone1&response=json");
    let good = signed(&query, &secret);
    assert_eq!(server.get(&good).await.json()["listzonesresponse"]["count"], 1);
    assert_eq!(server.post(&good).await.status, 200, "also as a form");
    assert_eq!(server.get(&good.replace("zone1", "zone2")).await.status, 401);
    assert_eq!(
        server.get(&format!("{good}&id=None")).await.status,
        401,
        "a parameter more"
    );
    assert_eq!(server.get(&query).await.status, 401, "no signature");
    assert_eq!(server.get(&signed(&query, "another secret")).await.status, 401);
    let stranger = "apikey=nobody&command=listZones&response=json";
    assert_eq!(server.get(&signed(stranger, &secret)).await.status, 401);
}

#[tokio::test]
async fn an_expired_signature_is_not_good() {
    let server = Server::start().await;
    let Keys { api, secret } = keys(&server).await;
    let query = |after| {
        let expires = expires(after);
        let query = format!("apikey={api}&command=listZones&expires={expires}&response=json&signatureversion=3");
        signed(&query, &secret)
    };
    assert_eq!(server.get(&query(Duration::minutes(5))).await.status, 200);
    assert_eq!(server.get(&query(-Duration::seconds(1))).await.status, 401);
    let without = format!("apikey={api}&command=listZones&response=json&signatureversion=3");
    assert_eq!(server.get(&signed(&without, &secret)).await.status, 401);
}

#[tokio::test]
async fn new_keys_end_the_old_ones() {
    let server = Server::start().await;
    let old = keys(&server).await;
    let query = |keys: &Keys| {
        signed(
            &format!("apikey={}&command=listZones&response=json", keys.api),
            &keys.secret,
        )
    };
    assert_eq!(server.get(&query(&old)).await.status, 200);
    let new = keys(&server).await;
    assert_eq!(server.get(&query(&old)).await.status, 401);
    assert_eq!(server.get(&query(&new)).await.status, 200);
}
