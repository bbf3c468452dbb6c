//! Names of what a test run makes outside of `target`, so that the next run can remove what a killed one has left.

use std::path::Path;

/// The start of the names of one kind of thing that this test run makes.
pub(super) fn prefix(kind: &str) -> String {
    format!("sysvm-{kind}-{}-", std::process::id())
}

/// Whether a thing of this kind belongs to a test run that does not exist any more.
pub(super) fn is_abandoned(kind: &str, name: &str) -> bool {
    owner(kind, name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

/// The process id of the test run that made it; `None` when it is not of this kind.
fn owner(kind: &str, name: &str) -> Option<u32> {
    let (pid, _) = name
        .strip_prefix("sysvm-")?
        .strip_prefix(kind)?
        .strip_prefix('-')?
        .split_once('-')?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_test_runs_make_has_an_owner() {
        assert_eq!(owner("test", "sysvm-test-4711-0"), Some(4711));
        assert_eq!(owner("test", "sysvm-vm-4711-0"), None);
        assert_eq!(owner("test", "sysvm-zone"), None);
        assert_eq!(owner("test", "sysvm-test-x-0"), None);
        assert!(!is_abandoned("test", &format!("{}0", prefix("test"))));
    }
}
