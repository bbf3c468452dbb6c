//! qcow2, QEMU's format (QEMU docs/interop/qcow2.txt).

use std::io::{self, Read};

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::invalid;

mod read;
mod write;

pub(super) use read::Qcow2;
pub(super) use write::write;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// The refcount of this cluster is exactly 1.
const COPIED: u64 = 1 << 63;
/// This cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Where in the file, in entries of tables.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Incompatible feature: the header names how clusters are compressed.
const HAS_COMPRESSION_TYPE: u64 = 1 << 3;
/// Where, from version 3 on.
const COMPRESSION_TYPE: usize = 104;
/// The window of zlib in a qcow2; QEMU cannot unpack more.
const WINDOW_BITS: u8 = 12;
/// No frame of a cluster (at most 2 MiB) needs a larger window.
const MAX_ZSTD_WINDOW_LOG: u32 = 22;

/// How a compressed cluster is found from its entry: bits of the offset, below those of the length.
fn offset_bits(cluster_bits: u32) -> u32 {
    62 - (cluster_bits - 8)
}

/// A cluster as zlib; `None` when it would not get smaller.
fn deflate(zlib: &mut Compress, cluster: &[u8]) -> io::Result<Option<Vec<u8>>> {
    zlib.reset();
    let mut packed = Vec::with_capacity(cluster.len() - 1);
    let status = zlib
        .compress_vec(cluster, &mut packed, FlushCompress::Finish)
        .map_err(io::Error::other)?;
    Ok((status == Status::StreamEnd).then_some(packed))
}

fn inflate(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut cluster = Vec::with_capacity(size);
    // The largest window reads all smaller ones.
    let mut zlib = Decompress::new(false);
    zlib.decompress_vec(packed, &mut cluster, FlushDecompress::Finish)
        .map_err(|error| invalid(format!("a compressed cluster is broken: {error}")))?;
    if cluster.len() == size {
        Ok(cluster)
    } else {
        Err(invalid("a compressed cluster is too short"))
    }
}

fn unzstd(packed: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut cluster = vec![0; size];
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
    decoder.window_log_max(MAX_ZSTD_WINDOW_LOG)?;
    // What follows in the last sector is not ours.
    decoder
        .read_exact(&mut cluster)
        .map_err(|error| invalid(format!("a compressed cluster is broken: {error}")))?;
    Ok(cluster)
}
