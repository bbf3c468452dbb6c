//! Are these the bytes that the recipe and the lock make? If not: where do they differ?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use bytes::Bytes;

use crate::diff::{Changes, Diff};
use crate::formats::{self, Disk};
use crate::gpt::{BIOS_BOOT, ESP, Gpt, LINUX_ROOT};
use crate::manifest::{Contents, MANIFEST, Manifest, ManifestError, SUMS, Sums};
use crate::tree::Tree;
use crate::view::{Kind, View, ViewError};

/// How many differences inside of one file are told; more help nobody.
const MAX_TOLD: usize = 20;
/// Bytes that are compared at a time.
const STEP: usize = 1 << 20;
/// What mke2fs chooses for file systems above 512 MiB.
const BLOCK: u64 = 4096;

/// A file that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Its name in the directory.
    pub name: String,
    /// What is wrong, a sentence each.
    pub reasons: Vec<String>,
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        self.reasons
            .iter()
            .take(MAX_TOLD)
            .try_for_each(|reason| write!(f, "\n    {reason}"))?;
        match self.reasons.len().checked_sub(MAX_TOLD) {
            Some(more @ 1..) => write!(f, "\n    … and {more} more differences"),
            _ => Ok(()),
        }
    }
}

/// Compares the files of a directory with its own digests: finds damage, not forgery (for that see [`crate::sign`]).
///
/// # Errors
/// There are no digests, or a file cannot be read.
pub fn checksums(directory: &Path) -> Result<Vec<Mismatch>, ManifestError> {
    let sums = Sums::load(directory)?;
    let manifest = Manifest::load(directory)?;
    let names: BTreeSet<_> = sums.0.keys().chain(manifest.artefacts.keys()).cloned().collect();
    let (present, missing): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| directory.join(name).exists());
    let paths: Vec<_> = present.iter().map(|name| directory.join(name)).collect();
    let mut mismatches: Vec<_> = missing
        .into_iter()
        .map(|name| mismatch(name, "it is missing"))
        .collect();
    for (name, found) in present.into_iter().zip(Contents::of_files(&paths)) {
        let found = found?;
        let mut reasons = Vec::new();
        if sums.0.get(&name).is_some_and(|sum| *sum != found.sha256) {
            reasons.push(format!("its SHA-256 is {}, and not as {SUMS} says", found.sha256));
        }
        if manifest.artefacts.get(&name).is_some_and(|artefact| *artefact != found) {
            reasons.push(format!("its {} bytes are not those that {MANIFEST} says", found.size));
        }
        if !reasons.is_empty() {
            mismatches.push(Mismatch { name, reasons });
        }
    }
    mismatches.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(mismatches)
}

/// What of the inputs is not the same as when the files of a directory were built: what no rebuild can make up for.
pub fn other_inputs(given: &Manifest, now: &Manifest) -> Vec<&'static str> {
    let inputs = [
        ("program", given.builder != now.builder),
        ("recipe", given.recipe != now.recipe),
        ("lock file", given.lock != now.lock),
        ("epoch", given.epoch != now.epoch),
    ];
    inputs
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
}

/// Compares the files of `given` with those that `rebuilt` has after building again, byte by byte, and says where they
/// differ. Files of `given` that no build makes (signatures, notes) do not count.
///
/// # Errors
/// One of the rebuilt files cannot be read.
pub fn compare(given: &Path, rebuilt: &Path) -> io::Result<Vec<Mismatch>> {
    let mut names = Vec::new();
    for entry in rebuilt.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // The build's own lock and what it writes beside.
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort();
    let mut mismatches = Vec::new();
    for name in names {
        let (ours, theirs) = (rebuilt.join(&name), given.join(&name));
        match first_difference(&theirs, &ours) {
            Ok(None) => {}
            Ok(Some(offset)) => {
                let reasons = explain(&theirs, &ours, offset)?;
                mismatches.push(Mismatch { name, reasons });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => mismatches.push(mismatch(name, "it is missing")),
            Err(error) => mismatches.push(mismatch(name, &format!("it cannot be read: {error}"))),
        }
    }
    Ok(mismatches)
}

fn mismatch(name: String, reason: &str) -> Mismatch {
    let reasons = vec![reason.to_owned()];
    Mismatch { name, reasons }
}

/// The first byte that is not the same in both files; where one ends early, its end.
fn first_difference(one: &Path, other: &Path) -> io::Result<Option<u64>> {
    let open = |path| File::open(path).map(|file| BufReader::with_capacity(STEP, file));
    let (mut one, mut other) = (open(one)?, open(other)?);
    let (mut left, mut right) = (vec![0; STEP], vec![0; STEP]);
    let mut offset = 0;
    loop {
        let (a, b) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        if let Some(place) = position(&left[..a], &right[..b]) {
            return Ok(Some(offset + place));
        }
        if a == 0 {
            return Ok(None);
        }
        offset += u64::try_from(a).unwrap_or(u64::MAX);
    }
}

fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match input.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn position(one: &[u8], other: &[u8]) -> Option<u64> {
    if one == other {
        return None;
    }
    let common = one.iter().zip(other).position(|(a, b)| a != b);
    let place = common.unwrap_or_else(|| one.len().min(other.len()));
    Some(u64::try_from(place).unwrap_or(u64::MAX))
}

/// Why two files differ whose first difference is at `offset`: as near to a cause as can be said.
fn explain(given: &Path, rebuilt: &Path, offset: u64) -> io::Result<Vec<String>> {
    let expected = match View::open(rebuilt) {
        Ok(view) => view,
        // Not an image: a manifest, a list of digests, a bill of materials.
        Err(ViewError::Open(_) | ViewError::Gpt { .. } | ViewError::NoPartition { .. }) => {
            return Ok(vec![explain_file(given, rebuilt, offset)]);
        }
        Err(error) => return Err(io::Error::other(error)),
    };
    let Some(disk) = &expected.disk else {
        return Ok(match View::open(given) {
            Ok(view) if view.kind == expected.kind => {
                or_frame(explain_tree(&expected.tree, &view.tree), expected.kind, offset)
            }
            Ok(_) => vec!["it is another kind of file".to_owned()],
            Err(error) => vec![chain(&error)],
        });
    };
    let found = match formats::open(given) {
        Ok(image) if Kind::Disk(image.format) == expected.kind => image.disk,
        Ok(image) => return Ok(vec![format!("it is a {} image", image.format)]),
        Err(error) => return Ok(vec![chain(&error)]),
    };
    let found = found.as_ref();
    if found.size() != disk.size {
        return Ok(vec![format!(
            "its disk has {} bytes instead of {}",
            found.size(),
            disk.size
        )]);
    }
    let mut reasons = Vec::new();
    match Gpt::read(found) {
        Ok(gpt) if gpt == disk.gpt => {}
        Ok(gpt) => reasons.extend(explain_partitions(&disk.gpt, &gpt)),
        Err(error) => reasons.push(format!("partition table: {}", chain(&error))),
    }
    // Where the partitions are, the rebuilt disk says: so damage in one part does not hide the others.
    match View::esp(found, &disk.gpt, given) {
        Ok(files) => reasons.extend(explain_boot_files(&disk.esp, &files)),
        Err(error) => reasons.push(chain(&error)),
    }
    match View::root(found, &disk.gpt, given) {
        Ok((label, tree)) => {
            if label != disk.root_label {
                reasons.push(format!("root file system: its label is {label:?}"));
            }
            reasons.extend(explain_tree(&expected.tree, &tree));
        }
        Err(error) => reasons.push(chain(&error)),
    }
    if reasons.is_empty() {
        let image = formats::open(rebuilt).map_err(io::Error::other)?;
        reasons.extend(explain_disk(found, image.disk.as_ref(), &disk.gpt)?);
    }
    Ok(or_frame(reasons, expected.kind, offset))
}

fn or_frame(mut reasons: Vec<String>, kind: Kind, offset: u64) -> Vec<String> {
    if reasons.is_empty() {
        let around = match kind {
            Kind::Disk(format) => format!("the disk in it is the same; only the {format} around it differs"),
            Kind::Ext4 => "all files in it are the same; only the file system's own data differ".to_owned(),
            Kind::Tar => "all files in it are the same; only the archive around them differs".to_owned(),
        };
        reasons.push(format!("{around}, from byte {offset} on"));
    }
    reasons
}

/// A text differs in a line, anything else in a byte.
fn explain_file(given: &Path, rebuilt: &Path, offset: u64) -> String {
    const LONGEST_TEXT: u64 = 16 << 20;
    let read = |path| -> io::Result<String> {
        let mut text = String::new();
        File::open(path)?.take(LONGEST_TEXT).read_to_string(&mut text)?;
        Ok(text)
    };
    let (Ok(found), Ok(expected)) = (read(given), read(rebuilt)) else {
        return format!("it differs from byte {offset} on");
    };
    let lines = found.lines().map(Some).chain(std::iter::repeat(None));
    let lines = lines.zip(expected.lines().map(Some).chain(std::iter::repeat(None)));
    let shown = |line: Option<&str>| line.map_or("nothing".to_owned(), |line| format!("{:?}", line.trim()));
    let longest = found.lines().count().max(expected.lines().count());
    let different = (1..=longest)
        .zip(lines)
        .find(|(_, (found, expected))| found != expected);
    match different {
        Some((number, (found, expected))) => {
            format!("line {number} is {} instead of {}", shown(found), shown(expected))
        }
        None => format!("it differs from byte {offset} on"),
    }
}

fn explain_partitions(expected: &Gpt, found: &Gpt) -> Vec<String> {
    let describe = |gpt: &Gpt| -> BTreeMap<String, String> {
        let partitions = (1..).zip(&gpt.partitions);
        let partitions = partitions.map(|(number, part)| (format!("partition {number}"), format!("{part:?}")));
        partitions.chain([("disk id".to_owned(), gpt.id.to_string())]).collect()
    };
    let changes = Changes::between(&describe(expected), &describe(found));
    lines_of("partition table", &changes)
}

fn explain_boot_files(expected: &BTreeMap<String, Bytes>, found: &BTreeMap<String, Bytes>) -> Vec<String> {
    let describe = |files: &BTreeMap<String, Bytes>| -> BTreeMap<String, String> {
        files
            .iter()
            .map(|(path, bytes)| (path.clone(), format!("sha256 {}", Contents::of(bytes).sha256)))
            .collect()
    };
    lines_of(
        "EFI system partition",
        &Changes::between(&describe(expected), &describe(found)),
    )
}

fn lines_of(place: &str, changes: &Changes) -> Vec<String> {
    changes
        .to_string()
        .lines()
        .map(|line| format!("{place}: {}", line.trim()))
        .collect()
}

fn explain_tree(expected: &Tree, found: &Tree) -> Vec<String> {
    let files = match Diff::of_trees(expected, found) {
        // The other parts of the difference all come from files.
        Ok(diff) => Diff {
            files: diff.files,
            ..Diff::default()
        },
        Err(error) => return vec![format!("root file system: {}", chain(&error))],
    };
    let text = files.to_string();
    let lines = text.lines().filter(|line| line.starts_with("  "));
    lines
        .map(|line| format!("root file system: {}", line.strip_prefix("  ").unwrap_or(line)))
        .collect()
}

/// The first place where disks differ whose files and partitions are the same.
fn explain_disk(found: &dyn Disk, expected: &dyn Disk, gpt: &Gpt) -> io::Result<Option<String>> {
    let (mut left, mut right) = (vec![0; STEP], vec![0; STEP]);
    let mut offset = 0;
    while offset < expected.size() {
        let length = usize::try_from(expected.size() - offset)
            .unwrap_or(usize::MAX)
            .min(STEP);
        expected.read_at(&mut right[..length], offset)?;
        if let Err(error) = found.read_at(&mut left[..length], offset) {
            return Ok(Some(format!(
                "the disk in it cannot be read from byte {offset} on: {error}"
            )));
        }
        if let Some(place) = position(&left[..length], &right[..length]) {
            return Ok(Some(format!(
                "disk, byte {}: {}",
                offset + place,
                layer(gpt, offset + place, expected.size())
            )));
        }
        offset += u64::try_from(length).unwrap_or(u64::MAX);
    }
    Ok(None)
}

/// What is at this byte of a disk (image-pipeline.md §9).
fn layer(gpt: &Gpt, byte: u64, size: u64) -> String {
    let within = gpt
        .partitions
        .iter()
        .find(|part| (part.offset()..part.offset() + part.size()).contains(&byte));
    if let Some(part) = within {
        let inside = byte - part.offset();
        return match part.kind {
            BIOS_BOOT => format!("byte {inside} of GRUB's core in the BIOS boot partition"),
            ESP => format!("byte {inside} of the EFI system partition, outside of its files"),
            LINUX_ROOT => format!("block {} of the root file system, outside of its files", inside / BLOCK),
            _ => format!("byte {inside} of the partition {:?}", part.name),
        };
    }
    match byte {
        0..440 => "GRUB's boot sector".to_owned(),
        440..512 => "the protective partition table in the first sector".to_owned(),
        512..1024 => "the header of the partition table".to_owned(),
        1024..17_408 => "the entries of the partition table".to_owned(),
        _ if byte >= size - 33 * 512 => "the backup of the partition table".to_owned(),
        _ => "space that no partition uses".to_owned(),
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    platform::logging::chain(error).to_string()
}
