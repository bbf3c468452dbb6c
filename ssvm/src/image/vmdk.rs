//! VMDK: sparse extents with their descriptor inside (VMware, Virtual Disk Format 5.0), judged by ssvm.md §8.2.

use super::window::{Fields, Window};
use super::{Refusal, other};

const SECTOR: u64 = 512;
const MAX_DESCRIPTOR: u64 = 64 << 10;

/// The grain directory's place is told by a second header near the end.
const AT_END: u64 = u64::MAX;

const KEYS: [&str; 5] = ["version", "CID", "parentCID", "createType", "encoding"];

/// Gives the virtual size. Of an image that is still growing, what lies behind its end is not looked at; then the size
/// may be 0.
pub(super) fn judge(window: &Window<'_>) -> Result<u64, Refusal> {
    let header = window.read(0, 512)?;
    let version = header.le_u32(4);
    if header.len() < 512 || !(1..=3).contains(&version) {
        return other(format!("its VMDK version is {version}; 1 to 3 are known"));
    }
    if header.le_u64(56) == AT_END && window.is_whole() {
        judge_footer(window, &header)?;
    }
    let (offset, sectors) = (header.le_u64(28), header.le_u64(36));
    let length = sectors
        .checked_mul(SECTOR)
        .filter(|length| (1..=MAX_DESCRIPTOR).contains(length));
    let place = offset
        .checked_mul(SECTOR)
        .zip(length)
        .filter(|(at, length)| *at >= SECTOR && at.checked_add(*length).is_some_and(|end| end <= window.len()));
    let Some((at, length)) = place else {
        if !window.is_whole() {
            return Ok(0);
        }
        return other("its descriptor is not inside of the file, or is larger than 64 KiB");
    };
    let text = window.read(at, usize::try_from(length).unwrap_or(0))?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let Ok(text) = str::from_utf8(text) else {
        return other("its descriptor is not text");
    };
    let capacity = header.le_u64(12);
    let extent = judge_descriptor(text)?;
    if capacity != extent {
        return other(format!(
            "its header says {capacity} sectors and its descriptor {extent}"
        ));
    }
    match capacity.checked_mul(SECTOR) {
        Some(size) => Ok(size),
        None => other("its capacity makes no sense"),
    }
}

/// Marker, header again, marker: the last three sectors of a streamOptimized file.
fn judge_footer(window: &Window<'_>, header: &[u8]) -> Result<(), Refusal> {
    let tail = window.tail(1536)?;
    let footer = tail.get(512..1024).unwrap_or_default();
    if footer.len() < 512 || !footer.starts_with(b"KDMV") {
        return other("its footer is missing; it is cut off");
    }
    let is_grain_directory = |at: usize| (56..64).contains(&at);
    let differs = header
        .iter()
        .zip(footer)
        .enumerate()
        .any(|(at, (a, b))| a != b && !is_grain_directory(at));
    if differs || footer.le_u64(56) == AT_END {
        return other("its footer differs from its header");
    }
    Ok(())
}

/// Gives the sectors of the only extent.
fn judge_descriptor(text: &str) -> Result<u64, Refusal> {
    let (mut create_type, mut parent, mut extent) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(sectors) = read_extent(line)? {
            if extent.replace(sectors).is_some() {
                return other("it has more than one extent; convert it with `qemu-img convert -O vmdk`");
            }
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            return other(format!("its descriptor has a line that is not known: {}", shown(line)));
        };
        let (key, value) = (key.trim(), value.trim().trim_matches('"'));
        let is_first = match key {
            "createType" => create_type.replace(value).is_none(),
            "parentCID" => parent.replace(value).is_none(),
            // Written by VMware Workstation 7 and newer.
            "isNativeSnapshot" => value.eq_ignore_ascii_case("no"),
            _ if KEYS.contains(&key) || key.starts_with("ddb.") => true,
            _ => return other(format!("its descriptor has a key that is not allowed: {}", shown(key))),
        };
        if !is_first {
            return other(format!(
                "its descriptor has {} twice, or with a value that is not allowed",
                shown(key)
            ));
        }
    }
    match create_type {
        Some("monolithicSparse" | "streamOptimized") => {}
        found => {
            let found = found.map_or_else(|| "missing".to_owned(), shown);
            return other(format!(
                "its createType is {found}; only monolithicSparse and streamOptimized can be used"
            ));
        }
    }
    if !parent.is_some_and(|parent| parent.eq_ignore_ascii_case("ffffffff")) {
        return other("it has a parent disk; merge it into one file");
    }
    match extent {
        Some(sectors) => Ok(sectors),
        None => other("its descriptor has no extent"),
    }
}

/// `RW 20480 SPARSE "disk.vmdk"`; `None` if the line is something else than an extent.
fn read_extent(line: &str) -> Result<Option<u64>, Refusal> {
    let (access, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    if !["RW", "RDONLY", "NOACCESS"].contains(&access.to_ascii_uppercase().as_str()) {
        return Ok(None);
    }
    let mut words = rest.trim_start().splitn(3, char::is_whitespace);
    let (sectors, kind, name) = (words.next(), words.next(), words.next().map(str::trim));
    let name = name.and_then(|name| name.strip_prefix('"')?.strip_suffix('"'));
    match (access, sectors.and_then(|sectors| sectors.parse().ok()), kind, name) {
        ("RW" | "RDONLY", Some(sectors), Some("SPARSE"), Some(name)) if !name.contains(['/', '\\', '"']) => {
            Ok(Some(sectors))
        }
        _ => other(format!(
            "its descriptor has an extent that is not allowed: {}",
            shown(line)
        )),
    }
}

/// Text of a stranger in a message.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(80).collect();
    format!("{short:?}")
}
