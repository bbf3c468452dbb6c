//! What a DownloadCommand asks for, checked (ssvm.md §3.1, §3.2).

use std::fmt;

use protocol::secondary_storage::{DownloadCommand, ResourceType};
use protocol::transfer::{DataStoreTO, ImageFormat};
use url::Url;

use crate::checksum::Checksum;
use crate::delete::components;
use crate::path::StorePath;
use crate::source::{Credentials, Proxy, Shown};

/// Where the command says nothing about its limit.
const DEFAULT_MAX: u64 = 50 << 30;

/// Squid's port, where the setting `secstorage.proxy` has none.
const PROXY_PORT: u16 = 3128;

/// What each format's files may be called (`url-rules.json`); each may be followed by one of [`COMPRESSED`].
const EXTENSIONS: [(ImageFormat, &[&str]); 8] = [
    (ImageFormat::Qcow2, &[".qcow2", ".img"]),
    (ImageFormat::Raw, &[".raw", ".img"]),
    (ImageFormat::Vhd, &[".vhd"]),
    (ImageFormat::Vhdx, &[".vhdx"]),
    (ImageFormat::Vmdk, &[".vmdk"]),
    (ImageFormat::Ova, &[".ova"]),
    (ImageFormat::Tar, &[".tar"]),
    (ImageFormat::Iso, &[".iso"]),
];

const COMPRESSED: [&str; 4] = [".bz2", ".gz", ".xz", ".zip"];

/// What kind of thing is downloaded: decides the name of its properties file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A template or ISO.
    Template,
    /// A volume.
    Volume,
}

/// A store as commands name it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct StoreRef {
    /// `nfs://host/path`; that of a CIFS share holds its password.
    pub url: String,
    /// NFS version such as `4.1`.
    pub nfs_version: Option<String>,
}

/// A download that can be tried.
#[derive(Debug, Clone)]
pub struct Order {
    /// Source.
    pub url: Url,
    /// Whether the URL's name says compressed.
    pub is_named_compressed: bool,
    /// Unique name.
    pub name: String,
    /// Database id.
    pub id: i64,
    /// Kind.
    pub kind: Kind,
    /// Format as registered.
    pub format: ImageFormat,
    /// Needs hardware virtualisation.
    pub hvm: bool,
    /// Display text.
    pub description: String,
    /// As it was given.
    pub checksum: Option<String>,
    /// The same, read.
    pub expected: Option<Checksum>,
    /// Directory relative to the store.
    pub install_path: StorePath,
    /// Target.
    pub store: StoreRef,
    /// At the source.
    pub auth: Option<Credentials>,
    /// On the way.
    pub proxy: Option<Proxy>,
    /// Bytes, for what comes and for what is unpacked from it.
    pub max_bytes: u64,
    /// Whether redirects are followed.
    pub follow_redirects: bool,
    /// As it came; kept for the journal.
    pub command: DownloadCommand,
}

/// Why a download is not even tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unacceptable {
    /// DownloadAnswer with DOWNLOAD_ERROR and this text.
    Error(String),
    /// DownloadAnswer with NOT_DOWNLOADED and this text.
    NotDownloaded(String),
    /// Plain answer with result false and this text.
    Failed(String),
}

impl Order {
    /// Checks a command, in upstream's order.
    ///
    /// # Errors
    /// What the server is to be answered at once.
    pub fn parse(command: &DownloadCommand) -> Result<Self, Unacceptable> {
        let error = |text: &str| Unacceptable::Error(text.to_owned());
        let kind = match command.resource_type {
            Some(ResourceType::Template) | None => Kind::Template,
            Some(ResourceType::Volume) => Kind::Volume,
            Some(ResourceType::Snapshot) => {
                return Err(error(
                    "copies of snapshots between zones are not supported by this version",
                ));
            }
        };
        let Some(url) = command.url.as_deref() else {
            let kind = match kind {
                Kind::Template => "TEMPLATE",
                Kind::Volume => "VOLUME",
            };
            return Err(Unacceptable::Error(format!(
                "{kind} is corrupted on storage due to an invalid url , cannot download"
            )));
        };
        let name = command.name.clone().ok_or_else(|| error("Invalid Name"))?;
        let checksum = command.checksum.clone().filter(|text| !text.trim().is_empty());
        let expected = match &checksum {
            None => None,
            Some(text) => Some(
                Checksum::parse(text).map_err(|_| Unacceptable::NotDownloaded(format!("invalid algorithm: {text}")))?,
            ),
        };
        let store = StoreRef::of(command)?;
        let url = url.trim();
        let parsed =
            Url::parse(url).map_err(|_| Unacceptable::Failed(format!("URI is incorrect: {}", printable(url))))?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(Unacceptable::Failed(format!(
                "Scheme is not supported {}",
                Shown::new(&parsed)
            )));
        }
        let format = command
            .format
            .ok_or_else(|| error("the command names no image format; register it again with one"))?;
        let is_named_compressed = named(format, parsed.path()).ok_or_else(|| {
            Unacceptable::Error(mismatch(
                &format!("a file name that does not end in {}", extensions(format)),
                &parsed,
            ))
        })?;
        let text = command.install_path.as_deref().unwrap_or_default();
        let cannot_create = |why: &str| Unacceptable::Error(format!("Unable to create {}: {why}", printable(text)));
        let install_path = StorePath::parse(text).map_err(|error| cannot_create(&error.to_string()))?;
        let wanted = match (kind, components(&install_path).as_slice()) {
            (Kind::Template, ["template", "tmpl", _account, _id]) | (Kind::Volume, ["volumes", _account, _id]) => None,
            (Kind::Template, _) => Some("a template's directory is template/tmpl/<account>/<id>"),
            (Kind::Volume, _) => Some("a volume's directory is volumes/<account>/<id>"),
        };
        if let Some(wanted) = wanted {
            return Err(cannot_create(wanted));
        }
        let max = command
            .max_download_size_in_bytes
            .and_then(|max| u64::try_from(max).ok());
        Ok(Self {
            url: parsed,
            is_named_compressed,
            name,
            id: command.id,
            kind,
            format,
            hvm: command.hvm,
            description: command.description.clone().unwrap_or_default(),
            checksum,
            expected,
            install_path,
            store,
            auth: credentials(command),
            proxy: proxy(command),
            max_bytes: max.filter(|max| *max > 0).unwrap_or(DEFAULT_MAX),
            follow_redirects: command.follow_redirects,
            command: command.clone(),
        })
    }

    /// Whether another order is for the same thing from the same place: a job for it can serve both.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |order: &Self| {
            (
                order.store.url.clone(),
                order.install_path.clone(),
                order.url.clone(),
                order.name.clone(),
                order.checksum.clone(),
                order.max_bytes,
            )
        };
        same(self) == same(other) && self.format == other.format && self.kind == other.kind
    }
}

impl fmt::Debug for StoreRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(shown_store(&self.url))
    }
}

/// A store's URL for logs and users: without its query, which may hold a password.
pub fn shown_store(url: &str) -> &str {
    url.split(['?', '#']).next().unwrap_or_default()
}

impl StoreRef {
    fn of(command: &DownloadCommand) -> Result<Self, Unacceptable> {
        Self::find(
            command.store.as_ref(),
            command.sec_url.as_deref(),
            command.nfs_version.as_deref(),
        )
        .map_err(Unacceptable::Failed)
    }

    /// The NFS store that a command names.
    ///
    /// # Errors
    /// It is another kind of store, which we cannot use: the text of the answer.
    pub fn find(store: Option<&DataStoreTO>, url: Option<&str>, version: Option<&str>) -> Result<Self, String> {
        let unsupported = |what: &str| Err(format!("Unsupported image data store: {what}"));
        match store {
            Some(DataStoreTO::Nfs(nfs)) => match nfs.url.as_deref().or(url) {
                Some(url) => Ok(Self {
                    url: url.to_owned(),
                    nfs_version: nfs.nfs_version.as_deref().or(version).map(str::to_owned),
                }),
                None => unsupported("an NFS store without a URL"),
            },
            Some(DataStoreTO::S3(_)) => unsupported("S3 is not supported by this version"),
            Some(DataStoreTO::Swift(_)) => unsupported("Swift is not supported by this version"),
            Some(_) => unsupported("it is neither NFS, S3 nor Swift"),
            None => match url {
                Some(url) => Ok(Self {
                    url: url.to_owned(),
                    nfs_version: version.map(str::to_owned),
                }),
                None => unsupported("the command has none"),
            },
        }
    }
}

/// Upstream's refusal of a file that is not what it should be (§3.5), with what it is and where it came from.
pub fn mismatch(found: &str, url: &Url) -> String {
    format!(
        "Failed to install: Template content is unsupported, or mismatch between selected format and Template content. \
         Found  : {found} ({})",
        Shown::new(url)
    )
}

/// Whether the path of a URL has one of the format's names; `true`: one that says compressed.
fn named(format: ImageFormat, path: &str) -> Option<bool> {
    let path = path.to_ascii_lowercase();
    let (_, plain) = EXTENSIONS.iter().find(|(known, _)| *known == format)?;
    let ends = |path: &str| plain.iter().any(|extension| path.ends_with(extension));
    if ends(&path) {
        return Some(false);
    }
    let inner = COMPRESSED.iter().find_map(|suffix| path.strip_suffix(suffix))?;
    ends(inner).then_some(true)
}

fn extensions(format: ImageFormat) -> String {
    let found = EXTENSIONS.iter().find(|(known, _)| *known == format);
    match found {
        Some((_, plain)) => format!("{} (or these and .bz2, .gz, .xz, .zip)", plain.join(", ")),
        None => "anything: this format cannot be downloaded".into(),
    }
}

fn credentials(command: &DownloadCommand) -> Option<Credentials> {
    let auth = command.auth.as_ref()?;
    Some(Credentials {
        user: auth.user_name.clone()?,
        password: auth.password.clone().unwrap_or_default(),
    })
}

fn proxy(command: &DownloadCommand) -> Option<Proxy> {
    let proxy = command.proxy.as_ref()?;
    let credentials = proxy.user_name.clone().map(|user| Credentials {
        user,
        password: proxy.password.clone().unwrap_or_default(),
    });
    Some(Proxy {
        host: proxy.host.clone().filter(|host| !host.is_empty())?,
        port: u16::try_from(proxy.port)
            .ok()
            .filter(|port| *port > 0)
            .unwrap_or(PROXY_PORT),
        credentials,
    })
}

/// Text of a peer for an answer: one line, not endless.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use protocol::transfer::NfsTO;

    use super::*;

    fn command(url: &str, format: ImageFormat) -> DownloadCommand {
        let store = NfsTO {
            url: Some("nfs://192.168.10.5/export/secondary".into()),
            ..NfsTO::default()
        };
        DownloadCommand {
            url: Some(url.into()),
            name: Some("207-2-demo".into()),
            format: Some(format),
            resource_type: Some(ResourceType::Template),
            install_path: Some("template/tmpl/2/207".into()),
            store: Some(DataStoreTO::Nfs(store)),
            ..DownloadCommand::default()
        }
    }

    #[test]
    fn names_are_those_of_the_vectors() {
        #[derive(serde::Deserialize)]
        struct Rules {
            extensions_by_format: std::collections::BTreeMap<String, Vec<String>>,
        }
        let rules: Rules = serde_json::from_str(include_str!("../tests/vectors/url-rules.json")).unwrap();
        for (format, extensions) in rules.extensions_by_format {
            let format: ImageFormat = serde_json::from_value(format.to_uppercase().into()).unwrap();
            for extension in extensions {
                let found = named(format, &format!("/a{}", extension.to_uppercase()));
                let expected = match extension.as_str() {
                    ".metalink" => None, // not in this version
                    name => Some(COMPRESSED.iter().any(|suffix| name.ends_with(suffix))),
                };
                assert_eq!(found, expected, "{format:?} {extension}");
            }
        }
        assert_eq!(named(ImageFormat::Qcow2, "/download"), None);
        assert_eq!(named(ImageFormat::Qcow2, "/a.qcow2.gz.gz"), None);
        assert_eq!(named(ImageFormat::Vdi, "/a.vdi"), None);
    }

    #[test]
    fn what_cannot_be_tried_is_answered_as_upstream_does() {
        let good = command("http://203.0.113.9/a.qcow2", ImageFormat::Qcow2);
        let parse = |change: fn(&mut DownloadCommand)| {
            let mut command = good.clone();
            change(&mut command);
            Order::parse(&command).unwrap_err()
        };
        let error = |text: &str| Unacceptable::Error(text.into());
        let failed = |text: &str| Unacceptable::Failed(text.into());
        assert_eq!(
            parse(|command| command.url = None),
            error("TEMPLATE is corrupted on storage due to an invalid url , cannot download")
        );
        assert_eq!(parse(|command| command.name = None), error("Invalid Name"));
        assert_eq!(
            parse(|command| command.checksum = Some("{CRC32}352441c2".into())),
            Unacceptable::NotDownloaded("invalid algorithm: {CRC32}352441c2".into())
        );
        assert_eq!(
            parse(|command| command.url = Some("nonsense".into())),
            failed("URI is incorrect: nonsense")
        );
        assert_eq!(
            parse(|command| command.url = Some("ftp://203.0.113.9/a.qcow2".into())),
            failed("Scheme is not supported ftp://203.0.113.9/a.qcow2")
        );
        assert_eq!(
            parse(|command| command.store = None),
            failed("Unsupported image data store: the command has none")
        );
        assert_eq!(
            parse(|command| command.url = Some("http://203.0.113.9/download?id=5".into())),
            error(
                "Failed to install: Template content is unsupported, or mismatch between selected format and Template \
                 content. Found  : a file name that does not end in .qcow2, .img (or these and .bz2, .gz, .xz, .zip) \
                 (http://203.0.113.9/download?…)"
            )
        );
    }

    #[test]
    fn hosts_in_odd_spellings_are_addresses() {
        for url in [
            "http://2130706433/a.iso",
            "http://0177.0.0.1/a.iso",
            "http://0x7f.1/a.iso",
        ] {
            let order = Order::parse(&command(url, ImageFormat::Iso)).unwrap();
            assert_eq!(order.url.host_str(), Some("127.0.0.1"), "{url}");
        }
    }
}
