//! The services that a router must have, and what is done when one has ended.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files;
use platform::logging::chain;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::time::sleep;
use tracing::warn;

use super::Outcome;
use super::Verdict::{Success, Warning};
use crate::appliance::remote::{alerts, units};
use crate::appliance::root::Root;

/// Made from what the server sends.
const CONFIG: &str = "/etc/monitor.conf";
const MAX_FILE: u64 = 1 << 20;
/// As the original: a service that is being restarted by somebody else is not dead.
const LOOKS: usize = 4;
const RESTARTS: usize = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// The kernel keeps so many bytes of a process's name: proc(5), `comm`.
const COMM: usize = 15;

/// One section of [`CONFIG`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// What the server calls it: dhcp, loadbalancing, ssh, webserver.
    pub(super) name: String,
    process: String,
    unit: String,
}

pub(super) fn configured(root: &Root) -> Vec<Service> {
    let bytes = files::read_limited(root.path(CONFIG), MAX_FILE).ok().flatten();
    parse(&String::from_utf8_lossy(&bytes.unwrap_or_default()))
}

/// `[name]`, then lines `key=value` or `key:value`. What lacks a process or a service is left out.
fn parse(text: &str) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            services.push(Service {
                name: name.to_owned(),
                process: String::new(),
                unit: String::new(),
            });
        } else if let (Some(service), Some((key, value))) = (services.last_mut(), line.split_once(['=', ':'])) {
            match key.trim() {
                "processname" => value.trim().clone_into(&mut service.process),
                "servicename" => value.trim().clone_into(&mut service.unit),
                _ => {}
            }
        }
    }
    services.retain(|service| !service.process.is_empty() && units::is_name(&service.unit));
    services
}

/// Whether it runs; if not, it is started again.
pub(super) async fn check(root: &Root, service: &Service) -> Outcome {
    for look in 0..LOOKS {
        if look > 0 {
            sleep(PAUSE).await;
        }
        if runs(root, service) {
            return Outcome::of(Success, "service is running");
        }
    }
    tell(root, "ALERT", service, "service is not running");
    for _ in 0..RESTARTS {
        let restart = Cmd::new("systemctl").args(["restart", &service.unit]).run().await;
        if let Err(error) = restart {
            warn!(
                service = service.unit,
                error = chain(&error).to_string(),
                "A service cannot be restarted"
            );
        }
        sleep(PAUSE).await;
        if runs(root, service) {
            tell(root, "NOTIF", service, "service was restarted");
            return Outcome::of(Success, "service is running, was restarted");
        }
    }
    tell(root, "CRIT", service, "service cannot be restarted");
    Outcome::of(Warning, "service is not running, and cannot be restarted")
}

fn runs(root: &Root, service: &Service) -> bool {
    let unit = format!("{}.service", service.unit.trim_end_matches(".service"));
    if units::has_processes(root, &unit) {
        return true;
    }
    // Not by systemd, or by a unit of another name.
    let wanted = service.process.get(..COMM).unwrap_or(&service.process);
    let processes = fs::read_dir(root.path("/proc")).into_iter().flatten().flatten();
    let mut names = processes
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .filter_map(|entry| files::read_limited(entry.path().join("comm"), 64).ok().flatten());
    names.any(|name| name.trim_ascii_end() == wanted.as_bytes())
}

/// A line for `getRouterAlerts.sh`.
fn tell(root: &Root, level: &str, service: &Service, text: &str) {
    let now = OffsetDateTime::now_utc();
    let shape = format_description!("[year]-[month]-[day] [hour]:[minute]:[second],[subsecond digits:3]");
    let stamp = now.format(shape).expect("a time has all these parts");
    let line = format!("{stamp} [{level}] [{}] {text}\n", service.name);
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .open(root.path(alerts::LOG));
    if let Err(error) = log.and_then(|mut log| log.write_all(line.as_bytes())) {
        warn!(%error, path = alerts::LOG, "Cannot write an alert");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONF: &str = "[dhcp]\nprocessname=dnsmasq\nservicename=dnsmasq\npidfile=/var/run/dnsmasq/dnsmasq.pid\n\n\
                        [ssh]\nprocessname=sshd\nservicename=ssh\n[half]\nprocessname=x\n[evil]\nprocessname=x\nservicename=--all\n";

    #[test]
    fn sections_with_a_process_and_a_service_are_services() {
        let found = parse(CONF);
        let names: Vec<_> = found
            .iter()
            .map(|service| (service.name.as_str(), service.unit.as_str()))
            .collect();
        assert_eq!(names, [("dhcp", "dnsmasq"), ("ssh", "ssh")]);
        assert_eq!(parse(""), []);
    }

    #[tokio::test]
    async fn a_service_runs_when_its_group_or_its_process_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let services = parse(CONF);
        let put = |path: &str, text: &str| {
            fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
            let _ = files::replace(root.path(path), text, 0o644).unwrap();
        };
        assert!(!runs(&root, &services[0]));
        put(
            "/sys/fs/cgroup/system.slice/dnsmasq.service/cgroup.events",
            "populated 0\n",
        );
        assert!(!runs(&root, &services[0]));
        put(
            "/sys/fs/cgroup/system.slice/dnsmasq.service/cgroup.events",
            "populated 1\n",
        );
        assert!(runs(&root, &services[0]));
        put("/proc/12/comm", "sshd\n");
        assert_eq!(
            check(&root, &services[1]).await,
            Outcome::of(Success, "service is running")
        );
    }

    #[test]
    fn an_alert_is_found_by_those_who_ask_for_alerts() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        fs::create_dir_all(root.path("/var/log")).unwrap();
        tell(&root, "ALERT", &parse(CONF)[0], "service is not running");
        let answer = alerts::answer(&root, &["2020-01-01".to_owned(), "00:00:00".to_owned()]);
        let text = String::from_utf8(answer.stdout).unwrap();
        assert!(text.ends_with(" [ALERT] [dhcp] service is not running\\n\n"), "{text}");
    }
}
