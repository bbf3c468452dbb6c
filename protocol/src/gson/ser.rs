//! From a struct to text, as Gson writes it.

use std::fmt::Write as _;

use serde::ser::{self, Impossible, Serialize, Serializer};

use super::SUPER;

/// Which characters are written as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Charset {
    /// As a Java peer with a sane locale writes it.
    Utf8,
    /// Everything else as `\uXXXX`: understood by a Java peer under a POSIX locale, too (§3.3 "charset").
    Ascii,
}

/// Writes any value. Structs and maps without exotic types cannot fail; what JSON cannot hold is a programming error
/// that the class test of this crate would find.
pub fn to_string<T: Serialize + ?Sized>(value: &T, charset: Charset) -> String {
    let mut writer = Writer::new(charset);
    let written = value.serialize(&mut writer);
    match written.expect("wire classes contain only what JSON can hold") {
        Wrote::Value => writer.out,
        Wrote::Null => "null".to_owned(),
    }
}

/// Writes the members of a struct without the braces around it; a comma comes first when there are members already.
pub(crate) fn write_members<T: Serialize + ?Sized>(writer: &mut Writer, value: &T) {
    writer
        .members(value)
        .expect("wire classes are structs of what JSON can hold");
}

/// Text under construction.
pub(crate) struct Writer {
    pub(crate) out: String,
    charset: Charset,
    /// The next struct is written without braces.
    inline: bool,
}

/// Whether anything was written: a member without a value is taken back.
#[derive(PartialEq, Eq)]
pub(crate) enum Wrote {
    Value,
    Null,
}

/// Something that JSON cannot hold.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unsupported(String);

impl ser::Error for Unsupported {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

impl Writer {
    pub(crate) fn new(charset: Charset) -> Self {
        Self {
            out: String::new(),
            charset,
            inline: false,
        }
    }

    /// A string in quotes. Escapes: RFC 8259 §7, and what Gson adds to be safe inside HTML.
    pub(crate) fn string(&mut self, text: &str) {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '<' | '>' | '&' | '=' | '\'' | '\u{0}'..='\u{1f}' | '\u{2028}' | '\u{2029}' => self.escaped(c),
                _ if !c.is_ascii() && self.charset == Charset::Ascii => self.escaped(c),
                _ => self.out.push(c),
            }
        }
        self.out.push('"');
    }

    fn escaped(&mut self, c: char) {
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(self.out, "\\u{unit:04x}").expect("a String takes everything");
        }
    }

    /// Starts a member or an element: a comma unless it is the first.
    fn separate(&mut self) {
        if !self.out.ends_with(['{', '[']) {
            self.out.push(',');
        }
    }

    fn display(&mut self, value: impl std::fmt::Display) -> Wrote {
        write!(self.out, "{value}").expect("a String takes everything");
        Wrote::Value
    }

    fn member<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Unsupported> {
        let start = self.name(name)?;
        self.value(start, value)
    }

    /// Writes a member's name; answers where the member starts.
    fn name<T: Serialize + ?Sized>(&mut self, name: &T) -> Result<usize, Unsupported> {
        let start = self.out.len();
        self.separate();
        name.serialize(&mut *self)?;
        self.out.push(':');
        Ok(start)
    }

    /// Writes a member's value, or takes back its name.
    fn value<T: Serialize + ?Sized>(&mut self, start: usize, value: &T) -> Result<(), Unsupported> {
        if value.serialize(&mut *self)? == Wrote::Null {
            self.out.truncate(start);
        }
        Ok(())
    }

    fn members<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        self.inline = true;
        value.serialize(self).map(drop)
    }
}

macro_rules! plain {
    ($($method:ident($type:ty)),*) => {$(
        fn $method(self, value: $type) -> Result<Wrote, Unsupported> {
            Ok(self.display(value))
        }
    )*};
}

impl<'w> Serializer for &'w mut Writer {
    type Ok = Wrote;
    type Error = Unsupported;
    type SerializeSeq = Brackets<'w>;
    type SerializeTuple = Brackets<'w>;
    type SerializeMap = Braces<'w>;
    type SerializeStruct = Braces<'w>;
    type SerializeTupleStruct = Impossible<Wrote, Unsupported>;
    type SerializeTupleVariant = Impossible<Wrote, Unsupported>;
    type SerializeStructVariant = Impossible<Wrote, Unsupported>;

    plain!(
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_f32(f32),
        serialize_f64(f64)
    );

    fn serialize_char(self, value: char) -> Result<Wrote, Unsupported> {
        self.serialize_str(value.encode_utf8(&mut [0; 4]))
    }

    fn serialize_str(self, value: &str) -> Result<Wrote, Unsupported> {
        self.string(value);
        Ok(Wrote::Value)
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Wrote, Unsupported> {
        Err(Unsupported("bytes are written with gson::signed_bytes".into()))
    }

    fn serialize_none(self) -> Result<Wrote, Unsupported> {
        Ok(Wrote::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Wrote, Unsupported> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Wrote, Unsupported> {
        Ok(Wrote::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Wrote, Unsupported> {
        self.out.push_str("{}");
        Ok(Wrote::Value)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, name: &'static str) -> Result<Wrote, Unsupported> {
        self.serialize_str(name)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<Wrote, Unsupported> {
        value.serialize(self)
    }

    /// `{"class": {…}}`: a polymorphic member (§3.4).
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        class: &'static str,
        value: &T,
    ) -> Result<Wrote, Unsupported> {
        self.out.push('{');
        self.member(class, value)?;
        self.out.push('}');
        Ok(Wrote::Value)
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Brackets<'w>, Unsupported> {
        self.out.push('[');
        Ok(Brackets(self))
    }

    fn serialize_tuple(self, _: usize) -> Result<Brackets<'w>, Unsupported> {
        self.serialize_seq(None)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Braces<'w>, Unsupported> {
        self.out.push('{');
        Ok(Braces {
            writer: self,
            start: 0,
            close: "}",
        })
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Braces<'w>, Unsupported> {
        if std::mem::take(&mut self.inline) {
            return Ok(Braces {
                writer: self,
                start: 0,
                close: "",
            });
        }
        self.serialize_map(None)
    }

    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Unsupported> {
        Err(Unsupported(format!("{name}: tuple structs have no JSON form here")))
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Unsupported> {
        Err(Unsupported(format!("{name}: tuple variants have no JSON form here")))
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Unsupported> {
        Err(Unsupported(format!("{name}: struct variants have no JSON form here")))
    }
}

/// An array being written.
pub(crate) struct Brackets<'w>(&'w mut Writer);

impl ser::SerializeSeq for Brackets<'_> {
    type Ok = Wrote;
    type Error = Unsupported;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        self.0.separate();
        if value.serialize(&mut *self.0)? == Wrote::Null {
            self.0.out.push_str("null");
        }
        Ok(())
    }

    fn end(self) -> Result<Wrote, Unsupported> {
        self.0.out.push(']');
        Ok(Wrote::Value)
    }
}

impl ser::SerializeTuple for Brackets<'_> {
    type Ok = Wrote;
    type Error = Unsupported;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        ser::SerializeSeq::serialize_element(self, value)
    }

    fn end(self) -> Result<Wrote, Unsupported> {
        ser::SerializeSeq::end(self)
    }
}

/// An object being written.
pub(crate) struct Braces<'w> {
    writer: &'w mut Writer,
    /// Where the current member of a map starts.
    start: usize,
    close: &'static str,
}

impl ser::SerializeStruct for Braces<'_> {
    type Ok = Wrote;
    type Error = Unsupported;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), Unsupported> {
        if name == SUPER {
            self.writer.members(value)
        } else {
            self.writer.member(name, value)
        }
    }

    fn end(self) -> Result<Wrote, Unsupported> {
        self.writer.out.push_str(self.close);
        Ok(Wrote::Value)
    }
}

impl ser::SerializeMap for Braces<'_> {
    type Ok = Wrote;
    type Error = Unsupported;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, name: &T) -> Result<(), Unsupported> {
        self.start = self.writer.name(name)?;
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unsupported> {
        self.writer.value(self.start, value)
    }

    fn end(self) -> Result<Wrote, Unsupported> {
        ser::SerializeStruct::end(self)
    }
}
