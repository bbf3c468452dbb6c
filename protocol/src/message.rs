//! A message: header and body, compressed when it is long (agent-protocol.md §2).

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use crate::header::{BadHeader, Flags, HEADER_LEN, Header};

/// Longest body that is sent or accepted, before compression. The protocol has no limit; the longest real bodies
/// (lists of templates, config drives) are some MiB.
pub const MAX_BODY: usize = 64 << 20;

/// Longest message that is accepted.
pub const MAX_MESSAGE: usize = HEADER_LEN + MAX_BODY;

/// Bodies of this length and longer are sent compressed.
pub const COMPRESS_FROM: usize = 8192;

/// One message as it travels, its body still JSON text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says what to whom.
    pub header: Header,
    /// What is said.
    pub body: Body,
}

/// The body of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// JSON text.
    Text(String),
    /// Could not be decompressed, and why. A request with such a body is still answered.
    Damaged(String),
}

/// Why bytes are not a message. The connection stays usable: the next message starts at the next chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The header is wrong.
    #[error(transparent)]
    Header(#[from] BadHeader),
    /// The body is longer than its header says; upstream's buffer overflows.
    #[error("the body is longer than the {0} bytes that its header announces")]
    LongerThanAnnounced(u32),
    /// The body is longer than we accept.
    #[error("a body of {0} bytes is longer than what is accepted here")]
    TooLong(usize),
}

impl Message {
    /// Reads a message: all bytes between two chunk ends.
    pub fn decode(message: &[u8]) -> Result<Self, BadMessage> {
        Self::decode_up_to(message, MAX_BODY)
    }

    /// The same for a peer of whom only short messages are accepted, compressed or not.
    pub fn decode_up_to(message: &[u8], max_body: usize) -> Result<Self, BadMessage> {
        let (header, content_length, body) = Header::decode(message)?;
        let body = if header.flags.contains(Flags::COMPRESSED) {
            decompress(body, content_length, max_body)?
        } else if body.len() > max_body {
            return Err(BadMessage::TooLong(body.len()));
        } else {
            Body::Text(String::from_utf8_lossy(body).into_owned())
        };
        Ok(Self { header, body })
    }

    /// Writes a message; the flag COMPRESSED follows from the length of the body.
    ///
    /// # Errors
    /// The text is longer than [`MAX_BODY`].
    pub fn encode(header: Header, body: &str) -> Result<Vec<u8>, BadMessage> {
        let too_long = || BadMessage::TooLong(body.len());
        let content_length = u32::try_from(body.len()).map_err(|_| too_long())?;
        if body.len() > MAX_BODY {
            return Err(too_long());
        }
        let compressed = body.len() >= COMPRESS_FROM;
        let header = Header {
            flags: header.flags.with(Flags::COMPRESSED, compressed),
            ..header
        };
        let head = header.encode(content_length);
        if !compressed {
            return Ok([&head, body.as_bytes()].concat());
        }
        let mut out = Vec::with_capacity(HEADER_LEN + body.len() / 8);
        out.extend_from_slice(&head);
        let mut gzip = GzEncoder::new(out, Compression::default());
        gzip.write_all(body.as_bytes()).expect("a Vec takes everything");
        Ok(gzip.finish().expect("a Vec takes everything"))
    }
}

/// Decompresses at most as many bytes as announced, so that a small message cannot fill the memory.
fn decompress(body: &[u8], content_length: u32, max_body: usize) -> Result<Body, BadMessage> {
    let announced = usize::try_from(content_length).unwrap_or(usize::MAX);
    let limit = announced.min(max_body);
    let mut text = Vec::with_capacity(limit.min(body.len().saturating_mul(8)));
    let one_more = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = GzDecoder::new(body).take(one_more).read_to_end(&mut text);
    if text.len() > limit {
        return Err(if announced > max_body {
            BadMessage::TooLong(announced)
        } else {
            BadMessage::LongerThanAnnounced(content_length)
        });
    }
    Ok(match read {
        Ok(_) => Body::Text(String::from_utf8_lossy(&text).into_owned()),
        Err(error) => Body::Damaged(format!("the gzip data is damaged after {} bytes: {error}", text.len())),
    })
}
