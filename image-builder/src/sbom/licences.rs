//! Licences of Debian packages, from the machine-readable part of their copyright files (DEP-5, copyright-format 1.0).

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::tree::Tree;

/// What SPDX calls no answer.
const UNKNOWN: &str = "NOASSERTION";
/// Debian's short names and SPDX's, for all that occur often. `+` and `-N` versions of the GNU licences are in code.
const NAMES: [(&str, &str); 42] = [
    ("0bsd", "0BSD"),
    ("apache-2", "Apache-2.0"),
    ("apache-2.0", "Apache-2.0"),
    ("artistic", "Artistic-1.0-Perl"),
    ("artistic-2", "Artistic-2.0"),
    ("artistic-2.0", "Artistic-2.0"),
    ("bsd-1-clause", "BSD-1-Clause"),
    ("bsd-2-clause", "BSD-2-Clause"),
    ("bsd-3-clause", "BSD-3-Clause"),
    ("bsd-4-clause", "BSD-4-Clause"),
    ("bsd-4-clause-uc", "BSD-4-Clause-UC"),
    ("bsl-1.0", "BSL-1.0"),
    ("cc-by-3.0", "CC-BY-3.0"),
    ("cc-by-4.0", "CC-BY-4.0"),
    ("cc-by-sa-3.0", "CC-BY-SA-3.0"),
    ("cc-by-sa-4.0", "CC-BY-SA-4.0"),
    ("cc0", "CC0-1.0"),
    ("cc0-1.0", "CC0-1.0"),
    ("curl", "curl"),
    ("epl-1.0", "EPL-1.0"),
    ("expat", "MIT"),
    ("fsfap", "FSFAP"),
    ("fsful", "FSFUL"),
    ("fsfullr", "FSFULLR"),
    ("hpnd", "HPND"),
    ("isc", "ISC"),
    ("mit", "MIT"),
    ("mit-0", "MIT-0"),
    ("mpl-1.1", "MPL-1.1"),
    ("mpl-2.0", "MPL-2.0"),
    ("ntp", "NTP"),
    ("openldap-2.8", "OLDAP-2.8"),
    ("openssl", "OpenSSL"),
    ("psf-2", "PSF-2.0"),
    ("sleepycat", "Sleepycat"),
    ("unicode", "Unicode-DFS-2016"),
    ("unlicense", "Unlicense"),
    ("vim", "Vim"),
    ("wtfpl", "WTFPL"),
    ("x11", "X11"),
    ("zlib", "Zlib"),
    ("zpl-2.1", "ZPL-2.1"),
];

/// Under which terms a package may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Licence {
    /// An SPDX licence expression, or `NOASSERTION` where the copyright file is for people only.
    pub expression: String,
    /// `LicenseRef-…` in it, with what Debian calls them.
    pub references: BTreeMap<String, String>,
}

/// The licence of an installed package: all its files' licences together.
pub(super) fn of_package(tree: &Tree, package: &str) -> Licence {
    let text = tree.contents(&format!("usr/share/doc/{package}/copyright"));
    of_copyright(&text.map(|text| String::from_utf8_lossy(text)).unwrap_or_default())
}

fn of_copyright(text: &str) -> Licence {
    let mut references = BTreeMap::new();
    let is_readable = text.lines().take(20).any(|line| {
        let line = line.to_ascii_lowercase();
        line.starts_with("format:") && line.contains("copyright-format/1")
    });
    let mut all = BTreeSet::new();
    for paragraph in text.split("\n\n").filter(|_| is_readable) {
        // Paragraphs with only a licence give its text, to which the others refer.
        let field = |name: &str| {
            let mut fields = paragraph.lines().filter_map(|line| line.split_once(':'));
            fields.find_map(|(field, value)| field.eq_ignore_ascii_case(name).then(|| value.trim()))
        };
        let (Some(_), Some(licence)) = (field("Files"), field("License")) else {
            continue;
        };
        if !licence.is_empty() {
            all.insert(expression(licence, &mut references));
        }
    }
    if all.is_empty() {
        return Licence {
            expression: UNKNOWN.to_owned(),
            references: BTreeMap::new(),
        };
    }
    let is_only = all.len() == 1;
    let parts = all.into_iter().map(|part| {
        if !is_only && part.contains(" OR ") {
            format!("({part})")
        } else {
            part
        }
    });
    Licence {
        expression: parts.collect::<Vec<_>>().join(" AND "),
        references,
    }
}

/// Debian's `GPL-2+ or Artistic, and Expat` in SPDX's words: commas bind less than `and`, that less than `or`… of SPDX,
/// where it is the other way round, hence the parentheses.
fn expression(text: &str, references: &mut BTreeMap<String, String>) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut all = Vec::new();
    for group in text.split(", and ").flat_map(|part| part.split(',')) {
        let alternatives: Vec<_> = split_word(group, "or")
            .into_iter()
            .map(|alternative| {
                let terms = split_word(&alternative, "and");
                let terms = terms.into_iter().map(|term| licence(&term, references));
                terms.collect::<Vec<_>>().join(" AND ")
            })
            .filter(|alternative| !alternative.is_empty())
            .collect();
        match alternatives.as_slice() {
            [] => {}
            [only] => all.push(only.clone()),
            several => all.push(several.join(" OR ")),
        }
    }
    if let [only] = all.as_slice() {
        return only.clone();
    }
    let group = |part: String| {
        if part.contains(" OR ") {
            format!("({part})")
        } else {
            part
        }
    };
    all.into_iter().map(group).collect::<Vec<_>>().join(" AND ")
}

fn split_word(text: &str, word: &str) -> Vec<String> {
    let mut parts = vec![Vec::new()];
    for next in text.split(' ').filter(|next| !next.is_empty()) {
        if next.eq_ignore_ascii_case(word) {
            parts.push(Vec::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(next);
        }
    }
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| part.join(" "))
        .collect()
}

fn licence(name: &str, references: &mut BTreeMap<String, String>) -> String {
    let lower = name.to_ascii_lowercase();
    let known = NAMES
        .iter()
        .find(|(debian, _)| *debian == lower)
        .map(|(_, spdx)| (*spdx).to_owned());
    if let Some(spdx) = known.or_else(|| gnu(&lower)) {
        return spdx;
    }
    let letters = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' });
    // A `+` is more than punctuation: without it the name is that of another licence.
    let plus = if name.ends_with('+') { "or-later" } else { "" };
    let reference = format!("LicenseRef-Debian-{}{plus}", letters.collect::<String>());
    references.insert(reference.clone(), name.to_owned());
    reference
}

/// `gpl-2+`, `lgpl-2.1`, `gfdl-1.3+` …
fn gnu(name: &str) -> Option<String> {
    let (family, version) = name.split_once('-')?;
    let (version, is_later) = version
        .strip_suffix('+')
        .map_or((version, false), |version| (version, true));
    let version = match (family, version.strip_suffix(".0").unwrap_or(version)) {
        ("gpl" | "lgpl", version @ ("1" | "2" | "3")) | ("agpl", version @ "3") => format!("{version}.0"),
        ("lgpl", "2.1") | ("gfdl", "1.1" | "1.2" | "1.3") => version.to_owned(),
        _ => return None,
    };
    // There never was an LGPL 1.0.
    if family == "lgpl" && version == "1.0" {
        return None;
    }
    let later = if is_later { "or-later" } else { "only" };
    Some(format!("{}-{version}-{later}", family.to_ascii_uppercase()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spdx(debian: &str) -> String {
        expression(debian, &mut BTreeMap::new())
    }

    #[test]
    fn debian_names_become_spdx_names() {
        assert_eq!(spdx("GPL-2+"), "GPL-2.0-or-later");
        assert_eq!(spdx("GPL-2"), "GPL-2.0-only");
        assert_eq!(spdx("LGPL-2.1+"), "LGPL-2.1-or-later");
        assert_eq!(spdx("Expat"), "MIT");
        assert_eq!(spdx("public-domain"), "LicenseRef-Debian-public-domain");
        assert_eq!(
            spdx("GPL-2+ with OpenSSL exception"),
            "LicenseRef-Debian-GPL-2--with-OpenSSL-exception"
        );
        assert_eq!(spdx("Bison+"), "LicenseRef-Debian-Bison-or-later");
    }

    #[test]
    fn and_binds_more_than_or_and_a_comma_less_than_both() {
        assert_eq!(spdx("GPL-1+ or Artistic"), "GPL-1.0-or-later OR Artistic-1.0-Perl");
        assert_eq!(spdx("GPL-2 or Expat and ISC"), "GPL-2.0-only OR MIT AND ISC");
        assert_eq!(spdx("GPL-2 or Expat, and ISC"), "(GPL-2.0-only OR MIT) AND ISC");
    }

    #[test]
    fn a_package_has_the_licences_of_all_its_files() {
        let copyright = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
            License: ignored\n\nFiles: *\nCopyright: 2024 A\nLicense: GPL-2+ or Expat\n\n\
            Files: x\nCopyright: 2024 B\nLicense: odd\n Its text.\n\nLicense: GPL-3\n Only a text.\n";
        let licence = of_copyright(copyright);
        assert_eq!(
            licence.expression,
            "(GPL-2.0-or-later OR MIT) AND LicenseRef-Debian-odd"
        );
        assert_eq!(
            licence.references,
            [("LicenseRef-Debian-odd".to_owned(), "odd".to_owned())].into()
        );
    }

    #[test]
    fn a_copyright_file_for_people_says_nothing_to_us() {
        assert_eq!(
            of_copyright("This package is under the GPL.\n").expression,
            "NOASSERTION"
        );
        assert_eq!(of_copyright("").expression, "NOASSERTION");
    }

    proptest! {
        #[test]
        fn whatever_the_text_the_expression_has_only_what_spdx_allows(text in "\\PC{0,60}") {
            let copyright = format!("Format: x/copyright-format/1.0\n\nFiles: *\nLicense: {text}\n");
            let licence = of_copyright(&copyright);
            prop_assert!(!licence.expression.is_empty());
            prop_assert!(licence.expression.chars().all(|c| c.is_ascii_alphanumeric() || "-. ()".contains(c)));
        }
    }
}
