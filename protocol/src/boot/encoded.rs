//! Values that could hold spaces travel as base64.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Bytes after decoding: what the longest known carrier (128 KiB of base64) can bring.
pub(super) const DECODED_LIMIT: usize = 96 * 1024;

/// Servers send padding; stock scripts cut it off at the second `=`, and lines saved by them come back without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Bytes from base64, padded or not.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok().filter(|bytes| bytes.len() <= DECODED_LIMIT)
}

/// UTF-8 text from base64.
pub(super) fn text(text: &str) -> Option<String> {
    String::from_utf8(bytes(text)?).ok()
}

/// Text whose newlines became `^` and whose spaces became `~` before base64: certificates, the key store's password.
/// apache/cloudstack systemvm/debian/opt/cloud/bin/setup/common.sh.
pub(super) fn armoured_text(armoured: &str) -> Option<String> {
    Some(text(armoured)?.replace('^', "\n").replace('~', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_may_be_there_or_cut_off() {
        for encoded in ["YQ==", "YQ=", "YQ"] {
            assert_eq!(text(encoded).as_deref(), Some("a"), "{encoded}");
        }
    }

    #[test]
    fn armoured_text_gets_its_newlines_and_spaces_back() {
        // BEGIN~CERT^YWJj
        assert_eq!(
            armoured_text("QkVHSU5+Q0VSVF5ZV0pq").as_deref(),
            Some("BEGIN CERT\nYWJj")
        );
    }

    #[test]
    fn what_is_not_base64_or_not_text_or_too_long_is_refused() {
        assert_eq!(bytes("a b"), None);
        assert_eq!(text("/w=="), None);
        assert_eq!(bytes(&"AAAA".repeat(DECODED_LIMIT / 3 + 1)), None);
    }
}
