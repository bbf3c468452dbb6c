//! What a root file system says of itself: packages, kernel, units, users, who may do what.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::cache::hex;
use crate::control::{BadControl, Control};
use crate::tree::{Entry, Node, Tree};
use crate::view::DiskView;

/// Where dpkg keeps what is installed.
const STATUS: &str = "var/lib/dpkg/status";
/// Where dpkg keeps the list of each package's files, and its like.
const INFO: &str = "var/lib/dpkg/info/";
/// Where an administrator's units are, and the links that enable them.
const UNITS: &str = "etc/systemd/system/";
const MODULES: &str = "usr/lib/modules/";

/// A package in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// `libc6`.
    pub name: String,
    /// With epoch.
    pub version: String,
    /// `amd64` or `all`.
    pub arch: String,
    /// The source package's name.
    pub source: String,
    /// The source package's version.
    pub source_version: String,
    /// Bytes of those of its files that are in the image.
    pub size: u64,
}

/// The kernel that an image starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// `6.12.41+deb13-amd64`, as its modules' directory is called.
    pub version: Option<String>,
    /// The command line in the boot loader's menu.
    pub command_line: Option<String>,
    /// How many modules there are.
    pub modules: usize,
}

/// What systemd is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Units {
    /// Started at boot, or when needed: `ssh.service` in `multi-user.target.wants`.
    pub enabled: BTreeSet<String>,
    /// Never started.
    pub masked: BTreeSet<String>,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct User {
    /// `root`.
    pub name: String,
    /// Its number.
    pub uid: String,
    /// What it gets when it logs in.
    pub shell: String,
    /// What its password field lets in.
    pub password: Password,
}

/// What a password field lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Password {
    /// Nobody.
    Locked,
    /// Who knows the password.
    Set,
    /// Everybody.
    Empty,
}

/// A program that runs with more rights than who starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Privileged {
    /// Its path.
    pub path: String,
    /// In octal: `4755`.
    pub mode: String,
    /// `0:0`.
    pub owner: String,
    /// The attribute `security.capability`, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<String>,
}

/// The packages, by name. None if dpkg's status is not there.
///
/// # Errors
/// It cannot be understood.
pub fn packages(tree: &Tree) -> Result<Vec<Installed>, BadControl> {
    let status = tree.contents(STATUS).map(|status| String::from_utf8_lossy(status));
    let mut packages = Vec::new();
    for control in Control::parse_all(&status.unwrap_or_default())? {
        if control
            .get("Status")
            .is_some_and(|status| !status.ends_with(" installed"))
        {
            continue;
        }
        let (source, source_version) = control.source();
        packages.push(Installed {
            name: control.package().to_owned(),
            version: control.version().to_owned(),
            arch: control.architecture().to_owned(),
            source: source.to_owned(),
            source_version: source_version.to_owned(),
            size: installed_size(tree, &control),
        });
    }
    packages.sort_by(|a, b| (&a.name, &a.arch).cmp(&(&b.name, &b.arch)));
    Ok(packages)
}

/// The lists of files have `name:arch` where a package may be installed for several architectures.
fn installed_size(tree: &Tree, control: &Control) -> u64 {
    let (name, arch) = (control.package(), control.architecture());
    let list = tree.contents(&format!("{INFO}{name}.list"));
    let list = list.or_else(|| tree.contents(&format!("{INFO}{name}:{arch}.list")));
    let list = list.map(|list| String::from_utf8_lossy(list)).unwrap_or_default();
    let files = list.lines().filter_map(|path| {
        // `/bin/x` of the package is `usr/bin/x` here.
        let path = path.trim_start_matches('/');
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let directory = tree.resolve(directory)?;
        tree.get(&if directory.is_empty() {
            name.to_owned()
        } else {
            format!("{directory}/{name}")
        })
    });
    files.map(size_of).sum()
}

/// Bytes of a file's contents; 0 for what is none, and for further names of one.
pub(crate) fn size_of(entry: &Entry) -> u64 {
    match &entry.node {
        Node::File(contents) => u64::try_from(contents.len()).unwrap_or(u64::MAX),
        _ => 0,
    }
}

/// The kernel and how it is started.
pub fn kernel(tree: &Tree, disk: Option<&DiskView>) -> Kernel {
    let version = tree
        .below(MODULES)
        .find(|(path, _)| !path[MODULES.len()..].contains('/'));
    Kernel {
        version: version.map(|(path, _)| path[MODULES.len()..].to_owned()),
        command_line: disk.and_then(command_line),
        modules: modules(tree).len(),
    }
}

fn command_line(disk: &DiskView) -> Option<String> {
    let config = String::from_utf8_lossy(disk.esp.get("grub/grub.cfg")?);
    let line = config.lines().find_map(|line| line.trim().strip_prefix("linux "))?;
    let (_kernel, arguments) = line.trim().split_once(' ')?;
    Some(arguments.trim().to_owned())
}

/// The kernel's modules by name (`virtio_blk`), with their paths below the directory of their version.
pub fn modules(tree: &Tree) -> BTreeMap<String, String> {
    let files = tree.below(MODULES).filter_map(|(path, _)| {
        let (_version, path) = path[MODULES.len()..].split_once('/')?;
        let (_, file) = path.rsplit_once('/')?;
        let (name, ending) = file.split_once(".ko")?;
        matches!(ending, "" | ".xz" | ".zst" | ".gz").then(|| (name.replace('-', "_"), path.to_owned()))
    });
    files.collect()
}

/// What systemd starts, and what it never does.
pub fn units(tree: &Tree) -> Units {
    let mut units = Units::default();
    for (path, entry) in tree.below(UNITS) {
        let Node::Symlink(target) = &entry.node else {
            continue;
        };
        let name = &path[UNITS.len()..];
        match name.split_once('/') {
            None if target == "/dev/null" => units.masked.insert(name.to_owned()),
            Some((directory, unit)) if matches!(directory.rsplit('.').next(), Some("wants" | "requires")) => {
                units.enabled.insert(unit.to_owned())
            }
            _ => false,
        };
    }
    units
}

/// The accounts, in the order of `/etc/passwd`.
pub fn users(tree: &Tree) -> Vec<User> {
    let text = |path| {
        tree.contents(path)
            .map(|text| String::from_utf8_lossy(text))
            .unwrap_or_default()
    };
    let (passwd, shadow) = (text("etc/passwd"), text("etc/shadow"));
    let field = |line: &str, index| line.split(':').nth(index).unwrap_or_default().to_owned();
    let secrets: BTreeMap<_, _> = shadow.lines().map(|line| (field(line, 0), field(line, 1))).collect();
    let users = passwd.lines().filter(|line| !line.is_empty()).map(|line| {
        let own = field(line, 1);
        let secret = if own == "x" {
            secrets.get(&field(line, 0))
        } else {
            Some(&own)
        };
        User {
            name: field(line, 0),
            uid: field(line, 2),
            shell: field(line, 6),
            password: match secret.map(String::as_str) {
                Some("") => Password::Empty,
                // As crypt(5): no hash begins so.
                Some(secret) if !secret.starts_with(['*', '!']) => Password::Set,
                _ => Password::Locked,
            },
        }
    });
    users.collect()
}

/// Programs that run with more rights than who starts them.
pub fn privileged(tree: &Tree) -> Vec<Privileged> {
    let files = tree
        .iter()
        .filter(|(_, entry)| matches!(entry.node, Node::File(_) | Node::HardLink(_)));
    let privileged = files.filter_map(|(path, entry)| {
        let capabilities = entry.xattrs.get("security.capability").map(hex);
        (entry.mode & 0o6000 != 0 || capabilities.is_some()).then(|| Privileged {
            path: path.to_owned(),
            mode: format!("{:o}", entry.mode),
            owner: format!("{}:{}", entry.uid, entry.gid),
            capabilities,
        })
    });
    privileged.collect()
}

/// What it calls itself, by file: `etc/os-release`'s `PRETTY_NAME`, the first line of the others.
pub fn release(tree: &Tree) -> BTreeMap<String, String> {
    let mut release = BTreeMap::new();
    for path in [
        "etc/cloudstack-release",
        "etc/debian_version",
        "etc/os-release",
        "etc/sysvm-release",
    ] {
        let Some(text) = tree.contents(path).map(|text| String::from_utf8_lossy(text)) else {
            continue;
        };
        let pretty = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
        let line = pretty.or_else(|| text.lines().next()).unwrap_or_default();
        release.insert(path.to_owned(), line.trim().trim_matches('"').to_owned());
    }
    release
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::new();
        for (path, contents) in files {
            tree.make_parents(path);
            let entry = match contents.strip_prefix("-> ") {
                Some(target) => Entry::symlink(target),
                None => Entry::file(0o644, (*contents).to_owned()),
            };
            tree.insert(*path, entry).unwrap();
        }
        tree
    }

    #[test]
    fn packages_have_the_size_of_what_is_left_of_them() {
        let tree = tree(&[
            ("bin", "-> usr/bin"),
            ("usr/bin/kmod", "12345"),
            ("usr/bin/lsmod", "-> kmod"),
            (
                "var/lib/dpkg/status",
                "Package: kmod\nStatus: install ok installed\nVersion: 34-2\nArchitecture: amd64\n\n\
                 Package: gone\nStatus: deinstall ok config-files\nVersion: 1\nArchitecture: all\n",
            ),
            (
                "var/lib/dpkg/info/kmod.list",
                "/.\n/bin\n/bin/kmod\n/bin/lsmod\n/usr/share/doc/kmod/changelog.gz\n",
            ),
        ]);
        let kmod = Installed {
            name: "kmod".to_owned(),
            version: "34-2".to_owned(),
            arch: "amd64".to_owned(),
            source: "kmod".to_owned(),
            source_version: "34-2".to_owned(),
            size: 5,
        };
        assert_eq!(packages(&tree).unwrap(), [kmod]);
    }

    #[test]
    fn units_are_enabled_by_links_and_masked_by_null() {
        let tree = tree(&[
            (
                "etc/systemd/system/multi-user.target.wants/cloud.service",
                "-> /usr/lib/systemd/system/cloud.service",
            ),
            ("etc/systemd/system/sysinit.target.requires/x.mount", "-> ../x.mount"),
            ("etc/systemd/system/fstrim.timer", "-> /dev/null"),
            (
                "etc/systemd/system/default.target",
                "-> /usr/lib/systemd/system/multi-user.target",
            ),
            ("etc/systemd/system/ssh.service.d/port.conf", "[Service]"),
        ]);
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let expected = Units {
            enabled: names(&["cloud.service", "x.mount"]),
            masked: names(&["fstrim.timer"]),
        };
        assert_eq!(units(&tree), expected);
    }

    #[test]
    fn a_password_that_lets_everybody_in_is_seen() {
        let tree = tree(&[
            (
                "etc/passwd",
                "root:x:0:0:root:/root:/bin/bash\nopen:x:1:1::/:/bin/sh\nold::2:2::/:/bin/sh\nset:x:3:3::/:/bin/sh\n",
            ),
            (
                "etc/shadow",
                "root:*:20089::::::\nopen::20089::::::\nset:$y$j9T$abc:20089::::::\n",
            ),
        ]);
        let passwords: Vec<_> = users(&tree)
            .into_iter()
            .map(|user| (user.name, user.password))
            .collect();
        let expected = [
            ("root", Password::Locked),
            ("open", Password::Empty),
            ("old", Password::Empty),
            ("set", Password::Set),
        ];
        assert_eq!(passwords, expected.map(|(name, password)| (name.to_owned(), password)));
    }

    #[test]
    fn modules_have_one_spelling() {
        let tree = tree(&[
            (
                "usr/lib/modules/6.12.1-amd64/kernel/drivers/block/xen-blkfront.ko.xz",
                "x",
            ),
            ("usr/lib/modules/6.12.1-amd64/modules.dep", "x"),
        ]);
        let expected = [(
            "xen_blkfront".to_owned(),
            "kernel/drivers/block/xen-blkfront.ko.xz".to_owned(),
        )];
        assert_eq!(modules(&tree), expected.into());
        assert_eq!(kernel(&tree, None).version.as_deref(), Some("6.12.1-amd64"));
    }

    #[test]
    fn set_user_id_and_capabilities_are_privileges() {
        let mut tree = Tree::new();
        let ping = Entry {
            xattrs: [("security.capability".to_owned(), vec![1, 0, 0, 2])].into(),
            ..Entry::file(0o755, "ping")
        };
        tree.insert("ping", ping).unwrap();
        tree.insert("mount", Entry::file(0o4755, "mount")).unwrap();
        tree.insert("tmp", Entry::directory(0o1777)).unwrap();
        let found: Vec<_> = privileged(&tree)
            .into_iter()
            .map(|file| (file.path, file.mode, file.capabilities))
            .collect();
        let expected = [("mount", "4755", None), ("ping", "755", Some("01000002"))];
        let owned = |text: &str| text.to_owned();
        assert_eq!(
            found,
            expected.map(|(path, mode, caps)| (owned(path), owned(mode), caps.map(owned)))
        );
    }
}
