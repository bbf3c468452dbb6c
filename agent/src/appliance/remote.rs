//! What hosts and management servers run in the VM over SSH, by the names of §8.2: programs of `/opt/cloud/bin`, all links to
//! `agent`. Their output and exit codes are the protocol.
//!
//! Two rules of router.md §2.2 for all of them: nothing on standard error when they succeed (hosts merge both outputs), and a
//! last argument `null` is not there (VMware adds it when there are none).

use std::path::{Path, PathBuf};

use platform::files;

use super::root::Root;

mod alerts;
mod collect;
mod diagnostics;
mod files_and_names;
mod health;
mod interface;
mod load_balancer;
mod nics;
mod options;
mod redact;
mod redundancy;
mod units;
mod usage;
mod version;
mod vpn;

/// Where the names are.
pub const DIRECTORY: &str = "/opt/cloud/bin";
/// What they are links to.
pub const PROGRAM: &str = "/usr/lib/sysvm/current/agent";

/// One name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command {
    /// In [`DIRECTORY`].
    pub name: &'static str,
    /// Its arguments, for people.
    pub usage: &'static str,
    /// What it is for, a sentence or two.
    pub about: &'static str,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Alerts,
    BumpPriority,
    CheckRedundancy,
    CheckVpn,
    CheckVpns,
    CleanUp,
    Collect,
    Diagnostics,
    Health,
    IsWritable,
    LoadBalancer,
    ManageService,
    Patched,
    SetMtu,
    Usage,
    Version,
    VpcUsage,
    /// Of the router's configuration, which this image cannot do yet.
    Router,
}

/// All of them but those that are subcommands of `agent` themselves ([`SUBCOMMANDS`]).
pub const COMMANDS: &[Command] = &[
    Command {
        name: "bumpup_priority.sh",
        usage: "",
        about: "Makes /tmp/rrouter_bumped. No management server of today calls it.",
        what: What::BumpPriority,
    },
    Command {
        name: "checkbatchs2svpn.sh",
        usage: "PEER...",
        about: "Prints PEER:CODE:TEXT& for each address of a VPN peer; 0 is connected, 11 is not.",
        what: What::CheckVpns,
    },
    Command {
        name: "checkrouter.sh",
        usage: "",
        about: "Prints Status: and PRIMARY, BACKUP, FAULT (keepalived does not run) or UNKNOWN (a VPC router without networks).",
        what: What::CheckRedundancy,
    },
    Command {
        name: "checks2svpn.sh",
        usage: "PEER",
        about: "Says whether the VPN to one peer is connected; exit code 11 when it is not.",
        what: What::CheckVpn,
    },
    Command {
        name: "cleanup.sh",
        usage: "PATH",
        about: "Deletes a file that get_diagnostics_files.py has made, and no other.",
        what: What::CleanUp,
    },
    Command {
        name: "diagnostics.py",
        usage: "ping|ping6|arping|traceroute|traceroute6 ADDRESS [OPTION...]",
        about: "Runs the tool and prints what it printed, its errors and its exit code, && between them.",
        what: What::Diagnostics,
    },
    Command {
        name: "filesystem_writable_check.py",
        usage: "",
        about: "Says whether a file can be written in /root; exit code 1 when not.",
        what: What::IsWritable,
    },
    Command {
        name: "getRouterAlerts.sh",
        usage: "[DATE TIME]",
        about: "Prints the lines of /var/log/routerServiceMonitor.log that are newer, the characters \\n after each, or No Alerts.",
        what: What::Alerts,
    },
    Command {
        name: "getRouterMonitorResults.sh",
        usage: "true|false",
        about: "Prints the results of the router's health checks, with true after running them.",
        what: What::Health,
    },
    Command {
        name: "get_diagnostics_files.py",
        usage: "FILE|iptables|ipaddr|iprule|iproute|[NAME ARGS]...",
        about: "Collects files and states without their secrets, and prints the path of the zip file.",
        what: What::Collect,
    },
    Command {
        name: "get_haproxy_stats.sh",
        usage: "ADDRESS PORT",
        about: "Prints the current sessions of a load-balancing rule's servers that are up, on average.",
        what: What::LoadBalancer,
    },
    Command {
        name: "get_template_version.sh",
        usage: "",
        about: "Waits until the VM is ready, at most 240 s, and prints the image's version, &, and the SHA-512 of the scripts that the management server has sent.",
        what: What::Version,
    },
    Command {
        name: "manage_service.sh",
        usage: "start|stop|restart|reload|try-restart|status SERVICE",
        about: "Does with a service what systemctl does.",
        what: What::ManageService,
    },
    Command {
        name: "netusage.sh",
        usage: "-c | -g [-l ADDRESS] | -r | -a ethN | -d ethN",
        about: "Counts the bytes of a router's public NIC: -c begins, -g prints sent, received, and both for the router itself.",
        what: What::Usage,
    },
    Command {
        name: "patched.sh",
        usage: "PATH",
        about: "Succeeds if PATH is there. Hosts ask it whether the VM can take certificates.",
        what: What::Patched,
    },
    Command {
        name: "update_config.py",
        usage: "FILE [false]",
        about: "Not there yet: configures a virtual router.",
        what: What::Router,
    },
    Command {
        name: "update_interface_config.sh",
        usage: "ADDRESS PREFIX MTU [SECONDS]",
        about: "Gives the NIC with the address another MTU, waiting for the NIC for so long, and prints its name.",
        what: What::SetMtu,
    },
    Command {
        name: "vpc_netusage.sh",
        usage: "-l ADDRESS (-c -v CIDR | -g | -r | -d | -n)",
        about: "Counts the bytes of a VPC router's public NIC.",
        what: What::VpcUsage,
    },
    Command {
        name: "vr_cfg.sh",
        usage: "-c FILE",
        about: "Not there yet: configures a virtual router.",
        what: What::Router,
    },
];

/// Names in [`DIRECTORY`] that are subcommands of `agent`.
pub const SUBCOMMANDS: [&str; 2] = ["keystore-cert-import", "keystore-setup"];

/// What the caller gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply {
    /// Standard output, exactly.
    pub stdout: Vec<u8>,
    /// For standard error: why it failed.
    pub stderr: String,
    /// The exit code.
    pub code: u8,
}

impl Reply {
    fn ok(stdout: impl Into<Vec<u8>>) -> Self {
        Self {
            stdout: stdout.into(),
            ..Self::default()
        }
    }

    fn failed(code: u8, why: impl Into<String>) -> Self {
        Self {
            stdout: Vec::new(),
            stderr: why.into(),
            code,
        }
    }
}

/// Finds a name's command; a path's last part counts.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

impl Command {
    /// Does what the name stands for. Never fails: a failure is a [`Reply`], too.
    pub async fn run(&self, root: &Root, args: &[String]) -> Reply {
        let args = match args {
            [args @ .., last] if last == "null" => args,
            args => args,
        };
        if args.iter().map(String::as_str).eq(["--help"]) {
            return Reply::ok(self.help());
        }
        match self.what {
            What::Alerts => alerts::answer(root, args),
            What::BumpPriority => files_and_names::bump_priority(root),
            What::CheckRedundancy => redundancy::answer(root),
            What::CheckVpn => vpn::check(root, args).await,
            What::CheckVpns => vpn::check_batch(root, args).await,
            What::CleanUp => files_and_names::clean_up(root, args),
            What::Collect => collect::answer(root, args).await,
            What::Diagnostics => diagnostics::answer(args).await,
            What::Health => health::answer(root, args).await,
            What::IsWritable => files_and_names::is_writable(root),
            What::LoadBalancer => load_balancer::answer(root, args).await,
            What::ManageService => units::manage(args).await,
            What::Patched => files_and_names::patched(args),
            What::SetMtu => interface::set_mtu(args).await,
            What::Usage => usage::isolated(args).await,
            What::Version => version::answer(root).await,
            What::VpcUsage => usage::vpc(args).await,
            What::Router => Reply::failed(
                1,
                format!(
                    "{} configures a virtual router, which this image cannot do yet; nothing was changed",
                    self.name
                ),
            ),
        }
    }

    /// For `--help`.
    pub fn help(&self) -> String {
        format!("{}\n\nUsage: {} {}\n", self.about, self.name, self.usage)
    }
}

/// Makes the names in [`DIRECTORY`] links to our program again: an archive of the stock appliance, unpacked by hand, takes
/// them away (§7.5). Returns those that were not right, and what could not be put right.
pub fn restore_links(root: &Root) -> (Vec<&'static str>, Vec<String>) {
    let directory = root.path(DIRECTORY);
    let (mut restored, mut problems) = (Vec::new(), Vec::new());
    let names = COMMANDS.iter().map(|command| command.name).chain(SUBCOMMANDS);
    for name in names {
        let path = directory.join(name);
        if std::fs::read_link(&path).is_ok_and(|target| target == Path::new(PROGRAM)) {
            continue;
        }
        match link(&path) {
            Ok(()) => restored.push(name),
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
    }
    (restored, problems)
}

/// Whole or not at all: the link is made beside and renamed.
fn link(path: &Path) -> std::io::Result<()> {
    let beside = PathBuf::from(path).with_file_name(format!("{}link", files::BESIDE));
    std::fs::remove_file(&beside).ok(); // of a run that was killed
    std::os::unix::fs::symlink(PROGRAM, &beside)?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use super::*;

    fn names() -> Vec<&'static str> {
        COMMANDS.iter().map(|command| command.name).chain(SUBCOMMANDS).collect()
    }

    #[test]
    fn the_image_has_a_link_for_each_name_and_no_other() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../image-builder/recipe/recipe.toml");
        let recipe = fs::read_to_string(recipe).unwrap();
        let links: BTreeMap<_, _> = recipe
            .lines()
            .filter_map(|line| line.strip_prefix("\"opt/cloud/bin/")?.split_once("\" = "))
            .collect();
        let wanted = names()
            .into_iter()
            .map(|name| (name, "\"/usr/lib/sysvm/current/agent\""));
        assert_eq!(links, wanted.collect());
    }

    /// Its unit may write there, and does not start without it.
    #[test]
    fn the_image_has_the_directory_for_what_was_sent() {
        let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/../image-builder/recipe/recipe.toml");
        let line = "\"usr/share/cloud\" = {}";
        let recipe = fs::read_to_string(recipe).unwrap();
        assert_eq!(recipe.lines().filter(|found| *found == line).count(), 1);
    }

    #[test]
    fn names_that_an_archive_has_replaced_are_links_again() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let bin = root.path(DIRECTORY);
        fs::create_dir_all(&bin).unwrap();
        assert_eq!(restore_links(&root), (names(), Vec::new()));
        assert_eq!(restore_links(&root), (Vec::new(), Vec::new()));

        fs::remove_file(bin.join("patched.sh")).unwrap();
        let _ = files::replace(bin.join("vr_cfg.sh"), "#!/bin/bash\n", 0o755).unwrap();
        let _ = files::replace(bin.join("their.sh"), "#!/bin/bash\n", 0o755).unwrap();
        assert_eq!(restore_links(&root).0, ["patched.sh", "vr_cfg.sh"]);
        for name in names() {
            assert_eq!(fs::read_link(bin.join(name)).unwrap(), Path::new(PROGRAM));
        }
        assert_eq!(fs::read_dir(&bin).unwrap().count(), names().len() + 1);
    }
}
