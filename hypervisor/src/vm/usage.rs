//! What a VM uses of this machine, from `/proc`: no program is run, QEMU is not asked.

use std::fs;
use std::io;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Counters begin anew with each start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Usage {
    /// Processor time of QEMU with all its threads.
    pub cpu: Duration,
    /// Bytes of this machine's memory.
    pub memory: u64,
    /// Bytes that came to its NICs.
    pub received: u64,
    /// Bytes that its NICs sent.
    pub sent: u64,
}

impl Usage {
    /// Of a process, whose network namespace has these taps.
    ///
    /// # Errors
    /// There is no such process.
    pub fn of<'a>(pid: i32, taps: impl Iterator<Item = &'a str>) -> io::Result<Self> {
        let odd = |what: &str| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("/proc/{pid}/{what} has an unknown form"),
            )
        };
        let setting = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let (ticks, pages) =
            cpu_and_memory(&fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| odd("stat"))?;
        let ticks_per_second = setting(SysconfVar::CLK_TCK).filter(|hertz| *hertz > 0).unwrap_or(100);
        let mut usage = Self {
            cpu: Duration::from_millis(ticks.saturating_mul(1000) / ticks_per_second),
            memory: pages.saturating_mul(setting(SysconfVar::PAGE_SIZE).unwrap_or(4096)),
            ..Self::default()
        };
        let devices = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
        for tap in taps {
            // What the host receives from a tap is what the guest has sent.
            let (received, sent) = traffic(&devices, tap).unwrap_or_default();
            usage.sent += received;
            usage.received += sent;
        }
        Ok(usage)
    }
}

/// Clock ticks in user and system mode, and resident pages: proc(5), fields 14, 15 and 24. The second field is the
/// program's name in parentheses, and may hold anything.
fn cpu_and_memory(stat: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some((number(14)?.saturating_add(number(15)?), number(24)?))
}

/// Bytes that a device of `/proc/net/dev` has received and sent.
fn traffic(devices: &str, name: &str) -> Option<(u64, u64)> {
    let mut lines = devices.lines().filter_map(|line| line.trim_start().split_once(':'));
    let (_, counters) = lines.find(|(device, _)| *device == name)?;
    let mut counters = counters.split_ascii_whitespace();
    Some((counters.next()?.parse().ok()?, counters.nth(7)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_of_the_kernel_are_read() {
        let stat =
            "7 (qemu (x) S 1) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 5 0 98765 123456 789 18446744073709551615";
        assert_eq!(cpu_and_memory(stat), Some((300, 789)));
        let devices = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets\n    \
                       lo: 1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\ntap-1-0: 11 1 0 0 0 0 0 0 22 2 0 0 0 0 0 0\n";
        assert_eq!(traffic(devices, "tap-1-0"), Some((11, 22)));
        assert_eq!(traffic(devices, "tap-1"), None);
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(noise: String) {
            cpu_and_memory(&noise);
            traffic(&noise, "tap0");
        }
    }

    #[test]
    fn we_use_something_ourselves() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let usage = || Usage::of(pid, ["lo"].into_iter()).unwrap();
        let before = usage();
        assert!(before.memory > 100_000, "{before:?}");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[b'x'; 1000], socket.local_addr().unwrap()).unwrap();
        let after = usage();
        assert!(after.sent >= before.sent + 1000, "{before:?} {after:?}");
        assert!(after.received >= before.received + 1000, "{before:?} {after:?}");
    }
}
