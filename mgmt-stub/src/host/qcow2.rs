//! The header of a qcow2 image (QEMU docs/interop/qcow2.txt), judged before any program opens it: a header can name other
//! files, which the program would then read for whoever made the image.

/// Bytes of a header that we look at; version 2 has fewer.
pub(super) const HEADER_LEN: usize = 4 /* magic */ + 4 /* version */ + 8 /* backing file */ + 4 /* its length */
    + 4 /* cluster bits */ + 8 /* size */ + 4 /* encryption */ + 4 /* L1 size */ + 8 /* L1 table */
    + 8 /* refcount table */ + 4 /* its clusters */ + 4 /* snapshots */ + 8 /* their table */
    + 8 /* incompatible features */;
const V2_HEADER_LEN: usize = HEADER_LEN - 8;

const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes that a guest may see: 2 TiB. More is a mistake, or an attack on who has to allocate its tables.
const MAX_SIZE: u64 = 2 << 40;
/// The guest has written when it was not closed: `qemu-img` repairs that by itself.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why an image is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// Something else.
    #[error("it is not a QCOW2 image of version 2 or 3, as it was registered")]
    NotQcow2,
    /// The attack.
    #[error("it names a backing file; make it whole with `qemu-img convert -O qcow2` and register it again")]
    BackingFile,
    /// Likewise.
    #[error("its data is in another file; make it whole with `qemu-img convert -O qcow2` and register it again")]
    ExternalData,
    /// Nobody here has the key.
    #[error("it is encrypted; register it without")]
    Encrypted,
    /// Says so.
    #[error("it is marked as corrupt; repair it with `qemu-img check -r all` and register it again")]
    Corrupt,
    /// From the future.
    #[error("it uses features that are not known here ({0:#x}); convert it with `qemu-img convert -O qcow2`")]
    Unknown(u64),
    /// Too big, or nothing.
    #[error("its disk has {0} bytes; 1 byte to {MAX_SIZE} bytes are expected")]
    Size(u64),
}

/// The bytes of the disk, if the image is one that can be opened alone.
pub(super) fn judge(header: &[u8]) -> Result<u64, BadImage> {
    let version = number::<4>(header, 4).map(u32::from_be_bytes);
    if header.len() < V2_HEADER_LEN || header[..4] != MAGIC || !matches!(version, Some(2 | 3)) {
        return Err(BadImage::NotQcow2);
    }
    let long = |at| number::<8>(header, at).map_or(0, u64::from_be_bytes);
    let is_encrypted = number::<4>(header, 32).map(u32::from_be_bytes) != Some(0);
    let features = if version == Some(3) {
        number::<8>(header, 72)
            .map(u64::from_be_bytes)
            .ok_or(BadImage::NotQcow2)?
    } else {
        0
    };
    let unknown = features & !(DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION | EXTENDED_L2);
    match long(24) {
        _ if long(8) != 0 => Err(BadImage::BackingFile),
        _ if features & EXTERNAL_DATA != 0 => Err(BadImage::ExternalData),
        _ if is_encrypted => Err(BadImage::Encrypted),
        _ if features & CORRUPT != 0 => Err(BadImage::Corrupt),
        _ if unknown != 0 => Err(BadImage::Unknown(unknown)),
        size => judge_size(size),
    }
}

/// Likewise, of a disk without a header.
pub(super) fn judge_size(size: u64) -> Result<u64, BadImage> {
    if (1..=MAX_SIZE).contains(&size) {
        Ok(size)
    } else {
        Err(BadImage::Size(size))
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn good() -> Vec<u8> {
        let mut header = vec![0; HEADER_LEN];
        header[..4].copy_from_slice(&MAGIC);
        header[7] = 3;
        header[24..32].copy_from_slice(&(10_u64 << 30).to_be_bytes());
        header
    }

    fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut header = good();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    }

    #[test]
    fn only_an_image_that_stands_alone_is_good() {
        assert_eq!(judge(&good()), Ok(10 << 30));
        assert_eq!(judge(&with(79, &[1])), Ok(10 << 30), "not closed");
        assert_eq!(judge(&with(15, &[1])), Err(BadImage::BackingFile));
        assert_eq!(judge(&with(79, &[4])), Err(BadImage::ExternalData));
        assert_eq!(judge(&with(35, &[2])), Err(BadImage::Encrypted));
        assert_eq!(judge(&with(79, &[2])), Err(BadImage::Corrupt));
        assert_eq!(judge(&with(79, &[32])), Err(BadImage::Unknown(32)));
        assert_eq!(judge(&with(24, &u64::MAX.to_be_bytes())), Err(BadImage::Size(u64::MAX)));
        assert_eq!(judge(&with(24, &[0; 8])), Err(BadImage::Size(0)));
        assert_eq!(judge(&with(0, b"x")), Err(BadImage::NotQcow2));
        assert_eq!(judge(&with(7, &[4])), Err(BadImage::NotQcow2));
    }

    #[test]
    fn version_two_has_no_features_and_is_shorter() {
        let mut header = with(7, &[2]);
        header.truncate(V2_HEADER_LEN);
        assert_eq!(judge(&header), Ok(10 << 30));
        header.pop();
        assert_eq!(judge(&header), Err(BadImage::NotQcow2));
        let mut short = good();
        short.truncate(V2_HEADER_LEN);
        assert_eq!(judge(&short), Err(BadImage::NotQcow2), "version 3 says what it uses");
    }

    proptest! {
        #[test]
        fn noise_is_judged_without_a_panic(mut noise in proptest::collection::vec(any::<u8>(), 0..200), is_header: bool) {
            if is_header && noise.len() >= 8 {
                noise[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
            }
            if let Ok(size) = judge(&noise) {
                prop_assert!((1..=MAX_SIZE).contains(&size));
                prop_assert_eq!(&noise[8..16], &[0; 8]);
            }
        }
    }
}
