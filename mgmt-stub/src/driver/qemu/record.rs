//! What the next server must know of a VM and cannot see: `vms/NAME/vm.json`, mode 0600.

use std::path::{Path, PathBuf};

use platform::files;
use protocol::secret::Secret;
use serde::{Deserialize, Serialize};

use crate::driver::DriverError;

const FILE: &str = "vm.json";
/// It has a few hundred.
const MAX: u64 = 64 << 10;

/// Of one VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// How it is.
    pub(super) state: Written,
    /// Of its screen.
    pub(super) vnc_password: Secret<String>,
    /// What its disk builds upon, where the disk is ours.
    pub(super) base: Option<PathBuf>,
}

/// As far as we have written; its process tells the rest.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Written {
    /// Its start goes on: whoever finds it so was not there when it was interrupted.
    Starting,
    /// Its start is complete.
    Started,
    /// It is off, for this reason.
    Off(String),
}

impl Record {
    /// `None`: there was no VM, or its file makes no sense; then it is as good as gone.
    pub(super) fn load(directory: &Path) -> Result<Option<Self>, DriverError> {
        let read = files::read_limited(directory.join(FILE), MAX)?;
        Ok(read.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Replaces the file.
    pub(super) fn save(&self, directory: &Path) -> Result<(), DriverError> {
        let text = serde_json::to_string(self).expect("strings become JSON");
        let _ = files::replace(directory.join(FILE), text, 0o600)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_by_its_owner_only() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Record::load(directory.path()).unwrap().is_none());
        for state in [Written::Starting, Written::Started, Written::Off("stopped".into())] {
            let record = Record {
                state: state.clone(),
                vnc_password: Secret::new("Xa9Kq2Lm".into()),
                base: Some("/primary/system-vm-1-2.qcow2".into()),
            };
            record.save(directory.path()).unwrap();
            let read = Record::load(directory.path()).unwrap().unwrap();
            assert_eq!(read.state, state);
            assert_eq!(read.vnc_password.expose(), "Xa9Kq2Lm");
        }
        let mode = fs::metadata(directory.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let _ = files::replace(directory.path().join(FILE), "{", 0o600).unwrap();
        assert!(Record::load(directory.path()).unwrap().is_none());
    }
}
