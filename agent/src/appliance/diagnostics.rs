//! All that helps to find a fault, as one text. Secrets of the boot arguments are `***` in it.

use std::fmt::Write as _;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files;
use protocol::boot::BootArgs;
use tokio::task::JoinSet;

use super::check;
use super::root::{LINE, RELEASE, RUN, Root};
use crate::link_status;

/// Bytes of the whole: the journal in memory has at most 8 MiB, and its end is what counts.
const LIMIT: usize = 4 * 1024 * 1024;
/// Bytes of one part.
const PART: usize = 1024 * 1024;
/// For one program.
const RUN_LIMIT: Duration = Duration::from_secs(20);
/// Secrets shorter than this are not looked for: they would be found in any word.
const SHORTEST_SECRET: usize = 4;

/// Programs whose output says something.
const PROGRAMS: [&[&str]; 10] = [
    &["journalctl", "-b", "--no-pager", "-n", "5000", "-o", "short-precise"],
    &["systemctl", "list-units", "--all", "--no-pager"],
    &["systemctl", "list-jobs", "--no-pager"],
    &["ip", "-details", "address"],
    &["ip", "route", "show", "table", "all"],
    &["ip", "rule"],
    &["ip", "neigh"],
    &["ss", "-tulpn"],
    &["nft", "list", "ruleset"],
    &["df", "-h"],
];

/// Files that say something.
const FILES: [&str; 6] = [
    "/etc/resolv.conf",
    "/etc/hosts",
    "/proc/meminfo",
    "/proc/mounts",
    "/proc/loadavg",
    "/proc/cmdline",
];

/// Collects everything; takes some seconds.
pub async fn collect(root: &Root) -> Vec<u8> {
    let mut running = JoinSet::new();
    for (place, words) in PROGRAMS.iter().enumerate() {
        let command = Cmd::new(words[0]).args(&words[1..]).time_limit(RUN_LIMIT);
        running.spawn(async move {
            let text = match command.run().await {
                Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
                Err(error) => format!("{}\n", platform::logging::chain(&error)),
            };
            (place, text)
        });
    }
    let report = check::run(root).await;
    let mut printed = running.join_all().await;
    printed.sort_by_key(|(place, _)| *place);

    let mut text = String::new();
    part(&mut text, "agent check", &report.to_string());
    let own = [
        RELEASE.to_owned(),
        format!("{RUN}/boot.json"),
        format!("{RUN}/setup.json"),
        link_status::FILE.to_owned(),
    ];
    for path in own.iter().map(String::as_str).chain(FILES) {
        let contents = match files::read_limited(root.path(path), 1 << 20) {
            Ok(Some(bytes)) => String::from_utf8_lossy(&bytes).into_owned(),
            Ok(None) => "(not there)".to_owned(),
            Err(error) => platform::logging::chain(&error).to_string(),
        };
        part(&mut text, path, &contents);
    }
    // The journal is the longest: it comes last, so that a limit cuts it and nothing else.
    for (place, output) in printed.iter().skip(1).chain(printed.first()) {
        part(&mut text, &PROGRAMS[*place].join(" "), output);
    }
    let line = files::read_limited(root.path(LINE), 1 << 20).ok().flatten();
    let mut bytes = hide(text, &secrets(&line.unwrap_or_default())).into_bytes();
    bytes.truncate(LIMIT);
    bytes
}

/// One part with its title; of a long one the end.
fn part(text: &mut String, title: &str, contents: &str) {
    let start = contents.ceil_char_boundary(contents.len().saturating_sub(PART));
    writeln!(text, "==== {title}\n{}\n", contents[start..].trim_end()).expect("a String takes everything");
}

/// Values of the boot arguments that nobody may see.
fn secrets(line: &[u8]) -> Vec<String> {
    let args = BootArgs::parse(line).unwrap_or_default();
    args.secrets().map(str::to_owned).collect()
}

fn hide(text: String, secrets: &[String]) -> String {
    let long = secrets.iter().filter(|secret| secret.len() >= SHORTEST_SECRET);
    long.fold(text, |text, secret| text.replace(secret.as_str(), "***"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_line_are_hidden_wherever_they_are() {
        let secrets = secrets(b"type=router vmpassword=Xa9secret name=r-4-VM keystore_password=abc");
        let text = "a program printed Xa9secret of r-4-VM, abc".to_owned();
        assert_eq!(hide(text, &secrets), "a program printed *** of r-4-VM, abc");
    }

    #[test]
    fn of_a_long_part_the_end_counts() {
        let mut text = String::new();
        let long = format!("first\n{}last\n", "ä".repeat(PART));
        part(&mut text, "x", &long);
        assert!(text.starts_with("==== x\nä") || text.starts_with("==== x\n\u{fffd}"));
        assert!(text.ends_with("last\n\n") && text.len() < PART + 100);
    }
}
