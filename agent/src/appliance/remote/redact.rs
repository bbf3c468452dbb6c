//! Taking secrets out of text files before they leave the VM.
//!
//! By the words that name them, as they are written in the files of a system VM: `key=value`, `"key": "value"`, `word value`,
//! user and password in a URL, and private keys in PEM. It rather takes out too much.

use std::borrow::Cow;

const HIDDEN: &str = "***";
/// Part of a key, in lower case: its value is a secret.
const KEYS: [&str; 17] = [
    "password",
    "passwd",
    "passphrase",
    "passwrd",
    "secret",
    "privatekey",
    "private_key",
    "apikey",
    "api_key",
    "securitykey",
    "userdata",
    "user-data",
    "vm_metadata",
    "psk",
    "token",
    "credential",
    "authorization",
];
/// A word of its own: the rest of the line is one.
const WORDS: [&str; 8] = [
    "psk",
    "auth_pass",
    "password",
    "passwd",
    "secret",
    "stats auth",
    "rsa",
    "ntlm",
];

/// Redacts line by line; keeps what it must know of the lines before.
#[derive(Debug, Default)]
pub(super) struct Redactor {
    is_in_private_key: bool,
}

impl Redactor {
    /// The line as it may be shown; `None` when nothing of it may.
    pub(super) fn line<'a>(&mut self, line: &'a str) -> Option<Cow<'a, str>> {
        if self.is_in_private_key {
            self.is_in_private_key = !(line.contains("-----END") && line.contains("PRIVATE KEY-----"));
            return None;
        }
        if let Some((before, after)) = line.split_once("-----BEGIN")
            && after.contains("PRIVATE KEY-----")
        {
            self.is_in_private_key = !after.contains("-----END");
            return Some(Cow::Owned(format!("{before}{HIDDEN}")));
        }
        Some(redact(line))
    }
}

fn redact(line: &str) -> Cow<'_, str> {
    // ASCII keeps each byte's place.
    let lower = line.to_ascii_lowercase();
    if !KEYS.iter().chain(&WORDS).any(|word| lower.contains(word)) && !lower.contains("://") {
        return Cow::Borrowed(line);
    }
    if let Some(start) = after_word(&lower) {
        return Cow::Owned(format!("{} {HIDDEN}", &line[..start]));
    }
    let mut shown = String::new();
    let mut from = 0;
    let bytes = line.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let value = match bytes[at] {
            b'=' | b':' if is_secret(key_before(&lower, at)) => Some(value_after(line, at)),
            b':' if bytes[at..].starts_with(b"://") => user_info(line, at + 3),
            _ => None,
        };
        if let Some((start, end)) = value.filter(|(start, end)| start < end && *start >= from) {
            shown += &line[from..start];
            shown += HIDDEN;
            from = end;
            at = end;
        } else {
            at += 1;
        }
    }
    shown += &line[from..];
    Cow::Owned(shown)
}

/// Where the first word ends whose rest of the line is a secret.
fn after_word(lower: &str) -> Option<usize> {
    let is_inside =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-.=:\"'".contains(byte));
    let ends = WORDS
        .iter()
        .flat_map(|word| lower.match_indices(word).map(|(at, word)| (at, at + word.len())));
    let whole = ends.filter(|(start, end)| {
        let before = start.checked_sub(1).and_then(|before| lower.as_bytes().get(before));
        let is_alone = !is_inside(before) && lower.as_bytes().get(*end).is_some_and(|next| b" \t".contains(next));
        is_alone && !lower[*end..].trim().is_empty() && !lower[*end..].trim_start().starts_with(['=', ':'])
    });
    whole.map(|(_, end)| end).min()
}

/// The key that ends before a `=` or `:`, without quotes and blanks.
fn key_before(lower: &str, at: usize) -> &str {
    let key = lower[..at].trim_end_matches([' ', '\t', '"', '\'']);
    let is_part = |c: char| c.is_ascii_alphanumeric() || "_-.$".contains(c);
    &key[key.trim_end_matches(is_part).len()..]
}

fn is_secret(key: &str) -> bool {
    KEYS.iter().any(|word| key.contains(word))
}

/// From where to where the value of a key is, whose `=` or `:` is at `at`.
fn value_after(line: &str, at: usize) -> (usize, usize) {
    let rest = &line[at + 1..];
    let start = at + 1 + (rest.len() - rest.trim_start_matches([' ', '\t']).len());
    let value = &line[start..];
    if let Some(quote) = value.chars().next().filter(|first| "\"'".contains(*first)) {
        let inside = &value[1..];
        let mut is_escaped = false;
        let end = inside.find(|c| {
            let is_end = c == quote && !is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            is_end
        });
        return (start + 1, start + 1 + end.unwrap_or(inside.len()));
    }
    // A line that begins with its key is a property: all of it is the value. A line of many keys ends each with a blank.
    let is_property = line[..at].split_ascii_whitespace().count() == 1 && !line.starts_with([' ', '\t']);
    let end = if is_property {
        None
    } else {
        value.find([' ', '\t', ',', ';', '&', '}'])
    };
    (start, start + end.unwrap_or(value.len()))
}

/// Name and password of a URL whose authority starts at `at`.
fn user_info(line: &str, at: usize) -> Option<(usize, usize)> {
    let authority = line[at..].split(['/', ' ', '\t', '"', '\'']).next()?;
    let end = authority.rfind('@')?;
    authority[..end].contains(':').then_some((at, at + end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(line: &str) -> String {
        Redactor::default().line(line).unwrap_or_default().into_owned()
    }

    #[test]
    fn secrets_are_hidden_in_every_way_they_are_written() {
        for (line, wanted) in [
            ("keystore.passphrase=a b c", "keystore.passphrase=***"),
            (
                " template=domP vmpassword=x=y name=s-1-VM keystore_password=Wm== userdata=H4s port=8250",
                " template=domP vmpassword=*** name=s-1-VM keystore_password=*** userdata=*** port=8250",
            ),
            (
                r#"{"ipsec_psk":"bLue\"Horse","ip":"192.0.2.1"}"#,
                r#"{"ipsec_psk":"***","ip":"192.0.2.1"}"#,
            ),
            (r#"{ "password" : "x" }"#, r#"{ "password" : "***" }"#),
            (": PSK \"key of all\"", ": PSK ***"),
            ("    auth_pass 1234", "    auth_pass ***"),
            ("\tstats auth admin:admin", "\tstats auth ***"),
            (
                " neighbor 192.0.2.1 password hunter2",
                " neighbor 192.0.2.1 password ***",
            ),
            ("GET https://user:pass@example.org/x", "GET https://***@example.org/x"),
            ("GET /?apiKey=abc&signature=x", "GET /?apiKey=***&signature=x"),
            ("Authorization: Basic abc=", "Authorization: ***"),
        ] {
            assert_eq!(one(line), wanted);
        }
    }

    #[test]
    fn everything_else_stays() {
        for line in [
            "",
            "host=192.0.2.10",
            "cloud-scripts-signature",
            "http://192.0.2.1:80/x@y",
            "a: b",
            "psk",
            "é=ü",
        ] {
            assert_eq!(one(line), line);
        }
    }

    #[test]
    fn nothing_of_a_private_key_is_left() {
        let mut redactor = Redactor::default();
        let text = "a\n-----BEGIN EC PRIVATE KEY-----\nMHc\nCAQ=\n-----END EC PRIVATE KEY-----\nb";
        let left: Vec<_> = text.lines().filter_map(|line| redactor.line(line)).collect();
        assert_eq!(left, ["a", "***", "b"]);
        let one_line = "key=-----BEGIN~PRIVATE KEY-----^MHc^-----END~PRIVATE KEY-----^";
        assert_eq!(one(one_line), "key=***");
        assert_eq!(one("-----BEGIN CERTIFICATE-----"), "-----BEGIN CERTIFICATE-----");
    }

    proptest! {
        #[test]
        fn a_password_never_stays(before in "[a-z =]{0,12}", key in "(vm|keystore_)?[pP]assword", secret in "[A-Z0-9]{8,20}") {
            for line in [format!("{before} {key}={secret}"), format!("{before} \"{key}\": \"{secret}\", x"), format!("{key} = {secret}")] {
                prop_assert!(!one(&line).contains(&secret), "{line}: {}", one(&line));
            }
        }

        #[test]
        fn no_line_makes_it_panic(lines: Vec<String>) {
            let mut redactor = Redactor::default();
            for line in &lines {
                let _shown = redactor.line(line);
            }
        }
    }
}
