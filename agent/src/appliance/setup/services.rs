//! Which units run. They are started at each set-up and never enabled: a unit that systemd starts by itself at the next boot
//! would run before the boot arguments of that boot are known, which may make another VM of this disk (decision 0056).

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};

use crate::appliance::plan::Services;
use crate::appliance::root::Root;

/// CloudStack's name for whichever agent runs (§6).
const CLOUD: &str = "/etc/systemd/system/cloud.service";
/// The units that are `cloud`.
const AGENTS: [&str; 2] = ["cs-ssvm.service", "cs-console-proxy.service"];
/// What other software reads (§5.4): names without `.service`.
const LISTS: [&str; 2] = ["/var/cache/cloud/enabled_svcs", "/var/cache/cloud/disabled_svcs"];

/// Why services could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// A list cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The link under which CloudStack knows the agent cannot be made.
    #[error("cannot make the link {path}")]
    Link {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// systemd says no.
    #[error("systemd does not take the services of this VM")]
    Systemd(#[from] ExecError),
}

/// What to ask systemd for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// The first set-up since the machine started: nothing of ours runs yet.
    Start,
    /// The same boot arguments again: what runs goes on.
    Again,
    /// Other boot arguments: services read them when they start.
    Changed,
}

/// Writes down what runs, for those who look, and gives the agent its name.
pub fn note(services: &Services, root: &Root) -> Result<(), ServicesError> {
    for (path, units) in LISTS.into_iter().zip([&services.enable, &services.disable]) {
        let names: Vec<_> = units.iter().map(|unit| unit.trim_end_matches(".service")).collect();
        let _ = files::replace(root.path(path), names.join(" ") + "\n", 0o644)?;
    }
    let agent = services.enable.iter().find(|unit| AGENTS.contains(unit));
    let path = root.path(CLOUD);
    let failed = |source| ServicesError::Link {
        path: path.clone(),
        source,
    };
    let target = agent.map(|unit| PathBuf::from(format!("/etc/systemd/system/{unit}")));
    if fs::read_link(&path).ok() == target {
        return Ok(());
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    target.map_or(Ok(()), |target| symlink(target, &path).map_err(failed))
}

/// The commands that make it so; none of them waits for a service.
pub fn commands(services: &Services, occasion: Occasion) -> Vec<Cmd> {
    let systemctl = |verb: &str, units: &[&'static str]| {
        let cmd = Cmd::new("systemctl").args([verb, "--no-block", "--"]).args(units);
        (!units.is_empty()).then_some(cmd)
    };
    let stop = match occasion {
        Occasion::Start | Occasion::Again => None,
        Occasion::Changed => systemctl("stop", &services.disable),
    };
    let start = match occasion {
        Occasion::Start | Occasion::Again => systemctl("start", &services.enable),
        Occasion::Changed => systemctl("restart", &services.enable),
    };
    stop.into_iter().chain(start).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(enable: &[&'static str], disable: &[&'static str]) -> Services {
        Services {
            enable: enable.to_vec(),
            disable: disable.to_vec(),
        }
    }

    fn said(commands: &[Cmd]) -> Vec<String> {
        commands.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_runs_is_written_down_and_the_agent_is_cloud() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        for path in ["etc/systemd/system", "var/cache/cloud"] {
            fs::create_dir_all(root.path(path)).unwrap();
        }
        let cloud = || fs::read_link(root.path(CLOUD)).ok();
        let ssvm = services(&["chrony.service", "cs-ssvm.service"], &["dnsmasq.service"]);
        for _ in 0..2 {
            note(&ssvm, &root).unwrap();
            assert_eq!(cloud(), Some("/etc/systemd/system/cs-ssvm.service".into()));
        }
        let listed = LISTS.map(|path| fs::read_to_string(root.path(path)).unwrap());
        assert_eq!(listed, ["chrony cs-ssvm\n", "dnsmasq\n"]);

        note(&services(&["cs-console-proxy.service"], &[]), &root).unwrap();
        assert_eq!(cloud(), Some("/etc/systemd/system/cs-console-proxy.service".into()));
        note(&services(&["dnsmasq.service"], &[]), &root).unwrap();
        assert_eq!(cloud(), None);
    }

    #[test]
    fn services_are_restarted_and_others_stopped_only_when_the_arguments_have_changed() {
        let router = services(&["dnsmasq.service", "haproxy.service"], &["cs-ssvm.service"]);
        for occasion in [Occasion::Start, Occasion::Again] {
            assert_eq!(
                said(&commands(&router, occasion)),
                ["systemctl start --no-block -- dnsmasq.service haproxy.service"]
            );
        }
        assert_eq!(
            said(&commands(&router, Occasion::Changed)),
            [
                "systemctl stop --no-block -- cs-ssvm.service",
                "systemctl restart --no-block -- dnsmasq.service haproxy.service"
            ]
        );
        assert_eq!(said(&commands(&services(&[], &[]), Occasion::Start)), [""; 0]);
    }
}
