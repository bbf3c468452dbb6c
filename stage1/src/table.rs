//! The table of kernel modules beside the program: what each needs, and which devices it is for.
//!
//! ```text
//! module crc32c_generic
//! alias crc32c
//! module jbd2 soft crc32c_generic
//! module ext4 needs jbd2 soft crc32c_generic
//! alias fs-ext4
//! ```
//! A module is only ever loaded after those it needs, so those stand above it. `soft` ones are loaded before it, too, but
//! it is tried without them when they fail. The order of the table is the order of preference.

use std::collections::BTreeMap;

/// More than any table has: ours is 30 KB.
const MAX_BYTES: usize = 1024 * 1024;

/// Modules in the order in which they can be loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Parents first.
    pub modules: Vec<Module>,
}

/// One kernel module. Its file is `modules/NAME.ko`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Module {
    /// With `_` for `-`.
    pub name: String,
    /// Places in the table of what must be loaded before.
    pub needs: Vec<usize>,
    /// Places in the table of what should be loaded before.
    pub soft: Vec<usize>,
    /// What it answers to, as patterns: `virtio:d00000002v*`, `fs-ext4`.
    pub aliases: Vec<String>,
}

/// Why a table cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTable {
    /// It is too long.
    #[error("the table of modules is larger than {MAX_BYTES} bytes")]
    TooLarge,
    /// A line is not one of a table.
    #[error("line {line} of the table of modules is not understood: {text:?}")]
    BadLine {
        /// From 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// A module that it names is not above it.
    #[error("line {line} of the table of modules needs {name}, which is not above it")]
    NotAbove {
        /// From 1.
        line: usize,
        /// The module.
        name: String,
    },
}

impl Table {
    /// Reads a table.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, BadTable> {
        if text.len() > MAX_BYTES {
            return Err(BadTable::TooLarge);
        }
        let mut modules = Vec::<Module>::new();
        let mut places = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let bad = || BadTable::BadLine {
                line: index + 1,
                text: line.to_owned(),
            };
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("module"), Some(name)) if is_name(name) => {
                    let mut module = Module {
                        name: name.to_owned(),
                        ..Module::default()
                    };
                    let mut list = None;
                    for word in words {
                        match (word, &mut list) {
                            ("needs", _) => list = Some(&mut module.needs),
                            ("soft", _) => list = Some(&mut module.soft),
                            (name, Some(list)) => list.push(*places.get(name).ok_or_else(|| BadTable::NotAbove {
                                line: index + 1,
                                name: name.to_owned(),
                            })?),
                            (_, None) => return Err(bad()),
                        }
                    }
                    places.insert(name, modules.len()).map_or(Ok(()), |_| Err(bad()))?;
                    modules.push(module);
                }
                (Some("alias"), Some(alias)) if !alias.is_empty() && words.next().is_none() => {
                    let module = modules.last_mut().ok_or_else(bad)?;
                    module.aliases.push(alias.to_owned());
                }
                _ => return Err(bad()),
            }
        }
        Ok(Self { modules })
    }

    /// Writes it as [`Table::parse`] reads it.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for module in &self.modules {
            text.push_str("module ");
            text.push_str(&module.name);
            for (word, list) in [(" needs", &module.needs), (" soft", &module.soft)] {
                if !list.is_empty() {
                    text.push_str(word);
                }
                for needed in list.iter().filter_map(|place| self.modules.get(*place)) {
                    text.push(' ');
                    text.push_str(&needed.name);
                }
            }
            text.push('\n');
            for alias in &module.aliases {
                text.push_str("alias ");
                text.push_str(alias);
                text.push('\n');
            }
        }
        text
    }

    /// Places of the modules that answer to a device's modalias, or to another alias.
    pub fn answering<'a>(&'a self, alias: &'a str) -> impl Iterator<Item = usize> + 'a {
        let is_for = |module: &Module| {
            module
                .aliases
                .iter()
                .any(|pattern| matches(pattern.as_bytes(), alias.as_bytes()))
        };
        let numbered = self.modules.iter().enumerate();
        numbered
            .filter(move |(_, module)| is_for(module))
            .map(|(place, _)| place)
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a modalias is one that a pattern is for: `*`, `?` and `[0-9a]` as in fnmatch(3), which modprobe uses.
pub fn matches(mut pattern: &[u8], mut text: &[u8]) -> bool {
    // Where to go on after a `*` if what follows does not fit: the pattern after it, and the text one byte on.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        let fits = match (pattern, text) {
            ([], []) => return true,
            ([b'*', rest @ ..], _) => {
                retry = Some((rest, text));
                pattern = rest;
                continue;
            }
            ([b'[', rest @ ..], [byte, left @ ..]) => class(rest, *byte).map(|rest| (rest, left)),
            ([first, rest @ ..], [byte, left @ ..]) if first == byte || *first == b'?' => Some((rest, left)),
            _ => None,
        };
        if let Some((rest, left)) = fits {
            (pattern, text) = (rest, left);
            continue;
        }
        let Some((after, [_, left @ ..])) = retry else {
            return false;
        };
        retry = Some((after, left));
        (pattern, text) = (after, left);
    }
}

/// The pattern after the `]` if the byte is in the class.
fn class(pattern: &[u8], byte: u8) -> Option<&[u8]> {
    let end = pattern.iter().position(|byte| *byte == b']')?;
    let (mut set, rest) = (&pattern[..end], &pattern[end + 1..]);
    let mut is_in = false;
    while let [first, more @ ..] = set {
        (is_in, set) = match more {
            [b'-', last, more @ ..] => (is_in || (*first..=*last).contains(&byte), more),
            _ => (is_in || *first == byte, more),
        };
    }
    is_in.then_some(rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "module crc32c_generic\nalias crc32c\nalias crypto-crc32c\nmodule jbd2 soft crc32c_generic\n\
                        module ext4 needs jbd2 soft crc32c_generic\nalias fs-ext4\nmodule virtio_blk\n\
                        alias virtio:d00000002v*\n";

    #[test]
    fn a_table_is_read_as_it_is_written() {
        let table = Table::parse(TEXT).unwrap();
        assert_eq!(table.render(), TEXT);
        assert_eq!(table.modules[2].needs, [1]);
        assert_eq!(table.modules[2].soft, [0]);
    }

    #[test]
    fn devices_and_file_systems_find_their_modules() {
        let table = Table::parse(TEXT).unwrap();
        let answering = |alias| table.answering(alias).collect::<Vec<_>>();
        assert_eq!(answering("virtio:d00000002v00001AF4"), [3]);
        assert_eq!(answering("fs-ext4"), [2]);
        assert_eq!(answering("fs-ext"), [0; 0]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let error = |text| Table::parse(text).unwrap_err().to_string();
        assert_eq!(
            error("module a\nmodule b needs c\n"),
            "line 2 of the table of modules needs c, which is not above it"
        );
        for text in [
            "alias x",
            "module",
            "module a/b",
            "module a b",
            "module a\nmodule a",
            "module a\nalias x y",
            "\n",
        ] {
            assert!(error(text).contains("is not understood"), "{text:?}");
        }
        assert_eq!(
            error(&"module a\n".repeat(MAX_BYTES / 9 + 1)),
            "the table of modules is larger than 1048576 bytes"
        );
    }

    #[test]
    fn patterns_are_those_of_modprobe() {
        let fits = |pattern: &str, text: &str| matches(pattern.as_bytes(), text.as_bytes());
        assert!(fits(
            "pci:v*d*sv*sd*bc01sc08i02*",
            "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02"
        ));
        assert!(fits("acpi*:VMBUS:*", "acpi:VMBUS:VMBUS:"));
        assert!(fits("usb:v1d[0-9a]*", "usb:v1d7x") && fits("usb:v1d[0-9a]*", "usb:v1da"));
        assert!(fits("a?c", "abc") && fits("*", "") && fits("a*b*c", "a-b-b-c"));
        assert!(!fits("usb:v1d[0-9a]*", "usb:v1db") && !fits("a?c", "ac") && !fits("a*b", "a-b-c") && !fits("[a", "a"));
    }

    proptest! {
        #[test]
        fn noise_is_read_without_a_panic(text: String, pattern: Vec<u8>, name: Vec<u8>) {
            let _ = Table::parse(&text);
            let _ = matches(&pattern, &name);
        }

        #[test]
        fn a_star_stands_for_anything(parts in prop::collection::vec("[ab]{0,3}", 1..5), fill in "[abc]{0,4}") {
            prop_assert!(matches(parts.join("*").as_bytes(), parts.join(&fill).as_bytes()));
        }
    }
}
