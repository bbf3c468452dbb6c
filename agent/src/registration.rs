//! What an agent remembers of its management server across restarts (agent-protocol.md §8): lines of
//! `agent.properties`.

use std::path::{Path, PathBuf};

use platform::files::FileError;
use protocol::boot::HostList;
use protocol::header::NO_ID;
use protocol::session::ReadyCommand;

use crate::properties::Properties;

/// The identity that the server gave us, and where it lives.
#[derive(Debug, Clone)]
pub struct Registration {
    file: PathBuf,
    /// `<Resource>`: prefix of the identity's keys.
    resource: String,
    /// Database id of the host; [`NO_ID`] before the first registration.
    pub host_id: i64,
    /// Server list as it was last received.
    pub hosts: Option<HostList>,
}

impl Registration {
    /// Reads what an earlier run left. Values that cannot be used count as absent: the server gives new ones.
    ///
    /// # Errors
    /// The file exists and cannot be read.
    pub fn load(directory: &Path, resource: &str) -> Result<Self, FileError> {
        let file = directory.join("agent.properties");
        let properties = Properties::load(&file)?;
        let id = properties
            .get(&format!("{resource}.id"))
            .and_then(|id| id.parse().ok())
            .filter(|id| *id > 0);
        Ok(Self {
            file,
            resource: resource.to_owned(),
            host_id: id.unwrap_or(NO_ID),
            hosts: properties.get("host").and_then(|list| list.parse().ok()),
        })
    }

    /// Takes over what a ReadyCommand says of us; answers what is to be kept for the next start.
    pub fn accept(&mut self, ready: &ReadyCommand) -> Option<Note> {
        let host_id = ready.host_id.filter(|id| *id > 0)?;
        self.host_id = host_id;
        let id = host_id.to_string();
        let values = [
            ("id", Some(&id)),
            ("uuid", ready.host_uuid.as_ref()),
            ("name", ready.host_name.as_ref()),
        ];
        let known = values.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let lines = known.map(|(name, value)| (format!("{}.{name}", self.resource), value.clone()));
        Some(self.note(lines.collect()))
    }

    /// Takes over a new server list; answers what is to be kept for the next start.
    pub fn accept_hosts(&mut self, hosts: &HostList) -> Note {
        self.hosts = Some(hosts.clone());
        self.note(vec![("host".to_owned(), hosts.to_string())])
    }

    /// The server has removed this host: zone, pod and cluster are to be forgotten.
    pub fn forget_place(&self) -> Note {
        self.note(
            ["zone", "pod", "cluster"]
                .map(|key| (key.to_owned(), String::new()))
                .into(),
        )
    }

    fn note(&self, lines: Vec<(String, String)>) -> Note {
        Note {
            file: self.file.clone(),
            lines,
        }
    }
}

/// Lines for `agent.properties`.
#[derive(Debug)]
#[must_use = "nothing is kept before it is written"]
pub struct Note {
    file: PathBuf,
    lines: Vec<(String, String)>,
}

impl Note {
    /// Writes them. Blocks: on the disk, and on whoever else is changing the file.
    ///
    /// # Errors
    /// The file cannot be written; the values count for this run all the same.
    pub fn write(self) -> Result<(), FileError> {
        let change = |properties: &mut Properties| {
            for (key, value) in &self.lines {
                properties.set(key, value);
            }
        };
        Properties::edit(&self.file, change).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let load = || Registration::load(directory.path(), "NfsSecondaryStorageResource").unwrap();
        let mut first = load();
        assert_eq!((first.host_id, first.hosts.clone()), (NO_ID, None));
        let ready = ReadyCommand {
            host_id: Some(3),
            host_uuid: Some("b3e0".into()),
            host_name: Some("s-1-VM".into()),
            ..ReadyCommand::default()
        };
        first.accept(&ready).unwrap().write().unwrap();
        assert_eq!(first.host_id, 3);
        assert!(
            first.accept(&ReadyCommand::default()).is_none(),
            "a ReadyCommand without an id changes nothing"
        );
        first
            .accept_hosts(&"10.1.1.2,10.1.1.3@roundrobin".parse().unwrap())
            .write()
            .unwrap();
        let second = load();
        assert_eq!(second.host_id, 3);
        assert_eq!(second.hosts.unwrap().to_string(), "10.1.1.2,10.1.1.3@roundrobin");
        let text = std::fs::read_to_string(directory.path().join("agent.properties")).unwrap();
        assert!(text.contains("NfsSecondaryStorageResource.uuid=b3e0"), "{text}");
    }
}
