//! The end of what a VM or a program printed, for a person who asks why. What VMs print is hostile: it becomes plain text of
//! bounded length.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Bytes of the log that are searched for its last line.
const LOG_TAIL: u64 = 4096;
/// Characters of a line that are shown.
const MAX_WORDS: usize = 300;

/// The last line of a log that says something, without colours and control characters.
pub(super) fn last_line(path: &Path) -> io::Result<Option<String>> {
    Ok(last_lines(path, 1)?.pop())
}

/// The last lines of a log that say something, at most `count`, oldest first.
pub(super) fn last_lines(path: &Path, count: usize) -> io::Result<Vec<String>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
    let mut tail = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let lines = text.lines().rev().map(words).filter(|line| !line.is_empty());
    let mut lines: Vec<String> = lines.take(count).collect();
    lines.reverse();
    Ok(lines)
}

fn words(line: &str) -> String {
    let plain = plain(line);
    without_time(&plain).chars().take(MAX_WORDS).collect()
}

/// Log lines begin with their time; who reads why something ended reads the end of the log.
fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if OffsetDateTime::parse(time, &Rfc3339).is_ok() => rest.trim_start(),
        _ => line,
    }
}

/// ECMA-48 §5.4: control sequences start with ESC `[` and end with a byte from `@` on. §5.6: what starts with ESC `]` ends
/// with BEL, as xterm has it, or with ESC `\`.
pub(super) fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            match characters.next() {
                Some('[') => drop(characters.by_ref().find(|c| ('@'..='~').contains(c))),
                Some(']') => drop(characters.by_ref().find(|c| matches!(c, '\u{7}' | '\\'))),
                _ => {}
            }
        } else if !character.is_control() {
            plain.push(character);
        }
    }
    plain.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use platform::files;

    use super::*;

    #[test]
    fn a_last_line_is_plain_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = "first\n2026-11-21T14:50:58.123456Z \u{1b}[31mERROR\u{1b}[0m cannot listen on 10.1.1.5:8080\n\n  \n";
        let _ = files::replace(&path, log, 0o600).unwrap();
        assert_eq!(
            last_line(&path).unwrap().unwrap(),
            "ERROR cannot listen on 10.1.1.5:8080"
        );
        assert_eq!(
            last_lines(&path, 5).unwrap(),
            ["first", "ERROR cannot listen on 10.1.1.5:8080"]
        );
        let _ = files::replace(
            &path,
            "\u{1b}[!p\u{1b}]104\u{7}\u{1b}[?7h\r\nready\r\n\u{1b}]0;title\u{7}\n",
            0o600,
        )
        .unwrap();
        assert_eq!(last_lines(&path, 5).unwrap(), ["ready"]);
        let _ = files::replace(&path, "x".repeat(100_000), 0o600).unwrap();
        assert_eq!(last_line(&path).unwrap().unwrap().len(), MAX_WORDS);
        let _ = files::replace(&path, "", 0o600).unwrap();
        assert_eq!(last_line(&path).unwrap(), None);
    }
}
