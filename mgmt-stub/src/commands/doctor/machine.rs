//! The kernel, the processor, memory, the clock.

use std::fs::{self, OpenOptions};
use std::path::Path;

use hypervisor::accelerator::Accelerator;
use hypervisor::network::namespace::{Name, Namespace, NamespaceError};
use platform::files;
use platform::logging::chain;
use time::OffsetDateTime;
use time::macros::datetime;

use super::{Finding, Purpose};

const TUN: &str = "/dev/net/tun";
const KVM: &str = "/dev/kvm";
/// What both system VMs may take (`secstorage.vm.ram.size`, `consoleproxy.ram.size`) and the server and NFS beside them.
const VMS_MIB: u64 = 2048;
/// Below it they do not even boot.
const LEAST_VMS_MIB: u64 = 1024;
const PROCESSES_MIB: u64 = 256;
const MAX_MEMINFO: u64 = 64 << 10;
/// A clock that is before it was never set.
const EARLIEST: OffsetDateTime = datetime!(2025-01-01 00:00 UTC);
/// Clocks of two machines that share a disk may differ by that.
const SLACK: time::Duration = time::Duration::minutes(5);

/// What the networks of a zone need of the kernel, tried in a namespace that is removed again.
const LINKS: &str = "link add doctor type bridge\ntuntap add dev doctor-tap mode tap\nlink set doctor-tap master doctor\n\
                     link set doctor up\n";
const RULES: &str = "\
table bridge doctor {
  set s {
    type ifname . ether_addr
  }
  chain c {
    type filter hook prerouting priority -300
    iifname . ether saddr != @s counter drop
  }
}
table inet doctor {
  chain c {
    type filter hook input priority filter
    ct state established accept
  }
  chain n {
    type nat hook postrouting priority srcnat
    oifname \"doctor\" masquerade
  }
}
";

pub(super) fn root() -> Finding {
    if is_root() {
        Finding::ok("root", "we are")
    } else {
        Finding::error(
            "root",
            "we are not: networks of VMs cannot be made",
            "run it as root; or let system VMs be programs, with --driver processes",
        )
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

pub(super) fn tun() -> Finding {
    match OpenOptions::new().read(true).write(true).open(TUN) {
        Ok(_) => Finding::ok("tap devices", format!("{TUN} can be opened")),
        Err(error) => Finding::error(
            "tap devices",
            format!("{TUN} cannot be opened: {error}"),
            "modprobe tun; in a container let it have the device (docker run --device /dev/net/tun)",
        ),
    }
}

/// Makes what a zone has, in small.
pub(super) async fn networks() -> Finding {
    let check = "networks";
    if !is_root() {
        return Finding::error(check, "only root can try them", "run doctor as root");
    }
    match try_networks().await {
        Ok(()) => Finding::ok(
            check,
            "namespaces, bridges, taps, and nftables with bridge, inet and nat work",
        ),
        Err(error) => Finding::error(
            check,
            chain(&error).to_string(),
            "in a container run it privileged (CAP_SYS_ADMIN and CAP_NET_ADMIN); \
             else load the modules: modprobe -a bridge tun nf_tables nft_ct nft_nat nft_masq nf_conntrack_bridge",
        ),
    }
}

async fn try_networks() -> Result<(), NamespaceError> {
    let name: Name = format!("doctor-{}", std::process::id())
        .parse()
        .expect("letters, a dash and digits");
    let namespace = Namespace::open_or_create(&name).await?;
    let tried = async {
        namespace.ip(LINKS).await?;
        namespace.nft(RULES).await
    };
    let tried = tried.await;
    let removed = namespace.remove().await;
    tried.and(removed)
}

pub(super) async fn kvm() -> Finding {
    if Accelerator::detect().await == Accelerator::Kvm {
        return Finding::ok("kvm", "a guest has run");
    }
    let why = match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => "/dev/kvm is there, but no guest runs with it".to_owned(),
        Err(error) => format!("{KVM} cannot be opened: {error}"),
    };
    Finding::warning(
        "kvm",
        format!("{why}; VMs are emulated, which is five to ten times slower"),
        "load kvm_intel or kvm_amd, enable virtualisation in the firmware; in a VM let its host pass it on (nested)",
    )
}

pub(super) fn memory(purpose: Purpose) -> Finding {
    let read = files::read_limited("/proc/meminfo", MAX_MEMINFO).ok().flatten();
    let text = read.and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default();
    let Some(free) = available_mib(&text) else {
        return Finding::warning("memory", "/proc/meminfo does not say how much is free", "mount /proc");
    };
    judge_memory(free, purpose)
}

fn judge_memory(free: u64, purpose: Purpose) -> Finding {
    let (wanted, least) = match purpose {
        Purpose::Qemu => (VMS_MIB, LEAST_VMS_MIB),
        Purpose::Processes => (PROCESSES_MIB, PROCESSES_MIB / 4),
    };
    let text = format!("{free} MiB are free, and a zone takes up to {wanted} MiB");
    let fix = "end what is not needed, or give the machine more; \
               settings secstorage.vm.ram.size and consoleproxy.ram.size make VMs smaller";
    match free {
        free if free < least => Finding::error("memory", text, fix),
        free if free < wanted => Finding::warning("memory", text, fix),
        _ => Finding::ok("memory", text),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// Certificates are good from a time on, and one that is wrong makes agents refuse us.
pub(super) fn clock(data_dir: &Path) -> Finding {
    let ca = fs::metadata(data_dir.join("ca/ca.crt")).and_then(|metadata| metadata.modified());
    judge_clock(OffsetDateTime::now_utc(), ca.ok().map(OffsetDateTime::from))
}

fn judge_clock(now: OffsetDateTime, ca: Option<OffsetDateTime>) -> Finding {
    let date = now.date();
    let fix = "set it, and keep it right: apt-get install systemd-timesyncd";
    match ca {
        _ if now < EARLIEST => Finding::error("clock", format!("it says {date}"), fix),
        Some(ca) if now + SLACK < ca => Finding::error(
            "clock",
            format!(
                "it says {date}, and the certificate authority was made later: {}",
                ca.date()
            ),
            fix,
        ),
        _ => Finding::ok("clock", format!("it says {date}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_memory_is_read_and_judged() {
        let meminfo = "MemTotal:       16384000 kB\nMemAvailable:    4194304 kB\n";
        assert_eq!(available_mib(meminfo), Some(4096));
        assert_eq!(available_mib("MemAvailable: much"), None);
        assert!(judge_memory(500, Purpose::Qemu).is_error());
        assert!(judge_memory(1500, Purpose::Qemu).fix.is_some());
        assert_eq!(judge_memory(1500, Purpose::Processes).fix, None);
    }

    #[test]
    fn a_clock_that_was_never_set_or_went_back_is_wrong() {
        assert!(judge_clock(datetime!(1970-01-02 00:00 UTC), None).is_error());
        let now = datetime!(2026-05-01 00:00 UTC);
        assert!(!judge_clock(now, None).is_error());
        assert!(!judge_clock(now, Some(now + time::Duration::MINUTE)).is_error());
        assert!(judge_clock(now, Some(now + time::Duration::HOUR)).is_error());
    }
}
