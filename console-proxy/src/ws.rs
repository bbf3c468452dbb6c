//! WebSocket frames, the server's side (RFC 6455), as far as a console needs them: bytes in both directions, pings, and
//! an end with a code. docs/decisions/0015 says why this is not a library.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

/// Longest frame that a browser may send (§8). What it sends are keys; a clipboard is the longest.
pub const MAX_FRAME: u64 = 1 << 20;

/// Longest header that we send.
pub const MAX_HEADER: usize = 10;

/// Longest payload of a control frame (RFC 6455 §5.5).
pub const MAX_CONTROL: usize = 125;

/// The header `Sec-WebSocket-Accept` for a `Sec-WebSocket-Key` (RFC 6455 §4.2.2).
pub fn accept(key: &str) -> String {
    let mut sha1 = Sha1::new();
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(sha1.finalize())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    const fn of(byte: u8) -> Option<Self> {
        Some(match byte & 0x0f {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return None,
        })
    }

    const fn byte(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    const fn is_control(self) -> bool {
        self.byte() >= 8
    }
}

/// Up to [`MAX_CONTROL`] bytes.
#[derive(Clone, Copy)]
pub struct Payload {
    bytes: [u8; MAX_CONTROL],
    length: u8,
}

impl Payload {
    const EMPTY: Self = Self {
        bytes: [0; MAX_CONTROL],
        length: 0,
    };

    /// The first [`MAX_CONTROL`] of these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut payload = Self::EMPTY;
        payload.push(bytes);
        payload
    }

    fn push(&mut self, bytes: &[u8]) {
        for (free, byte) in self.bytes[usize::from(self.length)..].iter_mut().zip(bytes) {
            *free = *byte;
            self.length += 1;
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

/// A control frame from the browser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Control {
    /// To be answered with a pong of the same payload.
    Ping(Payload),
    /// The answer to a ping of ours.
    Pong(Payload),
    /// The browser ends the connection. Nothing counts that comes behind it.
    Close,
}

/// What a browser must not send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadFrame {
    /// Reserved bits, an unknown opcode, no mask, a split or long control frame, a continuation of nothing.
    #[error("the browser sent a frame that is no WebSocket frame: {0}")]
    Malformed(&'static str),
    /// Console traffic is binary.
    #[error("the browser sent text where only binary frames are expected")]
    Text,
    /// More than [`MAX_FRAME`].
    #[error("the browser sent a frame of {0} bytes; at most {MAX_FRAME} are accepted")]
    TooLong(u64),
}

/// Takes frames apart as their bytes arrive, however they are cut. Holds no payload.
#[derive(Debug)]
pub struct Decoder {
    header: [u8; 14],
    header_len: usize,
    /// Of the frame whose payload is arriving; otherwise a header is.
    opcode: Option<Opcode>,
    mask: [u8; 4],
    /// Payload that has not arrived yet.
    remaining: u64,
    is_final: bool,
    /// A message has begun whose last frame has not come.
    is_fragmented: bool,
    control: Payload,
    is_closed: bool,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            header: [0; 14],
            header_len: 0,
            opcode: None,
            mask: [0; 4],
            remaining: 0,
            is_final: true,
            is_fragmented: false,
            control: Payload::EMPTY,
            is_closed: false,
        }
    }
}

impl Decoder {
    /// Takes all of `bytes`. The payload of data frames is unmasked and moved to the front of it: as many bytes as are
    /// answered. Control frames go to `on_control`.
    ///
    /// # Errors
    /// The connection must be closed; nothing can be read from it any more.
    pub fn decode(&mut self, bytes: &mut [u8], mut on_control: impl FnMut(Control)) -> Result<usize, BadFrame> {
        let (mut read, mut written) = (0, 0);
        while !self.is_closed {
            match self.opcode {
                None => {
                    let Some(byte) = bytes.get(read) else { break };
                    self.header[self.header_len] = *byte;
                    self.header_len += 1;
                    read += 1;
                    self.begin_frame()?;
                }
                Some(opcode) => {
                    let left = bytes.len() - read;
                    let length = usize::try_from(self.remaining).map_or(left, |remaining| remaining.min(left));
                    let part = read..read + length;
                    unmask(&mut bytes[part.clone()], &mut self.mask);
                    if opcode.is_control() {
                        self.control.push(&bytes[part]);
                    } else {
                        bytes.copy_within(part, written);
                        written += length;
                    }
                    read += length;
                    self.remaining -= u64::try_from(length).expect("usize fits");
                    if self.remaining > 0 {
                        break; // the rest has not arrived
                    }
                    self.end_frame(opcode, &mut on_control);
                }
            }
        }
        Ok(written)
    }

    /// Looks at a header that may not be complete yet.
    fn begin_frame(&mut self) -> Result<(), BadFrame> {
        let [first, second, rest @ ..] = self.header;
        if self.header_len == 1 {
            if first & 0x70 != 0 {
                return Err(BadFrame::Malformed("reserved bits are set"));
            }
            let opcode = Opcode::of(first).ok_or(BadFrame::Malformed("the opcode is unknown"))?;
            match opcode {
                Opcode::Text => return Err(BadFrame::Text),
                Opcode::Continuation if !self.is_fragmented => {
                    return Err(BadFrame::Malformed("nothing is there to be continued"));
                }
                Opcode::Binary if self.is_fragmented => {
                    return Err(BadFrame::Malformed("a message begins inside another"));
                }
                _ if opcode.is_control() && first & 0x80 == 0 => {
                    return Err(BadFrame::Malformed("a control frame is split"));
                }
                _ => return Ok(()),
            }
        }
        let opcode = Opcode::of(first).expect("seen with the first byte");
        if second & 0x80 == 0 {
            return Err(BadFrame::Malformed("the mask is missing"));
        }
        let short = second & 0x7f;
        if opcode.is_control() && usize::from(short) > MAX_CONTROL {
            return Err(BadFrame::Malformed("a control frame is too long"));
        }
        let length_len = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if self.header_len < 2 + length_len {
            return Ok(());
        }
        let length = match short {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => u64::from_be_bytes(rest[..8].try_into().expect("eight bytes")),
            short => u64::from(short),
        };
        if length > MAX_FRAME {
            return Err(BadFrame::TooLong(length));
        }
        if self.header_len < 2 + length_len + 4 {
            return Ok(());
        }
        self.mask.copy_from_slice(&rest[length_len..length_len + 4]);
        self.remaining = length;
        self.is_final = first & 0x80 != 0;
        self.opcode = Some(opcode);
        self.header_len = 0;
        Ok(())
    }

    fn end_frame(&mut self, opcode: Opcode, on_control: &mut impl FnMut(Control)) {
        self.opcode = None;
        let control = std::mem::replace(&mut self.control, Payload::EMPTY);
        match opcode {
            Opcode::Close => {
                self.is_closed = true;
                on_control(Control::Close);
            }
            Opcode::Ping => on_control(Control::Ping(control)),
            Opcode::Pong => on_control(Control::Pong(control)),
            Opcode::Continuation | Opcode::Binary | Opcode::Text => self.is_fragmented = !self.is_final,
        }
    }
}

/// Leaves the mask turned so that it fits the next byte of the frame.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let (groups, rest) = bytes.as_chunks_mut::<4>();
    for group in groups {
        *group = (u32::from_ne_bytes(*group) ^ u32::from_ne_bytes(*mask)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(*mask) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len());
}

/// The header of a frame that we send: final, without a mask.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    length: usize,
}

impl Header {
    /// Of a binary frame.
    pub fn binary(payload_len: usize) -> Self {
        Self::new(Opcode::Binary, payload_len)
    }

    fn new(opcode: Opcode, payload_len: usize) -> Self {
        let mut bytes = [0; MAX_HEADER];
        bytes[0] = 0x80 | opcode.byte();
        let length = match (u8::try_from(payload_len), u16::try_from(payload_len)) {
            (Ok(short @ 0..126), _) => {
                bytes[1] = short;
                2
            }
            (_, Ok(medium)) => {
                bytes[1] = 126;
                bytes[2..4].copy_from_slice(&medium.to_be_bytes());
                4
            }
            _ => {
                bytes[1] = 127;
                let long = u64::try_from(payload_len).expect("usize fits");
                bytes[2..10].copy_from_slice(&long.to_be_bytes());
                10
            }
        };
        Self { bytes, length }
    }

    /// As it is sent.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    [Header::new(opcode, payload.len()).as_slice(), payload].concat()
}

/// A whole binary frame, for small things.
pub fn binary(payload: &[u8]) -> Vec<u8> {
    frame(Opcode::Binary, payload)
}

/// A ping.
pub fn ping(payload: &[u8; 8]) -> Vec<u8> {
    frame(Opcode::Ping, payload)
}

/// The answer to a ping.
pub fn pong(payload: &Payload) -> Vec<u8> {
    frame(Opcode::Pong, payload.as_slice())
}

/// The end, with a code and a short ASCII reason (RFC 6455 §5.5.1).
pub fn close(code: u16, reason: &str) -> Vec<u8> {
    let payload = [&code.to_be_bytes()[..], reason.as_bytes()].concat();
    frame(Opcode::Close, Payload::new(&payload).as_slice())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As a browser sends it. The opcode is the whole first byte.
    fn masked(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
        let mut frame = Header::new(Opcode::Binary, payload.len()).as_slice().to_vec();
        frame[0] = first;
        frame[1] |= 0x80;
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn decode(decoder: &mut Decoder, bytes: &[u8]) -> Result<(Vec<u8>, Vec<Control>), BadFrame> {
        let (mut bytes, mut controls) = (bytes.to_vec(), Vec::new());
        let length = decoder.decode(&mut bytes, |control| controls.push(control))?;
        bytes.truncate(length);
        Ok((bytes, controls))
    }

    #[test]
    fn the_answer_to_a_key_is_the_one_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_fragmented_message_with_a_ping_inside_is_put_together() {
        let mask = [1, 2, 3, 4];
        let frames = [
            masked(0x02, b"key", mask),
            masked(0x89, b"alive?", mask),
            masked(0x80, b"board", mask),
            masked(0x88, b"\x03\xe8", mask),
            masked(0x82, b"too late", mask),
        ];
        let (data, controls) = decode(&mut Decoder::default(), &frames.concat()).unwrap();
        assert_eq!(data, b"keyboard");
        assert_eq!(controls, [Control::Ping(Payload::new(b"alive?")), Control::Close]);
    }

    #[test]
    fn what_no_browser_sends_is_refused() {
        let refused = |bytes: &[u8]| decode(&mut Decoder::default(), bytes).unwrap_err();
        let malformed = |bytes: &[u8], why| assert_eq!(refused(bytes), BadFrame::Malformed(why));
        malformed(&[0xc2], "reserved bits are set");
        malformed(&[0x83], "the opcode is unknown");
        malformed(&[0x80], "nothing is there to be continued");
        malformed(&[0x09], "a control frame is split");
        malformed(&[0x82, 0x01], "the mask is missing");
        malformed(&[0x89, 0xfe], "a control frame is too long");
        let mut begun = masked(0x02, b"", [0; 4]);
        begun.push(0x82);
        malformed(&begun, "a message begins inside another");
        assert_eq!(refused(&[0x81]), BadFrame::Text);
        assert_eq!(
            refused(&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1]),
            BadFrame::TooLong(MAX_FRAME + 1)
        );
        assert_eq!(
            refused(&[[0x82, 0xff].as_slice(), &[0xff; 8]].concat()),
            BadFrame::TooLong(u64::MAX)
        );
    }

    #[test]
    fn headers_take_the_shortest_form() {
        let header = |length| Header::binary(length).as_slice().to_vec();
        assert_eq!(header(0), [0x82, 0]);
        assert_eq!(header(125), [0x82, 125]);
        assert_eq!(header(126), [0x82, 126, 0, 126]);
        assert_eq!(header(0xffff), [0x82, 126, 0xff, 0xff]);
        assert_eq!(header(0x1_0000), [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(
            close(4001, "taken over"),
            [&[0x88, 12, 0x0f, 0xa1], b"taken over".as_slice()].concat()
        );
    }

    proptest! {
        #[test]
        fn payloads_survive_any_cutting(
            messages in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>()), 1..6),
            cuts in prop::collection::vec(1_usize..40, 1..100),
        ) {
            let wire: Vec<u8> = messages.iter().flat_map(|(payload, mask)| masked(0x82, payload, *mask)).collect();
            let wanted: Vec<u8> = messages.iter().flat_map(|(payload, _)| payload.clone()).collect();
            let (mut decoder, mut got, mut rest) = (Decoder::default(), Vec::new(), wire.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (part, behind) = rest.split_at((*cut).min(rest.len()));
                got.extend(decode(&mut decoder, part).unwrap().0);
                rest = behind;
            }
            prop_assert_eq!(got, wanted);
        }

        #[test]
        fn noise_neither_panics_nor_grows(noise in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok((data, _)) = decode(&mut Decoder::default(), &noise) {
                prop_assert!(data.len() <= noise.len());
            }
        }
    }
}
