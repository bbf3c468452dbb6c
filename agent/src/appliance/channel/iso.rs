//! A CD with the file `cmdline`: the little of ISO 9660 that this takes. Nothing is mounted: a file system driver of the
//! kernel is more than a host's bytes should reach, and this way the boot needs no right to mount.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::{ChannelError, MAX_LINE};
use crate::appliance::root::Root;

/// Labels of CDs that are meant for us: ours, and that of OpenStack's config drives.
const LABELS: [&str; 2] = ["cloudstack", "config-2"];
const NAME: &str = "cmdline";
/// ECMA-119 §6.1.2, §6.2.1: bytes of a sector, and the first that is a volume's.
const SECTOR: u64 = 2048;
const FIRST_DESCRIPTOR: u64 = 16;
const DESCRIPTOR_LEN: usize = 2048;
/// §8.4.
const PRIMARY: u8 = 1;
const STANDARD: &[u8] = b"CD001";
const LABEL: std::ops::Range<usize> = 40..72;
const ROOT_RECORD: usize = 156;
/// §9.1: a record without its name.
const RECORD_LEN: usize = 33;
const DIRECTORY_FLAG: u8 = 2;
/// Bytes of the root directory: some 500 names.
const MAX_DIRECTORY: u64 = 64 * 1024;

/// Why a CD with one of our labels has no boot arguments.
#[derive(Debug, thiserror::Error)]
pub enum BadIso {
    /// The drive.
    #[error("cannot read its {what}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Not what ISO 9660 says.
    #[error("its {0} is damaged")]
    Damaged(&'static str),
    /// Somebody made it for us and forgot the point.
    #[error("it is labelled {0:?} but has no file {NAME} in its top directory")]
    NoFile(String),
    /// A directory or file too large to be meant.
    #[error("its {what} has {length} bytes, more than the {limit} that are allowed")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Bytes.
        length: u64,
        /// Bytes.
        limit: u64,
    },
}

/// Where a file's bytes are.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    offset: u64,
    length: u64,
}

/// The first CD with one of our labels. Most VMs have a drive, and it is empty.
pub(super) fn read(root: &Root) -> Result<Option<Vec<u8>>, ChannelError> {
    for drive in drives(root) {
        let bad = |source| ChannelError::Iso {
            drive: drive.clone(),
            source,
        };
        if let Some(file) = open(&drive).map_err(bad)?
            && let Some(line) = boot_arguments(&file).map_err(bad)?
        {
            return Ok(Some(line));
        }
    }
    Ok(None)
}

fn drives(root: &Root) -> Vec<PathBuf> {
    let entries = fs::read_dir(root.path("/sys/class/block"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut drives: Vec<_> = names
        .filter(|name| name.starts_with("sr"))
        .map(|name| root.path("/dev").join(name))
        .collect();
    drives.sort();
    drives
}

/// `None` for an empty drive, and for one whose device is not there yet.
fn open(drive: &Path) -> Result<Option<File>, BadIso> {
    // Without this flag an open tray is closed.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(drive);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if is_empty(&error) || error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(BadIso::Read { what: "device", source }),
    }
}

fn is_empty(error: &io::Error) -> bool {
    [Errno::ENOMEDIUM, Errno::ENXIO]
        .iter()
        .any(|errno| io::Error::from(*errno).raw_os_error() == error.raw_os_error())
}

/// `None` when the CD is not meant for us.
fn boot_arguments(cd: &File) -> Result<Option<Vec<u8>>, BadIso> {
    let mut descriptor = [0; DESCRIPTOR_LEN];
    match cd.read_exact_at(&mut descriptor, FIRST_DESCRIPTOR * SECTOR) {
        Ok(()) => {}
        // No CD, or one of another kind.
        Err(error) if is_empty(&error) || error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(source) => {
            return Err(BadIso::Read {
                what: "descriptor",
                source,
            });
        }
    }
    let Some(label) = label(&descriptor) else {
        return Ok(None);
    };
    let record = descriptor.get(ROOT_RECORD..).unwrap_or_default();
    let (top, _is_directory, _name) = record_of(record).ok_or(BadIso::Damaged("descriptor"))?;
    let directory = bytes(cd, &top, "directory", MAX_DIRECTORY)?;
    let file = find(&directory, NAME)?.ok_or(BadIso::NoFile(label))?;
    bytes(cd, &file, "file cmdline", MAX_LINE).map(Some)
}

/// The volume's, if it is one of ours.
fn label(descriptor: &[u8; DESCRIPTOR_LEN]) -> Option<String> {
    if descriptor[0] != PRIMARY || &descriptor[1..6] != STANDARD {
        return None;
    }
    let label = String::from_utf8_lossy(&descriptor[LABEL])
        .trim_end_matches([' ', '\0'])
        .to_owned();
    LABELS
        .iter()
        .any(|ours| label.eq_ignore_ascii_case(ours))
        .then_some(label)
}

fn bytes(cd: &File, extent: &Extent, what: &'static str, limit: u64) -> Result<Vec<u8>, BadIso> {
    let length = extent.length;
    let size = usize::try_from(length).ok().filter(|_| length <= limit);
    let mut bytes = vec![0; size.ok_or(BadIso::TooLarge { what, length, limit })?];
    cd.read_exact_at(&mut bytes, extent.offset)
        .map_err(|source| BadIso::Read { what, source })?;
    Ok(bytes)
}

/// The file of that name, in any case, with or without a version (`CMDLINE.;1`).
fn find(directory: &[u8], name: &str) -> Result<Option<Extent>, BadIso> {
    // Records do not cross sectors: what is left of one is filled with zeros.
    for mut sector in directory.chunks(DESCRIPTOR_LEN) {
        while let Some(length) = sector.first().copied().filter(|length| *length > 0) {
            let (extent, is_directory, found) = record_of(sector).ok_or(BadIso::Damaged("directory"))?;
            if !is_directory && plain(found).eq_ignore_ascii_case(name.as_bytes()) {
                return Ok(Some(extent));
            }
            sector = &sector[usize::from(length)..];
        }
    }
    Ok(None)
}

/// The first record: where, whether it is a directory, and its name.
fn record_of(bytes: &[u8]) -> Option<(Extent, bool, &[u8])> {
    let record = bytes.get(..usize::from(*bytes.first()?))?;
    if record.len() < RECORD_LEN {
        return None;
    }
    let number = |at: usize| Some(u32::from_le_bytes(record.get(at..at + 4)?.try_into().ok()?));
    let extent = Extent {
        offset: u64::from(number(2)?) * SECTOR,
        length: u64::from(number(10)?),
    };
    let name = record.get(RECORD_LEN..RECORD_LEN + usize::from(record[32]))?;
    Some((extent, record[25] & DIRECTORY_FLAG != 0, name))
}

fn plain(name: &[u8]) -> &[u8] {
    let name = name.split(|byte| *byte == b';').next().unwrap_or_default();
    name.strip_suffix(b".").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use platform::exec::Cmd;
    use proptest::prelude::*;

    use super::*;

    async fn cd(label: &str, more: &[&str], files: &[(&str, &[u8])]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir(&tree).unwrap();
        for (name, contents) in files {
            let _ = platform::files::replace(tree.join(name), contents, 0o644).unwrap();
        }
        let root = Root::new(directory.path());
        fs::create_dir_all(root.path("/sys/class/block/sr0")).unwrap();
        fs::create_dir_all(root.path("/sys/class/block/vda")).unwrap();
        fs::create_dir_all(root.path("/dev")).unwrap();
        let made = Cmd::new("genisoimage")
            .args(["-quiet", "-V", label])
            .args(more)
            .arg("-o");
        made.arg(root.path("/dev/sr0")).arg(&tree).run().await.unwrap();
        (directory, root)
    }

    #[tokio::test]
    async fn the_file_on_a_cd_with_our_label_is_read_whatever_extensions_it_has() {
        let line = b" template=domP type=router name=r-4-VM\n";
        let many: Vec<String> = (0..200).map(|number| format!("a-file-with-number-{number}")).collect();
        let mut files: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b"x"[..])).collect();
        files.push(("cmdline", line));
        for (label, more) in [
            ("cloudstack", &["-J", "-R"][..]),
            ("CONFIG-2", &[]),
            ("config-2", &["-l"]),
        ] {
            let (_directory, root) = cd(label, more, &files).await;
            assert_eq!(read(&root).unwrap().unwrap(), line, "{label} {more:?}");
        }
    }

    #[tokio::test]
    async fn another_cd_says_nothing_and_ours_without_the_file_says_so() {
        let (_directory, root) = cd("XenServer Tools", &[], &[("cmdline", b"type=router")]).await;
        assert_eq!(read(&root).unwrap(), None);
        let (_directory, root) = cd("cloudstack", &[], &[("cmdline.txt", b"type=router")]).await;
        let error = platform::logging::chain(&read(&root).unwrap_err()).to_string();
        let drive = root.path("/dev/sr0");
        assert_eq!(
            error,
            format!(
                "cannot read the CD in {}: it is labelled \"cloudstack\" but has no file cmdline in its top directory",
                drive.display()
            )
        );
        let large = vec![b'x'; 300 * 1024];
        let (_directory, root) = cd("cloudstack", &[], &[("cmdline", &large)]).await;
        let error = platform::logging::chain(&read(&root).unwrap_err()).to_string();
        assert!(
            error.ends_with("its file cmdline has 307200 bytes, more than the 262144 that are allowed"),
            "{error}"
        );
    }

    #[test]
    fn an_empty_drive_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(read(&root).unwrap(), None);
        fs::create_dir_all(root.path("/sys/class/block/sr0")).unwrap();
        assert_eq!(read(&root).unwrap(), None);
        fs::create_dir_all(root.path("/dev")).unwrap();
        let _ = platform::files::replace(root.path("/dev/sr0"), b"", 0o644).unwrap();
        assert_eq!(read(&root).unwrap(), None);
    }

    proptest! {
        #[test]
        fn any_directory_is_searched_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
            let _ = find(&bytes, NAME);
            if let Some((_, _, name)) = record_of(&bytes) {
                prop_assert!(name.len() < 256);
            }
        }

        #[test]
        fn any_cd_is_read_or_refused(noise in prop::collection::vec(any::<u8>(), 2048), tail in any::<u16>()) {
            let mut bytes = vec![0; 16 * 2048];
            bytes.extend(&noise);
            bytes.resize(bytes.len() + usize::from(tail), 1);
            let start = 16 * 2048;
            bytes[start] = PRIMARY;
            bytes[start + 1..start + 6].copy_from_slice(STANDARD);
            bytes[start + 40..start + 72].copy_from_slice(format!("{:32}", "cloudstack").as_bytes());
            let file = tempfile::NamedTempFile::new().unwrap();
            let _ = platform::files::replace(file.path(), &bytes, 0o600).unwrap();
            let _ = boot_arguments(&File::open(file.path()).unwrap());
        }
    }
}
