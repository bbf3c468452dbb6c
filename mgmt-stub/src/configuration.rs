//! Settings that an operator changes while the server runs (management.md §16): one table, and the values.
//!
//! A setting is in the table when something reads it. What the command line decides (`--ping-interval`, `--host`) is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::watch;

use crate::store::{Store, StoreError};

pub use table::*;

mod table;

/// What a value is.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number from the first to the second.
    Number(i64, i64),
    /// A fraction from the first to the second.
    Fraction(f64, f64),
    /// A whole number of a unit, whose seconds are given in thousandths, from 0 to the number.
    Time {
        /// One unit.
        unit: Duration,
        /// The longest, in units.
        max: i64,
    },
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Words with commas between them, or nothing.
    List,
    /// Networks (CIDR) with commas between them, or nothing.
    Networks,
    /// Letters, digits and `.`, `-`, `_`, or nothing: it becomes a part of a name or of boot arguments, where a blank would
    /// begin another one.
    Word,
    /// Any text on one line, or nothing.
    Text,
}

/// One setting.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Setting {
    /// CloudStack's name, or ours where it has none.
    pub name: &'static str,
    /// Until somebody changes it.
    pub default: &'static str,
    /// What a value is.
    pub kind: Kind,
    /// As the UI groups them.
    pub category: &'static str,
    /// For people, with the unit.
    pub description: &'static str,
}

/// Why a value was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BadValue {
    /// It is nothing this setting can be.
    #[error("setting {name} cannot be {value:?}: {wanted} is expected")]
    Invalid {
        /// The setting's name.
        name: &'static str,
        /// What was found.
        value: String,
        /// What can be.
        wanted: String,
    },
    /// It could not be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The values; cheap to clone.
#[derive(Clone)]
pub struct Configuration {
    store: Store,
    changed: Arc<watch::Sender<BTreeMap<&'static str, String>>>,
}

impl Configuration {
    /// What was changed before. A value that cannot be any more is the default, and is logged.
    ///
    /// # Errors
    /// The store.
    pub async fn load(store: Store) -> Result<Self, StoreError> {
        let mut values = BTreeMap::new();
        for (name, value) in store.settings().await? {
            let Some(setting) = find(&name) else { continue };
            match setting.check(&value) {
                Ok(()) => {
                    values.insert(setting.name, value);
                }
                Err(error) => tracing::warn!(%error, "A setting in the database is ignored"),
            }
        }
        Ok(Self {
            store,
            changed: Arc::new(watch::Sender::new(values)),
        })
    }

    /// The value as text.
    pub fn text(&self, setting: &Setting) -> String {
        let values = self.changed.borrow();
        values
            .get(setting.name)
            .map_or(setting.default, String::as_str)
            .to_owned()
    }

    /// Of a flag.
    pub fn flag(&self, setting: &Setting) -> bool {
        self.text(setting) == "true"
    }

    /// Of a number.
    pub fn number(&self, setting: &Setting) -> i64 {
        self.text(setting).parse().unwrap_or_default() // checked when it was set; defaults by a test
    }

    /// Of a fraction.
    pub fn fraction(&self, setting: &Setting) -> f64 {
        self.text(setting).parse().unwrap_or_default()
    }

    /// Of a time.
    pub fn time(&self, setting: &Setting) -> Duration {
        let Kind::Time { unit, .. } = setting.kind else {
            return Duration::ZERO;
        };
        unit.saturating_mul(u32::try_from(self.number(setting)).unwrap_or(u32::MAX))
    }

    /// The words of a list.
    pub fn list(&self, setting: &Setting) -> Vec<String> {
        words(&self.text(setting)).map(str::to_owned).collect()
    }

    /// Of networks.
    pub fn networks(&self, setting: &Setting) -> Vec<IpNet> {
        words(&self.text(setting))
            .filter_map(|word| word.parse().ok())
            .collect()
    }

    /// Keeps a new value; an empty one, where that cannot be, is the default again.
    ///
    /// # Errors
    /// It cannot be, or cannot be kept. The old one stays.
    pub async fn set(&self, setting: &'static Setting, value: &str) -> Result<(), BadValue> {
        let value = match (value.trim(), setting.kind) {
            (text, Kind::Flag) => text.to_ascii_lowercase(),
            ("", Kind::Number(..) | Kind::Fraction(..) | Kind::Time { .. } | Kind::OneOf(_)) => {
                setting.default.to_owned()
            }
            (text, _) => text.to_owned(),
        };
        setting.check(&value)?;
        self.store.set_setting(setting.name, value.clone()).await?;
        self.changed.send_modify(|values| {
            values.insert(setting.name, value);
        });
        Ok(())
    }

    /// Completes when any was changed.
    pub fn changes(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.changed.subscribe()
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|word| !word.is_empty())
}

/// The setting of this name.
pub fn find(name: &str) -> Option<&'static Setting> {
    ALL.iter().copied().find(|setting| setting.name == name)
}

impl Setting {
    fn check(&self, value: &str) -> Result<(), BadValue> {
        let number = |from: i64, to: i64| value.parse::<i64>().is_ok_and(|number| (from..=to).contains(&number));
        let is_good = match self.kind {
            Kind::Flag => matches!(value, "true" | "false"),
            Kind::Number(from, to) => number(from, to),
            Kind::Fraction(from, to) => value.parse::<f64>().is_ok_and(|number| (from..=to).contains(&number)),
            Kind::Time { max, .. } => number(0, max),
            Kind::OneOf(words) => words.contains(&value),
            Kind::Networks => value.len() <= MAX_TEXT && words(value).all(|word| word.parse::<IpNet>().is_ok()),
            Kind::Word => {
                value.len() <= MAX_WORD && value.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
            }
            Kind::List | Kind::Text => value.len() <= MAX_TEXT && !value.chars().any(char::is_control),
        };
        if is_good {
            return Ok(());
        }
        Err(BadValue::Invalid {
            name: self.name,
            value: value.chars().take(100).collect(),
            wanted: self.kind.wanted(),
        })
    }
}

/// Bytes of a word: a label of a host's name, of which there are others (RFC 1035 §2.3.4).
const MAX_WORD: usize = 32;
/// Bytes of a text.
const MAX_TEXT: usize = 4096;

impl Kind {
    fn wanted(self) -> String {
        match self {
            Self::Flag => "true or false".into(),
            Self::Number(from, to) => format!("a whole number from {from} to {to}"),
            Self::Fraction(from, to) => format!("a number from {from} to {to}"),
            Self::Time { unit, max } => format!("a whole number from 0 to {max} (times {unit:?})"),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Networks => "networks such as 10.0.0.0/8, comma-separated".into(),
            Self::Word => format!("at most {MAX_WORD} letters, digits, `.`, `-` and `_`"),
            Self::List | Self::Text => format!("one line of at most {MAX_TEXT} bytes"),
        }
    }

    /// `type` in listConfigurations (apache/cloudstack framework/config/…/Configuration.java, ValueType).
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "Boolean",
            Self::Number(..) | Self::Time { .. } => "Number",
            Self::Fraction(..) => "Decimal",
            Self::OneOf(_) => "Select",
            Self::List | Self::Networks => "CSV",
            Self::Word | Self::Text => "String",
        }
    }

    /// The words to choose from.
    pub fn options(self) -> Option<String> {
        match self {
            Self::OneOf(words) => Some(words.join(",")),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_good_and_every_name_is_there_once() {
        let mut names = std::collections::BTreeSet::new();
        for setting in ALL {
            setting.check(setting.default).unwrap();
            assert!(names.insert(setting.name), "{} is there twice", setting.name);
        }
    }

    #[tokio::test]
    async fn a_value_is_checked_kept_and_told() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let configuration = Configuration::load(store.clone()).await.unwrap();
        let mut changes = configuration.changes();
        assert_eq!(configuration.time(&STORAGE_STATS_INTERVAL), Duration::from_mins(1));
        configuration.set(&STORAGE_STATS_INTERVAL, " 5000 ").await.unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        let error = configuration.set(&STORAGE_STATS_INTERVAL, "soon").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "setting storage.stats.interval cannot be \"soon\": a whole number from 0 to 2147483647 (times 1ms) is expected"
        );
        assert!(!changes.has_changed().unwrap());
        // A blank would begin another boot argument.
        let error = configuration
            .set(&SECSTORAGE_NFS_VERSION, "4.1 role=x")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("letters, digits"), "{error}");
        let again = Configuration::load(store).await.unwrap();
        assert_eq!(again.time(&STORAGE_STATS_INTERVAL), Duration::from_secs(5));
    }
}
