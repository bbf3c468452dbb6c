//! How far a template is, on one line that is written again and again, or line by line where nobody watches.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Between two lines where there is no terminal.
const QUIET: Duration = Duration::from_secs(2);

/// The line and when it was written.
pub(super) struct Progress {
    is_terminal: bool,
    last: Option<(String, Instant)>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            is_terminal: stderr().is_terminal(),
            last: None,
        }
    }

    /// Shows how far a template is, unless that is shown already.
    pub(super) fn show(&mut self, template: &Value) {
        let line = line(template);
        let is_due = self
            .last
            .as_ref()
            .is_none_or(|(shown, at)| *shown != line && (self.is_terminal || at.elapsed() >= QUIET));
        if !is_due {
            return;
        }
        let (before, after) = if self.is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        // A closed terminal is no reason to stop.
        let _ = write!(stderr(), "{before}{line}{after}");
        self.last = Some((line, Instant::now()));
    }

    /// The last words about it.
    pub(super) fn finish(&mut self, template: &Value) {
        self.last = None;
        self.show(template);
        if self.is_terminal {
            let _ = writeln!(stderr());
        }
    }
}

/// Percent, bytes, rate and time to go, as far as they are known; else the status.
pub(super) fn line(template: &Value) -> String {
    let number = |name: &str| template[name].as_u64();
    let status = template["status"].as_str().unwrap_or_default();
    if template["isready"] == true {
        let size = number("physicalsize").or_else(|| number("size"));
        return format!(
            "Ready{}",
            size.map_or_else(String::new, |size| format!(": {}", mib(size)))
        );
    }
    let Some(percent) = number("downloadpercent") else {
        return status.to_owned();
    };
    let bar = usize::try_from(percent.min(100) / 5).unwrap_or_default();
    let bytes = number("downloadbytes").filter(|bytes| *bytes > 0).map(mib);
    let rate = number("downloadrate")
        .filter(|rate| *rate > 0)
        .map(|rate| format!("{}/s", mib(rate)));
    let eta = number("downloadeta").map(|seconds| format!("{seconds} s to go"));
    let bar = format!("[{}{}] {percent:3} %", "#".repeat(bar), "-".repeat(20 - bar));
    [Some(bar), bytes, rate, eta]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("  ")
}

/// With one digit after the point.
fn mib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 20;
    format!("{}.{} MiB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_has_what_is_known() {
        let half = json!({
            "isready": false, "status": "50% Downloaded", "downloadpercent": 50, "downloadbytes": 22_020_096,
            "downloadrate": 8_388_608, "downloadeta": 3,
        });
        assert_eq!(
            line(&half),
            "[##########----------]  50 %  21.0 MiB  8.0 MiB/s  3 s to go"
        );
        assert_eq!(line(&json!({"isready": false, "status": "queued"})), "queued");
        assert_eq!(
            line(&json!({"isready": true, "physicalsize": 1_048_576})),
            "Ready: 1.0 MiB"
        );
    }
}
