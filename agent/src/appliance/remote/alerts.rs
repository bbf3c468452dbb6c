//! `getRouterAlerts.sh`: what the service monitor wrote since the management server last asked (router.md §2.4).

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use super::Reply;
use crate::appliance::root::Root;

/// Written by the service monitor (§8.3), a line an event.
pub(super) const LOG: &str = "/var/log/routerServiceMonitor.log";
/// The end of the log is enough: servers ask every half hour.
const MAX_LOG: u64 = 1 << 20;
/// `2026-08-01 12:00:00`.
const STAMP: usize = 19;

/// `getRouterAlerts.sh [DATE TIME]`.
pub(super) fn answer(root: &Root, args: &[String]) -> Reply {
    let since = args.join(" ");
    if !since.is_empty() && stamp(&since).is_none_or(|found| found != since) {
        return Reply::failed(1, format!("{since:?} is no time; write 2026-08-01 12:00:00"));
    }
    let mut log = Vec::new();
    match File::open(root.path(LOG)) {
        Ok(mut file) => {
            let length = file.metadata().map_or(0, |found| found.len());
            let read = file
                .seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))
                .and_then(|_| file.take(MAX_LOG).read_to_end(&mut log));
            if let Err(error) = read {
                return Reply::failed(1, format!("cannot read {LOG}: {error}"));
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Reply::failed(1, format!("cannot open {LOG}: {error}")),
    }
    Reply::ok(since_then(&String::from_utf8_lossy(&log), &since))
}

/// The lines that are newer, oldest first, each followed by the two characters `\n`; the server splits there and remembers
/// the time of the last.
fn since_then(log: &str, since: &str) -> String {
    let newer: String = log
        .lines()
        .filter(|line| stamp(line).is_some_and(|stamp| stamp > since) && line[STAMP..].starts_with(','))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\\n")
        .collect();
    if newer.is_empty() {
        "No Alerts\n".to_owned()
    } else {
        newer + "\n"
    }
}

/// The time at a line's start. Such texts are ordered as the times are.
fn stamp(line: &str) -> Option<&str> {
    const SHAPE: &str = "0000-00-00 00:00:00";
    let stamp = line.get(..STAMP)?;
    let fits = stamp.bytes().zip(SHAPE.bytes()).all(|(found, wanted)| match wanted {
        b'0' => found.is_ascii_digit(),
        wanted => found == wanted,
    });
    fits.then_some(stamp)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "2026-08-01 11:59:59,123 [INFO] [dhcp] old\n\
                          2026-08-01 12:00:00,001 [ALERT] [dhcp]  dnsmasq  is not running\n\
                          half a line\n\
                          2026-08-01 12:00:05,999 [NOTIF] [dhcp] dnsmasq was restarted\n";

    #[test]
    fn newer_lines_are_joined_and_ended_by_two_characters() {
        assert_eq!(
            since_then(SAMPLE, "2026-08-01 11:59:59"),
            "2026-08-01 12:00:00,001 [ALERT] [dhcp] dnsmasq is not running\\n\
             2026-08-01 12:00:05,999 [NOTIF] [dhcp] dnsmasq was restarted\\n\n"
        );
        assert_eq!(since_then(SAMPLE, "2026-08-01 12:00:05"), "No Alerts\n");
        assert_eq!(since_then(SAMPLE, "").matches("\\n").count(), 3);
        assert_eq!(since_then("", ""), "No Alerts\n");
    }

    /// apache/cloudstack VirtualRoutingResource: splits at backslash n, and the last line's text before the comma is the
    /// time of the next question.
    #[test]
    fn the_server_finds_the_time_of_the_last_alert() {
        let answer = since_then(SAMPLE, "2026-08-01 11:00:00");
        let alerts: Vec<_> = answer.trim().split("\\n").filter(|line| !line.is_empty()).collect();
        let last = alerts.last().unwrap().split(',').next().unwrap();
        assert_eq!(last, "2026-08-01 12:00:05");
        assert_eq!(since_then(SAMPLE, last), "No Alerts\n");
    }

    #[test]
    fn times_that_make_no_sense_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let ask = |words: &[&str]| answer(&root, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(ask(&[]), Reply::ok("No Alerts\n"));
        assert_eq!(ask(&["2026-08-01", "12:00:00"]), Reply::ok("No Alerts\n"));
        assert_eq!(ask(&["yesterday"]).code, 1);
        assert_eq!(ask(&["2026-08-01", "12:00:00", "more"]).code, 1);
    }

    proptest! {
        #[test]
        fn no_log_makes_it_panic(log: String, since in "[0-9: -]{0,19}") {
            let _text = since_then(&log, &since);
        }
    }
}
