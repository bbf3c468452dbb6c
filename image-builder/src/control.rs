//! Control data: the `Field: value` paragraphs in which Debian describes packages (deb-control(5)).

use std::fmt;

/// One paragraph that describes a package: the `control` file of a `.deb`, an answer of `apt-cache show`.
///
/// Fields keep their order and spelling. [`fmt::Display`] writes the paragraph as dpkg's status file has it, with a line end
/// after each field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    fields: Vec<(String, String)>,
}

/// Why a text is no control data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadControl {
    /// A line that is neither a field nor goes on with one.
    #[error("line {line} of the control data is no field: {text:?}")]
    Line {
        /// From 1, in its paragraph.
        line: usize,
        /// The line, at most its first 80 characters.
        text: String,
    },
    /// Said twice.
    #[error("the control data has the field {0} twice")]
    Twice(String),
    /// What every package has is not there.
    #[error("the control data has no field {0}")]
    Missing(&'static str),
    /// A name, version or architecture that could not be one.
    #[error("the control data has a {field} that is none: {value:?}")]
    Value {
        /// `Package`, `Version` or `Architecture`.
        field: &'static str,
        /// What it says.
        value: String,
    },
}

impl Control {
    /// Reads one paragraph. Empty lines before and after it do not count.
    ///
    /// # Errors
    /// It is none, or `Package`, `Version` or `Architecture` is missing or not well-formed.
    pub fn parse(text: &str) -> Result<Self, BadControl> {
        let mut fields: Vec<(String, String)> = Vec::new();
        for (number, line) in text.trim_matches('\n').lines().enumerate() {
            let bad = || BadControl::Line {
                line: number + 1,
                text: line.chars().take(80).collect(),
            };
            if line.starts_with([' ', '\t']) && !line.trim().is_empty() {
                let (_, value) = fields.last_mut().ok_or_else(bad)?;
                value.push('\n');
                value.push_str(line.trim_end());
                continue;
            }
            let (name, value) = line.split_once(':').ok_or_else(bad)?;
            if !is_field_name(name) {
                return Err(bad());
            }
            if fields.iter().any(|(other, _)| other.eq_ignore_ascii_case(name)) {
                return Err(BadControl::Twice(name.to_owned()));
            }
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        let control = Self { fields };
        control.required("Package", is_package_name)?;
        control.required("Version", is_version)?;
        control.required("Architecture", |text| is_word(text, "-"))?;
        Ok(control)
    }

    /// Reads all paragraphs of a text.
    ///
    /// # Errors
    /// As [`Control::parse`].
    pub fn parse_all(text: &str) -> Result<Vec<Self>, BadControl> {
        let paragraphs = text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty());
        paragraphs.map(Self::parse).collect()
    }

    /// A field's value; lines after the first begin with the space they have in the text. Names are the same in upper and
    /// lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.fields.iter();
        let (_, value) = fields.find(|(field, _)| field.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// Every field, in the order of the text.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The package's name: `libc6`.
    pub fn package(&self) -> &str {
        self.get("Package").unwrap_or_default()
    }

    /// Its version, with epoch.
    pub fn version(&self) -> &str {
        self.get("Version").unwrap_or_default()
    }

    /// `amd64` or `all`.
    pub fn architecture(&self) -> &str {
        self.get("Architecture").unwrap_or_default()
    }

    /// Name and version of the source package, which are the package's own where it does not say otherwise.
    pub fn source(&self) -> (&str, &str) {
        let Some(source) = self.get("Source") else {
            return (self.package(), self.version());
        };
        match source.split_once(" (") {
            Some((name, version)) => (name, version.trim_end_matches(')')),
            None => (source, self.version()),
        }
    }

    fn required(&self, field: &'static str, is_good: impl Fn(&str) -> bool) -> Result<(), BadControl> {
        match self.get(field) {
            None => Err(BadControl::Missing(field)),
            Some(value) if is_good(value) => Ok(()),
            Some(value) => Err(BadControl::Value {
                field,
                value: value.chars().take(80).collect(),
            }),
        }
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fields.iter().try_for_each(|(name, value)| {
            // A value that begins on its second line has nothing after the colon.
            let space = if value.starts_with('\n') { "" } else { " " };
            writeln!(f, "{name}:{space}{value}")
        })
    }
}

/// Debian Policy §5.6.1.
pub(crate) fn is_package_name(text: &str) -> bool {
    is_word(text, "+-.") && !text.contains(|c: char| c.is_ascii_uppercase())
}

/// Debian Policy §5.6.12.
pub(crate) fn is_version(text: &str) -> bool {
    is_word(text, ".+-:~")
}

/// Letters, digits and what is in `also`, beginning with a letter or digit.
pub(crate) fn is_word(text: &str, also: &str) -> bool {
    const LONGEST: usize = 128;
    text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

fn is_field_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(['#', '-']) && name.chars().all(|c| c.is_ascii_graphic() && c != ':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHRONY: &str = "Package: chrony\nSource: chrony (4.6)\nVersion: 4.6-1+b2\nArchitecture: amd64\n\
        Conffiles:\n /etc/chrony/x 123\nDescription: keeps time\n And well.\n .\n Always.\n";

    #[test]
    fn a_paragraph_is_written_as_it_was_read() {
        let control = Control::parse(CHRONY).unwrap();
        assert_eq!(control.to_string(), CHRONY);
        assert_eq!(control.source(), ("chrony", "4.6"));
        assert_eq!(control.get("description"), Some("keeps time\n And well.\n .\n Always."));
    }

    #[test]
    fn a_package_is_its_own_source_unless_it_says_otherwise() {
        let of = |source: &str| {
            let text = format!("Package: libc6\nVersion: 2.41-12\nArchitecture: amd64\n{source}");
            let control = Control::parse(&text).unwrap();
            let (name, version) = control.source();
            format!("{name} {version}")
        };
        assert_eq!(of(""), "libc6 2.41-12");
        assert_eq!(of("Source: glibc"), "glibc 2.41-12");
        assert_eq!(of("Source: glibc (2.41-11)"), "glibc 2.41-11");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| Control::parse(text).unwrap_err().to_string();
        assert_eq!(error(" more"), "line 1 of the control data is no field: \" more\"");
        assert_eq!(error("A: b\nwhat"), "line 2 of the control data is no field: \"what\"");
        assert_eq!(error("A: b\na: c"), "the control data has the field a twice");
        assert_eq!(
            error("Package: x\nVersion: 1"),
            "the control data has no field Architecture"
        );
        assert_eq!(
            error("Package: ../x\nVersion: 1\nArchitecture: all"),
            "the control data has a Package that is none: \"../x\""
        );
    }

    proptest! {
        #[test]
        fn noise_never_panics_and_what_is_accepted_reads_back(text in "([A-Za-z: .\n]{0,9}\n)*") {
            let text = format!("Package: x\nVersion: 1\nArchitecture: all\n{text}");
            if let Ok(all) = Control::parse_all(&text) {
                for control in all {
                    prop_assert_eq!(Control::parse(&control.to_string()).unwrap(), control);
                }
            }
        }
    }
}
