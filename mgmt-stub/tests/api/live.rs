//! The page's stream, as a browser reads it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, COOKIE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::support::Server;

const LIMIT: Duration = Duration::from_secs(10);
const TOPICS: [&str; 10] = [
    "alerts",
    "events",
    "hosts",
    "imagestores",
    "isos",
    "storagepools",
    "systemvms",
    "templates",
    "virtualmachines",
    "zones",
];

/// Cookies and session key of the administrator, who has chosen a password or not.
struct Session {
    cookies: String,
    key: String,
    password: String,
}

impl Session {
    async fn open(server: &Server) -> Self {
        let password = server.one_time_password().await;
        let form = format!(
            "command=login&response=json&username=admin&password={}",
            password.expose()
        );
        let seen = server.post(&form).await;
        let answer = &seen.json()["loginresponse"];
        let key = answer["sessionkey"].as_str().unwrap().to_owned();
        let cookies = seen.cookies();
        Self {
            cookies,
            key,
            password: password.expose().clone(),
        }
    }

    async fn choose_password(&self, server: &Server) {
        let id = server.management.store.administrator().await.unwrap().user.uuid;
        let form = format!(
            "command=updateUser&response=json&id={id}&password=correct+horse&currentpassword={}&sessionkey={}",
            self.password, self.key
        );
        let seen = server.request(Method::POST, "", &self.cookies, Some(&form)).await;
        assert_eq!(seen.status, 200, "{}", seen.text);
    }

    async fn stream(&self, server: &Server) -> Response<Incoming> {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder()
            .uri(format!("/client/live?sessionkey={}", self.key))
            .header(HOST, "localhost")
            .header(COOKIE, &self.cookies);
        sender
            .send_request(request.body(Empty::<Bytes>::new()).unwrap())
            .await
            .unwrap()
    }
}

/// The next `state`; none: the stream has ended.
async fn next(stream: &mut Response<Incoming>, buffer: &mut String) -> Option<Value> {
    loop {
        while let Some((message, _)) = buffer.split_once("\n\n") {
            let data = message.strip_prefix("event: state\ndata: ").map(str::to_owned);
            buffer.drain(..message.len() + 2);
            if let Some(data) = data {
                return Some(serde_json::from_str(&data).unwrap());
            }
        }
        let frame = timeout(LIMIT, stream.frame()).await.unwrap()?;
        buffer.push_str(std::str::from_utf8(frame.unwrap().data_ref().unwrap()).unwrap());
    }
}

fn topics(state: &Value) -> Vec<&str> {
    let mut names: Vec<&str> = state.as_object().unwrap().keys().map(String::as_str).collect();
    names.retain(|name| *name != "now");
    names.sort_unstable();
    names
}

#[tokio::test]
async fn a_stream_begins_with_everything_and_goes_on_with_what_changed_until_the_server_stops() {
    let server = Server::start().await;
    let session = Session::open(&server).await;
    assert_eq!(
        session.stream(&server).await.status(),
        403,
        "a password has to be chosen first"
    );
    session.choose_password(&server).await;

    let mut stream = session.stream(&server).await;
    assert_eq!(stream.status(), 200);
    assert_eq!(stream.headers()[CONTENT_TYPE], "text/event-stream");
    let mut buffer = String::new();
    let first = next(&mut stream, &mut buffer).await.unwrap();
    assert_eq!(topics(&first), TOPICS);
    assert_eq!(first["zones"][0]["name"], "zone1");

    let alert = [
        ("type", "19"),
        ("name", "flood"),
        ("description", "water in the cellar"),
    ];
    server.api("generateAlert", &alert).await.unwrap();
    loop {
        let state = next(&mut stream, &mut buffer).await.unwrap();
        assert!(
            topics(&state).iter().all(|topic| ["alerts", "events"].contains(topic)),
            "{state}"
        );
        if state["alerts"][0]["description"] == "water in the cellar" {
            break;
        }
    }
    let server = server.restart().await;
    while next(&mut stream, &mut buffer).await.is_some() {}
    let again = next(&mut session.stream(&server).await, &mut String::new())
        .await
        .unwrap();
    assert_eq!(
        topics(&again),
        TOPICS,
        "the session goes on, and begins with everything"
    );
}

#[tokio::test]
async fn strangers_get_nothing_and_there_are_not_more_than_64_pages() {
    let server = Server::start().await;
    let stranger = Session {
        cookies: String::new(),
        key: "x".into(),
        password: String::new(),
    };
    assert_eq!(stranger.stream(&server).await.status(), 401);
    let session = Session::open(&server).await;
    session.choose_password(&server).await;
    let mut streams = Vec::new();
    for _ in 0..64 {
        streams.push(session.stream(&server).await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(session.stream(&server).await.status(), 503);
    streams.truncate(63);
    for _ in 0..100 {
        // The server sees the end of a connection when it looks at it.
        if session.stream(&server).await.status() == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place of a page that was closed is not free again");
}
