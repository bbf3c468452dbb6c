//! The tree of a JSON text, and its lenient reader.

use indexmap::IndexMap;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Deepest nesting that is read. Real messages need 8.
pub const MAX_DEPTH: usize = 64;

/// Most values (members and elements, all levels) in one text: a list of 100,000 templates fits, memory stays bounded.
pub const MAX_VALUES: usize = 1 << 20;

/// Members of an object in the order of the text.
pub type Object = IndexMap<String, Value>;

/// Any JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`: the same as an absent member.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A number as it was written; nothing is lost before the target type is known.
    Number(String),
    /// A text.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object.
    Object(Object),
}

/// What is wrong with a JSON text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {position}")]
pub struct Syntax {
    problem: String,
    position: usize,
}

/// Reads one value and refuses anything but white space after it.
pub fn parse(text: &str) -> Result<Value, Syntax> {
    let (value, rest) = parse_prefix(text)?;
    if rest.trim().is_empty() {
        return Ok(value);
    }
    Err(Syntax {
        problem: "text after the end of the value".into(),
        position: text.len() - rest.len(),
    })
}

/// Reads one value from the front of `text`; answers it and what follows.
pub fn parse_prefix(text: &str) -> Result<(Value, &str), Syntax> {
    let mut reader = Reader {
        text,
        position: 0,
        values: 0,
    };
    let value = reader.value(0)?;
    Ok((value, &text[reader.position..]))
}

struct Reader<'t> {
    text: &'t str,
    position: usize,
    values: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, Syntax> {
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.problem(format!("more than {MAX_VALUES} values")));
        }
        if depth >= MAX_DEPTH && matches!(self.peek(), Some(b'[' | b'{')) {
            return Err(self.problem(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match self.peek() {
            None => Err(self.problem("the text ends where a value is expected")),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote).map(Value::String),
            Some(_) => self.literal(),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Syntax> {
        self.position += 1;
        let mut members = Object::new();
        if self.take(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            let name = match self.peek() {
                Some(quote @ (b'"' | b'\'')) => self.quoted(quote)?,
                _ => self.unquoted()?.to_owned(),
            };
            self.expect(b':')?;
            let value = self.value(depth + 1)?;
            members.insert(name, value);
            if self.take(b'}') {
                return Ok(Value::Object(members));
            }
            self.expect(b',')?;
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Syntax> {
        self.position += 1;
        let mut elements = Vec::new();
        if self.take(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            elements.push(self.value(depth + 1)?);
            if self.take(b']') {
                return Ok(Value::Array(elements));
            }
            self.expect(b',')?;
        }
    }

    fn literal(&mut self) -> Result<Value, Syntax> {
        let word = self.unquoted()?;
        Ok(match word {
            "null" => Value::Null,
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            _ if is_number(word) => Value::Number(word.to_owned()),
            _ => Value::String(word.to_owned()),
        })
    }

    /// A run of characters that need no quotes (Gson's lenient mode).
    fn unquoted(&mut self) -> Result<&str, Syntax> {
        self.peek();
        let rest = &self.text[self.position..];
        let end = rest
            .find(|c: char| c.is_ascii_whitespace() || c.is_ascii_control() || "[]{}:,;=#/\\\"'".contains(c))
            .unwrap_or(rest.len());
        if end == 0 {
            return Err(self.problem("a name or a value is expected"));
        }
        self.position += end;
        Ok(&rest[..end])
    }

    fn quoted(&mut self, quote: u8) -> Result<String, Syntax> {
        self.position += 1;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.position..];
            let Some(end) = rest.bytes().position(|byte| byte == quote || byte == b'\\') else {
                return Err(self.problem("the text ends inside a string"));
            };
            out.push_str(&rest[..end]);
            self.position += end + 1;
            if rest.as_bytes()[end] == quote {
                return Ok(out);
            }
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, Syntax> {
        let Some(&byte) = self.text.as_bytes().get(self.position) else {
            return Err(self.problem("the text ends inside a string"));
        };
        let plain = match byte {
            b'n' => '\n',
            b't' => '\t',
            b'r' => '\r',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'"' | b'\\' | b'/' | b'\'' => char::from(byte),
            b'u' => return self.unicode_escape(),
            _ => return Err(self.problem("an unknown escape sequence")),
        };
        self.position += 1;
        Ok(plain)
    }

    /// `\uXXXX`, pairs of surrogates joined; a lone surrogate (which Java allows) becomes U+FFFD.
    fn unicode_escape(&mut self) -> Result<char, Syntax> {
        let first = self.code_unit()?;
        if (0xD800..0xDC00).contains(&first) && self.text[self.position..].starts_with("\\u") {
            let before = self.position;
            self.position += 1;
            let second = self.code_unit()?;
            if let Some(Ok(joined)) = char::decode_utf16([first, second]).next() {
                return Ok(joined);
            }
            self.position = before;
        }
        Ok(char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    /// Reads `uXXXX` at the position.
    fn code_unit(&mut self) -> Result<u16, Syntax> {
        let digits = self.text.get(self.position + 1..self.position + 5);
        let unit = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let Some(Ok(unit)) = unit.map(|digits| u16::from_str_radix(digits, 16)) else {
            return Err(self.problem("\\u without four hexadecimal digits"));
        };
        self.position += 5;
        Ok(unit)
    }

    /// The next byte that is not white space; the position moves to it.
    fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while bytes.get(self.position).is_some_and(u8::is_ascii_whitespace) {
            self.position += 1;
        }
        bytes.get(self.position).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.position += usize::from(found);
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), Syntax> {
        if self.take(byte) {
            Ok(())
        } else {
            Err(self.problem(format!("`{}` is expected", char::from(byte))))
        }
    }

    fn problem(&self, problem: impl Into<String>) -> Syntax {
        Syntax {
            problem: problem.into(),
            position: self.position,
        }
    }
}

/// The number grammar of RFC 8259 §6.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let word = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match word.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (word, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits)
}

/// So that a value of unknown shape can be passed on as it came.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => to.serialize_none(),
            Self::Bool(value) => to.serialize_bool(*value),
            Self::Number(text) => match (text.parse::<i64>(), text.parse::<f64>()) {
                (Ok(integer), _) => to.serialize_i64(integer),
                (_, Ok(number)) if number.is_finite() => to.serialize_f64(number),
                _ => to.serialize_str(text),
            },
            Self::String(text) => to.serialize_str(text),
            Self::Array(elements) => to.collect_seq(elements),
            Self::Object(members) => {
                let mut map = to.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(element) = elements.next_element()? {
            out.push(element);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut out = Object::new();
        while let Some((name, value)) = members.next_entry()? {
            out.insert(name, value);
        }
        Ok(Value::Object(out))
    }
}
