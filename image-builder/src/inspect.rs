//! What is in an image, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::Path;

use serde::Serialize;

use crate::diff::Shown;
use crate::facts::{self, Installed, Kernel, Password, Privileged, Units, User};
use crate::gpt::{BIOS_BOOT, ESP, LINUX_ROOT, Partition};
use crate::manifest::Contents;
use crate::tree::{Node, Tree};
use crate::view::{Kind, View};

/// Everything that `image-builder inspect` says. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// `raw`, `qcow2`, `vhd`, `vmdk`, `ova`, `ext4` or `tar`.
    pub format: String,
    /// Of the image's file.
    pub file: Contents,
    /// What a guest sees; not in a `tar`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskReport>,
    /// Names and versions, by the file that says so.
    pub release: BTreeMap<String, String>,
    /// What it starts.
    pub kernel: Kernel,
    /// How much there is of what.
    pub totals: Totals,
    /// By name.
    pub packages: Vec<Installed>,
    /// What systemd starts, and what it never does.
    pub units: Units,
    /// In the order of `/etc/passwd`.
    pub users: Vec<User>,
    /// Programs that run with more rights than who starts them.
    pub privileged: Vec<Privileged>,
    /// Directories by the size of the files directly in them, largest first.
    pub largest_directories: Vec<Sized>,
    /// The largest files.
    pub largest_files: Vec<Sized>,
    /// All of them, with `--files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<File>>,
}

/// A disk around a root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DiskReport {
    /// What a guest sees.
    pub size: u64,
    /// The disk's GUID.
    pub id: String,
    /// By number.
    pub partitions: Vec<PartitionReport>,
    /// The files of the EFI system partition, by path.
    pub boot_files: BTreeMap<String, Contents>,
}

/// A part of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PartitionReport {
    /// From 1.
    pub number: u32,
    /// `BIOS boot`, `EFI system`, `root`, or a GUID.
    pub kind: String,
    /// In the partition table.
    pub name: String,
    /// Its GUID.
    pub id: String,
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub size: u64,
}

/// How much there is of what in the root file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Regular files; several names of one count once.
    pub files: usize,
    /// Directories.
    pub directories: usize,
    /// Symbolic links.
    pub links: usize,
    /// In all files.
    pub bytes: u64,
}

/// A path with a size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Sized {
    /// Without a slash in front.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// One entry of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct File {
    /// Without a slash in front.
    pub path: String,
    /// `file`, `directory`, `link` or `hard-link`.
    pub kind: &'static str,
    /// In octal.
    pub mode: String,
    /// `0:0`.
    pub owner: String,
    /// Of a regular file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contents: Option<Contents>,
    /// Of a link: where it leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The image cannot be read.
    #[error(transparent)]
    View(#[from] crate::view::ViewError),
    /// Its file cannot be read a second time.
    #[error(transparent)]
    Digest(#[from] crate::manifest::ManifestError),
    /// Its list of packages makes no sense.
    #[error("the image's /var/lib/dpkg/status cannot be understood")]
    Packages(#[from] crate::control::BadControl),
}

impl Report {
    /// Reads an image of any format. `largest` is how many of the largest files and directories are told.
    ///
    /// # Errors
    /// It is no image, or it is damaged.
    pub fn of(path: &Path, largest: usize, with_files: bool) -> Result<Self, InspectError> {
        let view = View::open(path)?;
        let file = Contents::of_file(path)?;
        Ok(Self::of_view(&view, file, largest, with_files)?)
    }

    fn of_view(
        view: &View,
        file: Contents,
        largest: usize,
        with_files: bool,
    ) -> Result<Self, crate::control::BadControl> {
        let tree = &view.tree;
        let disk = view.disk.as_ref().map(|disk| DiskReport {
            size: disk.size,
            id: disk.gpt.id.to_string(),
            partitions: (1..)
                .zip(&disk.gpt.partitions)
                .map(|(number, part)| PartitionReport::of(number, part))
                .collect(),
            boot_files: disk
                .esp
                .iter()
                .map(|(path, bytes)| (path.clone(), Contents::of(bytes)))
                .collect(),
        });
        let sizes = tree
            .iter()
            .map(|(path, entry)| (path.to_owned(), facts::size_of(entry)));
        Ok(Self {
            format: match view.kind {
                Kind::Disk(format) => format.to_string(),
                Kind::Ext4 => "ext4".to_owned(),
                Kind::Tar => "tar".to_owned(),
            },
            file,
            disk,
            release: facts::release(tree),
            kernel: facts::kernel(tree, view.disk.as_ref()),
            totals: Totals::of(tree),
            packages: facts::packages(tree)?,
            units: facts::units(tree),
            users: facts::users(tree),
            privileged: facts::privileged(tree),
            largest_directories: largest_of(directories(tree), largest),
            largest_files: largest_of(sizes, largest),
            files: with_files.then(|| files(tree)),
        })
    }

    /// The report as text. Without `all_packages` only the largest are listed.
    pub fn text(&self, all_packages: bool) -> impl Display {
        fmt::from_fn(move |f| self.write(f, all_packages))
    }

    fn write(&self, f: &mut Formatter<'_>, all_packages: bool) -> fmt::Result {
        writeln!(f, "Format      {}, {} in the file", self.format, Bytes(self.file.size))?;
        if let Some(disk) = &self.disk {
            writeln!(f, "Disk        {}, id {}", Bytes(disk.size), disk.id)?;
        }
        writeln!(f, "SHA-256     {}", self.file.sha256)?;
        for (path, release) in &self.release {
            writeln!(f, "Release     {}  (/{path})", Shown(release))?;
        }
        let version = self.kernel.version.as_deref().unwrap_or("none");
        writeln!(f, "Kernel      {}, {} modules", Shown(version), self.kernel.modules)?;
        if let Some(line) = &self.kernel.command_line {
            writeln!(f, "            {}", Shown(line))?;
        }
        let Totals {
            files,
            directories,
            links,
            bytes,
        } = self.totals;
        writeln!(
            f,
            "Contents    {} in {files} files, {directories} directories, {links} links",
            Bytes(bytes)
        )?;
        if let Some(disk) = &self.disk {
            writeln!(f, "\nPartitions")?;
            for part in &disk.partitions {
                let PartitionReport { number, kind, name, .. } = part;
                let (start, size) = (Bytes(part.start), Bytes(part.size));
                writeln!(f, "  {number}  {kind:<12} {size:>10} at {start:<10} {}", Shown(name))?;
            }
            writeln!(f, "\nBoot files")?;
            for (path, file) in &disk.boot_files {
                writeln!(f, "  {:>10}  {}", Bytes(file.size), Shown(path))?;
            }
        }
        self.write_packages(f, all_packages)?;
        for (title, all) in [
            ("directories", &self.largest_directories),
            ("files", &self.largest_files),
        ] {
            writeln!(f, "\nLargest {title}")?;
            for Sized { path, size } in all {
                writeln!(f, "  {:>10}  /{}", Bytes(*size), Shown(path))?;
            }
        }
        for (title, units) in [("Enabled", &self.units.enabled), ("Masked", &self.units.masked)] {
            writeln!(f, "\n{title} units")?;
            units.iter().try_for_each(|unit| writeln!(f, "  {}", Shown(unit)))?;
        }
        writeln!(f, "\nUsers")?;
        for User {
            name,
            uid,
            shell,
            password,
        } in &self.users
        {
            let password = match password {
                Password::Locked => "no password lets in",
                Password::Set => "A PASSWORD IS SET",
                Password::Empty => "NO PASSWORD IS NEEDED",
            };
            writeln!(
                f,
                "  {:>5}  {:<18} {:<18} {password}",
                Shown(uid),
                Shown(name),
                Shown(shell)
            )?;
        }
        writeln!(f, "\nPrograms with more rights than who starts them")?;
        for file in &self.privileged {
            let capabilities = file.capabilities.as_deref().map(|hex| format!("  capabilities {hex}"));
            let Privileged { path, mode, owner, .. } = file;
            writeln!(
                f,
                "  {mode:>5}  {owner:<8} /{}{}",
                Shown(path),
                capabilities.unwrap_or_default()
            )?;
        }
        self.write_files(f)
    }

    fn write_packages(&self, f: &mut Formatter<'_>, all: bool) -> fmt::Result {
        let mut packages: Vec<_> = self.packages.iter().collect();
        let count = packages.len();
        if all {
            writeln!(f, "\nPackages ({count})")?;
        } else {
            packages.sort_by_key(|package| std::cmp::Reverse(package.size));
            packages.truncate(self.largest_files.len());
            writeln!(f, "\nLargest packages of {count}")?;
        }
        for package in packages {
            let Installed {
                name, version, size, ..
            } = package;
            writeln!(f, "  {:>10}  {name:<30} {version}", Bytes(*size))?;
        }
        Ok(())
    }

    fn write_files(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(files) = &self.files else {
            return Ok(());
        };
        writeln!(f, "\nFiles")?;
        for file in files {
            let size = file.contents.as_ref().map(|contents| Bytes(contents.size).to_string());
            let target = file.target.as_deref().map(|target| format!(" -> {}", Shown(target)));
            let (mode, owner) = (&file.mode, &file.owner);
            let (size, target) = (size.unwrap_or_default(), target.unwrap_or_default());
            writeln!(
                f,
                "  {:<9} {mode:>5} {owner:<9} {size:>10}  /{}{target}",
                file.kind,
                Shown(&file.path)
            )?;
        }
        Ok(())
    }
}

impl PartitionReport {
    fn of(number: u32, partition: &Partition) -> Self {
        let kind = match partition.kind {
            BIOS_BOOT => "BIOS boot".to_owned(),
            ESP => "EFI system".to_owned(),
            LINUX_ROOT => "root".to_owned(),
            other => other.to_string(),
        };
        Self {
            number,
            kind,
            name: partition.name.clone(),
            id: partition.id.to_string(),
            start: partition.offset(),
            size: partition.size(),
        }
    }
}

impl Totals {
    fn of(tree: &Tree) -> Self {
        let mut totals = Self::default();
        for (_, entry) in tree.iter() {
            match entry.node {
                Node::Directory => totals.directories += 1,
                Node::File(_) => totals.files += 1,
                Node::Symlink(_) => totals.links += 1,
                Node::HardLink(_) => {}
            }
            totals.bytes += facts::size_of(entry);
        }
        totals
    }
}

fn directories(tree: &Tree) -> BTreeMap<String, u64> {
    let mut sizes = BTreeMap::new();
    for (path, entry) in tree.iter() {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        *sizes.entry(directory.to_owned()).or_insert(0) += facts::size_of(entry);
    }
    sizes
}

fn largest_of(sizes: impl IntoIterator<Item = (String, u64)>, count: usize) -> Vec<Sized> {
    let sized = sizes.into_iter().filter(|(_, size)| *size > 0);
    let mut all: Vec<_> = sized.map(|(path, size)| Sized { path, size }).collect();
    // The sort is stable, so equal ones stay in the order of their paths.
    all.sort_by_key(|sized| std::cmp::Reverse(sized.size));
    all.truncate(count);
    all
}

fn files(tree: &Tree) -> Vec<File> {
    let files = tree.iter().map(|(path, entry)| {
        let (kind, target) = match &entry.node {
            Node::Directory => ("directory", None),
            Node::File(_) => ("file", None),
            Node::Symlink(target) => ("link", Some(target.clone())),
            Node::HardLink(target) => ("hard-link", Some(target.clone())),
        };
        let contents = match &entry.node {
            Node::File(bytes) => Some(Contents::of(bytes)),
            _ => None,
        };
        File {
            path: path.to_owned(),
            kind,
            mode: format!("{:o}", entry.mode),
            owner: format!("{}:{}", entry.uid, entry.gid),
            contents,
            target,
        }
    });
    files.collect()
}

/// A size for people: three digits that count, in units of 1024.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut scale = 1_u64;
        let mut unit = 0;
        while self.0 / scale >= 1024 && unit + 1 < UNITS.len() {
            scale *= 1024;
            unit += 1;
        }
        let (whole, tenths) = (self.0 / scale, self.0 % scale * 10 / scale);
        let text = if whole >= 100 || tenths == 0 {
            format!("{whole} {}", UNITS[unit])
        } else {
            format!("{whole}.{tenths} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    #[test]
    fn sizes_are_short() {
        let text = [0, 1023, 1024, 1536, 120 << 20, (2 << 30) + (300 << 20)].map(|size| Bytes(size).to_string());
        assert_eq!(text, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "120 MiB", "2.2 GiB"]);
    }

    fn view() -> View {
        let mut tree = Tree::new();
        let status = "Package: kmod\nStatus: install ok installed\nVersion: 34-2\nArchitecture: amd64\n";
        for (path, entry) in [
            ("etc/passwd", Entry::file(0o644, "root:x:0:0:root:/root:/bin/bash\n")),
            ("etc/shadow", Entry::file(0o640, "root:*:20089::::::\n").owned(0, 42)),
            ("etc/sysvm-release", Entry::file(0o644, "sysvm 0.1.0\n")),
            ("etc/systemd/system/fstrim.timer", Entry::symlink("/dev/null")),
            (
                "etc/systemd/system/basic.target.wants/agent.service",
                Entry::symlink("/usr/lib/systemd/system/x"),
            ),
            ("usr/bin/kmod", Entry::file(0o4755, vec![1; 5000])),
            (
                "usr/lib/modules/6.12.1-amd64/kernel/x.ko.xz",
                Entry::file(0o644, "module"),
            ),
            ("var/lib/dpkg/info/kmod.list", Entry::file(0o644, "/usr/bin/kmod\n")),
            ("var/lib/dpkg/status", Entry::file(0o644, status)),
        ] {
            tree.make_parents(path);
            tree.insert(path, entry).unwrap();
        }
        View {
            kind: Kind::Tar,
            file_size: 10240,
            disk: None,
            tree,
        }
    }

    #[test]
    fn a_report_is_read_by_people() {
        let report = Report::of_view(&view(), Contents::of(b""), 3, true).unwrap();
        insta::assert_snapshot!(report.text(true));
    }

    #[test]
    fn a_report_is_read_by_programs() {
        let report = Report::of_view(&view(), Contents::of(b""), 3, false).unwrap();
        insta::assert_json_snapshot!(report);
    }
}
