//! What the tables of commands and answers say of a class, and how `{"class": {members}}` is read and written.

use serde::Deserialize;

use crate::gson::{self, Value};

/// A Java class on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Fully qualified name.
    pub name: &'static str,
    /// Requests with such a command carry the flag IN_SEQUENCE.
    pub(crate) in_sequence: bool,
    /// `wait` as the class's constructor sets it, in seconds.
    pub(crate) wait: i64,
    /// Gson makes the object without a constructor: missing members are 0, false and null (§3.3 "missing members").
    pub(crate) raw: bool,
}

impl Class {
    pub(crate) const fn of(name: &'static str) -> Self {
        Self {
            name,
            in_sequence: false,
            wait: 0,
            raw: false,
        }
    }

    pub(crate) const fn in_sequence(self) -> Self {
        Self {
            in_sequence: true,
            ..self
        }
    }

    pub(crate) const fn wait(self, seconds: i64) -> Self {
        Self { wait: seconds, ..self }
    }

    pub(crate) const fn raw(self) -> Self {
        Self { raw: true, ..self }
    }
}

/// Why a body cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// The JSON is broken, or a class is unknown. A request becomes one
    /// [`BadCommand`](crate::command::BadCommand).
    #[error("{0}")]
    Unreadable(String),
    /// Upstream throws: nobody gets an answer.
    #[error("{0}")]
    Fatal(String),
}

/// The elements of a body: class name and members (§3.1).
pub(crate) fn elements(body: &Value) -> Result<Vec<(&str, &Value)>, BadBody> {
    let Value::Array(elements) = body else {
        return Err(BadBody::Unreadable("the body is not an array".into()));
    };
    elements.iter().map(element).collect()
}

fn element(element: &Value) -> Result<(&str, &Value), BadBody> {
    match element {
        Value::Object(members) => match members.first() {
            Some((class, Value::Null)) => Err(BadBody::Fatal(format!("{} without members", shown(class)))),
            Some((class, content)) => Ok((class, content)),
            None => Err(BadBody::Fatal("an element without a class name".into())),
        },
        _ => Err(BadBody::Fatal("an element that is not an object".into())),
    }
}

/// A name that a peer chose, for a message: short, and without control characters.
pub(crate) fn shown(name: &str) -> String {
    let short: String = name.chars().take(100).collect();
    format!("{short:?}")
}

/// Members by class: own, inherited, and those every class has.
pub(crate) fn members<T: for<'de> Deserialize<'de>>(class: &str, content: &Value) -> Result<T, BadBody> {
    gson::from_value(content).map_err(|error| match error {
        gson::Error::Mismatch(text) => BadBody::Unreadable(format!("{class}: {text}")),
        gson::Error::UnknownName(text) => BadBody::Fatal(format!("{class}: {text}")),
    })
}

/// Writes `[{"class":{members}},…]`; `write` writes one element's members.
pub(crate) fn write_elements<T>(
    elements: &[T],
    charset: gson::Charset,
    class: impl Fn(&T) -> &'static str,
    write: impl Fn(&T, &mut gson::Writer),
) -> String {
    let mut writer = gson::Writer::new(charset);
    writer.out.push('[');
    for (index, element) in elements.iter().enumerate() {
        writer.out.push_str(if index == 0 { "{" } else { ",{" });
        writer.string(class(element));
        writer.out.push_str(":{");
        write(element, &mut writer);
        writer.out.push_str("}}");
    }
    writer.out.push(']');
    writer.out
}
