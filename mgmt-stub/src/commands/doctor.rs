//! `doctor`: whether this machine can run a zone, and what to do where it cannot.

mod machine;
mod place;
mod programs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::table::plain;
use super::{Ended, print};

/// Look whether this machine can run a zone, and say how to mend what is wrong. It changes nothing
///
/// The exit code is 1 if something is an error: a zone would not come up. Warnings are for you to weigh.
///
/// Examples:
///   mgmt-stub doctor --image target/image/sysvm.qcow2     (as root: virtual machines)
///   mgmt-stub doctor --for processes                      (system VMs as programs)
///   mgmt-stub doctor --json                               (for programs: check, result, text, fix)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Doctor {
    /// What system VMs shall be.
    #[arg(long = "for", value_enum, default_value = "qemu")]
    purpose: Purpose,
    /// The image of system VMs, to look whether it is whole.
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Where the web page and the API shall be.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where the first console proxy shall be.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6080")]
    console_listen: SocketAddr,
    /// For programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Virtual machines.
    Qemu,
    /// Programs of this machine.
    Processes,
}

/// What one check has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    check: &'static str,
    result: Verdict,
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Error,
}

impl Finding {
    fn ok(check: &'static str, text: impl Into<String>) -> Self {
        Self {
            check,
            result: Verdict::Ok,
            text: text.into(),
            fix: None,
        }
    }

    fn warning(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            result: Verdict::Warning,
            fix: Some(fix.into()),
            ..Self::ok(check, text)
        }
    }

    fn error(check: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            result: Verdict::Error,
            ..Self::warning(check, text, fix)
        }
    }

    pub(crate) fn is_error(&self) -> bool {
        self.result == Verdict::Error
    }
}

/// What is looked at.
pub(crate) struct Wanted<'a> {
    pub(crate) data_dir: &'a Path,
    pub(crate) purpose: Purpose,
    pub(crate) image: Option<&'a Path>,
    pub(crate) http: SocketAddr,
    pub(crate) console: SocketAddr,
}

/// Looks, and tells.
pub(crate) async fn run(data_dir: &Path, arguments: Doctor) -> anyhow::Result<Ended> {
    let wanted = Wanted {
        data_dir,
        purpose: arguments.purpose,
        image: arguments.image.as_deref(),
        http: arguments.http,
        console: arguments.console_listen,
    };
    let findings = examine(&wanted).await;
    let text = if arguments.json {
        serde_json::to_string_pretty(&findings)? + "\n"
    } else {
        report(&findings) + &summary(&findings)
    };
    print(&text)?;
    let is_bad = findings.iter().any(Finding::is_error);
    Ok(if is_bad { Ended::Failed } else { Ended::Done })
}

/// All checks, in the order in which they are worth mending.
pub(crate) async fn examine(wanted: &Wanted<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let server = place::server(wanted.data_dir);
    findings.push(server.finding());
    if wanted.purpose == Purpose::Qemu {
        findings.push(machine::root());
        let programs = programs::all();
        // They are tried with those programs.
        let can_try = !programs.iter().any(Finding::is_error);
        findings.extend(programs);
        findings.push(machine::tun());
        if can_try {
            findings.push(machine::networks().await);
            findings.push(machine::kvm().await);
        }
    }
    findings.push(machine::memory(wanted.purpose));
    findings.push(machine::clock(wanted.data_dir));
    findings.push(place::disk(wanted.data_dir, wanted.purpose));
    if wanted.purpose == Purpose::Qemu {
        findings.push(place::length(wanted.data_dir));
        findings.push(place::image(wanted.image).await);
        findings.extend(place::leftovers(wanted.data_dir, server.runs()));
    }
    findings.push(place::port("port of the page", wanted.http, "--http", &server));
    // Console proxies that are programs keep it while there is no server.
    if wanted.purpose == Purpose::Qemu || !place::has_vms(wanted.data_dir) {
        findings.push(place::port(
            "port of consoles",
            wanted.console,
            "--console-listen",
            &server,
        ));
    }
    findings
}

/// A line for each, and one for what to do.
pub(crate) fn report(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.check.len())
        .max()
        .unwrap_or_default();
    let line = |finding: &Finding| {
        let verdict = match finding.result {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Error => "error",
        };
        let fix = finding.fix.as_deref().map(plain);
        let fix = fix.map_or_else(String::new, |fix| {
            format!("{:width$}  -> {fix}\n", "", width = 7 + 2 + width)
        });
        format!("{verdict:7}  {:width$}  {}\n{fix}", finding.check, plain(&finding.text))
    };
    findings.iter().map(line).collect()
}

fn summary(findings: &[Finding]) -> String {
    let count = |verdict| findings.iter().filter(|finding| finding.result == verdict).count();
    match (count(Verdict::Error), count(Verdict::Warning)) {
        (0, 0) => "\nThis machine has all that a zone needs.\n".into(),
        (0, warnings) => format!("\nA zone can run here; {warnings} to think about.\n"),
        (errors, _) => format!("\nA zone cannot run here yet: {errors} to mend.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_wrong_and_below_it_what_to_do() {
        let findings = [
            Finding::ok("root", "we are"),
            Finding::warning("kvm", "does not work", "buy one"),
            Finding::error("program ip", "is missing", "apt-get install iproute2"),
        ];
        assert_eq!(
            report(&findings) + &summary(&findings),
            "ok       root        we are\n\
             warning  kvm         does not work\n\
             \x20                    -> buy one\n\
             error    program ip  is missing\n\
             \x20                    -> apt-get install iproute2\n\
             \nA zone cannot run here yet: 1 to mend.\n"
        );
        assert_eq!(summary(&findings[..2]), "\nA zone can run here; 1 to think about.\n");
        assert_eq!(summary(&findings[..1]), "\nThis machine has all that a zone needs.\n");
    }
}
