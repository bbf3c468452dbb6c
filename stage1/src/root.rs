//! Finding the root file system among the block devices that appear.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use stage1::cmdline::Root;
use stage1::superblock::{LENGTH, Superblock, format_uuid};
use stage1::table::Table;

use crate::drivers::{Drivers, entries};

/// Between two looks at the block devices.
const POLL: Duration = Duration::from_millis(20);
/// A device that names itself in a way that no alias is for still gets its driver, that much later.
const LOAD_ALL_AFTER: Duration = Duration::from_secs(5);
/// SCSI buses are slow to scan, and so are overloaded hosts; after that, a person must look.
const GIVE_UP_AFTER: Duration = Duration::from_mins(1);

/// Where the root is.
pub(crate) struct Found {
    /// `vda3`.
    pub(crate) device: String,
    /// `ext4`.
    pub(crate) file_system: &'static str,
    /// For the log.
    pub(crate) drivers: Drivers,
}

/// There is none, and what there was instead.
#[derive(Debug, thiserror::Error)]
#[error("no block device is {root} within {GIVE_UP_AFTER:?}\n{seen}{drivers}")]
pub(crate) struct NoRootFound {
    root: String,
    seen: String,
    drivers: String,
}

/// Loads drivers and waits until the root appears.
pub(crate) fn find(root: &Root, table: Table, started: Instant) -> Result<Found, NoRootFound> {
    let mut drivers = Drivers::new(table);
    let mut devices = Devices::default();
    let mut has_all = false;
    loop {
        // A device may take a moment to appear after its driver: the last look of all is after the last wait.
        let is_over = started.elapsed() > GIVE_UP_AFTER;
        if let Some((device, kind)) = devices.look(root) {
            drivers.load_alias(&format!("fs-{kind}"));
            return Ok(Found {
                device,
                file_system: kind,
                drivers,
            });
        }
        if is_over {
            return Err(NoRootFound {
                root: match root {
                    Root::Label(label) => format!("labelled {label:?}"),
                    Root::Uuid(uuid) => format!("of UUID {}", format_uuid(*uuid)),
                    Root::Device(name) => format!("/dev/{name} with an ext4 or erofs file system"),
                },
                seen: devices.describe(),
                drivers: drivers.to_string(),
            });
        }
        if drivers.load_next() {
            continue;
        }
        if started.elapsed() > LOAD_ALL_AFTER && !has_all {
            has_all = true;
            drivers.load_all();
            continue;
        }
        thread::sleep(POLL);
    }
}

/// Block devices and what they hold.
#[derive(Default)]
struct Devices(BTreeMap<String, io::Result<Option<Superblock>>>);

impl Devices {
    /// Reads the devices that are new or could not be read before; gives the root if it is among them.
    fn look(&mut self, root: &Root) -> Option<(String, &'static str)> {
        for path in entries("/sys/class/block".into()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
                continue;
            };
            if matches!(self.0.get(name), Some(Ok(_))) {
                continue;
            }
            // An empty drive has no size yet. Reading it would make it spin.
            let size = fs::read_to_string(path.join("size")).unwrap_or_default();
            if size.trim() == "0" {
                continue;
            }
            let held = read(name);
            let kind = match &held {
                Ok(Some(superblock)) if root.is(name, superblock) => Some(superblock.kind.name()),
                _ => None,
            };
            self.0.insert(name.to_owned(), held);
            if let Some(kind) = kind {
                return Some((name.to_owned(), kind));
            }
        }
        None
    }

    /// One line for each device.
    fn describe(&self) -> String {
        if self.0.is_empty() {
            return "there is no block device at all: does the kernel have a driver for this disk controller?\n"
                .to_owned();
        }
        let mut text = String::new();
        for (name, held) in &self.0 {
            let _ = match held {
                Ok(Some(block)) => writeln!(
                    text,
                    "/dev/{name} holds {}, LABEL={}, UUID={}",
                    block.kind.name(),
                    block.label,
                    format_uuid(block.uuid)
                ),
                Ok(None) => writeln!(text, "/dev/{name} holds neither ext4 nor erofs"),
                Err(error) => writeln!(text, "/dev/{name} cannot be read: {error}"),
            };
        }
        text
    }
}

fn read(name: &str) -> io::Result<Option<Superblock>> {
    let mut start = Vec::new();
    let length = u64::try_from(LENGTH).map_err(io::Error::other)?;
    // Names in sysfs have `!` where those in /dev have `/`: cciss!c0d0.
    File::open(format!("/dev/{}", name.replace('!', "/")))?
        .take(length)
        .read_to_end(&mut start)?;
    Ok(Superblock::find(&start))
}
