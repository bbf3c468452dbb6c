//! Writing, as a stream: nothing is changed afterwards, so it can go into an archive and through a digest.

use std::io::{self, Write};

use flate2::{Compress, FlushCompress, Status};

use crate::formats::fields::{len, put, size};
use crate::formats::{Disk, SECTOR, chunks};

use super::{DEFLATE, ENTRIES, HAS_LINE_ENDS, HAS_MARKERS, IN_FOOTER, IS_COMPRESSED, LINE_ENDS, MAGIC};

const GRAIN_SECTORS: u64 = 128;
/// 64 KiB, the only size in this kind of VMDK.
const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
const DESCRIPTOR_SECTORS: u64 = 20;
/// Where the first grain lies.
const OVERHEAD: u64 = 128;
const LEVEL: u32 = 6;
/// Any number but the one that means "no parent". It only ties overlays to their parents, and we write none.
const CONTENT_ID: &str = "5e5e5e5e";

/// What a marker announces.
#[derive(Clone, Copy)]
enum Marker {
    End,
    Table,
    Directory,
    Footer,
}

/// Writes `disk`; the descriptor says that the file's name is `name`. Gives the bytes written.
pub(in crate::formats) fn write(disk: &dyn Disk, name: &str, out: impl Write) -> io::Result<u64> {
    let capacity = disk.size() / SECTOR;
    let tables = disk.size().div_ceil(GRAIN * u64::from(ENTRIES));
    let mut image = Writer {
        out,
        position: 0,
        directory: vec![0; size(tables)?],
        table: (0, Vec::new()),
    };
    image.put(&header(capacity, IN_FOOTER))?;
    image.put(descriptor(capacity, name).as_bytes())?;
    image.pad_to(OVERHEAD * SECTOR)?;

    let worker = || {
        let mut zlib = Compress::new(flate2::Compression::new(LEVEL), true);
        Ok(move |grain: &[u8]| deflate(&mut zlib, grain))
    };
    chunks::each(disk, GRAIN, worker, |number, packed| image.grain(number, &packed))?;
    image.finish(capacity)
}

fn deflate(zlib: &mut Compress, grain: &[u8]) -> io::Result<Vec<u8>> {
    zlib.reset();
    let mut packed = Vec::with_capacity(grain.len() + 1024); // zlib adds at most 5 bytes per 16 KiB, and 6
    match zlib.compress_vec(grain, &mut packed, FlushCompress::Finish)? {
        Status::StreamEnd => Ok(packed),
        _ => Err(io::Error::other("zlib did not finish a grain")),
    }
}

struct Writer<W> {
    out: W,
    position: u64,
    directory: Vec<u32>,
    /// Which grain table is being filled, and its entries.
    table: (usize, Vec<u32>),
}

impl<W: Write> Writer<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += len(bytes);
        Ok(())
    }

    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        let zeros = vec![0; size(position - self.position)?];
        self.put(&zeros)
    }

    fn pad(&mut self) -> io::Result<()> {
        self.pad_to(self.position.next_multiple_of(SECTOR))
    }

    fn sector(&self) -> io::Result<u32> {
        u32::try_from(self.position / SECTOR).map_err(|_| io::Error::other("the disk is too large for a VMDK"))
    }

    fn grain(&mut self, number: u64, packed: &[u8]) -> io::Result<()> {
        let per_table = u64::from(ENTRIES);
        let table = size(number / per_table)?;
        if self.table.0 != table {
            self.finish_table()?;
            self.table.0 = table;
        }
        let sector = self.sector()?;
        let entries = &mut self.table.1;
        entries.resize(size(per_table)?, 0);
        entries[size(number % per_table)?] = sector;
        self.put(&(number * GRAIN_SECTORS).to_le_bytes())?;
        self.put(&u32::try_from(packed.len()).map_err(io::Error::other)?.to_le_bytes())?;
        self.put(packed)?;
        self.pad()
    }

    /// `sectors` is how many follow.
    fn marker(&mut self, sectors: u64, kind: Marker) -> io::Result<()> {
        let kind: u32 = match kind {
            Marker::End => 0,
            Marker::Table => 1,
            Marker::Directory => 2,
            Marker::Footer => 3,
        };
        self.put(&sectors.to_le_bytes())?;
        self.put(&0_u32.to_le_bytes())?;
        self.put(&kind.to_le_bytes())?;
        self.pad()
    }

    fn entries(&mut self, entries: &[u32], kind: Marker) -> io::Result<u32> {
        self.marker((len(entries) * 4).div_ceil(SECTOR), kind)?;
        let sector = self.sector()?;
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        self.put(&bytes)?;
        self.pad()?;
        Ok(sector)
    }

    fn finish_table(&mut self) -> io::Result<()> {
        let entries = std::mem::take(&mut self.table.1);
        if !entries.is_empty() {
            self.directory[self.table.0] = self.entries(&entries, Marker::Table)?;
        }
        Ok(())
    }

    fn finish(mut self, capacity: u64) -> io::Result<u64> {
        self.finish_table()?;
        let directory = std::mem::take(&mut self.directory);
        let directory = self.entries(&directory, Marker::Directory)?;
        self.marker(1, Marker::Footer)?;
        self.put(&header(capacity, u64::from(directory)))?;
        self.marker(0, Marker::End)?;
        self.out.flush()?;
        Ok(self.position)
    }
}

/// Also the footer, which says where the grain directory is.
fn header(capacity: u64, directory: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let flags = HAS_LINE_ENDS | IS_COMPRESSED | HAS_MARKERS;
    put(&mut header, 0, &MAGIC);
    put(&mut header, 4, &3_u32.to_le_bytes());
    put(&mut header, 8, &flags.to_le_bytes());
    put(&mut header, 12, &capacity.to_le_bytes());
    put(&mut header, 20, &GRAIN_SECTORS.to_le_bytes());
    put(&mut header, 28, &1_u64.to_le_bytes()); // the descriptor
    put(&mut header, 36, &DESCRIPTOR_SECTORS.to_le_bytes());
    put(&mut header, 44, &ENTRIES.to_le_bytes());
    put(&mut header, 56, &directory.to_le_bytes());
    put(&mut header, 64, &OVERHEAD.to_le_bytes());
    put(&mut header, 73, &LINE_ENDS);
    put(&mut header, 77, &DEFLATE.to_le_bytes());
    header
}

fn descriptor(capacity: u64, name: &str) -> String {
    let (heads, sectors) = (255, 63);
    let cylinders = capacity.div_ceil(heads * sectors);
    format!(
        "# Disk DescriptorFile
version=1
CID={CONTENT_ID}
parentCID=ffffffff
createType=\"streamOptimized\"

# Extent description
RW {capacity} SPARSE \"{name}\"

# The Disk Data Base
#DDB

ddb.adapterType = \"lsilogic\"
ddb.geometry.cylinders = \"{cylinders}\"
ddb.geometry.heads = \"{heads}\"
ddb.geometry.sectors = \"{sectors}\"
ddb.virtualHWVersion = \"13\"
"
    )
}
