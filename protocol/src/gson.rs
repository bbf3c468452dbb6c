//! JSON as the management server's Gson library reads and writes it (agent-protocol.md §3.3).
//!
//! All peculiarities live here, so that every command and answer can be a plain serde struct:
//!
//! * writing: `null` members are omitted, `< > & = '` and U+2028/U+2029 are escaped, members come in declaration order;
//! * reading: quoted numbers and booleans, numbers with a fraction for integers, `null` for any member (= absent),
//!   duplicate members (the last one wins), single quotes and unquoted names;
//! * [`SUPER`]: Java inheritance. The members of the struct in a field of this name stand in the same object.
//!
//! Memory is bounded: at most [`MAX_VALUES`] values nested at most [`MAX_DEPTH`] deep are read.

mod de;
mod ser;
mod value;

pub use de::{Error, from_value, known};
pub use ser::{Charset, to_string};
pub(crate) use ser::{Writer, write_members};
pub use value::{MAX_DEPTH, MAX_VALUES, Object, Syntax, Value, parse, parse_prefix};

/// serde name of a field whose members stand directly in the surrounding object: what the struct inherits.
pub const SUPER: &str = "<super>";

/// A Java `byte[]`: an array of numbers from -128 to 127. For `#[serde(with = "gson::signed_bytes")]`.
pub mod signed_bytes {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::secret::Secret;

    /// Writes the bytes as signed numbers; `None` is omitted.
    pub fn serialize<S: Serializer>(bytes: &Option<Secret<Vec<u8>>>, to: S) -> Result<S::Ok, S::Error> {
        let signed: Option<Vec<i8>> = bytes
            .as_ref()
            .map(|bytes| bytes.expose().iter().map(|byte| byte.cast_signed()).collect());
        signed.serialize(to)
    }

    /// Reads signed numbers.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Secret<Vec<u8>>>, D::Error> {
        let signed: Option<Vec<i8>> = Deserialize::deserialize(from)?;
        Ok(signed.map(|bytes| Secret::new(bytes.into_iter().map(i8::cast_unsigned).collect())))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Child {
        own: Option<String>,
        #[serde(rename = "<super>")]
        parent: Parent,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Parent {
        host_id: i64,
        is_up: bool,
        names: Option<Vec<String>>,
    }

    fn read<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, Error> {
        from_value(&parse(text).unwrap())
    }

    #[test]
    fn inherited_members_stand_in_the_same_object() {
        let text = r#"{"own":"a","hostId":3,"isUp":true,"names":[]}"#;
        let child: Child = read(text).unwrap();
        assert_eq!(
            child.parent,
            Parent {
                host_id: 3,
                is_up: true,
                names: Some(vec![])
            }
        );
        assert_eq!(to_string(&child, Charset::Utf8), text);
    }

    #[test]
    fn absent_members_are_omitted_and_primitives_always_written() {
        assert_eq!(
            to_string(&Child::default(), Charset::Utf8),
            r#"{"hostId":0,"isUp":false}"#
        );
    }

    #[test]
    fn a_quoted_number_a_fraction_and_a_quoted_boolean_are_read() {
        let parent: Parent = read(r#"{"hostId":"7","isUp":"TRUE","names":[1,true,2.5]}"#).unwrap();
        assert_eq!(
            parent,
            Parent {
                host_id: 7,
                is_up: true,
                names: Some(vec!["1".into(), "true".into(), "2.5".into()])
            }
        );
        assert_eq!(read::<Parent>(r#"{"hostId":-7.9}"#).unwrap().host_id, -7);
    }

    #[test]
    fn a_number_that_does_not_fit_is_an_error_naming_the_member() {
        let error = read::<Parent>(r#"{"hostId":1e30}"#).unwrap_err();
        assert_eq!(error.to_string(), "member `hostId`: 1e30 is not a 64-bit integer");
    }

    #[test]
    fn deep_nesting_and_too_many_values_are_refused() {
        assert_eq!(
            parse(&"[".repeat(100)).unwrap_err().to_string(),
            "nested deeper than 64 levels at byte 64"
        );
        let many = format!("[{}1]", "1,".repeat(MAX_VALUES));
        assert!(
            parse(&many)
                .unwrap_err()
                .to_string()
                .starts_with("more than 1048576 values")
        );
    }

    proptest! {
        #[test]
        fn any_text_survives_a_round_trip_in_both_charsets(text in ".*") {
            let value = Value::String(text);
            for charset in [Charset::Utf8, Charset::Ascii] {
                let written = to_string(&value, charset);
                prop_assert!(charset == Charset::Utf8 || written.is_ascii());
                prop_assert_eq!(&parse(&written).unwrap(), &value);
                let strict: String = serde_json::from_str(&written).unwrap();
                prop_assert_eq!(Value::String(strict), value.clone());
            }
        }

        #[test]
        fn noise_never_panics(text in "[\\[\\]{}:,'\"\\\\a-z0-9 .eu+-]{0,60}") {
            if let Ok(value) = parse(&text) {
                let _ = from_value::<Child>(&value);
                let written = to_string(&value, Charset::Utf8);
                prop_assert!(serde_json::from_str::<serde_json::Value>(&written).is_ok(), "{}", written);
            }
        }
    }
}
