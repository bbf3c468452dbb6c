//! Why a system VM is not of use, for people: one answer for the API, the page and the log.

use time::OffsetDateTime;

/// Why a system VM is not of use now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnosis {
    /// What is wrong, or what it waits for.
    pub reason: String,
    /// What a person can do about it; nothing, where it mends itself.
    pub what_to_do: Option<String>,
    /// Since when it is so.
    pub since: OffsetDateTime,
}
