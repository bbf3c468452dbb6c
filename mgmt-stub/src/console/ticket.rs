//! The access ticket: proves to us that a question about a console comes from a token of ours (console-proxy.md §3.3).

use base64::prelude::{BASE64_STANDARD, Engine};
use protocol::secret::Secret;
use ring::hmac;
use time::OffsetDateTime;

/// What a ticket is for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// VNC host.
    pub host: &'a str,
    /// VNC port, as text.
    pub port: &'a str,
    /// VNC password.
    pub sid: &'a str,
    /// UUID of the instance.
    pub tag: &'a str,
    /// Console session.
    pub session: &'a str,
}

/// The ticket for this minute. `key` is the text of setting `security.hash.key`: its characters are the key.
pub fn ticket(key: &Secret<String>, subject: &Subject<'_>, now: OffsetDateTime) -> String {
    BASE64_STANDARD.encode(hmac::sign(&hmac_key(key), &message(subject, minute(now))))
}

/// Whether this is the ticket of this minute or the one before. Takes the same time for all wrong ones.
pub fn is_good(key: &Secret<String>, subject: &Subject<'_>, ticket: &str, now: OffsetDateTime) -> bool {
    let Ok(shown) = BASE64_STANDARD.decode(ticket) else {
        return false;
    };
    let key = hmac_key(key);
    let fits = |minute| hmac::verify(&key, &message(subject, minute), &shown).is_ok();
    fits(minute(now)) || fits(minute(now) - 1)
}

fn hmac_key(key: &Secret<String>) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA512, key.expose().as_bytes())
}

fn minute(now: OffsetDateTime) -> i64 {
    now.unix_timestamp().div_euclid(60)
}

fn message(subject: &Subject<'_>, minute: i64) -> Vec<u8> {
    let Subject {
        host,
        port,
        sid,
        tag,
        session,
    } = subject;
    format!("host={host}&port={port}&sid={sid}&tag={tag}&session={session}{minute}").into_bytes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn tickets_are_those_of_the_vectors() {
        let vectors = include_str!("../../tests/vectors/console/access_tickets.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let key = Secret::new(vectors["hash_key"].as_str().unwrap().to_owned());
        let cases = vectors["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4);
        for case in cases {
            let text = |member: &str| case[member].as_str().unwrap();
            let subject = Subject {
                host: text("host"),
                port: text("port"),
                sid: text("sid"),
                tag: text("tag"),
                session: text("session"),
            };
            let seconds = case["epoch_ms"].as_i64().unwrap() / 1000;
            let now = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            assert_eq!(ticket(&key, &subject, now), text("ticket"));
            assert!(is_good(&key, &subject, text("ticket"), now));
            assert!(is_good(&key, &subject, text("ticket"), now + Duration::from_mins(1)));
            assert!(!is_good(&key, &subject, text("ticket"), now + Duration::from_mins(2)));
            assert!(!is_good(&key, &subject, text("ticket"), now - Duration::from_mins(1)));
            let other = Subject {
                sid: "other",
                ..subject
            };
            assert!(!is_good(&key, &other, text("ticket"), now));
            assert!(!is_good(&key, &subject, "", now));
            assert!(!is_good(&key, &subject, "%", now));
        }
    }

    #[test]
    fn the_ticket_of_the_management_pages() {
        let subject = Subject {
            host: "10.0.0.5",
            port: "5901",
            sid: "vncpass1",
            tag: "6d1f2a34-0b8e-4c5d-9e7f-112233445566",
            session: "0f0e0d0c-0b0a-4908-8706-050403020100",
        };
        let now = OffsetDateTime::from_unix_timestamp(29_500_000 * 60).unwrap();
        assert_eq!(
            ticket(&Secret::new("SGFzaEtleUV4YW1wbGUxMg".into()), &subject, now),
            "or4sLMsB07LNRgArT1QXsfaNVY9+eJ2NWTAy8nyca0dqMsFoLOXgz3zY4CY1mZd+cBfr9hCfxOQI78IykZ8xPg=="
        );
    }
}
