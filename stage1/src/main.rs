//! The first program of an image: loads the drivers of the disks that there are, mounts the root file system, and becomes
//! systemd. When it cannot, it says why on all consoles and ends, on which the kernel stops or, with `panic=10`, restarts.

mod drivers;
mod root;

use std::env;
use std::ffi::{CString, OsStr};
use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot, execv};
use stage1::cmdline::{BadCmdline, Cmdline};
use stage1::table::BadTable;

use root::NoRootFound;

/// Where the root file system is mounted before it becomes the root.
const SYSROOT: &str = "/sysroot";
/// Mounted here, and moved into the root file system.
const MOVED: [&str; 4] = ["dev", "proc", "sys", "run"];
/// As systemd mounts it.
const RUN: &str = "mode=0755,size=20%,nr_inodes=800k";

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    BadCmdline(#[from] BadCmdline),
    #[error(transparent)]
    BadTable(#[from] BadTable),
    #[error(transparent)]
    NoRootFound(#[from] NoRootFound),
    #[error("cannot mount {what} on {target}: {}", errno.desc())]
    Mount { what: String, target: String, errno: Errno },
    #[error("cannot read {path}: {source}")]
    Read { path: &'static str, source: std::io::Error },
    #[error("cannot enter the root file system: {}", .0.desc())]
    Enter(Errno),
    #[error("cannot run {program}, which the root file system should have: {}", errno.desc())]
    Run { program: String, errno: Errno },
}

fn main() {
    let started = Instant::now();
    // The kernel has made this directory's mount points, and /dev/console for us to write to until then.
    let mounted = mount_system();
    let mut log = Log::open();
    let Err(failure) = mounted.and_then(|()| boot(started, &mut log));
    log.critical(&format!("cannot start this system: {failure}"));
}

/// Does all of it. Only a failure comes back.
fn boot(started: Instant, log: &mut Log) -> Result<std::convert::Infallible, Failure> {
    let cmdline = Cmdline::parse(&read("/proc/cmdline")?)?;
    let table = stage1::table::Table::parse(&read("/modules/table")?)?;
    let root = root::find(&cmdline.root, table, started)?;

    let device = format!("/dev/{}", root.device);
    let read_only = if cmdline.is_read_only {
        MsFlags::MS_RDONLY
    } else {
        MsFlags::empty()
    };
    mount_at(&device, SYSROOT, root.file_system, read_only, cmdline.flags.as_deref())?;
    log.info(&format!(
        "{device} ({}) is the root after {} ms; {}",
        root.file_system,
        started.elapsed().as_millis(),
        root.drivers
    ));

    // What was unpacked into memory would stay there for as long as the system runs.
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");

    for name in MOVED {
        mount_at(
            &format!("/{name}"),
            &format!("{SYSROOT}/{name}"),
            "",
            MsFlags::MS_MOVE,
            None,
        )?;
    }
    chdir(SYSROOT).map_err(Failure::Enter)?;
    mount_at(".", "/", "", MsFlags::MS_MOVE, None)?;
    chroot(".").and_then(|()| chdir("/")).map_err(Failure::Enter)?;

    let program = c_string(cmdline.init.as_os_str());
    // The kernel gives us what it does not know of its command line (`single`, a target); systemd wants to see it.
    let args = env::args_os().skip(1).map(|argument| c_string(&argument));
    let args: Vec<CString> = std::iter::once(program.clone()).chain(args).collect();
    execv(&program, &args).map_err(|errno| Failure::Run {
        program: cmdline.init.display().to_string(),
        errno,
    })
}

fn mount_system() -> Result<(), Failure> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, Some("mode=0755"))?;
    mount_at("proc", "/proc", "proc", quiet, None)?;
    mount_at("sysfs", "/sys", "sysfs", quiet, None)?;
    mount_at(
        "tmpfs",
        "/run",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(RUN),
    )
}

fn mount_at(what: &str, target: &str, kind: &str, flags: MsFlags, options: Option<&str>) -> Result<(), Failure> {
    mount(Some(what), target, Some(kind), flags, options).map_err(|errno| Failure::Mount {
        what: if kind.is_empty() || what == kind {
            what.to_owned()
        } else {
            format!("{what} ({kind})")
        },
        target: target.to_owned(),
        errno,
    })
}

/// A file that is made for us: the kernel's, or the builder's.
fn read(path: &'static str) -> Result<String, Failure> {
    fs::read_to_string(Path::new(path)).map_err(|source| Failure::Read { path, source })
}

/// Arguments and paths came to us as C strings, or are words of a text line that the kernel holds as one.
fn c_string(text: &OsStr) -> CString {
    CString::new(text.as_bytes()).unwrap_or_default()
}

/// The kernel's log. Critical lines of it appear on every console, with `quiet`, too.
struct Log(Option<File>);

impl Log {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/kmsg").ok())
    }

    fn info(&mut self, text: &str) {
        self.write(6, text);
    }

    fn critical(&mut self, text: &str) {
        for line in text.lines() {
            if !self.write(2, line) {
                eprint_line(&line);
            }
        }
    }

    /// One write call is one record.
    fn write(&mut self, level: u8, text: &str) -> bool {
        let record = format!("<{level}>stage1: {text}\n");
        self.0
            .as_mut()
            .is_some_and(|kmsg| kmsg.write_all(record.as_bytes()).is_ok())
    }
}

#[expect(clippy::print_stderr, reason = "before there is a log, /dev/console is all there is")]
fn eprint_line(line: &dyn Display) {
    eprintln!("stage1: {line}");
}
