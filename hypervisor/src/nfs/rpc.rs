//! The one remote procedure call that asks for nothing: whether a server answers. RFC 5531.

use std::io::{self, ErrorKind};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// RFC 1833, RFC 7530 §16: NFS.
const NFS: u32 = 100_003;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const ACCEPTED: u32 = 0;
const SUCCESS: u32 = 0;
/// RFC 5531 §11: a record that has no further fragment.
const LAST: u32 = 1 << 31;
/// Bytes of an answer: five words and a verifier of at most 400.
const MAX_ANSWER: u32 = 5 * 4 + 8 + 400;

/// Calls procedure 0 of a version of NFS.
pub(super) async fn null(stream: &mut TcpStream, version: u32) -> io::Result<()> {
    let id = 0x7379_7376; // there is one call on each connection
    stream.write_all(&call(id, version)).await?;
    let header = stream.read_u32().await?;
    let length = header & !LAST;
    if header & LAST == 0 || length > MAX_ANSWER {
        return Err(io::Error::new(ErrorKind::InvalidData, "the answer is too long"));
    }
    let mut answer = vec![0; usize::try_from(length).unwrap_or_default()];
    stream.read_exact(&mut answer).await?;
    if is_success(&answer, id) {
        Ok(())
    } else {
        let text = format!("NFS version {version} is refused");
        Err(io::Error::new(ErrorKind::Unsupported, text))
    }
}

fn call(id: u32, version: u32) -> Vec<u8> {
    // No credential and no verifier: flavour 0, length 0.
    let words = [id, CALL, RPC_VERSION, NFS, version, 0, 0, 0, 0, 0];
    let length = u32::try_from(words.len() * 4).expect("it is 40");
    let all = [LAST | length].into_iter().chain(words);
    all.flat_map(u32::to_be_bytes).collect()
}

fn is_success(answer: &[u8], id: u32) -> bool {
    let word = |at: usize| {
        let bytes = answer.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let start = [word(0), word(4), word(8)] == [Some(id), Some(REPLY), Some(ACCEPTED)];
    // The verifier: flavour, length, bytes up to a whole word.
    let after = word(16)
        .and_then(|length| usize::try_from(length).ok())
        .map(|length| length.div_ceil(4).saturating_mul(4).saturating_add(20));
    start && after.and_then(word) == Some(SUCCESS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(words: &[u32]) -> Vec<u8> {
        words.iter().copied().flat_map(u32::to_be_bytes).collect()
    }

    #[test]
    fn success_is_told_from_everything_else() {
        assert!(is_success(&answer(&[7, 1, 0, 0, 0, 0]), 7));
        assert!(
            is_success(&answer(&[7, 1, 0, 6, 3, 0x6162_6300, 0]), 7),
            "with a verifier of three bytes"
        );
        assert!(!is_success(&answer(&[8, 1, 0, 0, 0, 0]), 7), "another call's");
        assert!(!is_success(&answer(&[7, 1, 0, 0, 0, 2, 3, 4]), 7), "PROG_MISMATCH");
        assert!(!is_success(&answer(&[7, 1, 1, 1, 1]), 7), "denied");
        assert!(!is_success(&answer(&[7, 1, 0, 0, u32::MAX, 0]), 7));
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(noise: Vec<u8>, id: u32) {
            is_success(&noise, id);
        }
    }
}
