//! streamOptimized VMDK, what VMware imports (VMware Virtual Disk Format 1.1; image-pipeline.md §10.2).

mod read;
mod write;

pub(super) use read::Vmdk;
pub(super) use write::write;

const MAGIC: [u8; 4] = *b"KDMV";
/// Entries in a grain table.
const ENTRIES: u32 = 512;
/// In a header: the grain directory's place is in the footer.
const IN_FOOTER: u64 = u64::MAX;
/// Line ends survived the transfer. The first byte is in front of these four.
const LINE_ENDS: [u8; 4] = *b"\n \r\n";
const HAS_LINE_ENDS: u32 = 1;
/// An entry of 1 in a grain table is a grain of zeros.
const HAS_ZERO_GRAINS: u32 = 1 << 2;
const IS_COMPRESSED: u32 = 1 << 16;
const HAS_MARKERS: u32 = 1 << 17;
const DEFLATE: u16 = 1;
