//! `template.properties` and `volume.properties`: what a store says of an image (ssvm.md §2.1).
//!
//! They are Java properties, read by other SSVMs and by the original: ISO 8859-1, with escapes.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::str::Chars;

use time::{OffsetDateTime, UtcOffset};

use crate::path::StorePath;

/// Bytes of such a file: real ones have less than 1 KiB.
pub const MAX_BYTES: u64 = 256 << 10;

/// Extensions that name a format, in the order in which entries are looked for.
const EXTENSIONS: [&str; 8] = ["qcow2", "raw", "vhd", "vhdx", "iso", "ova", "vmdk", "tar"];

/// A file that upstream's loader would not take either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadProperties {
    /// Java refuses it, too.
    #[error("`\\u` is not followed by four hexadecimal digits")]
    BadEscape,
    /// Nothing is that large.
    #[error("more than {MAX_BYTES} bytes")]
    TooLarge,
    /// A key that must be there, or a value that is no number.
    #[error("`{key}` is missing or no number: {value:?}")]
    BadNumber {
        /// The key.
        key: String,
        /// Its value.
        value: Option<String>,
    },
}

/// Keys and values of a Java properties file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

impl Properties {
    /// Reads the format of `java.util.Properties.load`. A key that is there twice has its last value.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadProperties> {
        if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
            return Err(BadProperties::TooLarge);
        }
        // ISO 8859-1: each byte is the character of that number.
        let text: String = bytes.iter().map(|byte| char::from(*byte)).collect();
        let mut properties = BTreeMap::new();
        for line in logical_lines(&text) {
            let (key, value) = split(&line);
            properties.insert(unescape(key)?, unescape(value)?);
        }
        Ok(Self(properties))
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets a value.
    pub fn set(&mut self, key: impl Into<String>, value: &(impl Display + ?Sized)) {
        self.0.insert(key.into(), value.to_string());
    }

    /// Renders the format of `java.util.Properties.store`, with `now` in the second line. Keys are sorted.
    pub fn render(&self, now: OffsetDateTime) -> Vec<u8> {
        let now = now.to_offset(UtcOffset::UTC);
        let (weekday, month) = (now.weekday().to_string(), now.month().to_string());
        let (day, hour, minute, second, year) = (now.day(), now.hour(), now.minute(), now.second(), now.year());
        let mut text = format!("#\n#{weekday:.3} {month:.3} {day:02} {hour:02}:{minute:02}:{second:02} UTC {year}\n");
        for (key, value) in &self.0 {
            escape(key, true, &mut text);
            text.push('=');
            escape(value, false, &mut text);
            text.push('\n');
        }
        text.into_bytes() // ASCII: everything else is escaped
    }
}

/// What is known of an image that was installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image<'a> {
    /// Name of its file.
    pub filename: &'a str,
    /// Display text.
    pub description: &'a str,
    /// Needs hardware virtualisation.
    pub hvm: bool,
    /// Bytes of the file.
    pub size: u64,
    /// For volumes: `{ALGORITHM}hex`, or empty. Templates have none.
    pub checksum: Option<&'a str>,
}

impl Image<'_> {
    /// What a store that upstream fills has while an image is not finished; the first half of [`Image::stage2`].
    fn stage1(&self) -> Properties {
        let mut properties = Properties::default();
        properties.set("filename", self.filename);
        properties.set("description", self.description);
        if let Some(checksum) = self.checksum {
            properties.set("checksum", checksum);
        }
        properties.set("hvm", &self.hvm);
        properties.set("size", &self.size);
        properties
    }

    /// Of a finished image. `extension` is that of the format.
    pub fn stage2(&self, id: i64, unique_name: &str, extension: &str, virtual_size: u64) -> Properties {
        let mut properties = self.stage1();
        properties.set("id", &id);
        properties.set("public", &true);
        properties.set("uniquename", unique_name);
        properties.set("virtualsize", &virtual_size);
        properties.set(extension, &true);
        properties.set(format!("{extension}.filename"), self.filename);
        properties.set(format!("{extension}.size"), &self.size);
        properties.set(format!("{extension}.virtualsize"), &virtual_size);
        properties
    }
}

/// One line of a listing of a store: `TemplateProp` of ListTemplateAnswer and ListVolumeAnswer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Database id.
    pub id: i64,
    /// Relative to the store.
    pub install_path: String,
    /// `uniquename`: the key of the listing.
    pub unique_name: String,
    /// Bytes the guest sees.
    pub virtual_size: i64,
    /// Bytes of the file; 0 when it does not tell.
    pub physical_size: i64,
    /// For everybody.
    pub is_public: bool,
    /// A format's entry makes no sense.
    pub is_corrupted: bool,
    /// Display text.
    pub description: Option<String>,
}

impl Entry {
    /// What the properties in `directory` (relative to the store, such as `template/tmpl/2/207`) say; `None` if they are
    /// of an image that is not finished. A finished one without a good id is an error: leave it out and log.
    pub fn load(properties: &Properties, directory: &str) -> Result<Option<Self>, BadProperties> {
        let number = |key: &str| match properties.get(key) {
            None => Ok(None),
            Some(text) => text
                .trim()
                .parse::<i64>()
                .map(Some)
                .map_err(|_| BadProperties::BadNumber {
                    key: key.to_owned(),
                    value: Some(text.to_owned()),
                }),
        };
        let mut formats = 0;
        let mut is_corrupted = false;
        for extension in EXTENSIONS {
            let filename = format!("{extension}.filename");
            if properties.get(extension).is_none() || properties.get(&filename).is_none_or(str::is_empty) {
                continue;
            }
            formats += 1;
            let size = number(&format!("{extension}.size"))?.unwrap_or(-1);
            let virtual_size = number(&format!("{extension}.virtualsize"))?.unwrap_or(-1);
            is_corrupted |= size <= 0 || virtual_size <= 0;
        }
        let (Some(unique_name), Some(virtual_size)) = (properties.get("uniquename"), number("virtualsize")?) else {
            return Ok(None);
        };
        if formats == 0 {
            return Ok(None);
        }
        let id = number("id")?.ok_or_else(|| BadProperties::BadNumber {
            key: "id".to_owned(),
            value: None,
        })?;
        let filename = properties.get("filename").unwrap_or_default();
        // The name comes from a file that others may have written: it must not lead out of the directory.
        let Ok(filename) = StorePath::parse_name(filename) else {
            return Err(BadProperties::BadNumber {
                key: "filename".to_owned(),
                value: Some(filename.to_owned()),
            });
        };
        Ok(Some(Self {
            id,
            install_path: format!("{}/{filename}", directory.trim_matches('/')),
            unique_name: unique_name.to_owned(),
            virtual_size,
            physical_size: number("size")?.unwrap_or(0),
            is_public: properties
                .get("public")
                .is_some_and(|value| value.eq_ignore_ascii_case("true")),
            is_corrupted,
            description: properties.get("description").map(str::to_owned),
        }))
    }
}

/// Lines without comments and blank ones; those that end in an odd number of backslashes go on in the next.
fn logical_lines(text: &str) -> Vec<String> {
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\x0c');
    let mut lines = Vec::new();
    let mut open: Option<String> = None;
    for line in text.split(['\n', '\r']) {
        let line = line.trim_start_matches(is_blank);
        let is_more = open.is_some();
        if !is_more && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        let mut whole = open.take().unwrap_or_default();
        whole.push_str(line);
        let backslashes = line.len() - line.trim_end_matches('\\').len();
        if backslashes % 2 == 1 {
            whole.pop();
            open = Some(whole);
        } else {
            lines.push(whole);
        }
    }
    lines.extend(open.filter(|line| !line.is_empty()));
    lines
}

/// The key ends at the first blank, `=` or `:` that is not escaped; blanks and one such character follow it.
fn split(line: &str) -> (&str, &str) {
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\x0c');
    let mut is_escaped = false;
    let end = line.find(|c: char| {
        let ends = !is_escaped && (is_blank(c) || matches!(c, '=' | ':'));
        is_escaped = !is_escaped && c == '\\';
        ends
    });
    let (key, rest) = line.split_at(end.unwrap_or(line.len()));
    let rest = rest.trim_start_matches(is_blank);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest);
    (key, value.trim_start_matches(is_blank))
}

fn unescape(text: &str) -> Result<String, BadProperties> {
    let mut units: Vec<u16> = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '\\' => match chars.next() {
                Some('u') => {
                    units.push(hex4(&mut chars)?);
                    continue;
                }
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0c',
                Some(other) => other,
                None => break,
            },
            other => other,
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    Ok(String::from_utf16_lossy(&units))
}

fn hex4(chars: &mut Chars<'_>) -> Result<u16, BadProperties> {
    let mut unit = 0;
    for _ in 0..4 {
        let digit = chars
            .next()
            .and_then(|c| c.to_digit(16))
            .ok_or(BadProperties::BadEscape)?;
        unit = unit * 16 + u16::try_from(digit).unwrap_or(0);
    }
    Ok(unit)
}

fn escape(text: &str, is_key: bool, out: &mut String) {
    for (at, c) in text.char_indices() {
        match c {
            ' ' if at == 0 || is_key => out.push_str("\\ "),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\x0c' => out.push_str("\\f"),
            '=' | ':' | '#' | '!' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04X}"); // a String takes everything
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use std::fs::{self, File};
    use std::path::{Path, PathBuf};

    use super::*;

    fn vectors() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
    }

    fn json() -> Value {
        serde_json::from_reader(File::open(vectors().join("properties-cases.json")).unwrap()).unwrap()
    }

    fn file(name: &str) -> Properties {
        Properties::parse(&fs::read(vectors().join(name)).unwrap()).unwrap()
    }

    fn now() -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(1_795_177_491).unwrap()
    }

    #[test]
    fn what_java_wrote_reads_and_reads_again_after_we_wrote_it() {
        let vectors = json();
        let escapes = &vectors["escapes"];
        let found = file(escapes["file"].as_str().unwrap());
        let wanted = escapes["map"].as_object().unwrap();
        assert_eq!(found.0.len(), wanted.len());
        for (key, value) in wanted {
            assert_eq!(found.get(key), value.as_str());
        }
        assert_eq!(Properties::parse(&found.render(now())), Ok(found));
    }

    #[test]
    fn listings_are_those_of_the_vectors() {
        for case in json()["cases"].as_array().unwrap() {
            let properties = match case["file"].as_str() {
                Some(name) => file(name),
                None => Properties::parse(case["text"].as_str().unwrap().as_bytes()).unwrap(),
            };
            let entry = Entry::load(&properties, case["dir"].as_str().unwrap());
            if case["required"].is_string() {
                let error = entry.unwrap_err().to_string();
                assert_eq!(error, "`id` is missing or no number: None");
                continue;
            }
            let entry = entry.unwrap();
            assert_eq!(entry.is_some(), case["load"].as_bool().unwrap(), "{case}");
            let Some(entry) = entry else { continue };
            let wanted = &case["prop"];
            let found = serde_json::json!({
                "id": entry.id, "installPath": entry.install_path, "templateName": entry.unique_name,
                "size": entry.virtual_size, "physicalSize": entry.physical_size, "isPublic": entry.is_public,
                "isCorrupted": entry.is_corrupted,
            });
            assert_eq!(&found, wanted);
            if let Some(description) = case["description"].as_str() {
                assert_eq!(entry.description.as_deref(), Some(description));
            }
        }
    }

    #[test]
    fn both_stages_have_the_keys_of_the_vectors() {
        let image = Image {
            filename: "6f1f0a5e-9d33-3b77-8c0d-2f1f6f9b4d55.qcow2",
            description: "Demo image: v1",
            hvm: true,
            size: 196_616,
            checksum: None,
        };
        assert_eq!(image.stage1(), file("properties/template-qcow2.stage1.properties"));
        let stage2 = image.stage2(207, "207-2-0b7f6d0e-6c39-3a53-9d9d-1c2e0bb0a6a1", "qcow2", 10_485_760);
        assert_eq!(stage2, file("properties/template-qcow2.stage2.properties"));
        let volume = Image {
            filename: "a2bd3f6e-11ac-3f0c-9a70-8f0b3b6d3c21.qcow2",
            description: "",
            hvm: false,
            size: 196_616,
            checksum: Some(""),
        };
        assert_eq!(volume.stage1(), file("properties/volume-qcow2.stage1.properties"));
        assert_eq!(
            volume.stage2(31, "data disk", "qcow2", 10_485_760),
            file("properties/volume-qcow2.stage2.properties")
        );
    }

    #[test]
    fn a_line_break_in_a_description_adds_no_key() {
        let image = Image {
            filename: "a.qcow2",
            description: "x\nuniquename=evil",
            hvm: false,
            size: 1,
            checksum: None,
        };
        let text = image.stage1().render(now());
        assert!(text.ends_with(b"description=x\\nuniquename\\=evil\nfilename=a.qcow2\nhvm=false\nsize=1\n"));
        assert_eq!(Properties::parse(&text), Ok(image.stage1()));
    }

    #[test]
    fn the_head_is_javas() {
        let text = String::from_utf8(Properties::default().render(now())).unwrap();
        assert_eq!(text, "#\n#Fri Nov 20 12:24:51 UTC 2026\n");
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_not_listed() {
        let mut properties = file("properties/systemvm.properties");
        properties.set("filename", "../../../etc/shadow");
        Entry::load(&properties, "template/tmpl/1/3").unwrap_err();
    }

    proptest! {
        #[test]
        fn any_map_survives(map in prop::collection::btree_map(".{1,20}", ".{0,40}", 0..8)) {
            let properties = Properties(map);
            prop_assert_eq!(Properties::parse(&properties.render(now())), Ok(properties));
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Ok(properties) = Properties::parse(&bytes) {
                let _ = Entry::load(&properties, "template/tmpl/1/3");
            }
        }
    }
}
