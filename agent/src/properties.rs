//! `agent.properties`: a Java properties file that scripts append to and people edit.
//!
//! Only the lines of the keys we set are written anew. Everything else stays byte for byte: comments, order, odd
//! spacing, keys of programs we do not know. What Java reads from a file: `java.util.Properties.load`.

use std::fmt::{self, Write};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use platform::files::{self, Change, FileError};

/// Ours has some forty lines; more than this is another file.
const MAX_BYTES: u64 = 1 << 20;

/// The widest permission bits the file gets: it holds the key store's pass phrase.
const MODE: u32 = 0o640;

/// Between a key and its value, and before either.
const BLANKS: [char; 3] = [' ', '\t', '\x0c'];

/// The file's lines. `Debug` shows keys only: some values are secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Properties {
    lines: Vec<Line>,
}

/// One logical line: as it was found, with continuation lines and line ends, and what Java reads from it.
#[derive(Clone, PartialEq, Eq)]
struct Line {
    raw: Vec<u8>,
    /// Key and value; `None` for a comment or an empty line.
    pair: Option<(String, String)>,
}

impl Properties {
    /// Reads the file; a missing one is empty.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, FileError> {
        Ok(Self::parse(&files::read_limited(path, MAX_BYTES)?.unwrap_or_default()))
    }

    /// Replaces the file. Its mode becomes 0640, or stays what it was where that is stricter.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<Change, FileError> {
        let path = path.as_ref();
        let mode = match fs::metadata(path) {
            Ok(found) => found.permissions().mode() & MODE,
            Err(error) if error.kind() == ErrorKind::NotFound => MODE,
            Err(source) => {
                return Err(FileError::Io {
                    operation: "look at",
                    path: path.to_owned(),
                    source,
                });
            }
        };
        files::replace(path, self.render(), mode)
    }

    /// Loads the file, lets `change` work on it and saves it. Others that use this function wait meanwhile, so the
    /// agent and a wrapper started over ssh do not undo each other's work.
    pub fn edit(path: impl AsRef<Path>, change: impl FnOnce(&mut Self)) -> Result<Change, FileError> {
        let path = path.as_ref();
        let _lock = lock_directory_of(path, File::lock)?;
        let mut properties = Self::load(path)?;
        change(&mut properties);
        properties.save(path)
    }

    /// Never fails: what is not `key=value` is a key without a value, as for Java.
    pub fn parse(mut text: &[u8]) -> Self {
        let mut lines = Vec::new();
        while !text.is_empty() {
            let (raw, rest) = text.split_at(logical_len(text));
            lines.push(Line {
                raw: raw.to_owned(),
                pair: pair(raw),
            });
            text = rest;
        }
        Self { lines }
    }

    pub fn render(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| &line.raw).copied().collect()
    }

    /// The last of several lines with the same key wins.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.lines
            .iter()
            .rev()
            .filter_map(|line| line.pair.as_ref())
            .find(|pair| pair.0 == key)
            .map(|pair| &*pair.1)
    }

    /// Every key with the value that counts, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lines.iter().enumerate().filter_map(|(index, line)| {
            let (key, value) = line.pair.as_ref()?;
            let again = self.lines.iter().skip(index + 1).any(|later| later.has(key));
            (!again).then_some((&**key, &**value))
        })
    }

    /// Writes the line of `key` anew, in its place or at the end; a value that is already there changes nothing.
    pub fn set(&mut self, key: &str, value: &str) {
        if self.get(key) == Some(value) {
            return;
        }
        let mut raw = format!("{}={}", escaped(key, Part::Key), escaped(value, Part::Value)).into_bytes();
        let pair = Some((key.to_owned(), value.to_owned()));
        if let Some(line) = self.lines.iter_mut().rev().find(|line| line.has(key)) {
            raw.extend_from_slice(line_end(&line.raw));
            *line = Line { raw, pair };
        } else {
            self.close_last_line();
            raw.push(b'\n');
            self.lines.push(Line { raw, pair });
        }
    }

    /// Removes every line of `key`.
    pub fn remove(&mut self, key: &str) {
        self.lines.retain(|line| !line.has(key));
    }

    /// Makes sure that text after the last line is a line of its own.
    fn close_last_line(&mut self) {
        let Some(line) = self.lines.last_mut() else { return };
        let is_open = |raw: &[u8]| !is_comment_or_empty(raw) && is_continued(raw);
        while line_end(&line.raw).is_empty() || is_open(&line.raw) {
            line.raw.push(b'\n');
        }
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|(key, _)| key)).finish()
    }
}

impl Line {
    fn has(&self, key: &str) -> bool {
        self.pair.as_ref().is_some_and(|pair| pair.0 == key)
    }
}

/// Locks the directory of a file, with [`File::lock`] or [`File::lock_shared`], until the result is dropped: then other
/// programs of ours change nothing in it. Must not be taken twice by one thread.
pub(crate) fn lock_directory_of(path: &Path, lock: fn(&File) -> io::Result<()>) -> Result<File, FileError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let locked = File::open(directory).and_then(|opened| lock(&opened).map(|()| opened));
    locked.map_err(|source| FileError::Io {
        operation: "lock the directory",
        path: directory.to_owned(),
        source,
    })
}

/// Bytes of the first logical line: up to a line end that no backslash continues. Comments are never continued.
fn logical_len(text: &[u8]) -> usize {
    let mut len = natural_len(text);
    if is_comment_or_empty(text) {
        return len;
    }
    while len < text.len() && is_continued(&text[..len]) {
        len += natural_len(&text[len..]);
    }
    len
}

/// Bytes of the first line with its end: `\n`, `\r` or `\r\n`.
fn natural_len(text: &[u8]) -> usize {
    match text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
        Some(end) if text[end..].starts_with(b"\r\n") => end + 2,
        Some(end) => end + 1,
        None => text.len(),
    }
}

fn line_end(line: &[u8]) -> &[u8] {
    [&b"\r\n"[..], b"\n", b"\r"]
        .into_iter()
        .find(|end| line.ends_with(end))
        .unwrap_or_default()
}

fn without_end(line: &[u8]) -> &[u8] {
    &line[..line.len() - line_end(line).len()]
}

/// Whether the first line of `text` says nothing and what follows is a line of its own. So it is, for Java, after a
/// lone backslash (which it takes for an empty key where the file ends).
fn is_comment_or_empty(text: &[u8]) -> bool {
    matches!(
        without_end(&text[..natural_len(text)]).trim_ascii_start(),
        [] | [b'#' | b'!', ..] | [b'\\']
    )
}

fn is_continued(line: &[u8]) -> bool {
    without_end(line)
        .iter()
        .rev()
        .take_while(|byte| **byte == b'\\')
        .count()
        % 2
        == 1
}

fn pair(raw: &[u8]) -> Option<(String, String)> {
    if is_comment_or_empty(raw) {
        return None;
    }
    let mut joined = Vec::new();
    let mut rest = raw;
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(natural_len(rest));
        let continued = usize::from(is_continued(line));
        let line = without_end(line);
        joined.extend_from_slice(line[..line.len() - continued].trim_ascii_start());
        rest = tail;
    }
    // Java reads ISO-8859-1 and writes ASCII; people write UTF-8.
    let text = String::from_utf8(joined)
        .unwrap_or_else(|not_utf8| not_utf8.as_bytes().iter().map(|byte| char::from(*byte)).collect());
    let mut after_backslash = false;
    let is_key_end = |c: char| {
        let special = !after_backslash;
        after_backslash = special && c == '\\';
        special && (matches!(c, '=' | ':') || BLANKS.contains(&c))
    };
    let (key, rest) = text.split_at(text.find(is_key_end).unwrap_or(text.len()));
    let rest = rest.trim_start_matches(BLANKS);
    let value = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start_matches(BLANKS);
    Some((unescaped(key), unescaped(value)))
}

fn unescaped(text: &str) -> String {
    let mut units = Vec::with_capacity(text.len()); // of UTF-16: a pair of \u escapes can be one character
    let mut rest = text.chars();
    while let Some(mut c) = rest.next() {
        if c == '\\' {
            c = match rest.next() {
                None => break,
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\x0c',
                Some('u') => {
                    if let Some((unit, tail)) = hex_unit(rest.as_str()) {
                        units.push(unit);
                        rest = tail.chars();
                        continue;
                    }
                    'u' // Java refuses the whole file
                }
                Some(other) => other,
            };
        }
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16_lossy(&units)
}

fn hex_unit(text: &str) -> Option<(u16, &str)> {
    let (digits, tail) = text.split_at_checked(4)?;
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit()); // from_str_radix also takes a sign
    is_hex
        .then(|| u16::from_str_radix(digits, 16).ok())
        .flatten()
        .map(|unit| (unit, tail))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Key,
    Value,
}

/// Escapes no more than Java's reader needs, because shell scripts read the file, too.
fn escaped(text: &str, part: Part) -> String {
    let mut out = String::with_capacity(text.len());
    for (index, c) in text.chars().enumerate() {
        match c {
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\x0c' => out.push_str("\\f"),
            '\\' => out.push_str("\\\\"),
            ' ' if part == Part::Value && index > 0 => out.push(c),
            '=' | ':' | '#' | '!' if part == Part::Value => out.push(c),
            ' ' | '=' | ':' | '#' | '!' => out.extend(['\\', c]),
            '!'..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}").expect("writing to a String does not fail");
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &[u8]) -> Vec<(String, String)> {
        Properties::parse(text)
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn text(properties: &Properties) -> String {
        String::from_utf8(properties.render()).unwrap()
    }

    /// Every line was also read by java.util.Properties (OpenJDK 17), with the same result.
    #[test]
    fn lines_mean_what_java_reads() {
        for (line, key, value) in [
            ("host=10.1.1.2,10.1.1.3@static", "host", "10.1.1.2,10.1.1.3@static"),
            ("  port : 8250", "port", "8250"),
            ("guid\tabc def ", "guid", "abc def "),
            ("a==b", "a", "=b"),
            ("a = : b", "a", ": b"),
            ("a\\=b\\:c\\ d=e", "a=b:c d", "e"),
            ("lonely", "lonely", ""),
            ("=value", "", "value"),
            ("key=\\", "key", ""),
            ("key=a\\\\", "key", "a\\"),
            ("key=a\\\n   b\\\r\n\tc\n", "key", "abc"),
            ("key=a\\\n\n", "key", "a"),
            ("\\\n#a=b\nkey=\\\n#no comment", "key", "#no comment"),
            ("key=\\u00fc\\uD83D\\uDE00\\t\\q", "key", "ü😀\tq"),
        ] {
            assert_eq!(pairs(line.as_bytes()), [(key.to_owned(), value.to_owned())], "{line:?}");
        }
        assert_eq!(pairs(b"\n \t\n# a=b \\\n ! c=d\r\\\n\n"), []);
    }

    #[test]
    fn text_is_utf8_or_else_latin_1() {
        assert_eq!(pairs("key=ü".as_bytes()), pairs(b"key=\xfc"));
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_and_is_the_one_that_changes() {
        let mut properties = Properties::parse(b"a=1\n# note\na=2\n");
        assert_eq!(properties.get("a"), Some("2"));
        properties.set("a", "3");
        assert_eq!(text(&properties), "a=1\n# note\na=3\n");
        properties.remove("a");
        assert_eq!(text(&properties), "# note\n");
        assert_eq!(properties.get("a"), None);
    }

    #[test]
    fn a_new_key_gets_its_own_line_whatever_the_last_one_looks_like() {
        for (before, after) in [
            ("", "new=1\n"),
            ("a=b", "a=b\nnew=1\n"),
            ("a=b\r", "a=b\rnew=1\n"),
            ("# open \\", "# open \\\nnew=1\n"),
            ("a=b\\", "a=b\\\n\nnew=1\n"),
            ("a=b\\\n", "a=b\\\n\nnew=1\n"),
            ("\\\n", "\\\nnew=1\n"),
            ("a=b\\\r", "a=b\\\r\n\nnew=1\n"),
        ] {
            let mut properties = Properties::parse(before.as_bytes());
            properties.set("new", "1");
            assert_eq!(text(&properties), after);
        }
    }

    #[test]
    fn only_what_java_needs_is_escaped() {
        let mut properties = Properties::default();
        properties.set("a key:", " http://host:80/?x=#1!\\ ü😀\n");
        assert_eq!(
            text(&properties),
            "a\\ key\\:=\\ http://host:80/?x=#1!\\\\ \\u00fc\\ud83d\\ude00\\n\n"
        );
    }

    #[test]
    fn the_file_is_0640_or_stricter_and_a_missing_one_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.properties");
        assert_eq!(Properties::load(&path).unwrap(), Properties::default());
        let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;

        assert_eq!(
            Properties::edit(&path, |properties| properties.set("a", "1")).unwrap(),
            Change::Changed
        );
        assert_eq!(mode(), 0o640);
        assert_eq!(
            Properties::edit(&path, |properties| properties.set("a", "1")).unwrap(),
            Change::Same
        );
        for (before, after) in [(0o600, 0o600), (0o666, 0o640), (0o750, 0o640)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            let _ = Properties::load(&path).unwrap().save(&path).unwrap();
            assert_eq!(mode(), after);
        }
        assert_eq!(fs::read(&path).unwrap(), b"a=1\n");
    }

    #[test]
    fn values_are_not_in_the_debug_text() {
        assert_eq!(
            format!("{:?}", Properties::parse(b"keystore.passphrase=geheim")),
            r#"{"keystore.passphrase"}"#
        );
    }

    #[test]
    fn two_editors_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.properties");
        std::thread::scope(|scope| {
            for editor in 0..8 {
                let path = &path;
                scope.spawn(move || Properties::edit(path, |found| found.set(&editor.to_string(), "here")).unwrap());
            }
        });
        assert_eq!(Properties::load(&path).unwrap().iter().count(), 8);
    }

    /// Mostly the bytes that mean something here.
    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![prop::sample::select(&b"\\\\\n\r =:#!\tua0\xfc"[..]), any::<u8>()];
        prop::collection::vec(byte, 0..60)
    }

    proptest! {
        #[test]
        fn reading_and_writing_changes_no_byte(text in noise()) {
            prop_assert_eq!(Properties::parse(&text).render(), text);
        }

        #[test]
        fn what_was_set_is_read_again_and_the_rest_stays(
            text in noise(), key in any::<String>(), value in any::<String>(),
        ) {
            let mut properties = Properties::parse(&text);
            let before: Vec<_> = pairs(&text).into_iter().filter(|pair| pair.0 != key).collect();
            properties.set(&key, &value);

            let again = Properties::parse(&properties.render());
            prop_assert_eq!(&again, &properties);
            prop_assert_eq!(again.get(&key), Some(&*value));
            let after: Vec<_> = pairs(&properties.render()).into_iter().filter(|pair| pair.0 != key).collect();
            prop_assert_eq!(after, before);
        }
    }
}
