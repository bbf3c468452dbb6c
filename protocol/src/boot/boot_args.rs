//! The grammar of the line: words, keys, values, limits.

use std::fmt;

use indexmap::IndexMap;
use serde::Serialize;

use super::BadBootArgs;

/// Bytes. The longest known carrier, one argument of `virsh`, ends at 128 KiB.
const LINE_LIMIT: usize = 256 * 1024;
/// A stock server sends about forty words; a kernel command line around them adds a few.
const WORDS_LIMIT: usize = 1024;
/// Bytes. The longest key of a stock server has 32.
const KEY_LIMIT: usize = 64;

/// The boot arguments as they were sent: pairs in order (the last of equal keys wins), unknown ones included.
///
/// Contains passwords: `Debug` shows `***` for them, [`BootArgs::to_line`] and [`BootArgs::cmd_line`] do not.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct BootArgs {
    pairs: IndexMap<String, String>,
    stray_words: Vec<String>,
}

impl BootArgs {
    /// Splits a line at white space (and NUL, the padding of Hyper-V's records), and each word at its first `=`.
    pub fn parse(line: impl AsRef<[u8]>) -> Result<Self, BadBootArgs> {
        Self::split(line.as_ref(), is_separator)
    }

    /// The same for a line that came through XenServer, where every `%` stands for a space.
    pub fn parse_xen(line: impl AsRef<[u8]>) -> Result<Self, BadBootArgs> {
        Self::split(line.as_ref(), |byte| byte == b'%' || is_separator(byte))
    }

    fn split(line: &[u8], is_separator: fn(u8) -> bool) -> Result<Self, BadBootArgs> {
        if line.len() > LINE_LIMIT {
            return Err(BadBootArgs::new(vec![format!(
                "{} bytes: expected at most {LINE_LIMIT}",
                line.len()
            )]));
        }
        let mut args = Self::default();
        let mut problems = Vec::new();
        for (index, word) in line
            .split(|byte| is_separator(*byte))
            .filter(|word| !word.is_empty())
            .enumerate()
        {
            if index == WORDS_LIMIT {
                problems.push(format!("too many words: expected at most {WORDS_LIMIT}"));
                break;
            }
            if let Err(problem) = args.take_word(word) {
                problems.push(problem);
            }
        }
        if problems.is_empty() {
            Ok(args)
        } else {
            Err(BadBootArgs::new(problems))
        }
    }

    /// Problems name the key only: what follows it may be a secret.
    fn take_word(&mut self, word: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(word);
        let Some((key, value)) = text.split_once('=') else {
            self.stray_words.push(text.into_owned());
            return Ok(());
        };
        if !is_key(key) {
            let shown: String = key.chars().take(KEY_LIMIT).collect();
            return Err(format!(
                "{shown:?}: expected a key of 1 to {KEY_LIMIT} letters, digits, `.`, `_` and `-`"
            ));
        }
        if std::str::from_utf8(word).is_err() || value.contains(char::is_control) {
            return Err(format!("{key}: expected printable UTF-8 text"));
        }
        self.pairs.insert(key.to_owned(), value.to_owned());
        Ok(())
    }

    /// The value of a key. Empty values and `null` (Java's, concatenated) count as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs
            .get(key)
            .map(String::as_str)
            .filter(|value| is_present(value))
    }

    /// All pairs that have a value, in order: what the stock image appends to `agent.properties`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let pairs = self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        pairs.filter(|(_, value)| is_present(value))
    }

    /// The values that must stay out of logs, errors and whatever else people are shown.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        self.iter().filter(|(key, _)| is_secret(key)).map(|(_, value)| value)
    }

    /// Words without `=`: harmless (a kernel command line has some, a domain list with spaces makes some), worth a log
    /// line.
    pub fn stray_words(&self) -> &[String] {
        &self.stray_words
    }

    /// The line again, **secrets included**: [`BootArgs::parse`] of it gives an equal value.
    pub fn to_line(&self) -> String {
        let pairs = self.pairs.iter().map(|(key, value)| format!("{key}={value}"));
        pairs
            .chain(self.stray_words.iter().cloned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// The document `/var/cache/cloud/cmd_line.json`, **secrets included**, with every value as it was sent.
    pub fn cmd_line(&self) -> impl Serialize + '_ {
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: &'static str,
            cmd_line: &'a IndexMap<String, String>,
        }
        Document {
            r#type: "cmdline",
            cmd_line: &self.pairs,
        }
    }

    /// The pairs whose key passes.
    pub(super) fn only(&self, mut is_wanted: impl FnMut(&str) -> bool) -> Self {
        let pairs = self.pairs.iter().filter(|(key, _)| is_wanted(key));
        Self {
            pairs: pairs.map(|(key, value)| (key.clone(), value.clone())).collect(),
            stray_words: Vec::new(),
        }
    }
}

impl fmt::Debug for BootArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self
            .pairs
            .iter()
            .map(|(key, value)| (key, if is_secret(key) { "***" } else { value }));
        f.debug_map().entries(shown).finish()
    }
}

/// Whether a key's value must stay out of logs and errors. Asked of unknown keys too, so it goes by the words in them.
/// User data counts: people put passwords there.
pub(super) fn is_secret(key: &str) -> bool {
    const WORDS: [&str; 8] = [
        "password",
        "passphrase",
        "passwd",
        "secret",
        "privatekey",
        "apikey",
        "securitykey",
        "userdata",
    ];
    let key = key.to_ascii_lowercase();
    WORDS.iter().any(|word| key.contains(word))
}

const fn is_separator(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

fn is_key(key: &str) -> bool {
    (1..=KEY_LIMIT).contains(&key.len())
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_present(value: &str) -> bool {
    !matches!(value, "" | "null")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn args(line: &str) -> BootArgs {
        BootArgs::parse(line).unwrap()
    }

    #[test]
    fn any_run_of_white_space_separates_words() {
        assert_eq!(args("  a=1   b=2\t c=3\r\n\0").to_line(), "a=1 b=2 c=3");
    }

    #[test]
    fn a_value_keeps_everything_after_the_first_equals_sign() {
        assert_eq!(args("key=Zm9vYg==").get("key"), Some("Zm9vYg=="));
    }

    #[test]
    fn the_last_of_equal_keys_wins() {
        assert_eq!(args("dns1=1.1.1.1 dns1=9.9.9.9").get("dns1"), Some("9.9.9.9"));
        assert_eq!(args("dns1=1.1.1.1 dns1=null").get("dns1"), None);
    }

    #[test]
    fn null_and_empty_values_are_absent_but_stay_in_the_document() {
        let args = args("a=null b= c=1");
        assert_eq!(args.iter().collect::<Vec<_>>(), [("c", "1")]);
        assert_eq!(
            serde_json::to_string(&args.cmd_line()).unwrap(),
            r#"{"type":"cmdline","cmd_line":{"a":"null","b":"","c":"1"}}"#
        );
    }

    #[test]
    fn percent_signs_separate_only_what_comes_through_xenserver() {
        assert_eq!(BootArgs::parse_xen("%a=1%%b=2").unwrap().to_line(), "a=1 b=2");
        assert_eq!(args("a=1%b").get("a"), Some("1%b"));
    }

    #[test]
    fn words_without_an_equals_sign_are_kept_apart() {
        let args = args("ro quiet a=1");
        assert_eq!(args.stray_words(), ["ro", "quiet"]);
        assert_eq!(args.to_line(), "a=1 ro quiet");
    }

    #[test]
    fn every_bad_word_is_reported_and_no_value_shown() {
        let error = BootArgs::parse(b"=x vm/password=hush a=\xff b=\x1b[1m c=1").unwrap_err();
        assert_eq!(
            error.found_in("/var/cache/cloud/cmdline").to_string(),
            r#"in /var/cache/cloud/cmdline: 4 boot argument(s) need fixing
  "": expected a key of 1 to 64 letters, digits, `.`, `_` and `-`
  "vm/password": expected a key of 1 to 64 letters, digits, `.`, `_` and `-`
  a: expected printable UTF-8 text
  b: expected printable UTF-8 text"#
        );
    }

    #[test]
    fn lines_beyond_the_limits_are_refused() {
        let problems = |line: String| BootArgs::parse(line).unwrap_err().problems().to_vec();
        assert_eq!(
            problems("a".repeat(LINE_LIMIT + 1)),
            ["262145 bytes: expected at most 262144"]
        );
        assert_eq!(
            problems("a=1 ".repeat(WORDS_LIMIT + 1)),
            ["too many words: expected at most 1024"]
        );
    }

    #[test]
    fn debug_output_hides_secrets_of_known_and_unknown_keys() {
        assert_eq!(
            format!("{:?}", args("vmpassword=a new.Password=b name=c")),
            r#"{"vmpassword": "***", "new.Password": "***", "name": "c"}"#
        );
    }

    proptest! {
        #[test]
        fn a_rendered_line_parses_to_the_same_arguments(
            words in prop::collection::vec("[a-z0-9.]{1,5}(=[!-~äß=]{0,12})?", 0..40),
        ) {
            let args = args(&words.join("  "));
            let again = BootArgs::parse(args.to_line()).unwrap();
            prop_assert_eq!(&again, &args);
            prop_assert!(again.iter().eq(args.iter()));
        }

        #[test]
        fn noise_is_parsed_or_refused_without_a_panic(noise: Vec<u8>) {
            let _ = BootArgs::parse_xen(&noise);
            let _ = BootArgs::parse(&noise).map_err(|error| error.to_string());
        }
    }
}
