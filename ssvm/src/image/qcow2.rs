//! QCOW2 (QEMU docs/interop/qcow2.txt), judged by ssvm.md §8.2.

use super::window::{Fields, Window};
use super::{Limits, Refusal};

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

const MAX_CLUSTER: usize = 2 << 20;
const MAX_L1: u64 = 32 << 20;

const END: u32 = 0;
const BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTERNAL_DATA_NAME: u32 = 0x4441_5441;
const ENCRYPTION: u32 = 0x0537_be77;

fn bad<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::BadQcow2(why.into()))
}

/// Gives the virtual size. Of an image that is still growing, what lies behind its end is not looked at.
pub(super) fn judge(window: &Window<'_>, limits: &Limits, warnings: &mut Vec<&'static str>) -> Result<u64, Refusal> {
    let header = window.read(0, 112)?;
    if header.len() < 72 {
        return bad("its header is cut off");
    }
    let version = header.be_u32(4);
    if !matches!(version, 2 | 3) {
        return bad(format!("its version is {version}; only 2 and 3 are known"));
    }
    if header.be_u64(8) != 0 || header.be_u32(16) != 0 {
        return bad("it has a backing file; make it whole with `qemu-img convert -O qcow2`");
    }
    let cluster_bits = header.be_u32(20);
    if !(9..=21).contains(&cluster_bits) {
        return bad(format!("its cluster_bits are {cluster_bits}; 9 to 21 are possible"));
    }
    let cluster = 1_u64 << cluster_bits;
    let size = header.be_u64(24);
    let encryption = header.be_u32(32);
    if encryption != 0 && !limits.allow_encrypted_qcow2 {
        return bad("it is encrypted; register it without, or let an operator set allow_encrypted_qcow2");
    }
    let features = if version == 3 { header.be_u64(72) } else { 0 };
    let header_length = if version == 3 { header.be_u32(100) } else { 72 };
    judge_features(features, limits, warnings)?;
    if version == 3 && (header_length < 104 || u64::from(header_length) > cluster || header_length % 8 != 0) {
        return bad(format!("its header_length is {header_length}"));
    }
    if features & COMPRESSION_TYPE != 0 && (header_length < 112 || header.get(104).is_none_or(|kind| *kind > 1)) {
        return bad("its compression type is unknown");
    }
    judge_extensions(window, u64::from(header_length), cluster, limits)?;

    let l1_entries = u64::from(header.be_u32(36));
    let l1_offset = header.be_u64(40);
    let entry_bytes = if features & EXTENDED_L2 == 0 { 8 } else { 16 };
    let per_l1_entry = cluster * (cluster / entry_bytes);
    if l1_entries * 8 > MAX_L1 {
        return bad("its L1 table is larger than 32 MiB");
    }
    if size > limits.max_virtual_size {
        let limit = limits.max_virtual_size;
        return bad(format!("its virtual size is {size} bytes; at most {limit} are allowed"));
    }
    if l1_entries < size.div_ceil(per_l1_entry) {
        return bad("its L1 table is too short for its virtual size");
    }
    let is_inside = l1_offset
        .checked_add(l1_entries * 8)
        .is_some_and(|end| end <= window.len() || !window.is_whole());
    if l1_offset == 0 || l1_offset % cluster != 0 || !is_inside {
        return bad("its L1 table is not inside of the file; it is cut off");
    }
    if header.be_u32(60) > 0 {
        warnings.push("the image has internal snapshots, which nothing here can reach");
    }
    Ok(size)
}

fn judge_features(features: u64, limits: &Limits, warnings: &mut Vec<&'static str>) -> Result<(), Refusal> {
    if features & EXTERNAL_DATA != 0 {
        return bad("its data is in another file; make it whole with `qemu-img convert -O qcow2`");
    }
    if features & CORRUPT != 0 {
        return bad("it is marked as corrupt; repair it with `qemu-img check -r all`");
    }
    if features & EXTENDED_L2 != 0 && !limits.allow_extended_l2 {
        return bad("it has extended L2 entries; convert it with `qemu-img convert -O qcow2`");
    }
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2);
    if unknown != 0 {
        return bad(format!("it needs features that are not known ({unknown:#x})"));
    }
    if features & DIRTY != 0 {
        warnings.push("the image was not closed cleanly; whoever opens it will repair its reference counts");
    }
    Ok(())
}

/// The list behind the header. It ends with a mark, inside of the first cluster.
fn judge_extensions(window: &Window<'_>, start: u64, cluster: u64, limits: &Limits) -> Result<(), Refusal> {
    let first = window.read(0, usize::try_from(cluster).unwrap_or(MAX_CLUSTER))?;
    let mut at = usize::try_from(start).unwrap_or(usize::MAX);
    loop {
        if at.saturating_add(8) > first.len() {
            if !window.is_whole() && window.len() < cluster {
                return Ok(());
            }
            return bad("its header extensions do not end");
        }
        let length = usize::try_from(first.be_u32(at + 4)).unwrap_or(usize::MAX);
        match first.be_u32(at) {
            END => return Ok(()),
            BACKING_FORMAT => {
                return bad("it names the format of a backing file; make it whole with `qemu-img convert`");
            }
            EXTERNAL_DATA_NAME => return bad("it names a file with its data; make it whole with `qemu-img convert`"),
            ENCRYPTION if !limits.allow_encrypted_qcow2 => return bad("it has an encryption header"),
            _ => {}
        }
        at = length
            .checked_next_multiple_of(8)
            .and_then(|length| at.checked_add(8)?.checked_add(length))
            .unwrap_or(usize::MAX);
    }
}
