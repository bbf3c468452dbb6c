//! Where messages of the browser end (§15.2): lengths, nothing else. It tells whether somebody is typing, and keeps a
//! clipboard of absurd size from the host.

/// Longest clipboard (§15.2).
const MAX_CLIPBOARD: u32 = 1 << 20;

/// Longest part of a message that says how long the message is.
const MAX_HEAD: usize = 9;

/// What a message means for the idle clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Key, pointer, clipboard: somebody is there.
    Input,
    Other,
}

/// A message that no browser means to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the browser sent a {what} of {length} bytes; at most {limit} are accepted")]
pub struct TooLong {
    what: &'static str,
    length: u32,
    limit: u32,
}

/// Follows the stream from the browser to the host, however it is cut.
#[derive(Debug, Default)]
pub struct Scanner {
    head: [u8; MAX_HEAD],
    head_len: usize,
    /// Bytes of the current message that are still to come behind its head.
    skip: usize,
    /// A message of a kind we do not know: from here on nobody can tell where messages end.
    is_opaque: bool,
}

/// How long a message is, as far as its first bytes tell.
enum Length {
    /// More bytes must be seen to know.
    Unclear,
    /// All of it, head included.
    Known(usize, Kind),
    Unknown,
}

impl Scanner {
    /// Reads on. Answers whether there was input of a person.
    ///
    /// # Errors
    /// A message is too long.
    pub fn advance(&mut self, mut bytes: &[u8]) -> Result<bool, TooLong> {
        let mut is_input = false;
        while !bytes.is_empty() && !self.is_opaque {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                bytes = &bytes[skipped..];
                self.skip -= skipped;
                continue;
            }
            self.head[self.head_len] = bytes[0];
            self.head_len += 1;
            bytes = &bytes[1..];
            match length(&self.head[..self.head_len])? {
                Length::Unclear => {}
                Length::Known(length, kind) => {
                    is_input |= kind == Kind::Input;
                    self.skip = length - self.head_len;
                    self.head_len = 0;
                }
                Length::Unknown => self.is_opaque = true,
            }
        }
        Ok(is_input || self.is_opaque)
    }

    /// Whether messages can no longer be told apart.
    pub fn is_opaque(&self) -> bool {
        self.is_opaque
    }
}

/// From the first bytes of a message, at least one and at most [`MAX_HEAD`].
fn length(head: &[u8]) -> Result<Length, TooLong> {
    use Kind::{Input, Other};
    let u16_at = |at: usize| Some(usize::from(u16::from_be_bytes(head.get(at..at + 2)?.try_into().ok()?)));
    let u8_at = |at: usize| head.get(at).copied().map(usize::from);
    Ok(match head[0] {
        0 => Length::Known(20, Other),       // SetPixelFormat
        3 | 150 => Length::Known(10, Other), // FramebufferUpdateRequest, EnableContinuousUpdates
        4 => Length::Known(8, Input),        // KeyEvent
        250 => Length::Known(4, Input),      // xvp: shutdown, reboot
        2 => match u16_at(2) {
            Some(encodings) => Length::Known(4 + 4 * encodings, Other),
            None => return Ok(Length::Unclear),
        },
        // Bit 7 of the mask: more buttons follow in one more byte (encoding -316).
        5 => match u8_at(1) {
            Some(mask) => Length::Known(if mask & 0x80 == 0 { 6 } else { 7 }, Input),
            None => return Ok(Length::Unclear),
        },
        6 => match head.get(4..8) {
            Some(length) => {
                let length = i32::from_be_bytes(length.try_into().expect("four bytes")).unsigned_abs();
                if length > MAX_CLIPBOARD {
                    let (what, limit) = ("clipboard", MAX_CLIPBOARD);
                    return Err(TooLong { what, length, limit });
                }
                Length::Known(8 + usize::try_from(length).expect("the limit fits"), Input)
            }
            None => return Ok(Length::Unclear),
        },
        127 => match u16_at(2) {
            // VMware: the length counts the whole message.
            Some(length) => Length::Known(length.max(4), Input),
            None => return Ok(Length::Unclear),
        },
        248 => match u8_at(8) {
            Some(payload) => Length::Known(9 + payload, Other), // ClientFence
            None => return Ok(Length::Unclear),
        },
        251 => match u8_at(6) {
            Some(screens) => Length::Known(8 + 16 * screens, Other), // SetDesktopSize
            None => return Ok(Length::Unclear),
        },
        // QEMU: extended key event; audio off, on, or its format.
        255 => match (u8_at(1), u16_at(2)) {
            (Some(0), _) => Length::Known(12, Input),
            (Some(1), Some(2)) => Length::Known(10, Other),
            (Some(1), Some(0 | 1)) => Length::Known(4, Other),
            (None, _) | (Some(1), None) => return Ok(Length::Unclear),
            _ => Length::Unknown,
        },
        _ => Length::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of each, and whether it is input.
    fn messages() -> Vec<(Vec<u8>, bool)> {
        let message = |begin: &[u8], length: usize| {
            let mut bytes = begin.to_vec();
            bytes.resize(length, 0x55);
            bytes
        };
        vec![
            (message(&[0], 20), false),
            (message(&[2, 0, 0, 3], 16), false),
            (message(&[3], 10), false),
            (message(&[4], 8), true),
            (message(&[5, 0x01], 6), true),
            (message(&[5, 0x81], 7), true),
            (message(&[6, 0, 0, 0, 0, 0, 0, 5], 13), true),
            (message(&[6, 0, 0, 0, 0xff, 0xff, 0xff, 0xfb], 13), true),
            (message(&[127, 0, 0, 8], 8), true),
            (message(&[150], 10), false),
            (message(&[248, 0, 0, 0, 0, 0, 0, 0, 3], 12), false),
            (message(&[250], 4), true),
            (message(&[251, 0, 0, 0, 0, 0, 1], 24), false),
            (message(&[255, 0], 12), true),
            (message(&[255, 1, 0, 1], 4), false),
            (message(&[255, 1, 0, 2], 10), false),
        ]
    }

    #[test]
    fn every_message_ends_where_the_table_says() {
        for (message, is_input) in messages() {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.advance(&message), Ok(is_input), "{message:?}");
            // A key right behind it is seen as one: the end was found.
            assert_eq!(
                (scanner.skip, scanner.head_len, scanner.is_opaque()),
                (0, 0, false),
                "{message:?}"
            );
        }
    }

    #[test]
    fn an_unknown_message_makes_the_rest_opaque_and_opaque_bytes_count_as_input() {
        let mut scanner = Scanner::default();
        assert_eq!(scanner.advance(&[77, 1, 2]), Ok(true));
        assert!(scanner.is_opaque());
        assert_eq!(scanner.advance(&[3]), Ok(true));
    }

    #[test]
    fn a_clipboard_of_absurd_length_is_refused_in_either_form() {
        for length in [0x0010_0001_u32, 0x8000_0000, 0xffef_ffff] {
            let message = [&[6, 0, 0, 0][..], &length.to_be_bytes()].concat();
            assert!(Scanner::default().advance(&message).is_err(), "{length:x}");
        }
    }

    proptest! {
        #[test]
        fn cutting_changes_nothing(
            order in prop::collection::vec(0_usize..16, 1..20), cuts in prop::collection::vec(1_usize..9, 1..50),
        ) {
            let all = messages();
            let stream: Vec<u8> = order.iter().flat_map(|at| all[*at].0.clone()).collect();
            let (mut scanner, mut rest, mut is_input) = (Scanner::default(), stream.as_slice(), false);
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (part, behind) = rest.split_at((*cut).min(rest.len()));
                is_input |= scanner.advance(part).unwrap();
                rest = behind;
            }
            prop_assert_eq!(is_input, order.iter().any(|at| all[*at].1));
            prop_assert_eq!((scanner.skip, scanner.head_len, scanner.is_opaque()), (0, 0, false));
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Scanner::default().advance(&noise);
        }
    }
}
