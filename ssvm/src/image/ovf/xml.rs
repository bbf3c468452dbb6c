use quick_xml::XmlVersion;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::reader::NsReader;

/// Bytes of a descriptor (ssvm.md §6.9).
pub(crate) const MAX_BYTES: usize = 4 << 20;
const MAX_DEPTH: usize = 64;
/// Elements and attributes together: a descriptor with 64 disks has about 2,000.
const MAX_NODES: usize = 50_000;

const MAX_ATTRIBUTES: usize = 64;

/// The name spaces whose elements and attributes are told apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Space {
    /// `http://schemas.dmtf.org/ovf/envelope/1`
    Ovf,
    /// `http://www.vmware.com/schema/ovf`
    Vmware,
    /// CIM's, and any other.
    #[default]
    Other,
}

/// An element.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    space: Space,
    name: String,
    attributes: Vec<(Space, String, String)>,
    pub(super) children: Vec<Node>,
    /// All text in it, without that of its children.
    text: String,
}

impl Node {
    pub(super) fn is(&self, space: Space, name: &str) -> bool {
        self.space == space && self.name == name
    }

    /// By its name alone, for elements of CIM's many name spaces.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name == name
    }

    pub(super) fn attribute(&self, space: Space, name: &str) -> Option<&str> {
        let found = self
            .attributes
            .iter()
            .find(|(at, called, _)| *at == space && called == name);
        found.map(|(_, _, value)| value.as_str())
    }

    /// Text without blanks around it.
    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }

    /// Text of the first child of this name.
    pub(super) fn child_text(&self, name: &str) -> Option<&str> {
        self.children.iter().find(|child| child.is_named(name)).map(Node::text)
    }

    /// All elements of this name below, in order. Depth is bounded by [`MAX_DEPTH`].
    pub(super) fn all(&self, space: Space, name: &str) -> Vec<&Self> {
        let mut found = Vec::new();
        self.collect(space, name, &mut found);
        found
    }

    fn collect<'a>(&'a self, space: Space, name: &str, found: &mut Vec<&'a Self>) {
        for child in &self.children {
            if child.is(space, name) {
                found.push(child);
            }
            child.collect(space, name, found);
        }
    }
}

/// Reads one element with all that is in it.
pub(super) fn parse(bytes: &[u8]) -> Result<Node, String> {
    if bytes.len() > MAX_BYTES {
        return Err(format!("it is larger than {MAX_BYTES} bytes"));
    }
    let text = str::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    let mut reader = NsReader::from_str(text.trim_start_matches('\u{feff}'));
    let mut nodes = 0;
    let mut open: Vec<Node> = Vec::new();
    let mut root = None;
    loop {
        let event = reader.read_event().map_err(|error| error.to_string())?;
        let closed = match event {
            Event::Start(start) => {
                open.push(element(&reader, &start, &mut nodes)?);
                None
            }
            Event::Empty(start) => Some(element(&reader, &start, &mut nodes)?),
            Event::End(_) => open.pop(),
            Event::Text(text) => {
                append(&mut open, &text);
                None
            }
            Event::CData(text) => {
                append(&mut open, &text);
                None
            }
            Event::GeneralRef(reference) => {
                append(&mut open, &resolve(&reference)?);
                None
            }
            Event::DocType(_) => return Err("it has a DTD, which is not allowed".to_owned()),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => None,
            Event::Eof => break,
        };
        if open.len() > MAX_DEPTH {
            return Err(format!("its elements are nested more than {MAX_DEPTH} deep"));
        }
        let Some(closed) = closed else { continue };
        match open.last_mut() {
            Some(parent) => parent.children.push(closed),
            None if root.is_none() => root = Some(closed),
            None => return Err("it has more than one root element".to_owned()),
        }
    }
    match root {
        Some(root) if open.is_empty() => Ok(root),
        _ => Err("it ends too early".to_owned()),
    }
}

fn append(open: &mut [Node], text: &str) {
    if let Some(node) = open.last_mut() {
        node.text.push_str(text);
    }
}

fn element(reader: &NsReader<&[u8]>, start: &BytesStart<'_>, nodes: &mut usize) -> Result<Node, String> {
    let resolver = reader.resolver();
    let (space, name) = resolver.resolve_element(start.name());
    let mut node = Node {
        space: bound(&space),
        name: name.as_ref().to_owned(),
        ..Node::default()
    };
    *nodes += 1;
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let (space, name) = resolver.resolve_attribute(attribute.key);
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|error| error.to_string())?;
        node.attributes
            .push((bound(&space), name.as_ref().to_owned(), value.into_owned()));
        *nodes += 1;
        // The parser compares each with all before it.
        if node.attributes.len() > MAX_ATTRIBUTES {
            return Err(format!("an element has more than {MAX_ATTRIBUTES} attributes"));
        }
    }
    if *nodes > MAX_NODES {
        return Err(format!("it has more than {MAX_NODES} elements and attributes"));
    }
    Ok(node)
}

fn bound(space: &ResolveResult<'_>) -> Space {
    match space {
        ResolveResult::Bound(space) if space.0 == "http://schemas.dmtf.org/ovf/envelope/1" => Space::Ovf,
        ResolveResult::Bound(space) if space.0 == "http://www.vmware.com/schema/ovf" => Space::Vmware,
        _ => Space::Other,
    }
}

fn resolve(reference: &BytesRef<'_>) -> Result<String, String> {
    if let Some(c) = reference.resolve_char_ref().map_err(|error| error.to_string())? {
        return Ok(c.to_string());
    }
    match resolve_predefined_entity(reference) {
        Some(text) => Ok(text.to_owned()),
        None => Err("it has an entity, which is not allowed".to_owned()),
    }
}
