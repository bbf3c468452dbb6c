//! `application/x-www-form-urlencoded`, as a query or a body (WHATWG URL §5), with limits.

use super::error::{ApiError, Code};

/// Parameters of one request.
const MAX_COUNT: usize = 1000;
/// Bytes of a name.
const MAX_NAME: usize = 255;

/// One parameter as it was sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// As received: signatures need its spelling.
    pub name: String,
    /// Decoded.
    pub value: String,
}

/// The parameters of a query or body, in order, added to those before.
///
/// # Errors
/// 430: bad percent-encoding, not UTF-8, too many, or a name given twice with different values.
pub fn parse(text: &[u8], pairs: &mut Vec<Pair>) -> Result<(), ApiError> {
    for part in text.split(|byte| *byte == b'&').filter(|part| !part.is_empty()) {
        let mut sides = part.splitn(2, |byte| *byte == b'=');
        let name = decode(sides.next().unwrap_or_default())?;
        let value = decode(sides.next().unwrap_or_default())?;
        if name.len() > MAX_NAME {
            return Err(malformed(format!("a parameter's name is longer than {MAX_NAME} bytes")));
        }
        if let Some(known) = pairs.iter().find(|pair| pair.name.eq_ignore_ascii_case(&name)) {
            if known.value != value {
                return Err(malformed(format!(
                    "parameter {name} is there twice with different values"
                )));
            }
            continue;
        }
        if pairs.len() >= MAX_COUNT {
            return Err(malformed(format!("there are more than {MAX_COUNT} parameters")));
        }
        pairs.push(Pair { name, value });
    }
    Ok(())
}

fn decode(text: &[u8]) -> Result<String, ApiError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(*byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(malformed("a % is not followed by two hexadecimal digits"));
                };
                u8::try_from(high * 16 + low).unwrap_or_default()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).map_err(|_| malformed("a parameter is not UTF-8"))
}

fn malformed(text: impl Into<String>) -> ApiError {
    ApiError::new(Code::Malformed, text)
}

/// As java.net.URLEncoder, but with `%20` for a space: what signatures are made of (management.md §17.2).
pub fn encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b".-*_".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut pairs = Vec::new();
        parse(text.as_bytes(), &mut pairs).map_err(|error| error.text)?;
        Ok(pairs.into_iter().map(|pair| (pair.name, pair.value)).collect())
    }

    #[test]
    fn plus_and_percent_are_decoded_and_names_keep_their_case() {
        let wanted = vec![("Name".into(), "a b/ü".into()), ("tags[0].key".into(), String::new())];
        assert_eq!(parsed("Name=a+b%2F%c3%BC&&tags%5B0%5D.key"), Ok(wanted));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(
            parsed("a=%zz").unwrap_err(),
            "a % is not followed by two hexadecimal digits"
        );
        assert_eq!(
            parsed("a=%f").unwrap_err(),
            "a % is not followed by two hexadecimal digits"
        );
        assert_eq!(parsed("a=%ff").unwrap_err(), "a parameter is not UTF-8");
        assert_eq!(
            parsed("a=1&A=2").unwrap_err(),
            "parameter A is there twice with different values"
        );
        assert_eq!(parsed("a=1&A=1"), Ok(vec![("a".into(), "1".into())]));
        let many: Vec<String> = (0..=MAX_COUNT).map(|number| format!("p{number}=")).collect();
        assert_eq!(
            parsed(&many.join("&")).unwrap_err(),
            "there are more than 1000 parameters"
        );
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes: Vec<u8>) {
            let _ = parse(&bytes, &mut Vec::new());
        }

        #[test]
        fn what_is_encoded_is_decoded(name in "[a-z]{1,20}", value in ".{0,50}") {
            let mut text = format!("{name}=");
            encode(&value, &mut text);
            prop_assert_eq!(parsed(&text), Ok(vec![(name, value)]));
        }
    }
}
