//! Patterns of paths: `*` is anything but a slash, `**` anything, `{a,b}` one of them.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// A pattern that is none.
#[derive(Debug, thiserror::Error)]
#[error("{pattern:?} is not a pattern of paths")]
pub struct BadPattern {
    pattern: String,
    source: globset::Error,
}

/// Several patterns at once.
#[derive(Debug)]
pub(super) struct Patterns(GlobSet);

impl Patterns {
    pub(super) fn new<'a>(patterns: impl IntoIterator<Item = &'a String>) -> Result<Self, BadPattern> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            let bad = |source| BadPattern {
                pattern: pattern.clone(),
                source,
            };
            set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(bad)?);
        }
        let bad = |source| BadPattern {
            pattern: String::new(),
            source,
        };
        Ok(Self(set.build().map_err(bad)?))
    }

    pub(super) fn match_any(&self, path: &str) -> bool {
        self.0.is_match(path)
    }
}
