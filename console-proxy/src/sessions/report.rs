//! What the management server is told of the sessions (§10), with regard to what an unmodified one can take (§10.3).

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use agent::service::NoAnswer;
use protocol::console_proxy::ConsoleProxyLoadReportCommand;
use serde::Serialize;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, warn};

use super::{Entry, Sessions, Table};
use crate::auth::Authorizer;
use crate::metrics::Metrics;

/// Longest report: the server keeps it in a column of 65,535 bytes and fails on more, so that not even the number of
/// sessions is stored (§10.3).
pub const MAX_REPORT: usize = 60_000;

/// Without a change (§10.2).
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Changes within this time go into one report.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection<'a> {
    id: u64,
    client_info: &'static str,
    host: &'a str,
    port: i32,
    tag: &'a str,
    create_time: u64,
    last_used_time: u64,
    session_uuid: &'a str,
}

impl Sessions {
    /// The status document (§10.1) without ended sessions.
    pub fn status(&self) -> String {
        document(&self.table(), None)
    }

    /// The status document with one ended session, if there is any.
    ///
    /// One in a report: a server that does not know it any more fails on it and ignores the others (§10.3).
    fn report(&self) -> (String, Option<String>) {
        let table = self.table();
        let ended = table.unreported.front().cloned();
        (document(&table, ended.as_deref()), ended)
    }

    /// The server has heard of it.
    fn reported(&self, session_uuid: &str) {
        let mut table = self.table();
        if table.unreported.front().is_some_and(|front| front == session_uuid) {
            table.unreported.pop_front();
        }
    }
}

fn document(table: &Table, ended: Option<&str>) -> String {
    let full: Vec<String> = table.viewers.iter().map(|(id, entry)| connection(*id, entry)).collect();
    let ended = ended
        .map(|uuid| format!(",\"removedSessions\":[{}]", quoted(uuid)))
        .unwrap_or_default();
    let mut length = 20 + ended.len() + full.iter().map(|entry| entry.len() + 1).sum::<usize>();
    let mut text = String::from("{\"connections\":[");
    for (at, ((id, _), full)) in table.viewers.iter().zip(&full).enumerate() {
        if at > 0 {
            text.push(',');
        }
        // The length of the array is what counts there; the oldest lose their details first.
        if length <= MAX_REPORT {
            text.push_str(full);
            continue;
        }
        let short = format!("{{\"id\":{id}}}");
        let shorter = if full_of_ids(table.viewers.len()) <= MAX_REPORT {
            short.as_str()
        } else {
            "{}"
        };
        length = length - full.len() + shorter.len();
        text.push_str(shorter);
    }
    text.push(']');
    text.push_str(&ended);
    text.push('}');
    text
}

/// Bytes of a report in which every connection is but an id of up to ten digits.
fn full_of_ids(connections: usize) -> usize {
    100 + 18 * connections
}

fn connection(id: u64, entry: &Entry) -> String {
    let viewer = &entry.viewer;
    let connection = Connection {
        id,
        client_info: "",
        host: &viewer.host,
        port: viewer.port,
        tag: &viewer.tag,
        create_time: entry.created_ms,
        last_used_time: entry.activity.last_input_ms.load(Ordering::Relaxed),
        session_uuid: &viewer.session_uuid,
    };
    ascii(&serde_json::to_string(&connection).expect("numbers and texts are JSON"))
}

fn quoted(text: &str) -> String {
    ascii(&serde_json::to_string(text).expect("a text is JSON"))
}

/// The server stores it as US-ASCII. In JSON other letters can only stand inside of texts.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for letter in json.chars() {
        if letter.is_ascii() {
            text.push(letter);
        } else {
            for unit in letter.encode_utf16(&mut [0; 2]) {
                write!(text, "\\u{unit:04x}").expect("a String takes everything");
            }
        }
    }
    text
}

/// Reports for ever: after each change, at most once a second, and as a heartbeat. Ended sessions are kept while nobody
/// hears of them.
pub async fn keep_reporting(
    sessions: Sessions,
    authorizer: Arc<dyn Authorizer>,
    proxy_vm_id: i64,
    metrics: Arc<Metrics>,
) {
    let mut earliest = Instant::now();
    loop {
        let _ = timeout(HEARTBEAT, sessions.0.changed.notified()).await; // either is a reason
        sleep_until(earliest).await;
        loop {
            let (text, ended) = sessions.report();
            let report = ConsoleProxyLoadReportCommand {
                proxy_vm_id,
                load_info: Some(text),
            };
            earliest = Instant::now() + PAUSE;
            let delivered = authorizer.report(report).await;
            metrics.report(delivered);
            match delivered {
                Ok(()) => debug!(ended, "Reported the sessions"),
                // It was sent, and what a server cannot answer once it cannot answer twice (§10.3).
                Err(NoAnswer::TimedOut) => warn!(ended, "The management server does not answer a report"),
                Err(NoAnswer::NotConnected) => break,
            }
            let Some(ended) = ended else { break };
            sessions.reported(&ended);
            if sessions.unreported() == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::Viewer;
    use super::*;

    fn viewer(number: usize) -> Viewer {
        Viewer {
            key: number.to_string(),
            host: "192.168.10.21".into(),
            port: 5901,
            tag: "6a1f3a52-0c8e-4a2e-9f3c-2f6f5a1b7c10".into(),
            session_uuid: format!("0f5f9f1a-6a51-4b61-9d0b-{number:012}"),
        }
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_report_has_the_members_of_the_recorded_one() {
        let vector: Value = serde_json::from_str(include_str!("../../tests/vectors/load_report.json")).unwrap();
        let wanted = parsed(vector["on_open"]["loadInfo"].as_str().unwrap());
        let sessions = Sessions::new(0);
        let place = sessions.open(viewer(1)).unwrap();
        let mut got = parsed(&sessions.report().0);
        for time in ["createTime", "lastUsedTime"] {
            assert!(got["connections"][0][time].as_u64().unwrap() > 1_700_000_000_000);
            got["connections"][0][time] = wanted["connections"][0][time].clone();
        }
        got["connections"][0]["sessionUuid"] = wanted["connections"][0]["sessionUuid"].clone();
        assert_eq!(got, wanted);
        drop(place);
        let (text, ended) = sessions.report();
        assert_eq!(
            text,
            r#"{"connections":[],"removedSessions":["0f5f9f1a-6a51-4b61-9d0b-000000000001"]}"#
        );
        sessions.reported(&ended.unwrap());
        assert_eq!(sessions.report(), (r#"{"connections":[]}"#.to_owned(), None));
        assert_eq!(sessions.status(), r#"{"connections":[]}"#);
    }

    #[test]
    fn however_many_sessions_a_report_stays_short_and_counts_them_all() {
        for count in [200, 300, 2000, 15_000] {
            let sessions = Sessions::new(0);
            let places: Vec<_> = (0..count)
                .map(|number| sessions.open(viewer(number)).unwrap())
                .collect();
            let (text, _) = sessions.report();
            assert!(text.len() <= MAX_REPORT, "{count}: {}", text.len());
            let report = parsed(&text);
            let connections = report["connections"].as_array().unwrap();
            assert_eq!(connections.len(), count);
            let newest = connections.last().unwrap();
            assert!(newest.get("tag").is_some(), "{count}: the newest keep their details");
            assert_eq!(connections[0].get("tag").is_some(), count == 200, "{count}");
            drop(places);
        }
    }

    #[test]
    fn other_letters_than_ascii_are_escaped() {
        let text = quoted("Bücher 💾");
        assert_eq!(text, r#""B\u00fccher \ud83d\udcbe""#);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "Bücher 💾");
    }
}
