//! How long a body is (ssvm.md §3.3 rule 4).

use hyper::header::{self, HeaderMap};

/// Where servers that send chunks may tell the size, in upstream's order.
const SIDE_HEADERS: [&str; 8] = [
    "x-goog-stored-content-length",
    "x-goog-meta-size",
    "x-amz-meta-size",
    "x-amz-meta-content-length",
    "x-object-meta-size",
    "x-original-content-length",
    "x-oss-meta-content-length",
    "x-file-size",
];

/// Bytes of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Length {
    /// Exactly so many: less is a broken transfer.
    Exact(u64),
    /// Chunked, and the server says so many in a header of its own. Good for percents only.
    Hint(u64),
    /// Chunked, nothing said.
    Unknown,
}

impl Length {
    /// What is expected, as far as known.
    pub fn expected(self) -> Option<u64> {
        match self {
            Self::Exact(bytes) | Self::Hint(bytes) => Some(bytes),
            Self::Unknown => None,
        }
    }
}

/// `None`: neither length nor chunks.
pub(super) fn of(headers: &HeaderMap) -> Option<Length> {
    let number = |name: &str| headers.get(name)?.to_str().ok()?.trim().parse::<u64>().ok();
    let is_chunked = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .any(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if is_chunked {
        let side = SIDE_HEADERS.into_iter().find_map(number);
        let hint = side.or_else(|| content_range(headers)?.1);
        return Some(hint.map_or(Length::Unknown, Length::Hint));
    }
    number("content-length").map(Length::Exact)
}

/// First byte and total of `Content-Range: bytes 3-9/10`, RFC 9110 §14.4. `bytes */10` (416) gives 10 as first byte.
pub(super) fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let total = total.trim().parse().ok();
    let first = match range.trim() {
        "*" => total?,
        range => range.split_once('-')?.0.trim().parse().ok()?,
    };
    Some((first, total))
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_length_is_exact_a_side_header_is_a_hint() {
        let of = |lines: &[(&'static str, &'static str)]| of(&headers(lines));
        assert_eq!(of(&[("content-length", "7")]), Some(Length::Exact(7)));
        assert_eq!(of(&[("transfer-encoding", "chunked")]), Some(Length::Unknown));
        let two = [
            ("transfer-encoding", "Chunked"),
            ("x-file-size", "9"),
            ("x-amz-meta-size", "8"),
        ];
        assert_eq!(of(&two), Some(Length::Hint(8)), "upstream's order");
        let range = [("transfer-encoding", "chunked"), ("content-range", "bytes 0-9/10")];
        assert_eq!(of(&range), Some(Length::Hint(10)));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("content-length", "-1")]), None);
    }

    #[test]
    fn ranges_are_read_in_their_three_forms() {
        let range = |value: &'static str| content_range(&headers(&[("content-range", value)]));
        assert_eq!(range("bytes 3145728-9/10"), Some((3_145_728, Some(10))));
        assert_eq!(range("bytes 3-9/*"), Some((3, None)));
        assert_eq!(range("bytes */10"), Some((10, Some(10))));
        assert_eq!(range("bytes */*"), None);
        assert_eq!(range("items 1-2/3"), None);
    }
}
