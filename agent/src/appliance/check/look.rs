//! What the checks have in common: they look at the boot arguments, at what listens, at mounts. Nothing here waits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use platform::files;
use protocol::boot::{BootArgs, Role, SystemVm, VmType};

use crate::appliance::root::{LINE, Root};

/// More than any hypervisor can hand over.
const MAX_LINE: u64 = 1 << 20;
/// Of a file of the kernel: `/proc/net/tcp` has 150 bytes for each socket.
const MAX_PROC: u64 = 4 << 20;

/// The machine, as far as the boot arguments say what it should be.
#[derive(Debug, Clone)]
pub struct Look {
    /// Where files are.
    pub root: Root,
    line: Arc<Line>,
}

/// What is known of the boot arguments.
#[derive(Debug)]
pub enum Line {
    /// There are none yet.
    Missing,
    /// They cannot be read, or make no sense; one problem each.
    Bad(Vec<String>),
    /// They are good.
    Good(Box<SystemVm>),
}

impl Look {
    /// Reads the boot arguments.
    pub fn at(root: &Root) -> Self {
        Self {
            root: root.clone(),
            line: Arc::new(Line::read(root)),
        }
    }

    /// What is known of the boot arguments.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// The VM that the boot arguments describe.
    pub fn vm(&self) -> Option<&SystemVm> {
        match self.line() {
            Line::Good(vm) => Some(vm),
            Line::Missing | Line::Bad(_) => None,
        }
    }

    /// Its type.
    pub fn vm_type(&self) -> Option<VmType> {
        self.vm().map(SystemVm::vm_type)
    }

    /// Its name.
    pub fn name(&self) -> Option<String> {
        Some(self.vm()?.machine.name.as_ref()?.to_string())
    }

    /// The agent's part of the boot arguments, where there is an agent.
    pub fn agent(&self) -> Option<&protocol::boot::Agent> {
        match &self.vm()?.role {
            Role::SecondaryStorage(ssvm) => Some(&ssvm.agent),
            Role::ConsoleProxy(cpvm) => Some(&cpvm.agent),
            _ => None,
        }
    }

    /// Whether a check says anything about this type of VM.
    pub(super) fn is_wanted(&self, check: &str) -> bool {
        match check {
            "management-server" | "service" | "certificate" => self.agent().is_some(),
            "storage" => self.vm_type() == Some(VmType::SecondaryStorage),
            // Time servers come with the boot arguments, too.
            "nics" | "gateway" | "dns" | "listening" | "time" => self.vm().is_some(),
            _ => true,
        }
    }

    /// A file of the kernel as text; empty when it cannot be read.
    pub(super) fn proc(&self, path: &str) -> String {
        let bytes = files::read_limited(self.root.path(path), MAX_PROC).ok().flatten();
        String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
    }

    /// Name servers of `/etc/resolv.conf`, in order: resolv.conf(5).
    pub(super) fn name_servers(&self) -> Vec<IpAddr> {
        let text = self.proc("/etc/resolv.conf");
        let words = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
        words
            .filter_map(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
            .collect()
    }

    /// TCP sockets that listen.
    pub(super) fn tcp_listeners(&self) -> Vec<SocketAddr> {
        // 0A is TCP_LISTEN: Linux, include/net/tcp_states.h.
        let of = |path| sockets(&self.proc(path), Some("0A"));
        [of("/proc/net/tcp"), of("/proc/net/tcp6")].concat()
    }

    /// UDP sockets.
    pub(super) fn udp_sockets(&self) -> Vec<SocketAddr> {
        let of = |path| sockets(&self.proc(path), None);
        [of("/proc/net/udp"), of("/proc/net/udp6")].concat()
    }

    /// The processes of the unit that CloudStack knows as `cloud`.
    pub(super) fn service_pids(&self) -> Vec<u32> {
        let unit = match self.vm_type() {
            Some(VmType::SecondaryStorage) => "cs-ssvm.service",
            Some(VmType::ConsoleProxy) => "cs-console-proxy.service",
            _ => return Vec::new(),
        };
        let text = self.proc(&format!("/sys/fs/cgroup/system.slice/{unit}/cgroup.procs"));
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Mounts of network file systems that the program has, as (device, place in its own file system, path for us). They are
    /// in its own mount namespace.
    pub(super) fn stores(&self) -> Vec<Store> {
        let pids = self.service_pids();
        let Some(pid) = pids.first() else {
            return Vec::new();
        };
        let mounts = self.proc(&format!("/proc/{pid}/mountinfo"));
        let mut stores: Vec<Store> = mounts.lines().filter_map(|line| Store::of(line, *pid)).collect();
        for store in &mut stores {
            store.path = self.root.path(&store.path);
        }
        stores
    }
}

/// A network file system that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Store {
    /// `192.0.2.5:/export`.
    pub(super) device: String,
    /// Where it is mounted.
    pub(super) place: String,
    /// How we get there from outside of the program's mount namespace.
    pub(super) path: PathBuf,
    /// `nfs4`, `nfs`, `cifs`.
    pub(super) kind: String,
}

impl Store {
    /// A line of mountinfo: proc_pid_mountinfo(5).
    fn of(line: &str, pid: u32) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut words = file_system.split(' ');
        let (kind, device) = (words.next()?, words.next()?);
        let place = unescaped(mount.split(' ').nth(4)?);
        matches!(kind, "nfs" | "nfs4" | "cifs").then(|| Self {
            device: unescaped(device),
            path: PathBuf::from(format!("/proc/{pid}/root{place}")),
            place,
            kind: kind.to_owned(),
        })
    }
}

/// Spaces and backslashes are written as `\040` and `\134`.
fn unescaped(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => plain.push(char::from(code)),
            None => plain.push('\\'),
        }
        rest = code.and_then(|_| after.get(3..)).unwrap_or(after);
    }
    plain + rest
}

impl Line {
    /// Reads `/var/cache/cloud/cmdline`.
    fn read(root: &Root) -> Self {
        let bytes = match files::read_limited(root.path(LINE), MAX_LINE) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => return Self::Bad(vec![platform::logging::chain(&error).to_string()]),
        };
        if bytes.trim_ascii().is_empty() {
            return Self::Missing;
        }
        match BootArgs::parse(bytes).and_then(|args| SystemVm::parse(&args)) {
            Ok(vm) => Self::Good(Box::new(vm)),
            Err(bad) => Self::Bad(bad.problems().to_vec()),
        }
    }
}

/// Local addresses in a table of `/proc/net`: proc_net(5). Addresses are words of 32 bits in the machine's byte order.
fn sockets(table: &str, state: Option<&str>) -> Vec<SocketAddr> {
    let lines = table.lines().skip(1);
    let found = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let local = words.next()?;
        let found_state = words.nth(1)?;
        let (address, port) = local.split_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let words: Option<Vec<u32>> = address
            .as_bytes()
            .chunks(8)
            .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
            .collect();
        let bytes: Vec<u8> = words?.into_iter().flat_map(u32::to_ne_bytes).collect();
        let ip: IpAddr = match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(four) => Ipv4Addr::from(four).into(),
            Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?).to_canonical(),
        };
        state
            .is_none_or(|state| state == found_state)
            .then(|| SocketAddr::new(ip, port))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_read_as_the_kernel_writes_them() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                  0: 570EFEA9:0F52 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1 0 100 0 0 10 0\n   \
                  1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 8 1 0 100 0 0 10 0\n";
        assert_eq!(sockets(v4, Some("0A")), ["169.254.14.87:3922".parse().unwrap()]);
        assert_eq!(sockets(v4, None).len(), 2);
        let v6 = "  sl  local_address                         remote_address\n   \
                  0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000\n   \
                  1: 0000000000000000FFFF00000100007F:0050 00000000000000000000000000000000:0000 0A 00000000:00000000\n";
        let found = ["[::]:8080".parse().unwrap(), "127.0.0.1:80".parse().unwrap()];
        assert_eq!(sockets(v6, Some("0A")), found);
        assert_eq!(sockets("", None), []);
        assert_eq!(sockets("x\n 0: zz:12 00 0A", None), []);
    }

    #[test]
    fn stores_are_found_among_the_mounts_of_the_program() {
        let line =
            "412 380 0:51 /a /mnt/SecStorage/my\\040store rw,relatime shared:1 - nfs4 192.0.2.5:/export/a rw,vers=4.2";
        let store = Store::of(line, 77).unwrap();
        assert_eq!(store.place, "/mnt/SecStorage/my store");
        assert_eq!(store.path, PathBuf::from("/proc/77/root/mnt/SecStorage/my store"));
        assert_eq!(
            (store.device.as_str(), store.kind.as_str()),
            ("192.0.2.5:/export/a", "nfs4")
        );
        assert_eq!(Store::of("22 1 254:1 / / rw - ext4 /dev/vda1 rw", 77), None);
        assert_eq!(Store::of("", 77), None);
        assert_eq!(unescaped("a\\134b\\"), "a\\b\\");
    }

    #[test]
    fn what_is_not_there_is_no_problem_of_the_look() {
        let directory = tempfile::tempdir().unwrap();
        let look = Look::at(&Root::new(directory.path()));
        assert!(matches!(look.line(), Line::Missing));
        assert_eq!(look.name(), None);
        assert_eq!(look.stores(), []);
        assert_eq!(look.name_servers(), Vec::<IpAddr>::new());
    }
}
