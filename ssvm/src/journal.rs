//! What a restart must not forget: a file for each job, on the VM's own disk (ssvm.md §1.10).

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use platform::files::{self, FileError};
use protocol::secondary_storage::DownloadCommand;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::job::Status;

/// More than an entry with the longest texts has.
const MAX_ENTRY: u64 = 1 << 20;

/// Who asks for a finished job later than this has forgotten it.
const KEEP: Duration = Duration::from_hours(24);

/// One job. Files are 0600: a command may hold credentials for its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// UUID.
    pub job: String,
    /// As the server sent it.
    #[serde(with = "as_sent")]
    pub command: DownloadCommand,
    /// Names in the install directory; `None` before the first byte.
    pub names: Option<Names>,
    /// How far the transfer is.
    pub transfer: Transfer,
    /// Digest of all bytes, once they are here and right: what is left is to put the image in place.
    pub verified: Option<String>,
    /// How it ended.
    pub ended: Option<Status>,
    /// Seconds since 1970; of the last change.
    pub changed: u64,
}

/// A command in the form it has on the wire: only there absent members are what they were.
mod as_sent {
    use protocol::command::{Command, CommandBody};
    use protocol::gson::Charset;
    use protocol::secondary_storage::DownloadCommand;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(command: &DownloadCommand, to: S) -> Result<S::Ok, S::Error> {
        Command::write_all(&[Command::new(command.clone())], Charset::Utf8).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<DownloadCommand, D::Error> {
        let text = String::deserialize(from)?;
        let commands = Command::read_all(&text).map_err(D::Error::custom)?;
        match commands.into_iter().next().map(|command| command.body) {
            Some(CommandBody::Download(command)) => Ok(command),
            _ => Err(D::Error::custom("no DownloadCommand")),
        }
    }
}

/// The same for what an OVA says of itself.
pub(crate) mod ovf_as_sent {
    use protocol::answer::{Answer, AnswerBody};
    use protocol::gson::Charset;
    use protocol::ovf::OVFInformationTO;
    use protocol::secondary_storage::DownloadAnswer;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    type Ovf = Option<Box<OVFInformationTO>>;

    pub(crate) fn serialize<S: Serializer>(ovf: &Ovf, to: S) -> Result<S::Ok, S::Error> {
        let answer = |ovf: &OVFInformationTO| DownloadAnswer {
            ovf_information_to: Some(Box::new(ovf.clone())),
            ..DownloadAnswer::default()
        };
        let text = ovf
            .as_ref()
            .map(|ovf| Answer::write_all(&[Answer::new(answer(ovf))], Charset::Utf8));
        text.serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Ovf, D::Error> {
        let Some(text) = Option::<String>::deserialize(from)? else {
            return Ok(None);
        };
        let answers = Answer::read_all(&text).map_err(D::Error::custom)?;
        match answers.into_iter().next().map(|answer| answer.body) {
            Some(AnswerBody::Download(answer)) => Ok(answer.ovf_information_to),
            _ => Err(D::Error::custom("no DownloadAnswer")),
        }
    }
}

/// Names that are ours in an install directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// `dnld<digits>tmp_`.
    pub temporary: String,
    /// Of the image.
    pub installed: String,
}

/// What is needed to go on with a transfer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Bytes that are on the store's disk for certain.
    pub synced: u64,
    /// Bytes expected.
    pub total: Option<u64>,
    /// ETag or date of the source's file.
    pub validator: Option<String>,
}

/// The directory of entries. Its calls block for a local disk's time.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Makes the directory if it is not there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(directory: PathBuf) -> Result<Self, FileError> {
        std::fs::create_dir_all(&directory).map_err(|source| FileError::Io {
            operation: "make the directory",
            path: directory.clone(),
            source,
        })?;
        Ok(Self { directory })
    }

    /// Writes an entry, whole and synced.
    ///
    /// # Errors
    /// The disk is full, most likely.
    pub fn write(&self, entry: &Entry) -> Result<(), FileError> {
        let mut entry = entry.clone();
        entry.changed = now();
        let text = serde_json::to_vec(&entry).expect("an entry has text keys only");
        files::replace(self.path(&entry.job), text, 0o600).map(drop)
    }

    /// Forgets an entry.
    pub fn remove(&self, job: &str) {
        let path = self.path(job);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                warn!(path = %path.display(), %error, "Cannot remove a journal entry");
            }
            _ => {}
        }
    }

    /// All entries that still matter. One that cannot be read is logged and removed: it owns a temporary file at most.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn load(&self) -> std::io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in std::fs::read_dir(&self.directory)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = files::read_limited(&path, MAX_ENTRY).map_err(|error| error.to_string());
            let entry = read.and_then(|bytes| {
                let bytes = bytes.unwrap_or_default();
                serde_json::from_slice::<Entry>(&bytes).map_err(|error| error.to_string())
            });
            match entry {
                Ok(entry) if path == self.path(&entry.job) => {
                    let age = Duration::from_secs(now().saturating_sub(entry.changed));
                    if entry.ended.is_some() && age > KEEP {
                        self.remove(&entry.job);
                    } else {
                        entries.push(entry);
                    }
                }
                Ok(_) => warn!(path = %path.display(), "A journal entry has the name of another job, ignored"),
                Err(error) => {
                    warn!(path = %path.display(), error, "Unreadable journal entry, removed");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
        Ok(entries)
    }

    fn path(&self, job: &str) -> PathBuf {
        self.directory.join(format!("{job}.json"))
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use protocol::secondary_storage::PasswordAuth;
    use protocol::secret::Secret;
    use protocol::transfer::{DataStoreTO, ImageFormat, NfsTO};

    use super::*;

    fn entry(job: &str) -> Entry {
        let store = NfsTO {
            url: Some("nfs://192.168.10.5/export".into()),
            ..NfsTO::default()
        };
        let auth = PasswordAuth {
            user_name: Some("u".into()),
            password: Some(Secret::new("p".into())),
        };
        Entry {
            job: job.into(),
            command: DownloadCommand {
                url: Some("http://203.0.113.9/a.qcow2".into()),
                format: Some(ImageFormat::Qcow2),
                store: Some(DataStoreTO::Nfs(store)),
                auth: Some(auth),
                ..DownloadCommand::default()
            },
            names: Some(Names {
                temporary: "dnld1tmp_".into(),
                installed: "i.qcow2".into(),
            }),
            transfer: Transfer {
                synced: 7,
                total: Some(9),
                validator: Some("\"v1\"".into()),
            },
            verified: None,
            ended: None,
            changed: 0,
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_and_only_we_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().join("jobs")).unwrap();
        journal.write(&entry("a")).unwrap();
        let file = directory.path().join("jobs/a.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut found = journal.load().unwrap();
        assert!(found[0].changed > 1_700_000_000);
        found[0].changed = 0;
        assert_eq!(found, [entry("a")]);
        journal.remove("a");
        journal.remove("a");
        assert_eq!(journal.load().unwrap(), []);
    }

    #[test]
    fn rubbish_and_old_ends_are_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(directory.path().to_owned()).unwrap();
        let _ = files::replace(directory.path().join("b.json"), "{", 0o600).unwrap();
        let _ = files::replace(directory.path().join("notes"), "{", 0o600).unwrap();
        let mut old = entry("c");
        old.ended = Some(Status {
            state: crate::job::State::Done,
            text: String::new(),
            temporary: None,
            install_path: String::new(),
            virtual_size: 1,
            physical_size: 1,
            checksum: None,
            ovf: None,
        });
        old.changed = now() - 25 * 3600;
        let text = serde_json::to_vec(&old).unwrap();
        let _ = files::replace(directory.path().join("c.json"), text, 0o600).unwrap();
        assert_eq!(journal.load().unwrap(), []);
        assert!(!directory.path().join("b.json").exists());
        assert!(!directory.path().join("c.json").exists());
    }
}
