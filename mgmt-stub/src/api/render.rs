//! Answers as JSON and as XML (management.md §17.4).

use std::fmt::Write;

use bytes::Bytes;
use serde_json::Value;

/// In the root element of XML, and in listCapabilities: clients compare it.
pub(crate) const CLOUDSTACK_VERSION: &str = "4.23.0";

/// How the caller wants his answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Format {
    Json,
    Xml,
}

impl Format {
    /// Of `response=`.
    pub(crate) fn of(text: Option<&str>) -> Self {
        match text {
            Some(text) if text.eq_ignore_ascii_case("json") => Self::Json,
            _ => Self::Xml,
        }
    }

    /// The header.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=UTF-8",
            Self::Xml => "text/xml; charset=UTF-8",
        }
    }

    /// A whole answer: one key, and what it holds. Nulls are left out.
    pub(crate) fn render(self, key: &str, mut value: Value) -> Bytes {
        drop_nulls(&mut value);
        match self {
            Self::Json => serde_json::json!({ key: value }).to_string().into(),
            Self::Xml => {
                let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
                let name = element_name(key);
                let _ = write!(text, "<{name} cloud-stack-version=\"{CLOUDSTACK_VERSION}\">");
                contents(&value, &mut text);
                let _ = write!(text, "</{name}>");
                text.into()
            }
        }
    }
}

/// In objects; an element of an array stays.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(elements) => elements.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn contents(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    // Each element of an array is an element of its name.
                    Value::Array(elements) => elements.iter().for_each(|value| element(name, value, out)),
                    value => element(name, value, out),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|value| contents(value, out)),
        Value::String(text) => escape(text, out),
        Value::Null => {}
        number_or_flag => {
            let _ = write!(out, "{number_or_flag}");
        }
    }
}

fn element(name: &str, value: &Value, out: &mut String) {
    let name = element_name(name);
    let _ = write!(out, "<{name}>");
    contents(value, out);
    let _ = write!(out, "</{name}>");
}

/// Keys of details are free text; what XML does not allow in a name becomes `_`.
fn element_name(name: &str) -> String {
    let is_start = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_good = |c: char| is_start(c) || c.is_ascii_digit() || c == '.' || c == '-';
    let mut good: String = name.chars().map(|c| if is_good(c) { c } else { '_' }).collect();
    if !good.starts_with(is_start) {
        good.insert(0, '_');
    }
    good
}

/// What XML 1.0 §2.2 does not allow at all is left out.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'.. => out.push(c),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quick_xml::Reader;
    use quick_xml::events::Event;
    use serde_json::json;

    use super::*;

    fn text(format: Format, key: &str, value: Value) -> String {
        String::from_utf8(format.render(key, value).to_vec()).unwrap()
    }

    #[test]
    fn nulls_are_left_out_and_arrays_are_repeated() {
        let value = json!({ "count": 2, "zone": [{ "name": "a<b", "dns2": null }, { "name": "c" }] });
        assert_eq!(
            text(Format::Json, "listzonesresponse", value.clone()),
            r#"{"listzonesresponse":{"count":2,"zone":[{"name":"a<b"},{"name":"c"}]}}"#
        );
        assert_eq!(
            text(Format::Xml, "listzonesresponse", value),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><listzonesresponse cloud-stack-version=\"4.23.0\">\
             <count>2</count><zone><name>a&lt;b</name></zone><zone><name>c</name></zone></listzonesresponse>"
        );
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..4).prop_map(|fields| json!(fields)),
            ]
        })
    }

    proptest! {
        #[test]
        fn xml_is_well_formed_whatever_is_in_it(key in ".{0,10}", value in values()) {
            let text = text(Format::Xml, &key, value);
            let mut reader = Reader::from_str(&text);
            loop {
                match reader.read_event() {
                    Ok(Event::Eof) => break,
                    Ok(_) => {}
                    Err(error) => prop_assert!(false, "{error}: {text}"),
                }
            }
        }

        #[test]
        fn text_comes_back_from_xml(wanted in "[ -\u{d7ff}\n\t]{1,40}") {
            let text = text(Format::Xml, "a", json!({ "b": wanted }));
            let inner = text.split_once("<b>").unwrap().1.rsplit_once("</b>").unwrap().0;
            prop_assert_eq!(quick_xml::escape::unescape(inner).unwrap(), wanted);
        }
    }
}
