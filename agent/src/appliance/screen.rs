//! What a person at the console sees: who this VM is, how far its boot is, what is wrong and what to do. 80 columns, 24 lines,
//! plain text; drawn again only when something is different.

use std::fmt::Write as _;
use std::net::IpAddr;

use platform::files;
use protocol::boot::VmType;
use time::OffsetDateTime;
use time::macros::format_description;

use super::addresses::{self, Interface};
use super::check::{Line, Look};
use super::progress::{self, Entry, Outcome, Step};
use super::root::{RELEASE, Root};
use crate::link_status::{self, LinkStatus, State};

/// Columns that every text screen has, but one: the last makes some terminals wrap.
const WIDTH: usize = 79;
/// Lines that every text screen has, but one for the cursor.
const HEIGHT: usize = 24;
/// Columns of what stands at the left of a line.
const LABEL: usize = 12;
/// NICs that are shown.
const MAX_NICS: usize = 8;
/// Lines of what is wrong.
const MAX_PROBLEM: usize = 7;

/// All that is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// From the boot arguments.
    pub vm_type: Option<VmType>,
    /// From the boot arguments.
    pub name: Option<String>,
    /// Which CloudStack it is made for.
    pub compatible: Option<String>,
    /// All but loopback.
    pub interfaces: Vec<Interface>,
    /// All steps of the boot.
    pub steps: Vec<Entry>,
    /// Whether this type of VM has an agent.
    pub has_agent: bool,
    /// What its link is like.
    pub link: Option<LinkStatus>,
}

impl Facts {
    /// Looks at this machine. Runs no program and waits for nothing.
    pub fn of(root: &Root) -> Self {
        let look = Look::at(root);
        let (vm_type, name) = match look.line() {
            Line::Good(_) => (look.vm_type(), look.name()),
            Line::Missing | Line::Bad(_) => (None, None),
        };
        // Cloudstack Release 4.22.0 Mon Oct 13 09:12:44 UTC 2025
        let release = files::read_limited(root.path(RELEASE), 4096)
            .ok()
            .flatten()
            .unwrap_or_default();
        let release = String::from_utf8_lossy(&release).into_owned();
        Self {
            vm_type,
            name,
            compatible: release.split_ascii_whitespace().nth(2).map(str::to_owned),
            interfaces: addresses::interfaces(root).unwrap_or_default(),
            steps: progress::read(root),
            has_agent: look.agent().is_some(),
            link: link_status::read(&root.path(link_status::FILE)).ok().flatten(),
        }
    }

    /// How it is, in one short line: for a serial console, where more would only be in the way.
    pub fn in_short(&self) -> String {
        let name = self.name.as_deref().unwrap_or("system VM");
        match progress::problem(&self.steps) {
            Some(problem) => {
                let detail = problem.detail.lines().next().unwrap_or_default();
                let text = format!("{name}: {} {}: {detail}", problem.step.name(), verb(problem.outcome));
                text.chars().take(WIDTH).collect()
            }
            None if progress::is_ready(&self.steps) => format!("{name}: ready ({} s)", self.seconds()),
            None => format!("{name}: starting"),
        }
    }

    /// What a serial console should be told about when it changes: the problem there is, or that there is none and all is
    /// done. (Not the problem's detail: that may count seconds.)
    pub fn news(&self) -> Option<(Step, Outcome)> {
        let problem = progress::problem(&self.steps).map(|problem| (problem.step, problem.outcome));
        problem.or_else(|| progress::is_ready(&self.steps).then_some((Step::Ready, Outcome::Done)))
    }

    fn seconds(&self) -> String {
        let at = self.steps.iter().map(|entry| entry.at_ms).max().unwrap_or_default();
        format!("{}.{}", at / 1000, at % 1000 / 100)
    }
}

/// Draws the screen: at most 24 lines of at most 79 columns.
pub fn draw(facts: &Facts) -> String {
    let mut page = Page::default();
    let kind = facts.vm_type.map_or("System VM", title);
    let name = facts.name.as_deref().unwrap_or("no name yet");
    page.line(&format!("{kind}   {name}"));
    let compatible = facts
        .compatible
        .as_deref()
        .map(|version| format!(", for CloudStack {version}"));
    page.line(&format!(
        "sysvm {}{}",
        env!("CARGO_PKG_VERSION"),
        compatible.unwrap_or_default()
    ));
    page.rule();

    if facts.interfaces.is_empty() {
        page.field("Network", "no NIC is there");
    }
    for interface in facts.interfaces.iter().take(MAX_NICS) {
        let mut addresses: Vec<String> = interface.addresses.iter().map(IpAddr::to_string).collect();
        if addresses.is_empty() {
            addresses.push("no address".to_owned());
        }
        let state = if interface.is_up { "" } else { "   down" };
        page.field(&interface.name, &format!("{}{state}", addresses.join(", ")));
    }
    page.line("");
    page.field("Boot", &boot(facts));
    if facts.has_agent {
        page.field("Agent", &agent(facts.link.as_ref()));
    }
    page.line("");
    match progress::problem(&facts.steps) {
        Some(problem) => {
            page.paragraph(
                "Problem",
                &format!("{} {}: {}", problem.step.name(), verb(problem.outcome), problem.detail),
            );
            page.paragraph("To do", todo(problem));
        }
        None => {
            if let Some(error) = facts.link.as_ref().and_then(|link| link.last_error.as_deref()) {
                page.paragraph("Last error", error);
                page.paragraph(
                    "To do",
                    "see that the management server runs and can be reached: `agent check` over ssh",
                );
            }
        }
    }
    page.0
}

fn boot(facts: &Facts) -> String {
    if progress::is_ready(&facts.steps) {
        return format!("ready after {} s", facts.seconds());
    }
    let done = facts
        .steps
        .iter()
        .filter(|entry| entry.outcome == Outcome::Done)
        .count();
    match facts
        .steps
        .iter()
        .rfind(|entry| entry.outcome != Outcome::Done)
        .or(facts.steps.last())
    {
        Some(current) => format!("{} {} (steps done: {done})", current.step.name(), verb(current.outcome)),
        None => "starting".to_owned(),
    }
}

fn agent(link: Option<&LinkStatus>) -> String {
    let Some(link) = link else {
        return "does not run yet".to_owned();
    };
    let server = link.server.as_deref().unwrap_or("a management server");
    let since = i64::try_from(link.since)
        .ok()
        .and_then(|since| OffsetDateTime::from_unix_timestamp(since).ok());
    let format = format_description!("[year]-[month]-[day] [hour]:[minute] UTC");
    let since = since.and_then(|since| since.format(format).ok()).unwrap_or_default();
    match link.state {
        State::Ready => format!("ready at {server} since {since}"),
        State::Connected => format!("connected to {server}, waits until it is ready"),
        State::Connecting => format!("not connected to {server} since {since}"),
        State::Stopped => format!("stopped at {since}"),
    }
}

const fn verb(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Running => "under way",
        Outcome::Waiting => "missing, waiting",
        Outcome::Done => "done",
        Outcome::Failed => "failed",
    }
}

const fn title(vm_type: VmType) -> &'static str {
    match vm_type {
        VmType::SecondaryStorage => "Secondary storage VM",
        VmType::ConsoleProxy => "Console proxy",
        VmType::Router => "Virtual router",
        VmType::DhcpServer => "DHCP server",
        VmType::VpcRouter => "VPC router",
        VmType::InternalLb => "Internal load balancer",
        VmType::ElasticLb => "Elastic load balancer",
        VmType::CksNode => "Kubernetes node",
        VmType::SharedFs => "Shared file system VM",
    }
}

/// What a person who sees the console can do.
const fn todo(problem: &Entry) -> &'static str {
    match problem.step {
        Step::Hypervisor => "start this VM on KVM, XenServer, VMware or Hyper-V",
        Step::Line => {
            "nothing here: the host gives the boot arguments. If it does not, see its log, and that the VM has the \
                       port org.qemu.guest_agent.0 (KVM), vm-data/cloudstack/init (XenServer) or machine.id (VMware)"
        }
        Step::Arguments => {
            "correct the settings of the management server and restart this VM, or write corrected boot \
                            arguments: they are taken at once"
        }
        Step::Network => "compare the NICs of this VM at its host with what is said above",
        _ => "log in over ssh, port 3922, and see `agent check` and `journalctl -b`",
    }
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, text: &str) {
        if self.0.lines().count() < HEIGHT {
            let text: String = text.chars().filter(|letter| !letter.is_control()).take(WIDTH).collect();
            writeln!(self.0, "{}", text.trim_end()).expect("a String takes everything");
        }
    }

    fn rule(&mut self) {
        self.line(&"-".repeat(WIDTH));
    }

    fn field(&mut self, label: &str, text: &str) {
        self.line(&format!("{label:LABEL$}{text}"));
    }

    /// A text of several lines, with its label at the first.
    fn paragraph(&mut self, label: &str, text: &str) {
        let mut lines: Vec<String> = text.lines().flat_map(|line| wrapped(line, WIDTH - LABEL)).collect();
        if lines.len() > MAX_PROBLEM {
            lines.truncate(MAX_PROBLEM - 1);
            lines.push("… more: `agent check` over ssh, or the guest channel".to_owned());
        }
        for (number, line) in lines.iter().enumerate() {
            self.field(if number == 0 { label } else { "" }, line);
        }
    }
}

/// Cuts a line between words, or within one that is too long.
fn wrapped(line: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let last = lines.last_mut().expect("there is one from the start");
            let used = last.chars().count();
            let space = usize::from(used > 0);
            if used + space + word.len() <= width {
                last.extend(std::iter::repeat_n(' ', space).chain(word));
                break;
            }
            if used == 0 {
                last.extend(word.drain(..width));
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(step: Step, outcome: Outcome, at_ms: u64, detail: &str) -> Entry {
        Entry {
            step,
            outcome,
            at_ms,
            detail: detail.to_owned(),
        }
    }

    fn nic(name: &str, is_up: bool, address: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            mac: String::new(),
            is_up,
            addresses: address.parse().into_iter().collect(),
        }
    }

    #[test]
    fn a_vm_that_works_shows_who_it_is_and_where() {
        let facts = Facts {
            vm_type: Some(VmType::SecondaryStorage),
            name: Some("s-1-VM".into()),
            compatible: Some("4.22.0".into()),
            interfaces: vec![
                nic("eth0", true, "169.254.14.87"),
                nic("eth1", true, "192.0.2.21"),
                nic("eth3", false, ""),
            ],
            steps: vec![
                entry(Step::Line, Outcome::Done, 2100, "guest agent"),
                entry(Step::Ready, Outcome::Done, 12_345, ""),
            ],
            has_agent: true,
            link: Some(LinkStatus {
                state: State::Ready,
                server: Some("192.0.2.10:8250".into()),
                since: 1_754_478_123,
                last_error: None,
                next_attempt: None,
                attempts: 1,
                links: 1,
            }),
        };
        insta::assert_snapshot!(draw(&facts));
        assert_eq!(facts.in_short(), "s-1-VM: ready (12.3 s)");
    }

    #[test]
    fn a_vm_without_boot_arguments_says_that_it_waits_for_them() {
        let facts = Facts {
            interfaces: vec![nic("eth0", false, "")],
            steps: vec![
                entry(Step::Hypervisor, Outcome::Done, 1500, "kvm"),
                entry(
                    Step::Line,
                    Outcome::Waiting,
                    22_000,
                    "the host has not written any to the guest agent",
                ),
            ],
            ..Facts::default()
        };
        insta::assert_snapshot!(draw(&facts));
        assert_eq!(facts.news(), Some((Step::Line, Outcome::Waiting)));
        assert_eq!(
            facts.in_short(),
            "system VM: boot arguments missing, waiting: the host has not written any to the"
        );
    }

    #[test]
    fn bad_boot_arguments_are_shown_with_each_problem() {
        let problems = "in /var/cache/cloud/cmdline: 2 boot argument(s) need fixing\n  eth2ip=\"10.0.0.300\": expected an IPv4 \
                        address\n  vncport=\"99999\": expected a port number";
        let facts = Facts {
            steps: vec![entry(Step::Arguments, Outcome::Failed, 3000, problems)],
            ..Facts::default()
        };
        insta::assert_snapshot!(draw(&facts));
    }

    proptest! {
        #[test]
        fn whatever_there_is_to_show_fits_on_the_screen(
            detail in "\\PC{0,900}", name in "\\PC{0,300}", nics in 0..30_usize, error in "(\\PC|\n){0,400}",
        ) {
            let link = LinkStatus {
                state: State::Connecting, server: Some(name.clone()), since: u64::MAX, last_error: Some(error.clone()),
                next_attempt: None, attempts: 0, links: 0,
            };
            let facts = Facts {
                name: Some(name.clone()),
                interfaces: (0..nics).map(|index| nic(&format!("eth{index}"), true, "2001:db8::1")).collect(),
                steps: vec![entry(Step::Arguments, Outcome::Failed, 1, &(detail + &error))],
                link: Some(link),
                has_agent: true,
                ..Facts::default()
            };
            let text = draw(&facts);
            prop_assert!(text.lines().count() <= HEIGHT);
            prop_assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
            prop_assert!(text.contains("To do"), "{}", text);
        }
    }
}
