//! The data directory: who uses it, room, what was left; the image; ports.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use hypervisor::disk;
use hypervisor::network::namespace::{Name, Namespace};
use mgmt_stub::running::Running;
use nix::sys::statvfs::statvfs;
use platform::files;
use platform::logging::chain;
use sha2::{Digest, Sha256};

use super::{Finding, Purpose};

const GIB: u64 = 1 << 30;
/// Below it SSVMs refuse templates soon.
const ROOM: u64 = 8 * GIB;
/// A copy of the image and what two VMs write.
const LEAST_ROOM: u64 = GIB;
/// Bytes of a path of a Unix socket: unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// The longest that is made in the data directory.
const LONGEST_SOCKET: &str = "vms/i-10000-10000-VM/guest-agent";
/// Beside an image: which digest each file has, as `sha256sum` writes it.
const SUMS: &str = "SHA256SUMS";
const MAX_SUMS: u64 = 64 << 10;
const BLOCK: usize = 1 << 20;

/// Who serves a data directory.
pub(super) struct Server(Result<Option<Running>, String>);

pub(super) fn server(data_dir: &Path) -> Server {
    Server(Running::find(data_dir).map_err(|error| chain(&error).to_string()))
}

impl Server {
    fn running(&self) -> Option<&Running> {
        self.0.as_ref().ok().and_then(Option::as_ref)
    }

    pub(super) fn runs(&self) -> bool {
        self.running().is_some()
    }

    pub(super) fn finding(&self) -> Finding {
        match &self.0 {
            Ok(Some(running)) => Finding::ok("server", format!("runs, at {}", running.url())),
            Ok(None) => Finding::ok("server", "does not run"),
            Err(error) => Finding::error("server", error, "look with root's rights, or choose another --data-dir"),
        }
    }
}

pub(super) fn disk(data_dir: &Path, purpose: Purpose) -> Finding {
    let there = data_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    let there = if there.as_os_str().is_empty() {
        Path::new(".")
    } else {
        there
    };
    match statvfs(there) {
        Ok(found) => judge_room(data_dir, found.blocks_available() * found.fragment_size(), purpose),
        Err(error) => Finding::error(
            "disk",
            format!("{} cannot be looked at: {error}", there.display()),
            "choose another --data-dir",
        ),
    }
}

fn judge_room(data_dir: &Path, free: u64, purpose: Purpose) -> Finding {
    let place = data_dir.display();
    let text = format!("{} GiB are free for {place}", free / GIB);
    let fix = "make room, or choose another --data-dir: templates and disks of VMs are in there";
    let least = match purpose {
        Purpose::Qemu => LEAST_ROOM,
        Purpose::Processes => LEAST_ROOM / 8,
    };
    match free {
        free if free < least => Finding::error("disk", format!("{} MiB are free for {place}", free >> 20), fix),
        free if free < ROOM => Finding::warning("disk", text, fix),
        _ => Finding::ok("disk", text),
    }
}

pub(super) fn length(data_dir: &Path) -> Finding {
    let path = std::path::absolute(data_dir.join(LONGEST_SOCKET)).unwrap_or_default();
    let bytes = path.as_os_str().len();
    if bytes <= MAX_SOCKET_PATH {
        return Finding::ok("length of paths", "sockets of VMs fit");
    }
    Finding::error(
        "length of paths",
        format!(
            "sockets of VMs have paths like {}, {bytes} bytes, and {MAX_SOCKET_PATH} are allowed",
            path.display()
        ),
        "choose a --data-dir with a shorter path",
    )
}

/// It is there, QEMU can use it, and it is what was built.
pub(super) async fn image(image: Option<&Path>) -> Finding {
    let (check, fix) = ("image", "make it with `cargo xtask image`, and name it with --image");
    let Some(path) = image else {
        return Finding::warning(
            check,
            "none was named, so it was not looked at",
            "name it with --image FILE",
        );
    };
    if let Err(error) = disk::inspect(path).await {
        return Finding::error(check, chain(&error).to_string(), fix);
    }
    let owned = path.to_owned();
    let compared = tokio::task::spawn_blocking(move || compare(&owned)).await;
    match compared.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
        Ok(Sums::Same) => Finding::ok(check, format!("{} is whole", path.display())),
        Ok(Sums::Other) => Finding::error(
            check,
            format!(
                "{} is not what {SUMS} beside it says: it is damaged, or half copied",
                path.display()
            ),
            fix,
        ),
        Ok(Sums::Unknown) => Finding::warning(
            check,
            format!(
                "{} is an image, but {SUMS} beside it does not name it, so it may be damaged",
                path.display()
            ),
            format!("copy {SUMS} with the image"),
        ),
        Err(error) => Finding::error(check, format!("{} cannot be read: {error}", path.display()), fix),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sums {
    Same,
    Other,
    Unknown,
}

fn compare(image: &Path) -> io::Result<Sums> {
    let sums = files::read_limited(image.with_file_name(SUMS), MAX_SUMS).map_err(io::Error::other)?;
    let sums = String::from_utf8_lossy(&sums.unwrap_or_default()).into_owned();
    let Some(wanted) = image.file_name().and_then(|name| digest_of(&sums, name.to_str()?)) else {
        return Ok(Sums::Unknown);
    };
    let (mut file, mut digest, mut block) = (fs::File::open(image)?, Sha256::new(), vec![0; BLOCK]);
    loop {
        let read = file.read(&mut block)?;
        if read == 0 {
            break;
        }
        digest.update(&block[..read]);
    }
    let found = base16(&digest.finalize());
    Ok(if found.eq_ignore_ascii_case(wanted) {
        Sums::Same
    } else {
        Sums::Other
    })
}

fn base16(bytes: &[u8]) -> String {
    let mut digits = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

/// A line is the digest, two spaces (or one and `*`), and the name.
fn digest_of<'a>(sums: &'a str, name: &str) -> Option<&'a str> {
    sums.lines().find_map(|line| {
        let (digest, rest) = line.split_once(' ')?;
        let found = rest.strip_prefix([' ', '*'])?;
        (found == name).then_some(digest)
    })
}

/// What a zone without a server still has: on purpose, or because it was killed.
pub(super) fn leftovers(data_dir: &Path, server_runs: bool) -> Option<Finding> {
    let check = "left-overs";
    if server_runs {
        return None;
    }
    let name = Name::of_directory(data_dir);
    let namespace = match Namespace::open(&name) {
        Ok(None) => return Some(Finding::ok(check, "none of an earlier zone")),
        Ok(Some(namespace)) => namespace,
        Err(error) => {
            let fix = format!("ip netns delete {name}");
            return Some(Finding::error(check, chain(&error).to_string(), fix));
        }
    };
    let inside = namespace
        .processes()
        .map(|processes| processes.len())
        .unwrap_or_default();
    let text = format!(
        "there is no server, but the network namespace {name} of this zone is there, with {inside} processes in it"
    );
    let data_dir = data_dir.display();
    let fix = format!(
        "`mgmt-stub --data-dir {data_dir} up` takes over what runs; `mgmt-stub --data-dir {data_dir} down` removes it"
    );
    Some(Finding::warning(check, text, fix))
}

/// Whether a server has had system VMs.
pub(super) fn has_vms(data_dir: &Path) -> bool {
    fs::read_dir(data_dir.join("vms")).is_ok_and(|mut vms| vms.next().is_some())
}

pub(super) fn port(check: &'static str, address: SocketAddr, option: &str, server: &Server) -> Finding {
    let own = server
        .running()
        .filter(|own| own.http == address || own.console == address);
    if own.is_some() {
        return Finding::ok(check, format!("{address} is the running server's"));
    }
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(check, format!("{address} is free")),
        Err(error) => Finding::error(
            check,
            format!("{address} cannot be used: {error}"),
            format!(
                "choose another with {option}, or see who has it: ss -ltnp 'sport = :{}'",
                address.port()
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_image_is_found_by_the_sums_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("sysvm.qcow2");
        let _ = files::replace(&image, "abc", 0o600).unwrap();
        assert_eq!(compare(&image).unwrap(), Sums::Unknown);
        let sums = "0000  other\nba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  sysvm.qcow2\n";
        let _ = files::replace(directory.path().join(SUMS), sums, 0o600).unwrap();
        assert_eq!(compare(&image).unwrap(), Sums::Same);
        let _ = files::replace(&image, "abd", 0o600).unwrap();
        assert_eq!(compare(&image).unwrap(), Sums::Other);
        assert_eq!(digest_of("ab *x\n", "x"), Some("ab"));
        assert_eq!(digest_of("ab  xy\n", "x"), None);
    }

    #[test]
    fn room_is_judged_by_what_shall_run() {
        let judge = |free, purpose| judge_room(Path::new("/data"), free, purpose);
        assert!(judge(GIB / 2, Purpose::Qemu).is_error());
        assert!(!judge(GIB / 2, Purpose::Processes).is_error());
        assert_eq!(
            judge(100 * GIB, Purpose::Qemu),
            Finding::ok("disk", "100 GiB are free for /data")
        );
    }

    #[test]
    fn a_path_too_long_for_sockets_is_an_error() {
        assert!(!length(Path::new("/var/lib/sysvm")).is_error());
        assert!(length(&Path::new("/").join("x".repeat(90))).is_error());
    }

    #[test]
    fn a_port_that_somebody_has_is_an_error_unless_it_is_our_server() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let nobody = Server(Ok(None));
        assert!(port("port", address, "--http", &nobody).is_error());
        let us = Server(Ok(Some(Running::this("none".into(), address, address, address))));
        assert!(!port("port", address, "--http", &us).is_error());
    }
}
