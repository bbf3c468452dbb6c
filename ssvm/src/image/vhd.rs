//! VHD (Microsoft, Virtual Hard Disk Image Format Specification 1.0).

use super::window::{Fields, Window};
use super::{Refusal, other};

const FOOTER: usize = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// Gives the virtual size; 0 if the image is still growing, for its footer is at its end.
pub(super) fn judge(window: &Window<'_>) -> Result<u64, Refusal> {
    let start = window.read(0, FOOTER)?;
    let end = if window.is_whole() {
        window.tail(FOOTER)?
    } else {
        Vec::new()
    };
    let copies = [&start, &end].map(|bytes| bytes.starts_with(b"conectix").then_some(bytes));
    for footer in copies.into_iter().flatten() {
        if footer.be_u32(60) == DIFFERENCING {
            return other("it is a differencing VHD, which needs its parent; merge it into one file");
        }
        if footer.len() < FOOTER || footer.be_u32(64) != checksum(footer, 64) {
            return other("the checksum of its VHD footer is wrong; it is damaged");
        }
    }
    if !window.is_whole() {
        return Ok(0);
    }
    let size = |footer: &[u8]| footer.be_u64(40).max(footer.be_u64(48));
    match copies {
        [None, Some(footer)] if footer.be_u32(60) == FIXED => {
            let (size, data) = (size(footer), window.len() - 512);
            if size > data {
                return other(format!(
                    "it is cut off: {size} bytes of disk are announced, {data} are there"
                ));
            }
            Ok(size)
        }
        [Some(footer), Some(end)] if footer.be_u32(60) == DYNAMIC => {
            if footer[..64] != end[..64] {
                return other("the two copies of its VHD footer differ");
            }
            dynamic(window, footer)?;
            Ok(size(footer))
        }
        [Some(footer), None] if footer.be_u32(60) == DYNAMIC => other("its VHD footer is missing; it is cut off"),
        _ => other("its VHD footer is of an unknown type; fixed and dynamic disks can be used"),
    }
}

fn dynamic(window: &Window<'_>, footer: &[u8]) -> Result<(), Refusal> {
    let at = footer.be_u64(16);
    let header = window.read(at, 1024)?;
    if !header.starts_with(b"cxsparse") || header.len() < 1024 || header.be_u32(36) != checksum(&header, 36) {
        return other("its dynamic disk header is missing or damaged");
    }
    let (table, entries) = (header.be_u64(16), u64::from(header.be_u32(28)));
    let block = u64::from(header.be_u32(32));
    if !block.is_power_of_two() || block < 512 {
        return other("its block size makes no sense");
    }
    let is_inside = table.checked_add(entries * 4).is_some_and(|end| end <= window.len());
    if !is_inside || entries < footer.be_u64(48).div_ceil(block) {
        return other("its block table is too short or not inside of the file; it is cut off");
    }
    Ok(())
}

/// One's complement of the sum of all bytes but the checksum's own.
fn checksum(bytes: &[u8], own: usize) -> u32 {
    let is_other = |(at, _): &(usize, &u8)| !(own..own + 4).contains(at);
    !bytes
        .iter()
        .enumerate()
        .filter(is_other)
        .map(|(_, byte)| u32::from(*byte))
        .sum::<u32>()
}
