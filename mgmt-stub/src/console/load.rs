//! The report of a console proxy on its sessions (console-proxy.md §10.1).

use serde::Deserialize;
use uuid::Uuid;

/// Bytes: as much as CloudStack's column takes.
const MAX_REPORT: usize = 65_535;
/// Far more than a proxy can have.
const MAX_SESSIONS: usize = 20_000;

/// What counts of a report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Load {
    /// Open sessions.
    pub sessions: u32,
    /// Sessions that have ended since the report before.
    pub removed: Vec<Uuid>,
}

/// The report cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadLoad {
    /// It is too long.
    #[error("{0} bytes: at most {MAX_REPORT} are read")]
    TooLong(usize),
    /// Too many entries.
    #[error("{0} sessions: at most {MAX_SESSIONS} are believed")]
    TooMany(usize),
    /// It is not such a report.
    #[error("not a report of sessions")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Entries may be shortened to `{}`: their number counts.
    #[serde(default)]
    connections: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    removed_sessions: Option<Vec<Option<String>>>,
}

/// Reads a report.
///
/// # Errors
/// It is none, or too long.
pub fn parse(text: &str) -> Result<Load, BadLoad> {
    if text.len() > MAX_REPORT {
        return Err(BadLoad::TooLong(text.len()));
    }
    let report: Report = serde_json::from_str(text)?;
    let count = report.connections.len();
    let sessions = u32::try_from(count).ok().filter(|_| count <= MAX_SESSIONS);
    let removed = report.removed_sessions.unwrap_or_default();
    Ok(Load {
        sessions: sessions.ok_or(BadLoad::TooMany(count))?,
        removed: removed
            .into_iter()
            .flatten()
            .filter_map(|uuid| uuid.parse().ok())
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn recorded_reports_are_read() {
        let vectors = include_str!("../../tests/vectors/console/load_report.json");
        let vectors: serde_json::Value = serde_json::from_str(vectors).unwrap();
        let load = |name: &str| parse(vectors[name]["loadInfo"].as_str().unwrap()).unwrap();
        assert_eq!(
            load("on_open"),
            Load {
                sessions: 1,
                removed: vec![]
            }
        );
        let removed = vec!["0f5f9f1a-6a51-4b61-9d0b-2b7f4f4f5a10".parse().unwrap()];
        assert_eq!(load("after_close"), Load { sessions: 0, removed });
    }

    #[test]
    fn shortened_entries_count_and_nonsense_does_not() {
        let load = parse(r#"{"connections":[{},{"id":7}],"removedSessions":[null,"?"],"new":1}"#).unwrap();
        assert_eq!(
            load,
            Load {
                sessions: 2,
                removed: vec![]
            }
        );
        assert!(matches!(parse(&" ".repeat(70_000)), Err(BadLoad::TooLong(70_000))));
        let many = format!(r#"{{"connections":[{}1]}}"#, "1,".repeat(20_000));
        assert!(matches!(parse(&many), Err(BadLoad::TooMany(20_001))));
    }

    proptest! {
        #[test]
        fn noise_is_an_error_and_no_panic(noise: String) {
            drop(parse(&noise));
        }
    }
}
