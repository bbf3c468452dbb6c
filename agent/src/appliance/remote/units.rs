//! Units of systemd: whether they run, and `manage_service.sh`.

use std::time::Duration;

use platform::exec::{Cmd, Exited};
use platform::files;
use platform::logging::chain;

use super::Reply;
use crate::appliance::root::Root;

/// A service may have much to finish; the host waits ten minutes.
const LIMIT: Duration = Duration::from_mins(5);
/// What `manage_service.sh` does.
const ACTIONS: [&str; 6] = ["start", "stop", "restart", "reload", "try-restart", "status"];
/// systemctl's, for what it is asked and does not understand.
const USAGE: u8 = 2;
const MAX_NAME: usize = 255;

/// Whether a service has a process, by its control group: no program needs to be asked.
pub(super) fn has_processes(root: &Root, service: &str) -> bool {
    let events = root.path(format!("/sys/fs/cgroup/system.slice/{service}/cgroup.events"));
    let events = files::read_limited(events, 4096).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&events)
        .lines()
        .any(|line| line == "populated 1")
}

/// Whether this can be the name of a unit: systemd.unit(5), "valid unit names", and no option.
pub(super) fn is_name(name: &str) -> bool {
    let is_char = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(is_char) && !name.starts_with('-')
}

/// `manage_service.sh ACTION SERVICE`: systemctl's answer and exit code.
pub(super) async fn manage(args: &[String]) -> Reply {
    let [action, service, ..] = args else {
        return Reply::failed(USAGE, "an action and a service are needed, such as: restart haproxy");
    };
    if !ACTIONS.contains(&action.as_str()) {
        return Reply::failed(
            USAGE,
            format!("{action:?} is no action; use one of {}", ACTIONS.join(", ")),
        );
    }
    if !is_name(service) {
        return Reply::failed(USAGE, format!("{service:?} is no name of a service"));
    }
    let systemctl = Cmd::new("systemctl").arg("--no-pager").args([action, service]);
    match systemctl.time_limit(LIMIT).run_to_exit().await {
        Ok(Exited { status, stdout, stderr }) => Reply {
            stdout,
            stderr: if status.success() {
                String::new()
            } else {
                stderr.trim().to_owned()
            },
            code: status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        },
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_units_are_no_options_and_no_paths() {
        for good in ["haproxy", "cloud-password-server@10.1.1.1", "ssh.service"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "-h", "../x", "a b", "a;b", "*"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_no_action_on_a_service_is_refused() {
        for words in [&["restart"][..], &["isolate", "rescue"], &["stop", "--all"], &[]] {
            let args: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(manage(&args).await.code, USAGE, "{words:?}");
        }
    }
}
