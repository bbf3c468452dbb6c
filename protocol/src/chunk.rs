//! The four clear-text bytes before every group of TLS records (agent-protocol.md §1.3).

/// Length of a chunk header.
pub const CHUNK_HEADER_LEN: usize = 4;

/// Longest chunk that the original accepts; one byte more closes the connection.
pub const MAX_CHUNK: usize = 18_000;

/// Plaintext bytes in one TLS record, and so in one chunk that we send (RFC 5246 §6.2.1).
pub const MAX_PLAINTEXT: usize = 16_384;

/// Length of a TLS record's own header: type, version, length (RFC 5246 §6.2.1).
pub const RECORD_HEADER_LEN: usize = 1 + 2 + 2;

/// What stands before a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkHeader {
    /// Bytes that follow: complete TLS records.
    pub len: usize,
    /// The message goes on in the next chunk.
    pub following: bool,
}

/// Why four bytes, or the chunk after them, are refused. The connection must be closed: the next boundary is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadChunk {
    /// Longer than [`MAX_CHUNK`], or "negative" in the original's signed arithmetic.
    #[error("chunk of {0} bytes; at most {MAX_CHUNK} are allowed")]
    TooLong(u16),
    /// The bytes do not end where a TLS record ends.
    #[error("a TLS record is split over two chunks")]
    SplitRecord,
}

impl ChunkHeader {
    /// Bits 17 to 31 are ignored, as by the original.
    pub fn decode(bytes: [u8; CHUNK_HEADER_LEN]) -> Result<Self, BadChunk> {
        let len = u16::from_be_bytes([bytes[2], bytes[3]]);
        if usize::from(len) > MAX_CHUNK {
            return Err(BadChunk::TooLong(len));
        }
        Ok(Self {
            len: usize::from(len),
            following: bytes[1] & 1 == 1,
        })
    }

    /// # Errors
    /// The chunk would be refused by the receiver.
    pub fn encode(self) -> Result<[u8; CHUNK_HEADER_LEN], BadChunk> {
        let len = u16::try_from(self.len).unwrap_or(u16::MAX);
        if usize::from(len) > MAX_CHUNK {
            return Err(BadChunk::TooLong(len));
        }
        let [high, low] = len.to_be_bytes();
        Ok([0, u8::from(self.following), high, low])
    }
}

/// Length of the TLS record at the front of `bytes`, its header included; `None` until the header has arrived.
pub fn record_len(bytes: &[u8]) -> Option<usize> {
    let header = bytes.get(..RECORD_HEADER_LEN)?;
    Some(RECORD_HEADER_LEN + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

/// Cuts a chunk into its TLS records.
pub fn records(mut chunk: &[u8]) -> Result<Vec<&[u8]>, BadChunk> {
    let mut records = Vec::new();
    while !chunk.is_empty() {
        let len = record_len(chunk).ok_or(BadChunk::SplitRecord)?;
        let (record, rest) = chunk.split_at_checked(len).ok_or(BadChunk::SplitRecord)?;
        records.push(record);
        chunk = rest;
    }
    Ok(records)
}
