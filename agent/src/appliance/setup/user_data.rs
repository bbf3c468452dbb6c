//! User data (§5.5): what an administrator wants done at the first start of a VM. Pure: from bytes to typed wishes.
//!
//! A script (`#!`), or `#cloud-config` with `write_files` and `runcmd`. cloud-init's manual says what the words mean; its other
//! modules are not here, and are named in the log when somebody uses them.

use std::fmt::Write as _;
use std::io::{self, Read};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use flate2::read::MultiGzDecoder;
use yaml_rust2::parser::{Event, Parser};
use yaml_rust2::scanner::ScanError;
use yaml_rust2::{Yaml, YamlLoader};

/// Bytes, unpacked: cloud-init's own sources take less.
const MAX_TEXT: u64 = 1 << 20;
/// Bytes of one file, unpacked.
const MAX_FILE: u64 = 8 << 20;
/// Levels of YAML: the deepest that is of use has four.
const MAX_DEPTH: usize = 32;
/// Characters of a first line in an error.
const SHOWN: usize = 40;

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserData {
    /// A program of its own, beginning with `#!`.
    Script(String),
    /// `#cloud-config`.
    CloudConfig(CloudConfig),
}

/// The part of cloud-config that is done here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CloudConfig {
    /// `write_files`, in order; written before `script` runs.
    pub files: Vec<WantedFile>,
    /// `runcmd`, as a script of sh; `None` when there is none.
    pub script: Option<String>,
    /// Keys that nobody here knows.
    pub ignored: Vec<String>,
}

/// An element of `write_files`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedFile {
    /// Absolute.
    pub path: String,
    /// Decoded.
    pub contents: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// `user:group` or `user`.
    pub owner: Option<String>,
    /// Add to what is there.
    pub is_appended: bool,
}

/// Why nothing is done.
#[derive(Debug, thiserror::Error)]
pub enum BadUserData {
    /// gzip says no.
    #[error("it is not whole gzip, or longer than {MAX_TEXT} bytes")]
    Packed(#[source] io::Error),
    /// Too much.
    #[error("it is longer than {MAX_TEXT} bytes")]
    TooLong,
    /// Not text.
    #[error("it is not UTF-8 text")]
    NotText,
    /// Another format.
    #[error("it begins with {0:?}; only a script (`#!`) or `#cloud-config` is understood here")]
    Unknown(String),
    /// Not YAML.
    #[error("it is not YAML")]
    Yaml(#[from] ScanError),
    /// YAML, but more than plain lists and tables.
    #[error("its YAML has {0}")]
    TooMuch(&'static str),
    /// A known key with an unknown value.
    #[error("{at}: expected {wanted}")]
    Value {
        /// Such as `write_files[2].encoding`.
        at: String,
        /// What would be right.
        wanted: &'static str,
    },
}

impl UserData {
    /// Reads what boot arguments carry: text, or gzip of it. `None` when there is nothing in it.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, BadUserData> {
        let text = match bytes {
            [0x1F, 0x8B, ..] => unpack(bytes, MAX_TEXT).map_err(BadUserData::Packed)?,
            plain if u64::try_from(plain.len()).is_ok_and(|length| length > MAX_TEXT) => {
                return Err(BadUserData::TooLong);
            }
            plain => plain.to_owned(),
        };
        let text = String::from_utf8(text).map_err(|_| BadUserData::NotText)?;
        let first = text.lines().next().unwrap_or_default();
        if text.trim().is_empty() {
            Ok(None)
        } else if first.starts_with("#!") {
            Ok(Some(Self::Script(text)))
        } else if first.trim_end() == "#cloud-config" {
            Ok(Some(Self::CloudConfig(CloudConfig::parse(&text)?)))
        } else {
            Err(BadUserData::Unknown(first.chars().take(SHOWN).collect()))
        }
    }
}

impl CloudConfig {
    fn parse(text: &str) -> Result<Self, BadUserData> {
        check_shape(text)?;
        let documents = YamlLoader::load_from_str(text)?;
        let table = match documents.as_slice() {
            [] | [Yaml::Null] => return Ok(Self::default()),
            [Yaml::Hash(table)] => table,
            _ => return Err(wanted("the document", "one table of keys")),
        };
        let mut config = Self::default();
        for (key, value) in table {
            match key.as_str() {
                Some("write_files") => config.files = list(value, "write_files", wanted_file)?,
                Some("runcmd") => {
                    let lines = list(value, "runcmd", command)?;
                    config.script = (!lines.is_empty()).then(|| format!("#!/bin/sh\n{}\n", lines.join("\n")));
                }
                Some(other) => config.ignored.push(other.to_owned()),
                None => return Err(wanted("a key", "a word")),
            }
        }
        Ok(config)
    }
}

/// Depth, and no aliases: a few bytes of them can stand for gigabytes.
fn check_shape(text: &str) -> Result<(), BadUserData> {
    let mut parser = Parser::new_from_str(text);
    let mut depth = 0_usize;
    loop {
        match parser.next_token()?.0 {
            Event::StreamEnd => return Ok(()),
            Event::Alias(_) => return Err(BadUserData::TooMuch("an alias (`*name`)")),
            Event::MappingStart(..) | Event::SequenceStart(..) => depth += 1,
            Event::MappingEnd | Event::SequenceEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(BadUserData::TooMuch("too many levels"));
        }
    }
}

fn wanted_file(value: &Yaml, at: &str) -> Result<WantedFile, BadUserData> {
    let path = value["path"]
        .as_str()
        .filter(|path| path.starts_with('/') && !path.ends_with('/'));
    let path = path.ok_or_else(|| wanted(&format!("{at}.path"), "an absolute path"))?;
    let text = match &value["content"] {
        Yaml::BadValue | Yaml::Null => "",
        content => content
            .as_str()
            .ok_or_else(|| wanted(&format!("{at}.content"), "text"))?,
    };
    let encoding = match &value["encoding"] {
        Yaml::BadValue | Yaml::Null => "text/plain",
        encoding => encoding.as_str().unwrap_or_default(),
    };
    let bad = |what| {
        move || {
            wanted(
                &format!("{at}.{what}"),
                "base64, gzip, gz+base64, or text that is so encoded",
            )
        }
    };
    let is_base64 = |text: &str| {
        BASE64_STANDARD
            .decode(text.split_ascii_whitespace().collect::<String>())
            .ok()
    };
    let contents = match encoding {
        "text/plain" => text.as_bytes().to_owned(),
        "b64" | "base64" => is_base64(text).ok_or_else(bad("content"))?,
        "gz" | "gzip" => unpack(text.as_bytes(), MAX_FILE).map_err(|_| bad("content")())?,
        "gz+b64" | "gz+base64" | "gzip+b64" | "gzip+base64" => is_base64(text)
            .and_then(|packed| unpack(&packed, MAX_FILE).ok())
            .ok_or_else(bad("content"))?,
        _ => return Err(bad("encoding")()),
    };
    Ok(WantedFile {
        path: path.to_owned(),
        contents,
        mode: mode(&value["permissions"])
            .ok_or_else(|| wanted(&format!("{at}.permissions"), "permission bits such as '0644'"))?,
        owner: value["owner"].as_str().map(str::to_owned),
        is_appended: value["append"].as_bool().unwrap_or(false),
    })
}

/// YAML reads `0644` without quotes as a number with these digits.
fn mode(value: &Yaml) -> Option<u32> {
    let digits = match value {
        Yaml::BadValue | Yaml::Null => return Some(0o644),
        Yaml::Integer(number) => number.to_string(),
        other => other.as_str()?.trim_start_matches("0o").to_owned(),
    };
    u32::from_str_radix(&digits, 8).ok().filter(|mode| *mode <= 0o7777)
}

/// A line for sh: text as it is, a list with each word quoted.
fn command(value: &Yaml, at: &str) -> Result<String, BadUserData> {
    let line = match value {
        Yaml::String(line) => Some(line.clone()),
        Yaml::Array(words) => {
            let words: Option<Vec<_>> = words.iter().map(|word| Some(quoted(&scalar(word)?))).collect();
            words.map(|words| words.join(" "))
        }
        _ => None,
    };
    line.ok_or_else(|| wanted(at, "a line of text or a list of words"))
}

fn scalar(value: &Yaml) -> Option<String> {
    match value {
        Yaml::String(text) | Yaml::Real(text) => Some(text.clone()),
        Yaml::Integer(number) => Some(number.to_string()),
        Yaml::Boolean(is_true) => Some(is_true.to_string()),
        _ => None,
    }
}

fn quoted(word: &str) -> String {
    let mut text = String::with_capacity(word.len() + 2);
    write!(text, "'{}'", word.replace('\'', "'\\''")).expect("a String takes everything");
    text
}

fn list<T>(
    value: &Yaml,
    key: &str,
    read: impl Fn(&Yaml, &str) -> Result<T, BadUserData>,
) -> Result<Vec<T>, BadUserData> {
    match value {
        Yaml::Null => Ok(Vec::new()),
        Yaml::Array(items) => {
            let items = items.iter().enumerate();
            items
                .map(|(index, item)| read(item, &format!("{key}[{index}]")))
                .collect()
        }
        _ => Err(wanted(key, "a list")),
    }
}

fn wanted(at: &str, wanted: &'static str) -> BadUserData {
    BadUserData::Value {
        at: at.to_owned(),
        wanted,
    }
}

fn unpack(packed: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    MultiGzDecoder::new(packed).take(limit + 1).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= limit => Ok(bytes),
        _ => Err(io::ErrorKind::FileTooLarge.into()),
    }
}

#[cfg(test)]
mod tests;
