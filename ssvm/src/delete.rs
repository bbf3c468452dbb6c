//! Removing what the server does not want any more (ssvm.md §6.8): exact names, never a wildcard, never near the root.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::answer::Answer;
use protocol::secondary_storage::{DeleteCommand, DeleteSnapshotsDirCommand};
use protocol::transfer::DataTO;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::blocking::on_thread;
use crate::jobs::Jobs;
use crate::order::StoreRef;
use crate::path::{self, StorePath};
use crate::stores::Stores;

/// Removing a file of a terabyte takes a file server minutes.
const LIMIT: Duration = Duration::from_mins(10);

const NO_PATH: &str = "Object with null install path does not exist on image store , no need to delete";

/// The only directory that may have something in it: heartbeats of KVM hosts.
const HEARTBEATS: &str = "KVMHA";

/// What belongs to a snapshot besides the file of its name.
const SNAPSHOT_SUFFIXES: [&str; 6] = ["", ".vhd", ".ovf", ".ova", ".ova.meta", "_temp"];

/// What is removed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    /// A template's or volume's directory.
    Image {
        kind: &'static str,
        id: i64,
        path: StorePath,
        shown: String,
    },
    /// A snapshot's files.
    Snapshot {
        path: StorePath,
        checkpoint: Option<StorePath>,
    },
    /// All snapshots of a volume.
    Snapshots(StorePath),
}

/// DeleteCommand. What is running in a directory is stopped before it is removed.
pub async fn delete(stores: &Stores, jobs: &Jobs, command: &DeleteCommand) -> Answer {
    let (store, target) = match read(command) {
        Ok(read) => read,
        Err(answer) => return *answer,
    };
    if let Target::Image { id, path, .. } = &target {
        for directory in candidates(path, *id) {
            jobs.stop_in(&store.url, &directory).await;
        }
    }
    remove(stores, &store, target).await
}

/// What is to be removed, or the answer when that is nothing.
fn read(command: &DeleteCommand) -> Result<(StoreRef, Target), Box<Answer>> {
    let failure = |text: String| Box::new(Answer::failure(text));
    let (kind, id, text, store, checkpoint) = match &command.data {
        Some(DataTO::Template(template)) => (
            "Template",
            template.id,
            &template.path,
            &template.image_data_store,
            None,
        ),
        Some(DataTO::Volume(volume)) => ("Volume", volume.id, &volume.path, &volume.data_store, None),
        Some(DataTO::Snapshot(snapshot)) => {
            let checkpoint = snapshot.checkpoint_path.as_deref();
            (
                "Snapshot",
                snapshot.id,
                &snapshot.path,
                &snapshot.data_store,
                checkpoint,
            )
        }
        None => return Err(failure("the command names no object".into())),
    };
    let store = StoreRef::find(store.as_ref(), None, None).map_err(failure)?;
    let Some(text) = text else {
        return Err(Box::new(Answer::success().with_details(NO_PATH)));
    };
    let path = StorePath::parse(text).map_err(|error| failure(error.to_string()))?;
    let target = match kind {
        "Snapshot" => snapshot(path, checkpoint),
        kind => image(kind, id, path, text),
    };
    Ok((store, target.map_err(failure)?))
}

/// DeleteSnapshotsDirCommand.
pub async fn snapshots(stores: &Stores, command: &DeleteSnapshotsDirCommand) -> Answer {
    let store = match StoreRef::find(command.store.as_ref(), None, None) {
        Ok(store) => store,
        Err(text) => return Answer::failure(text),
    };
    let path = match StorePath::parse(command.directory.as_deref().unwrap_or_default()) {
        Ok(path) => path,
        Err(error) => return Answer::failure(error.to_string()),
    };
    match components(&path).as_slice() {
        ["snapshots", _account, _volume] => remove(stores, &store, Target::Snapshots(path)).await,
        _ => Answer::failure(format!("{path} is not a volume's directory of snapshots")),
    }
}

fn image(kind: &'static str, id: i64, path: StorePath, shown: &str) -> Result<Target, String> {
    match components(&path).as_slice() {
        ["template", "tmpl", _, _, ..] if kind == "Template" => {}
        ["volumes", _, _, ..] if kind == "Volume" => {}
        _ => {
            return Err(format!(
                "{path} is no place of a {}; nothing was deleted",
                kind.to_lowercase()
            ));
        }
    }
    Ok(Target::Image {
        kind,
        id,
        path,
        shown: shown.to_owned(),
    })
}

fn snapshot(path: StorePath, checkpoint: Option<&str>) -> Result<Target, String> {
    let is_good = matches!(components(&path).as_slice(), ["snapshots", _, _, ..]);
    if !is_good {
        return Err(format!("{path} is no place of a snapshot; nothing was deleted"));
    }
    // The path is of another machine: what counts begins at `checkpoints`.
    let checkpoint = checkpoint.and_then(|text| text.find("checkpoints/").map(|start| &text[start..]));
    let checkpoint = checkpoint.map(StorePath::parse).transpose();
    let checkpoint = checkpoint.map_err(|error| error.to_string())?;
    Ok(Target::Snapshot {
        path,
        checkpoint: checkpoint.filter(|path| components(path).len() >= 4),
    })
}

/// The directory that a path of an image means: itself, or the one that holds the file.
fn candidates(path: &StorePath, id: i64) -> Vec<String> {
    let parent = path.parent().map(|parent| parent.to_string());
    if path.file_name() == id.to_string() {
        return vec![path.to_string()];
    }
    std::iter::once(path.to_string()).chain(parent).collect()
}

async fn remove(stores: &Stores, store: &StoreRef, target: Target) -> Answer {
    let store = match stores.open(store).await {
        Ok(store) => store,
        Err(error) => return Answer::failure(platform::logging::chain(&error).to_string()),
    };
    let (root, url) = (store.root.clone(), store.url.clone());
    let shown = format!("{target:?}");
    let removal = on_thread("store-delete", move || match &target {
        Target::Image { kind, id, path, shown } => remove_image(&root, kind, *id, path, shown),
        Target::Snapshot { path, checkpoint } => remove_snapshot(&root, path, checkpoint.as_ref()),
        Target::Snapshots(path) => remove_snapshots(&root, path),
    });
    match timeout(LIMIT, removal).await {
        Ok(Ok(Ok(details))) => {
            info!(target = shown, details, "Deleted");
            Answer {
                details,
                ..Answer::success()
            }
        }
        Ok(Ok(Err(text))) => {
            warn!(target = shown, error = text, "Not deleted");
            Answer::failure(text)
        }
        Ok(Err(lost)) => Answer::failure(lost.to_string()),
        Err(_) => Answer::failure(format!(
            "the store {url} did not answer for {LIMIT:?}; the deletion may still happen"
        )),
    }
}

/// Details of the success, or the text of the failure.
type Removed = Result<Option<String>, String>;

fn remove_image(root: &Path, kind: &str, id: i64, path: &StorePath, shown: &str) -> Removed {
    let failed = |error: io::Error| format!("Unable to delete {shown}: {error}");
    let parent = path.parent().filter(|_| path.file_name() != id.to_string());
    let directory = match open(root, path).map_err(failed)? {
        Some(directory) => Some((path.clone(), directory)),
        None => match parent {
            // A file, or nothing: then its directory counts, if it is deep enough to be an image's own.
            Some(parent) if components(&parent).len() >= if kind == "Volume" { 3 } else { 4 } => open(root, &parent)
                .map_err(failed)?
                .map(|directory| (parent, directory)),
            _ => None,
        },
    };
    let Some((path, directory)) = directory else {
        let holder = if path.file_name() == id.to_string() {
            path.file_name().to_owned()
        } else {
            path.parent()
                .map_or_else(String::new, |parent| parent.file_name().to_owned())
        };
        return Ok(Some(format!(
            "{} parent directory {holder} doesn't exist",
            kind.to_lowercase()
        )));
    };
    let under = match kind {
        "Volume" => format!(
            "under Volume path {}",
            root.join(shown.trim_start_matches('/')).display()
        ),
        _ => format!("under Template path {shown}"),
    };
    let at = directory_path(&directory);
    for entry in names(&at).map_err(failed)? {
        let path = at.join(&entry);
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        let removed = match is_directory {
            true if entry == HEARTBEATS => fs::remove_dir_all(&path),
            true => fs::remove_dir(&path),
            false => fs::remove_file(&path),
        };
        removed.or_else(missing_is_fine).map_err(|error| {
            warn!(path = %path.display(), %error, "Cannot delete");
            format!("Unable to delete file {entry} {under}")
        })?;
    }
    remove_directory(root, &path).map_err(|_| format!("Unable to delete directory {} {under}", path.file_name()))?;
    Ok(None)
}

fn remove_snapshot(root: &Path, path: &StorePath, checkpoint: Option<&StorePath>) -> Removed {
    let failed = |error: io::Error| format!("Unable to delete the snapshot {path}: {error}");
    if open(root, path).map_err(failed)?.is_some() {
        return Ok(None); // a directory: nothing is done, as upstream
    }
    let Some(parent) = path.parent() else { return Ok(None) };
    if components(&parent).len() < 3 {
        return Ok(None); // a volume's directory that is gone
    }
    if let Some(checkpoint) = checkpoint
        && let Some(holder) = checkpoint.parent()
        && let Some(directory) = open(root, &holder).map_err(failed)?
    {
        let file = directory_path(&directory).join(checkpoint.file_name());
        fs::remove_file(file).or_else(missing_is_fine).map_err(failed)?;
    }
    let Some(directory) = open(root, &parent).map_err(failed)? else {
        return Ok(None);
    };
    let at = directory_path(&directory);
    for entry in names(&at).map_err(failed)? {
        if belongs_to(&entry, path.file_name()) {
            fs::remove_file(at.join(&entry))
                .or_else(missing_is_fine)
                .map_err(failed)?;
        }
    }
    let is_empty = names(&at).map_err(failed)?.is_empty();
    if is_empty {
        remove_directory(root, &parent).map_err(failed)?;
    }
    Ok(None)
}

fn remove_snapshots(root: &Path, path: &StorePath) -> Removed {
    let failed = |error: io::Error| format!("Unable to delete the snapshots in {path}: {error}");
    let Some(directory) = open(root, path).map_err(failed)? else {
        return Ok(Some(format!("snapshot directory {} doesn't exist", path.file_name())));
    };
    let at = directory_path(&directory);
    for entry in names(&at).map_err(failed)? {
        let path = at.join(entry);
        let is_directory = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        // Neither follows links.
        let removed = if is_directory {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.or_else(missing_is_fine).map_err(failed)?;
    }
    remove_directory(root, path).map_err(failed)?;
    Ok(None)
}

fn belongs_to(entry: &str, snapshot: &str) -> bool {
    let Some(suffix) = entry.strip_prefix(snapshot) else {
        return false;
    };
    let is_disk = || {
        let number = suffix.strip_prefix("-disk")?.strip_suffix(".vmdk")?;
        Some(!number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()))
    };
    SNAPSHOT_SUFFIXES.contains(&suffix) || is_disk().unwrap_or(false)
}

/// `None`: not there, or not a directory.
fn open(root: &Path, path: &StorePath) -> io::Result<Option<File>> {
    match path::open_directory(root, path.as_str(), false) {
        Ok(directory) => Ok(Some(directory)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn components(path: &StorePath) -> Vec<&str> {
    path.as_str().split('/').collect()
}

fn remove_directory(root: &Path, path: &StorePath) -> io::Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    let Some(holder) = open(root, &parent)? else {
        return Ok(());
    };
    fs::remove_dir(directory_path(&holder).join(path.file_name())).or_else(missing_is_fine)
}

fn directory_path(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Names that are not text belong to nobody we know.
fn names(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

fn missing_is_fine(error: io::Error) -> io::Result<()> {
    match error.kind() {
        ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::transfer::{DataStoreTO, NfsTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO};
    use serde::Deserialize;

    use super::*;
    use crate::settings::Settings;

    const URL: &str = "nfs://192.168.10.5/export/secondary";

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Case {
        name: String,
        #[serde(rename = "type")]
        kind: Option<String>,
        command: Option<String>,
        directory: Option<String>,
        #[serde(default)]
        id: i64,
        path: Option<String>,
        checkpoint_path: Option<String>,
        #[serde(default)]
        tree: Vec<String>,
        left: Option<Vec<String>>,
        #[serde(rename = "left_required")]
        left_required: Option<Vec<String>>,
        result: Option<bool>,
        #[serde(rename = "result_required")]
        result_required: Option<bool>,
        details: Option<String>,
    }

    /// Files, and directories without anything in them.
    fn leaves(root: &Path) -> BTreeSet<String> {
        fn walk(at: &Path, root: &Path, found: &mut BTreeSet<String>) {
            let entries: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().path()).collect();
            if entries.is_empty() {
                found.insert(at.strip_prefix(root).unwrap().display().to_string());
            }
            for path in entries {
                if path.is_dir() {
                    walk(&path, root, found);
                } else {
                    found.insert(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut found = BTreeSet::new();
        walk(root, root, &mut found);
        found
    }

    async fn run(case: &Case, root: &Path) -> Answer {
        let settings = Settings {
            store_map: [(URL.to_owned(), root.to_owned())].into(),
            ..Settings::default()
        };
        let stores = Stores::new(&settings, None);
        let store = Some(DataStoreTO::Nfs(NfsTO {
            url: Some(URL.into()),
            ..NfsTO::default()
        }));
        if case.command.is_some() {
            let command = DeleteSnapshotsDirCommand {
                store,
                directory: case.directory.clone(),
            };
            return snapshots(&stores, &command).await;
        }
        let (path, id) = (case.path.clone(), case.id);
        let data = match case.kind.as_deref() {
            Some("TEMPLATE") => DataTO::Template(Box::new(TemplateObjectTO {
                path,
                id,
                image_data_store: store,
                ..TemplateObjectTO::default()
            })),
            Some("VOLUME") => DataTO::Volume(Box::new(VolumeObjectTO {
                path,
                id,
                data_store: store,
                ..VolumeObjectTO::default()
            })),
            _ => DataTO::Snapshot(Box::new(SnapshotObjectTO {
                path,
                id,
                data_store: store,
                checkpoint_path: case.checkpoint_path.clone(),
                ..SnapshotObjectTO::default()
            })),
        };
        let command = DeleteCommand {
            data: Some(data),
            delete_chain: false,
        };
        match read(&command) {
            Ok((store, target)) => remove(&stores, &store, target).await,
            Err(answer) => *answer,
        }
    }

    #[tokio::test]
    async fn deletes_are_those_of_the_vectors() {
        #[derive(Deserialize)]
        struct Vectors {
            cases: Vec<Case>,
        }
        let vectors: Vectors = serde_json::from_str(include_str!("../tests/vectors/delete-cases.json")).unwrap();
        assert!(vectors.cases.len() > 15);
        for case in vectors.cases {
            let store = tempfile::tempdir().unwrap();
            for file in &case.tree {
                let path = store.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                File::create(path).unwrap();
            }
            let answer = run(&case, store.path()).await;
            let expected = case.result_required.or(case.result).unwrap_or(true);
            assert_eq!(answer.result, expected, "{}: {answer:?}", case.name);
            if let Some(details) = &case.details {
                assert_eq!(answer.details.as_ref(), Some(details), "{}", case.name);
            }
            if let Some(left) = case.left_required.as_ref().or(case.left.as_ref()) {
                let mut found = leaves(store.path());
                // Made with every store.
                found.remove("snapshots");
                found.remove("volumes");
                found.remove(""); // nothing at all
                assert_eq!(found, left.iter().cloned().collect(), "{}", case.name);
            } else if !expected && case.name != "other directory inside" {
                let found = leaves(store.path());
                assert!(
                    case.tree.iter().all(|file| found.contains(file)),
                    "{}: {found:?}",
                    case.name
                );
            }
        }
    }
}
