//! What a measurement needs of this machine: descriptors, ports, cores, a disk.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use crate::stats::Percentiles;

/// Allows this process, and those it starts, as many descriptors as it may have.
pub(crate) fn allow_descriptors(needed: u64) -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    ensure!(
        needed <= hard,
        "{needed} open files are needed and {hard} are allowed; `prlimit --pid $$ --nofile={needed}` as root raises the \
         limit of this shell, or ask for fewer --agents"
    );
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

/// The core for the server and the core for everything else: the last and the first of those that we may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) agents: usize,
}

impl Cores {
    /// Moves this process to its core. On a machine with one core, both share it.
    pub(crate) fn settle() -> anyhow::Result<Self> {
        let this = Pid::from_raw(0);
        let allowed = sched_getaffinity(this).context("asking for the cores")?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let agents = cores.next().context("there is no core to run on")?;
        let server = cores.next_back().unwrap_or(agents);
        let mut ours = CpuSet::new();
        ours.set(agents).context("choosing a core")?;
        sched_setaffinity(this, &ours).context("moving to one core")?;
        Ok(Self { server, agents })
    }
}

/// Which addresses of this machine agents connect to. One address can only be reached from as many ports as the system
/// hands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    agents_each: u32,
    count: u32,
}

impl Addresses {
    pub(crate) fn for_agents(agents: u32) -> anyhow::Result<Self> {
        let path = "/proc/sys/net/ipv4/ip_local_port_range";
        let range = fs::read_to_string(path).context(path)?;
        let ports = ports_in(&range).with_context(|| format!("{path} has an unknown form"))?;
        Ok(Self::spread(agents, ports))
    }

    /// Some ports are left for others.
    fn spread(agents: u32, ports: u32) -> Self {
        let agents_each = (ports - ports / 8).max(1);
        Self {
            agents_each,
            count: agents.div_ceil(agents_each).max(1),
        }
    }

    /// Where the server listens: everywhere only if it must.
    pub(crate) fn listen(self) -> Ipv4Addr {
        if self.count == 1 {
            Ipv4Addr::LOCALHOST
        } else {
            Ipv4Addr::UNSPECIFIED
        }
    }

    /// Where this agent connects to: all of 127.0.0.0/8 is this machine.
    pub(crate) fn of_agent(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + index / self.agents_each)
    }
}

fn ports_in(range: &str) -> Option<u32> {
    let mut ends = range.split_ascii_whitespace().map(str::parse::<u32>);
    let (first, last) = (ends.next()?.ok()?, ends.next()?.ok()?);
    Some(last.checked_sub(first)? + 1)
}

/// How long this disk takes to keep a little more of a file.
pub(crate) fn fsync_time(dir: &Path) -> anyhow::Result<Percentiles> {
    let mut file = tempfile::tempfile_in(dir).with_context(|| format!("making a file in {}", dir.display()))?;
    let mut sync = || {
        let started = Instant::now();
        file.write_all(&[0; 4096])?;
        file.sync_data()?;
        Ok(started.elapsed())
    };
    let samples: io::Result<Vec<Duration>> = (0..200).map(|_| sync()).collect();
    let samples = samples.with_context(|| format!("writing to {}", dir.display()))?;
    Percentiles::of(samples).context("200 samples are some")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_share_an_address_until_its_ports_run_out() {
        assert_eq!(ports_in("32768\t60999\n"), Some(28_232));
        assert_eq!(ports_in("60999 32768"), None);
        let few = Addresses::spread(10_000, 28_232);
        assert_eq!(
            (few.listen(), few.of_agent(9999)),
            (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST)
        );
        let many = Addresses::spread(50_000, 28_232);
        assert_eq!(many.listen(), Ipv4Addr::UNSPECIFIED);
        assert_eq!(many.of_agent(24_702), Ipv4Addr::LOCALHOST);
        assert_eq!(many.of_agent(24_703), Ipv4Addr::new(127, 0, 0, 2));
        assert_eq!(many.of_agent(49_999), Ipv4Addr::new(127, 0, 0, 3));
    }
}
