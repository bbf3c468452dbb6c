//! From a value to a struct, with Gson's conversions.

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{SUPER, Value};
use crate::class::shown;

/// Why a value does not fit a struct.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The wrong kind of value for a member. Gson: `JsonParseException`.
    #[error("{0}")]
    Mismatch(String),
    /// A class or a strict constant that does not exist. Upstream: an exception outside of Gson's control.
    #[error("{0}")]
    UnknownName(String),
}

impl Error {
    fn in_member(self, name: &str) -> Self {
        let name: String = name.chars().filter(|c| !c.is_control()).take(100).collect();
        let locate = |text: String| match text.strip_prefix("member `") {
            Some(inner) => format!("member `{name}.{inner}"),
            None => format!("member `{name}`: {text}"),
        };
        match self {
            Self::Mismatch(text) => Self::Mismatch(locate(text)),
            Self::UnknownName(text) => Self::UnknownName(locate(text)),
        }
    }
}

impl de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Mismatch(message.to_string())
    }

    fn unknown_variant(variant: &str, _expected: &'static [&'static str]) -> Self {
        Self::UnknownName(format!("{} is not known", shown(variant)))
    }
}

/// Reads a struct, an enum or a list from a value.
pub fn from_value<'de, T: Deserialize<'de>>(value: &'de Value) -> Result<T, Error> {
    T::deserialize(From(value))
}

/// An enum constant; one that is not known counts as absent, as Gson does it. For `deserialize_with`.
pub fn known<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    let name = String::deserialize(from)?;
    let read: Result<T, Error> = T::deserialize(name.as_str().into_deserializer());
    Ok(read.ok())
}

struct From<'de>(&'de Value);

impl<'de> From<'de> {
    fn mismatch<T>(&self, expected: &str) -> Result<T, Error> {
        Err(Error::Mismatch(match self.0 {
            Value::Null => format!("null where {expected} is expected"),
            Value::Bool(value) => format!("{value} is not {expected}"),
            Value::Number(text) => format!("{text:.40} is not {expected}"),
            Value::String(_) => format!("the text is not {expected}"), // not shown: it may be a secret
            Value::Array(_) => format!("an array is not {expected}"),
            Value::Object(_) => format!("an object is not {expected}"),
        }))
    }

    fn members<V: Visitor<'de>>(&self, fields: &[&str], visitor: V) -> Result<V::Value, Error> {
        let Value::Object(members) = self.0 else {
            return self.mismatch("an object");
        };
        let inherits = fields.contains(&SUPER).then_some(self.0);
        visitor.visit_map(Members {
            rest: members.iter(),
            inherits,
            current: None,
        })
    }

    /// Java's `long`: the whole part of any number, quoted or not.
    fn integer(&self) -> Result<i64, Error> {
        let (Value::Number(text) | Value::String(text)) = self.0 else {
            return self.mismatch("a number");
        };
        if let Ok(integer) = text.parse() {
            return Ok(integer);
        }
        whole_part(text).map_or_else(|| self.mismatch("a 64-bit integer"), Ok)
    }
}

/// The whole part of a number with a fraction or an exponent, if it is exact in 64 bits.
fn whole_part(text: &str) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    let number: f64 = text.parse().ok().filter(|number: &f64| number.abs() <= EXACT)?;
    format!("{:.0}", number.trunc()).parse().ok()
}

macro_rules! integers {
    ($($method:ident => $visit:ident as $type:ty),*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            let integer = self.integer()?;
            match <$type>::try_from(integer) {
                Ok(integer) => visitor.$visit(integer),
                Err(_) => self.mismatch(concat!("a number that fits ", stringify!($type))),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for From<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(text) => match (text.parse(), text.parse()) {
                (Ok(integer), _) => visitor.visit_i64(integer),
                (_, Ok(number)) => visitor.visit_f64(number),
                _ => self.mismatch("a number"),
            },
            Value::String(text) => visitor.visit_str(text),
            Value::Array(elements) => visitor.visit_seq(Elements(elements.iter())),
            Value::Object(_) => self.members(&[], visitor),
        }
    }

    integers!(
        deserialize_i8 => visit_i8 as i8, deserialize_i16 => visit_i16 as i16, deserialize_i32 => visit_i32 as i32,
        deserialize_i64 => visit_i64 as i64, deserialize_u8 => visit_u8 as u8, deserialize_u16 => visit_u16 as u16,
        deserialize_u32 => visit_u32 as u32, deserialize_u64 => visit_u64 as u64
    );

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::String(text) => visitor.visit_bool(text.eq_ignore_ascii_case("true")), // Boolean.parseBoolean
            _ => self.mismatch("a boolean"),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(text) | Value::Number(text) => visitor.visit_str(text),
            Value::Bool(value) => visitor.visit_str(if *value { "true" } else { "false" }),
            _ => self.mismatch("a text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(elements) => visitor.visit_seq(Elements(elements.iter())),
            _ => self.mismatch("an array"),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.members(&[], visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.members(fields, visitor)
    }

    /// A constant (a text) or a wrapped object (`{"class": {…}}`: the first member counts, §3.1).
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(name) => visitor.visit_enum(name.as_str().into_deserializer()),
            Value::Object(members) => match members.first() {
                Some((name, content)) => visitor.visit_enum(Wrapped { name, content }),
                None => Err(Error::UnknownName("an empty object has no class name".into())),
            },
            _ => self.mismatch("a constant or an object named by its class"),
        }
    }

    forward_to_deserialize_any! {
        i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct identifier ignored_any
    }
}

struct Elements<'de>(std::slice::Iter<'de, Value>);

impl<'de> SeqAccess<'de> for Elements<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|value| seed.deserialize(From(value))).transpose()
    }
}

/// The members of an object that are not `null`, and then the whole object once more for what the struct inherits.
struct Members<'de> {
    rest: indexmap::map::Iter<'de, String, Value>,
    inherits: Option<&'de Value>,
    current: Option<(&'de str, &'de Value)>,
}

impl<'de> Members<'de> {
    fn next(&mut self) -> Option<(&'de str, &'de Value)> {
        let member = self
            .rest
            .by_ref()
            .find(|(name, value)| **value != Value::Null && *name != SUPER);
        match member {
            Some((name, value)) => Some((name, value)),
            None => self.inherits.take().map(|object| (SUPER, object)),
        }
    }
}

impl<'de> MapAccess<'de> for Members<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.next();
        self.current
            .map(|(name, _)| seed.deserialize(name.into_deserializer()))
            .transpose()
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let (name, value) = self
            .current
            .take()
            .ok_or_else(|| de::Error::custom("a value before its name"))?;
        let read = seed.deserialize(From(value));
        if name == SUPER {
            read
        } else {
            read.map_err(|error| error.in_member(name))
        }
    }
}

struct Wrapped<'de> {
    name: &'de str,
    content: &'de Value,
}

impl<'de> EnumAccess<'de> for Wrapped<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Error> {
        let variant = seed.deserialize(self.name.into_deserializer())?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Wrapped<'de> {
    type Error = Error;

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(From(self.content))
    }

    fn unit_variant(self) -> Result<(), Error> {
        From(self.content).mismatch("a constant")
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, Error> {
        From(self.content).mismatch("an object")
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, Error> {
        From(self.content).mismatch("an object")
    }
}
