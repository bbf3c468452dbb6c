use std::io;

use super::window::{Fields, Window};

/// A disc image that is only bootable as a disk: a boot sector with a partition table that makes sense (§3.5).
pub(super) fn is_hybrid_without_cd001(window: &Window<'_>) -> io::Result<bool> {
    let sector = window.read(0, 512)?;
    if sector.get(510..512) != Some(&[0x55, 0xaa]) {
        return Ok(false);
    }
    let mut partitions = 0;
    for entry in sector[446..510].chunks_exact(16) {
        let (status, kind) = (entry[0], entry[4]);
        let (start, sectors) = (u64::from(entry.le_u32(8)), u64::from(entry.le_u32(12)));
        if kind == 0 {
            continue;
        }
        // A GPT's protecting entry may reach as far as it likes.
        let is_inside = kind == 0xee || (start + sectors) * 512 <= window.len().next_multiple_of(1 << 20);
        if !matches!(status, 0 | 0x80) || sectors == 0 || !is_inside {
            return Ok(false);
        }
        partitions += 1;
    }
    Ok(partitions > 0)
}
