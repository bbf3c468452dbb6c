//! Takes typed values out of boot arguments and remembers everything that was wrong.

use std::collections::BTreeSet;
use std::str::FromStr;

use super::boot_args::is_secret;
use super::{BadBootArgs, BootArgs};

/// Characters of a value shown in a problem: enough to recognise it, few enough to read the next problem.
const SHOWN_LIMIT: usize = 80;

/// Reads boot arguments. Each `None` for a present or required key leaves a problem behind, so read every key first
/// and build the result in [`Reader::finish`].
#[derive(Debug)]
pub struct Reader<'a> {
    args: &'a BootArgs,
    asked: BTreeSet<String>,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// Starts without problems.
    pub const fn new(args: &'a BootArgs) -> Self {
        Self {
            args,
            asked: BTreeSet::new(),
            problems: Vec::new(),
        }
    }

    /// A value that must be there. `expected` completes "expected …", such as "a port number".
    pub fn required<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        self.required_if(true, key, expected)
    }

    /// A value that must be there when something else is.
    pub fn required_if<T: FromStr>(&mut self, is_required: bool, key: &str, expected: &str) -> Option<T> {
        if is_required && self.args.get(key).is_none() {
            self.problems.push(format!("{key}: missing, expected {expected}"));
        }
        self.optional(key, expected)
    }

    /// A value that may be absent.
    pub fn optional<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        self.parsed(key, expected, |text| text.parse().ok())
    }

    /// A value that may be absent and has a grammar of its own.
    pub fn parsed<T>(&mut self, key: &str, expected: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(key)?;
        let value = parse(text);
        if value.is_none() {
            self.unexpected(key, text, expected);
        }
        value
    }

    /// Yes or no, with what absence means.
    pub fn flag(&mut self, key: &str, when_absent: bool) -> bool {
        let flag = self.parsed(key, "true or false", |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        });
        flag.unwrap_or(when_absent)
    }

    /// Values separated by commas; absent is the empty list. Each bad item is a problem of its own.
    pub fn list<T: FromStr>(&mut self, key: &str, expected: &str) -> Vec<T> {
        self.list_separated_by(',', key, expected)
    }

    /// The same with another separator.
    pub fn list_separated_by<T: FromStr>(&mut self, separator: char, key: &str, expected: &str) -> Vec<T> {
        let mut values = Vec::new();
        // An absent entry of a Java list joins as `null`, like an absent value.
        let items = self.text(key).unwrap_or_default().split(separator);
        for item in items.filter(|item| !matches!(*item, "" | "null")) {
            match item.parse() {
                Ok(value) => values.push(value),
                Err(_) => self.unexpected(key, item, expected),
            }
        }
        values
    }

    /// Whether a key has a value, good or bad.
    pub fn has(&self, key: &str) -> bool {
        self.args.get(key).is_some()
    }

    /// The value that `build` makes, or every problem.
    ///
    /// # Panics
    /// When `build` gives `None` although every key was good: then it asks for something else than this reader read.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, BadBootArgs> {
        if !self.problems.is_empty() {
            return Err(BadBootArgs::new(self.problems));
        }
        Ok(build().expect("a reader without problems has given every required value"))
    }

    /// The pairs that nobody asked for.
    pub(super) fn unknown(&self) -> BootArgs {
        self.args.only(|key| !self.asked.contains(key))
    }

    /// Every key that was asked for, present or not.
    pub(super) fn into_asked(self) -> BTreeSet<String> {
        self.asked
    }

    /// The keys of the line, asked for or not.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.args.iter().map(|(key, _)| key)
    }

    fn text(&mut self, key: &str) -> Option<&'a str> {
        self.asked.insert(key.to_owned());
        self.args.get(key)
    }

    fn unexpected(&mut self, key: &str, found: &str, expected: &str) {
        let shown = match found.char_indices().nth(SHOWN_LIMIT) {
            _ if is_secret(key) => "***".to_owned(),
            Some((end, _)) => format!("{}…", &found[..end]),
            None => found.to_owned(),
        };
        self.problems.push(format!("{key}={shown:?}: expected {expected}"));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn problems(line: &str, read: impl FnOnce(&mut Reader<'_>)) -> Vec<String> {
        let args = BootArgs::parse(line).unwrap();
        let mut reader = Reader::new(&args);
        read(&mut reader);
        reader
            .finish(|| Some(()))
            .map_or_else(|error| error.problems().to_vec(), |()| Vec::new())
    }

    #[test]
    fn missing_and_bad_values_are_reported_together() {
        let found = problems("vncport=99999 flag=maybe list=1,x,null,y", |read| {
            assert_eq!(
                read.required::<Ipv4Addr>("eth2ip", "the public IP address of this VM"),
                None
            );
            assert_eq!(read.optional::<u16>("vncport", "a port number"), None);
            assert!(read.flag("flag", true));
            assert_eq!(read.list::<u8>("list", "numbers"), [1]);
        });
        assert_eq!(
            found,
            [
                "eth2ip: missing, expected the public IP address of this VM",
                r#"vncport="99999": expected a port number"#,
                r#"flag="maybe": expected true or false"#,
                r#"list="x": expected numbers"#,
                r#"list="y": expected numbers"#,
            ]
        );
    }

    #[test]
    fn a_problem_shows_no_secret_and_no_endless_value() {
        let line = format!("vmpassword=hush long={}", "ä".repeat(SHOWN_LIMIT + 1));
        let found = problems(&line, |read| {
            read.optional::<u8>("vmpassword", "a number");
            read.optional::<u8>("long", "a number");
        });
        let long = format!("long=\"{}…\": expected a number", "ä".repeat(SHOWN_LIMIT));
        assert_eq!(found, [r#"vmpassword="***": expected a number"#.to_owned(), long]);
    }

    #[test]
    fn what_nobody_asked_for_is_unknown() {
        let args = BootArgs::parse("a=1 b=2 c=3").unwrap();
        let mut reader = Reader::new(&args);
        reader.optional::<u8>("b", "a number");
        assert_eq!(reader.unknown().to_line(), "a=1 c=3");
    }

    proptest! {
        #[test]
        fn every_injected_mistake_is_reported_once(is_bad in prop::collection::vec(any::<bool>(), 0..30)) {
            let word = |(n, bad): (usize, &bool)| format!("k{n}={}", if *bad { "x" } else { "7" });
            let line: Vec<String> = is_bad.iter().enumerate().map(word).collect();
            let found = problems(&line.join(" "), |read| {
                for n in 0..is_bad.len() {
                    read.required::<u8>(&format!("k{n}"), "a number");
                }
            });
            let mistakes = is_bad.iter().enumerate().filter(|(_, bad)| **bad);
            let expected: Vec<String> = mistakes.map(|(n, _)| format!("k{n}=\"x\": expected a number")).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
