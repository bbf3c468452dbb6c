//! The 40 bytes before every body (agent-protocol.md §2).

/// Length of the header that everybody sends.
pub const HEADER_LEN: usize = 1 /* version */ + 1 /* reserved */ + 2 /* flags */ + 8 /* sequence */
    + 4 /* content length */ + 8 /* mgmt id */ + 8 /* agent id */ + 8 /* via */;

/// Version 2 ("v3" in upstream's words) has no `via`; nobody sends it, the original still reads it.
const SHORT_HEADER_LEN: usize = HEADER_LEN - 8;

/// No id yet, or no id at all.
pub const NO_ID: i64 = -1;

/// The flags of a message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u16);

impl Flags {
    /// A request; otherwise a response.
    pub const REQUEST: Self = Self(0x01);
    /// Commands after a failed one are not executed.
    pub const STOP_ON_ERROR: Self = Self(0x02);
    /// At least one command is marked "execute in sequence".
    pub const IN_SEQUENCE: Self = Self(0x04);
    /// The sender is a management server.
    pub const FROM_SERVER: Self = Self(0x20);
    /// Between clustered management servers only.
    pub const CONTROL: Self = Self(0x40);
    /// The body is gzip. Set and read by [`Message`](crate::message::Message) alone.
    pub const COMPRESSED: Self = Self(0x80);

    /// Whether all of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// With `other` set, or not.
    #[must_use]
    pub fn with(self, other: Self, on: bool) -> Self {
        if on {
            Self(self.0 | other.0)
        } else {
            Self(self.0 & !other.0)
        }
    }

    /// The same with `other` inverted.
    #[must_use]
    pub fn toggled(self, other: Self) -> Self {
        Self(self.0 ^ other.0)
    }
}

impl std::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "0x{:04x}", self.0)
    }
}

/// Who says what to whom. Ids are opaque: management server ids come from MAC addresses, host ids from a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The flags.
    pub flags: Flags,
    /// Number of the request; its response repeats it.
    pub sequence: i64,
    /// Originating management server; [`NO_ID`] from agents.
    pub mgmt_id: i64,
    /// Host id of the agent; [`NO_ID`] before the first registration.
    pub agent_id: i64,
    /// Host whose link is used: normally the same as `agent_id`.
    pub via: i64,
}

/// Why the front of a message is not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHeader {
    /// Too few bytes.
    #[error("{0} bytes are too few for a header of {HEADER_LEN} bytes")]
    Short(usize),
    /// A version that upstream refuses, too.
    #[error("version {0} is not supported; 0 is expected")]
    Version(u8),
}

impl Header {
    /// Takes the header off the front; answers it, the length of the body before compression, and the body.
    pub fn decode(message: &[u8]) -> Result<(Self, u32, &[u8]), BadHeader> {
        let length = match message.first() {
            None | Some(0) => HEADER_LEN,
            Some(2) => SHORT_HEADER_LEN,
            Some(version) => return Err(BadHeader::Version(*version)),
        };
        let (header, body) = message
            .split_at_checked(length)
            .ok_or(BadHeader::Short(message.len()))?;
        let agent_id = int64(header, 24);
        let flags = Flags(u16::from_be_bytes([header[2], header[3]]) & 0xff); // only the low byte is used
        let content_length = u32::from_be_bytes([header[12], header[13], header[14], header[15]]);
        let via = if length == HEADER_LEN {
            int64(header, 32)
        } else {
            agent_id
        };
        Ok((
            Self {
                flags,
                sequence: int64(header, 4),
                mgmt_id: int64(header, 16),
                agent_id,
                via,
            },
            content_length,
            body,
        ))
    }

    /// The header of a body that is `content_length` bytes long before compression.
    pub fn encode(&self, content_length: u32) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[2..4].copy_from_slice(&self.flags.0.to_be_bytes());
        out[4..12].copy_from_slice(&self.sequence.to_be_bytes());
        out[12..16].copy_from_slice(&content_length.to_be_bytes());
        out[16..24].copy_from_slice(&self.mgmt_id.to_be_bytes());
        out[24..32].copy_from_slice(&self.agent_id.to_be_bytes());
        out[32..40].copy_from_slice(&self.via.to_be_bytes());
        out
    }
}

fn int64(bytes: &[u8], at: usize) -> i64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    i64::from_be_bytes(out)
}
