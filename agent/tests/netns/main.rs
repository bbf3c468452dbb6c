//! Plans against the real `ip`, `nft` and `sshd`, in network namespaces of the test's own. Needs root.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for production code"
)]

mod boot;
mod check;
mod firewall;
mod net;
mod network;

use std::path::{Path, PathBuf};

use agent::appliance::hypervisor::Hypervisor;
use agent::appliance::plan::Plan;
use protocol::boot::{BootArgs, SystemVm};

/// The lines of appliance.md §2.4.
fn stock_lines() -> Vec<PathBuf> {
    lines_in("../protocol/tests/boot")
}

/// Those that show what else there is.
fn further_lines() -> Vec<PathBuf> {
    lines_in("tests/plans")
}

fn lines_in(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut lines: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "cmdline"))
        .collect();
    lines.sort();
    assert!(lines.len() >= 7, "{lines:?}");
    lines
}

/// On the hypervisor that the line is named after.
fn plan(line: &Path) -> Plan {
    let name = line.file_stem().unwrap().to_str().unwrap();
    let is_named = |hypervisor: &Hypervisor| name.split('-').any(|word| word == hypervisor.name());
    let hypervisor = Hypervisor::ALL.into_iter().find(is_named).unwrap_or(Hypervisor::Kvm);
    let args = BootArgs::parse(std::fs::read(line).unwrap()).unwrap();
    Plan::of(&SystemVm::parse(&args).unwrap(), hypervisor)
}

fn stock(name: &str) -> Plan {
    named(&stock_lines(), name)
}

fn further(name: &str) -> Plan {
    named(&further_lines(), name)
}

fn named(lines: &[PathBuf], name: &str) -> Plan {
    plan(lines.iter().find(|line| line.ends_with(name)).unwrap())
}
