//! What is wrong with boot arguments, said so that a person can fix all of it at once.

use std::fmt;

/// Everything wrong with one line of boot arguments; never a secret's value.
///
/// ```text
/// in /var/cache/cloud/cmdline: 2 boot argument(s) need fixing
///   eth2ip="10.0.0.300": expected the public IP address of this VM
///   vncport="99999": expected a port number
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadBootArgs {
    origin: Option<String>,
    problems: Vec<String>,
}

impl BadBootArgs {
    pub(super) const fn new(problems: Vec<String>) -> Self {
        Self { origin: None, problems }
    }

    /// Names where the line came from, such as a path.
    #[must_use]
    pub fn found_in(self, origin: impl fmt::Display) -> Self {
        Self {
            origin: Some(origin.to_string()),
            ..self
        }
    }

    /// One line for each problem.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

impl std::error::Error for BadBootArgs {}

impl fmt::Display for BadBootArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "in {origin}: ")?;
        }
        write!(f, "{} boot argument(s) need fixing", self.problems.len())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// One value that is not what its type wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not {wanted}")]
pub struct BadValue {
    found: String,
    wanted: &'static str,
}

impl BadValue {
    pub(super) fn new(found: &str, wanted: &'static str) -> Self {
        Self {
            found: found.to_owned(),
            wanted,
        }
    }
}
