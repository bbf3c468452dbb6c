//! What a store holds (ssvm.md §6.6, §6.12). A list with errors is no list: the server would download again what is
//! missing and delete what it does not know.

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use indexmap::IndexMap;
use platform::files;
use platform::logging::chain;
use protocol::answer::{Answer, AnswerBody};
use protocol::secondary_storage::{
    ComputeChecksumCommand, ListDataStoreObjectsAnswer, ListDataStoreObjectsCommand, ListTemplateAnswer,
    ListVolumeAnswer, TemplateProp,
};
use tokio::time::timeout;
use tracing::warn;

use crate::blocking::on_thread;
use crate::checksum::Algorithm;
use crate::jobs::Jobs;
use crate::order::StoreRef;
use crate::path::{self, StorePath};
use crate::properties::{Entry, MAX_BYTES, Properties};
use crate::stores::Stores;
use crate::stream::Digest;

/// Thousands of images on a slow file server take minutes; a server waits longer than that.
const LIMIT: Duration = Duration::from_mins(5);

/// A checksum of a disk of terabytes takes hours.
const CHECKSUM_LIMIT: Duration = Duration::from_hours(6);

/// Directories read at once: the time goes into waiting for the file server.
const READERS: usize = 16;

/// `<kind>/<account>/<id>` and what is in it; deeper is nobody's.
const MAX_DEPTH: usize = 8;

/// Most entries of a page that a server may ask for.
const MAX_PAGE: usize = 10_000;

/// One directory with properties.
#[derive(Debug)]
struct Found {
    /// Relative to the store.
    directory: String,
    properties: Properties,
}

/// ListTemplateCommand: by unique name.
pub async fn templates(stores: &Stores, jobs: &Jobs, store: Result<StoreRef, String>) -> Answer {
    let (url, found) = match find(stores, jobs, store, "template/tmpl", "template.properties").await {
        Ok(found) => found,
        Err(text) => return failed(ListTemplateAnswer::default(), text),
    };
    let props = found.iter().filter_map(prop);
    let infos = props.filter_map(|prop| Some((prop.template_name.clone()?, prop)));
    Answer::new(ListTemplateAnswer {
        sec_url: Some(url),
        template_infos: Some(infos.collect::<IndexMap<_, _>>()),
    })
}

/// ListVolumeCommand: by id.
pub async fn volumes(stores: &Stores, jobs: &Jobs, store: Result<StoreRef, String>) -> Answer {
    let (url, found) = match find(stores, jobs, store, "volumes", "volume.properties").await {
        Ok(found) => found,
        Err(text) => return failed(ListVolumeAnswer::default(), text),
    };
    let infos = found.iter().filter_map(prop).map(|prop| (prop.id.to_string(), prop));
    Answer::new(ListVolumeAnswer {
        sec_url: Some(url),
        template_infos: Some(infos.collect::<IndexMap<_, _>>()),
    })
}

fn failed(body: impl Into<AnswerBody>, text: String) -> Answer {
    warn!(error = text, "A store cannot be listed");
    Answer {
        result: false,
        ..Answer::new(body)
    }
    .with_details(text)
}

/// What one directory's properties say; `None`: not finished, or odd, which is logged.
fn prop(found: &Found) -> Option<TemplateProp> {
    let entry = match Entry::load(&found.properties, &found.directory) {
        Ok(entry) => entry?,
        Err(error) => {
            warn!(directory = found.directory, %error, "Odd properties, skipped");
            return None;
        }
    };
    Some(TemplateProp {
        template_name: Some(entry.unique_name),
        install_path: Some(entry.install_path),
        size: entry.virtual_size,
        physical_size: entry.physical_size,
        id: entry.id,
        is_public: entry.is_public,
        is_corrupted: entry.is_corrupted,
    })
}

async fn find(
    stores: &Stores,
    jobs: &Jobs,
    store: Result<StoreRef, String>,
    top: &'static str,
    file: &'static str,
) -> Result<(String, Vec<Found>), String> {
    let store = store?;
    let busy = jobs.busy_directories(&store.url);
    let store = stores.open(&store).await.map_err(|error| chain(&error).to_string())?;
    let (root, url) = (store.root.clone(), store.url.clone());
    let walk = on_thread("store-list", move || walk(&root, top, file));
    let found = timeout(LIMIT, walk)
        .await
        .map_err(|_| format!("the store {url} did not answer for {LIMIT:?}"))?
        .map_err(|lost| lost.to_string())?;
    let mut found = found.map_err(|error| format!("cannot list {top} of {url}: {error}"))?;
    found.retain(|found| !busy.contains(&found.directory));
    found.sort_by(|one, other| one.directory.cmp(&other.directory));
    Ok((url, found))
}

/// Everything below `top` with a file of that name, level by level. Any error ends it.
fn walk(root: &Path, top: &str, file: &str) -> io::Result<Vec<Found>> {
    let directory = path::open_directory(root, top, true)?;
    let base = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut found = Vec::new();
    let mut level = vec![(base, top.to_string())];
    for _ in 0..MAX_DEPTH {
        let size = level.len().div_ceil(READERS).max(1);
        let results: Vec<_> = thread::scope(|scope| {
            let readers: Vec<_> = level
                .chunks(size)
                .map(|part| scope.spawn(move || part.iter().map(|(path, name)| read(path, name, file)).collect()))
                .collect();
            readers.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        let mut next = Vec::new();
        for result in results {
            let part: Vec<io::Result<_>> = result.map_err(|_| io::Error::other("a reader panicked"))?;
            for directory in part {
                let (below, here) = directory?;
                next.extend(below);
                found.extend(here);
            }
        }
        level = next;
    }
    Ok(found)
}

/// The directories in a directory, and what its properties say. An odd properties file is logged and skipped.
#[expect(clippy::type_complexity, reason = "two lists with their paths, used once")]
fn read(path: &Path, name: &str, file: &str) -> io::Result<(Vec<(PathBuf, String)>, Option<Found>)> {
    let mut below = Vec::new();
    let mut found = None;
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((below, found)), // deleted meanwhile
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Ok(entry_name) = entry.file_name().into_string() else {
            continue;
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            below.push((path.join(&entry_name), format!("{name}/{entry_name}")));
        } else if kind.is_file() && entry_name == file {
            let bytes = files::read_limited(entry.path(), MAX_BYTES);
            let bytes = bytes.map_err(|error| io::Error::other(chain(&error).to_string()));
            match bytes?.map(|bytes| Properties::parse(&bytes)) {
                Some(Ok(properties)) => {
                    found = Some(Found {
                        directory: name.to_owned(),
                        properties,
                    });
                }
                Some(Err(error)) => warn!(directory = name, file, %error, "Odd properties, skipped"),
                None => {}
            }
        }
    }
    Ok((below, found))
}

/// ListDataStoreObjectsCommand (§6.12), sorted by name so that pages are stable.
pub async fn objects(stores: &Stores, command: &ListDataStoreObjectsCommand) -> Answer {
    let default = ListDataStoreObjectsAnswer::default;
    let store = match StoreRef::find(command.store.as_ref(), None, command.nfs_version.as_deref()) {
        Ok(store) => store,
        Err(text) => return failed(default(), text),
    };
    let text = command.path.clone().unwrap_or_default();
    let is_root = text.trim_matches('/').is_empty();
    let path = match StorePath::parse(&text) {
        Ok(path) => Some(path),
        Err(_) if is_root => None,
        Err(error) => return failed(default(), error.to_string()),
    };
    let store = match stores.open(&store).await {
        Ok(store) => store,
        Err(error) => return failed(default(), chain(&error).to_string()),
    };
    let root = store.root.clone();
    let number = |value: i64| usize::try_from(value).unwrap_or(0);
    let (start, size) = (number(command.start_index), number(command.page_size).min(MAX_PAGE));
    let listed = on_thread("store-browse", move || browse(&root, path.as_ref(), start, size));
    match timeout(LIMIT, listed).await {
        Ok(Ok(Ok(answer))) => Answer::new(answer),
        Ok(Ok(Err(error))) => failed(default(), format!("cannot list {text:?} of {}: {error}", store.url)),
        Ok(Err(lost)) => failed(default(), lost.to_string()),
        Err(_) => failed(
            default(),
            format!("the store {} did not answer for {LIMIT:?}", store.url),
        ),
    }
}

fn browse(root: &Path, path: Option<&StorePath>, start: usize, size: usize) -> io::Result<ListDataStoreObjectsAnswer> {
    let opened = match path {
        None => path::open_root(root),
        Some(path) => path::open_directory(root, path.as_str(), false),
    };
    let mut names = Vec::new();
    let (directory, prefix) = match (opened, path) {
        (Ok(directory), path) => {
            let at = format!("/proc/self/fd/{}", directory.as_raw_fd());
            for entry in fs::read_dir(at)? {
                names.extend(entry?.file_name().into_string());
            }
            (directory, path.map_or_else(String::new, |path| format!("/{path}")))
        }
        // A file: itself.
        (Err(error), Some(path)) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound) => {
            let parent = path.parent();
            let holder = match &parent {
                None => path::open_root(root),
                Some(parent) => path::open_directory(root, parent.as_str(), false),
            };
            let is_there = |holder: &fs::File| {
                fs::symlink_metadata(format!("/proc/self/fd/{}/{}", holder.as_raw_fd(), path.file_name())).is_ok()
            };
            match holder {
                Ok(holder) if is_there(&holder) => {
                    names.push(path.file_name().to_owned());
                    (holder, parent.map_or_else(String::new, |parent| format!("/{parent}")))
                }
                _ => return Ok(ListDataStoreObjectsAnswer::default()),
            }
        }
        (Err(error), _) => return Err(error),
    };
    names.sort();
    let mut answer = ListDataStoreObjectsAnswer {
        path_exists: true,
        count: i64::try_from(names.len()).unwrap_or(i64::MAX),
        ..ListDataStoreObjectsAnswer::default()
    };
    let (mut page, mut paths, mut absolute) = (Vec::new(), Vec::new(), Vec::new());
    let (mut is_dirs, mut sizes, mut modified) = (Vec::new(), Vec::new(), Vec::new());
    for name in names.into_iter().skip(start).take(size) {
        let found = fs::symlink_metadata(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
        paths.push(format!("{prefix}/{name}"));
        absolute.push(format!("{}{prefix}/{name}", root.display()));
        is_dirs.push(found.is_dir());
        sizes.push(i64::try_from(found.len()).unwrap_or(i64::MAX));
        modified.push(
            found
                .mtime()
                .saturating_mul(1000)
                .saturating_add(found.mtime_nsec() / 1_000_000),
        );
        page.push(name);
    }
    answer.names = Some(page);
    answer.paths = Some(paths);
    answer.abs_paths = Some(absolute);
    answer.is_dirs = Some(is_dirs);
    answer.sizes = Some(sizes);
    answer.last_modified = Some(modified);
    Ok(answer)
}

/// ComputeChecksumCommand (§6.1): details are `{ALG}hex`.
pub async fn checksum(stores: &Stores, command: &ComputeChecksumCommand) -> Answer {
    let url = command.sec_url.as_deref();
    let Ok(store) = StoreRef::find(command.store.as_ref(), url, command.nfs_version.as_deref()) else {
        return Answer::failure("can't handle non nfs data store");
    };
    let name = command.algorithm.as_deref().unwrap_or("MD5");
    let Some(algorithm) = Algorithm::by_name(name) else {
        return Answer::failure(format!("invalid algorithm: {name}"));
    };
    let path = match StorePath::parse(command.template_path.as_deref().unwrap_or_default()) {
        Ok(path) => path,
        Err(error) => return Answer::failure(error.to_string()),
    };
    let store = match stores.open(&store).await {
        Ok(store) => store,
        Err(error) => return Answer::failure(chain(&error).to_string()),
    };
    let root = store.root.clone();
    let digest = on_thread("store-digest", move || digest(&root, &path, algorithm));
    match timeout(CHECKSUM_LIMIT, digest).await {
        Ok(Ok(Ok(checksum))) => Answer::success().with_details(checksum),
        Ok(Ok(Err(error))) => Answer::failure(format!("cannot read the file: {error}")),
        Ok(Err(lost)) => Answer::failure(lost.to_string()),
        Err(_) => Answer::failure(format!("the store {} did not answer for {CHECKSUM_LIMIT:?}", store.url)),
    }
}

fn digest(root: &Path, path: &StorePath, algorithm: Algorithm) -> io::Result<String> {
    let mut file = path::open_file(&path::open_root(root)?, path)?;
    if !file.metadata()?.is_file() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let mut digest = Digest::new(algorithm);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(digest.finish().to_string()),
            read => digest.update(&buffer[..read]),
        }
    }
}
