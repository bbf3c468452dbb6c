//! What a restart must not forget: a file for each job, on the VM's own disk (ssvm.md §1.10).

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use platform::files::{self, FileError};
use platform::logging::chain;
use protocol::secondary_storage::DownloadCommand;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::warn;

use crate::job::{State, Status};

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

impl Entry {
    /// Of a job that has not begun.
    pub fn new(job: &str, command: &DownloadCommand) -> Self {
        Self {
            job: job.to_owned(),
            command: command.clone(),
            names: None,
            transfer: Transfer::default(),
            verified: None,
            ended: None,
            changed: 0,
        }
    }

    /// It ended without an image, and what it left in the store may still be there.
    pub fn is_to_be_cleaned(&self) -> bool {
        let has_failed = self.ended.as_ref().is_some_and(|end| end.state != State::Done);
        has_failed && self.names.is_some()
    }
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

/// The directory of entries. One thread changes it, so that changes happen in the order in which they were asked for,
/// also when nobody waits for them any more.
#[derive(Debug, Clone)]
pub struct Journal {
    changes: Sender<(Change, oneshot::Sender<()>)>,
}

#[derive(Debug)]
enum Change {
    Write(Box<Entry>),
    Remove(String),
}

impl Journal {
    /// Makes the directory if it is not there, and reads all entries that still matter, the oldest first. Blocks for a
    /// local disk's time.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(directory: &Path) -> Result<(Self, Vec<Entry>), FileError> {
        let failed = |operation| {
            let path = directory.to_owned();
            move |source| FileError::Io {
                operation,
                path,
                source,
            }
        };
        std::fs::create_dir_all(directory).map_err(failed("make the directory"))?;
        let entries = load(directory).map_err(failed("read the directory"))?;
        let (changes, asked) = channel::<(Change, oneshot::Sender<()>)>();
        let writer = thread::Builder::new().name("journal".to_owned());
        let writing = directory.to_owned();
        let writer = writer.spawn(move || {
            for (change, done) in asked {
                match change {
                    Change::Write(entry) => write(&writing, *entry),
                    Change::Remove(job) => remove(&path_of(&writing, &job)),
                }
                let _ = done.send(()); // nobody may be waiting any more
            }
        });
        writer.map_err(failed("start a thread for"))?;
        Ok((Self { changes }, entries))
    }

    /// Writes an entry, whole and synced. If that fails it is logged: the job goes on, only a restart would not find it.
    pub async fn write(&self, entry: &Entry) {
        self.change(Change::Write(Box::new(entry.clone()))).await;
    }

    /// Forgets an entry.
    pub async fn remove(&self, job: &str) {
        self.change(Change::Remove(job.to_owned())).await;
    }

    async fn change(&self, change: Change) {
        let (done, is_done) = oneshot::channel();
        if self.changes.send((change, done)).is_ok() {
            let _ = is_done.await;
        }
    }
}

fn path_of(directory: &Path, job: &str) -> PathBuf {
    directory.join(format!("{job}.json"))
}

fn write(directory: &Path, mut entry: Entry) {
    entry.changed = now();
    let text = serde_json::to_vec(&entry).expect("an entry has text keys only");
    if let Err(error) = files::replace(path_of(directory, &entry.job), text, 0o600) {
        warn!(
            job = entry.job,
            error = chain(&error).to_string(),
            "Cannot write the journal"
        );
    }
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "Cannot remove a journal entry");
        }
        _ => {}
    }
}

/// Entries that still matter. One that cannot be read is logged and removed: it owns a temporary file at most.
fn load(directory: &Path) -> std::io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for file in std::fs::read_dir(directory)? {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = files::read_limited(&path, MAX_ENTRY).map_err(|error| chain(&error).to_string());
        let entry = read.and_then(|bytes| {
            let bytes = bytes.unwrap_or_default();
            serde_json::from_slice::<Entry>(&bytes).map_err(|error| error.to_string())
        });
        match entry {
            Ok(entry) if path == path_of(directory, &entry.job) => {
                let age = Duration::from_secs(now().saturating_sub(entry.changed));
                if entry.ended.is_some() && age > KEEP && !entry.is_to_be_cleaned() {
                    remove(&path);
                } else {
                    entries.push(entry);
                }
            }
            Ok(_) => warn!(path = %path.display(), "A journal entry has the name of another job, ignored"),
            Err(error) => {
                warn!(path = %path.display(), error, "Unreadable journal entry, removed");
                remove(&path);
            }
        }
    }
    entries.sort_by_key(|entry| entry.changed);
    Ok(entries)
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

    #[tokio::test]
    async fn an_entry_comes_back_as_it_was_and_only_we_can_read_it() {
        let directory = tempfile::tempdir().unwrap();
        let jobs = directory.path().join("jobs");
        let (journal, before) = Journal::open(&jobs).unwrap();
        assert_eq!(before, []);
        journal.write(&entry("a")).await;
        let file = jobs.join("a.json");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut found = Journal::open(&jobs).unwrap().1;
        assert!(found[0].changed > 1_700_000_000);
        found[0].changed = 0;
        assert_eq!(found, [entry("a")]);
        journal.remove("a").await;
        journal.remove("a").await;
        assert_eq!(Journal::open(&jobs).unwrap().1, []);
    }

    #[tokio::test]
    async fn changes_happen_in_order_although_nobody_waits() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(directory.path()).unwrap();
        for _ in 0..50 {
            let written = entry("a");
            let _ = tokio::time::timeout(Duration::ZERO, journal.write(&written)).await;
        }
        journal.remove("a").await;
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn rubbish_and_old_ends_are_dropped_but_nothing_that_is_to_be_cleaned() {
        let directory = tempfile::tempdir().unwrap();
        let _ = files::replace(directory.path().join("b.json"), "{", 0o600).unwrap();
        let _ = files::replace(directory.path().join("notes"), "{", 0o600).unwrap();
        let ended = |job: &str, state| Entry {
            ended: Some(Status {
                state,
                text: String::new(),
                temporary: None,
                install_path: String::new(),
                virtual_size: 1,
                physical_size: 1,
                checksum: None,
                ovf: None,
            }),
            changed: now() - 25 * 3600,
            ..entry(job)
        };
        let (old, unclean) = (ended("c", State::Done), ended("d", State::Aborted));
        for entry in [&old, &unclean] {
            let text = serde_json::to_vec(entry).unwrap();
            let _ = files::replace(path_of(directory.path(), &entry.job), text, 0o600).unwrap();
        }
        assert_eq!(load(directory.path()).unwrap(), [unclean]);
        assert!(!directory.path().join("b.json").exists());
        assert!(!directory.path().join("c.json").exists());
    }
}
