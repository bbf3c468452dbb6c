//! What the kernel counts for a process: proc(5).

use std::fs;
use std::time::Duration;

use anyhow::Context;

/// Clock ticks in a second: `USER_HZ`, the same on every architecture that we build for.
const TICKS_PER_SECOND: u32 = 100;

/// Processor time, in the kernel and outside.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    cpu_in(&stat).with_context(|| format!("{path} has an unknown form"))
}

/// The same of all its threads of one name.
pub(crate) fn thread_cpu(pid: u32, name: &str) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&path).with_context(|| path.clone())?;
    // A thread may end between the list and the look.
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let named = stats.filter(|stat| name_in(stat) == Some(name));
    named
        .map(|stat| cpu_in(&stat).with_context(|| format!("{path} has an unknown form")))
        .sum()
}

/// Memory in RAM, in KiB.
pub(crate) fn rss(pid: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    rss_in(&status).with_context(|| format!("{path} has no VmRSS"))
}

/// Processor time of its children that have ended and were waited for.
pub(crate) fn children_cpu(pid: u32) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    ticks_in(&stat, [16, 17]).with_context(|| format!("{path} has an unknown form"))
}

/// Fields 14 and 15 of `stat`. The name before them may hold blanks and parentheses.
fn cpu_in(stat: &str) -> Option<Duration> {
    ticks_in(stat, [14, 15])
}

fn ticks_in(stat: &str, [user, kernel]: [usize; 2]) -> Option<Duration> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let ticks = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
    Some(Duration::from_secs(1) * ticks(user)?.checked_add(ticks(kernel)?)? / TICKS_PER_SECOND)
}

fn name_in(stat: &str) -> Option<&str> {
    Some(stat.split_once('(')?.1.rsplit_once(')')?.0)
}

fn rss_in(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "4321 (a (strange) name) S 1 4321 4321 0 -1 4194560 812 0 3 0 1250 75 0 0 20 0 4 0 88 1 2 3";

    #[test]
    fn processor_time_is_found_behind_any_name() {
        assert_eq!(cpu_in(STAT), Some(Duration::from_millis(13_250)));
        assert_eq!(name_in(STAT), Some("a (strange) name"));
        assert_eq!(cpu_in("4321 (short) S 1"), None);
    }

    #[test]
    fn memory_is_read_from_its_line() {
        assert_eq!(
            rss_in("Name:\tx\nVmHWM:\t   99 kB\nVmRSS:\t   12345 kB\nThreads:\t3\n"),
            Some(12_345)
        );
        assert_eq!(rss_in("Name:\tkthreadd\n"), None);
    }

    #[test]
    fn this_process_can_be_measured() {
        let pid = std::process::id();
        assert!(rss(pid).unwrap() > 100);
        assert!(thread_cpu(pid, "no such thread").unwrap().is_zero());
        assert!(cpu(pid).unwrap() < Duration::from_hours(1));
    }
}
