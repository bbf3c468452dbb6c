//! How a store is mounted (ssvm.md §1.6). What to do is decided here as plain data; `stores` does it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use platform::exec::Cmd;
use protocol::secret::Secret;
use url::{Host, Url};

use crate::mount_uuid::mount_uuid;

/// Upstream's options; `retrans` makes the soft mount practically hard: what is open goes on when a server comes back, however
/// long that takes (decision 0061).
const NFS_OPTIONS: &str = "soft,timeo=133,retrans=2147483647,tcp,acdirmax=0,acdirmin=0";
/// What can be mounted.
const NFS_VERSIONS: [&str; 5] = ["3", "4", "4.0", "4.1", "4.2"];

/// A store's URL, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUrl {
    /// Name or address of the file server.
    pub host: String,
    /// The export, with its leading slash.
    pub path: String,
    /// How it is reached.
    pub scheme: Scheme,
}

/// The two kinds of file servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// `nfs://host/path`.
    Nfs,
    /// `cifs://host/share?user=…&password=…`.
    Cifs {
        /// All pairs but the password, in order.
        options: Vec<(String, String)>,
        /// Kept apart: it must not be seen in the list of processes.
        password: Secret<String>,
    },
}

/// A version of NFS that the kernel of the image speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NfsVersion(&'static str);

/// A version that it does not speak.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the NFS version {0:?} is none that can be mounted; set secstorage.nfs.version (of the zone or the store) to {list}, or to \
     nothing",
    list = NFS_VERSIONS.join(", ")
)]
pub struct BadNfsVersion(String);

impl FromStr for NfsVersion {
    type Err = BadNfsVersion;

    fn from_str(text: &str) -> Result<Self, BadNfsVersion> {
        let known = NFS_VERSIONS.into_iter().find(|version| *version == text);
        known
            .map(Self)
            .ok_or_else(|| BadNfsVersion(text.chars().take(80).collect()))
    }
}

/// Why a URL is no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadStoreUrl {
    /// Another scheme.
    #[error("Unsupported storage device scheme {scheme} in uri {uri}")]
    Scheme {
        /// What it is.
        scheme: String,
        /// Without its query.
        uri: String,
    },
    /// No host, no path, no credentials.
    #[error("{uri} is no store: {why}; write it like nfs://192.0.2.5/export/secondary")]
    Incomplete {
        /// Without its query.
        uri: String,
        /// What is missing.
        why: &'static str,
    },
}

impl StoreUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// It is none of a store.
    pub fn parse(text: &str) -> Result<Self, BadStoreUrl> {
        let uri = text.split(['?', '#']).next().unwrap_or_default().to_owned();
        let incomplete = |why| BadStoreUrl::Incomplete { uri: uri.clone(), why };
        let url = Url::parse(text).map_err(|_| incomplete("it cannot be read"))?;
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(incomplete("the host is missing")),
        };
        let path = url.path().to_owned();
        if path.chars().any(|c| c.is_control() || c == ',') {
            return Err(incomplete("the path has a comma or a control character"));
        }
        let scheme = match url.scheme() {
            "nfs" if path.len() > 1 => Scheme::Nfs,
            "nfs" => return Err(incomplete("the path is missing")),
            "cifs" => cifs(&url).ok_or_else(|| incomplete("user or password is missing"))?,
            scheme => {
                return Err(BadStoreUrl::Scheme {
                    scheme: scheme.to_owned(),
                    uri,
                });
            }
        };
        Ok(Self { host, path, scheme })
    }

    /// Name of the mount directory, once the host is resolved.
    pub fn directory(&self, ip: &str) -> String {
        mount_uuid(&format!("{ip}:{}", self.path))
    }

    /// What is mounted, as the mount table shows it.
    pub fn device(&self, ip: IpAddr) -> String {
        let ip = match ip {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        match self.scheme {
            Scheme::Nfs => format!("{ip}:{}", self.path),
            Scheme::Cifs { .. } => format!("//{ip}{}", self.path),
        }
    }

    /// The mount command. The password of a CIFS share is in `credentials`, a file that only root can read.
    pub fn command(
        &self,
        ip: IpAddr,
        version: Option<NfsVersion>,
        options: Option<&str>,
        at: &Path,
        credentials: &Path,
        limit: Duration,
    ) -> Cmd {
        let (kind, words) = match &self.scheme {
            Scheme::Nfs => {
                let mut words = options.unwrap_or(NFS_OPTIONS).to_owned();
                if let Some(NfsVersion(version)) = version {
                    words.push_str(",vers=");
                    words.push_str(version);
                }
                let has = |words: &str, names: &[&str]| {
                    let mut keys = words.split(',').map(|word| word.split('=').next().unwrap_or(word));
                    keys.any(|key| names.contains(&key))
                };
                // Locks of v3 need programs that listen here, and nobody locks: one program writes each file. v4 ignores it.
                if version.is_none_or(|version| version.0 == "3") && !has(&words, &["lock", "nolock"]) {
                    words.push_str(",nolock");
                }
                // The reason at once instead of two minutes of attempts: whoever needs the store asks again.
                if !has(&words, &["retry"]) {
                    words.push_str(",retry=0");
                }
                ("nfs", words)
            }
            Scheme::Cifs { options: pairs, .. } => {
                let pairs = pairs.iter().filter(|(key, _)| key != "user");
                let mut words = format!("credentials={},", credentials.display());
                for (key, value) in pairs {
                    words.extend([key, "=", value, ","]);
                }
                words.push_str(options.unwrap_or("soft,actimeo=0"));
                ("cifs", words)
            }
        };
        Cmd::new("mount")
            .args(["-t", kind, "-o", &words, "--", &self.device(ip)])
            .arg(at)
            .time_limit(limit)
    }

    /// Content of the credentials file, mount.cifs(8); `None` for NFS.
    pub fn credentials(&self) -> Option<Secret<String>> {
        let Scheme::Cifs { options, password } = &self.scheme else {
            return None;
        };
        let user = options
            .iter()
            .find(|(key, _)| key == "user")
            .map(|(_, user)| user.as_str());
        Some(Secret::new(format!(
            "username={}\npassword={}\n",
            user.unwrap_or_default(),
            password.expose()
        )))
    }
}

fn cifs(url: &Url) -> Option<Scheme> {
    let mut password = None;
    let mut options = Vec::new();
    for (key, value) in url.query_pairs() {
        // A comma or newline would start another option or line.
        if [&key, &value].iter().any(|text| text.contains([',', '\n', '\r', '\0'])) {
            return None;
        }
        match key.as_ref() {
            "password" => password = Some(Secret::new(value.into_owned())),
            _ => options.push((key.into_owned(), value.into_owned())),
        }
    }
    let has_user = options.iter().any(|(key, _)| key == "user");
    Some(Scheme::Cifs {
        options,
        password: password.filter(|_| has_user)?,
    })
}

/// Whether something is mounted exactly there, by the text of `/proc/self/mountinfo` (proc(5)).
pub fn is_mounted(mountinfo: &str, at: &Path) -> bool {
    mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| unescape(point) == at)
}

/// Blanks and the like are written as octal numbers.
fn unescape(point: &str) -> PathBuf {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let text = plain
        .iter()
        .fold(point.to_owned(), |text, (code, c)| text.replace(code, c));
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vectors {
        mounts: Vec<Mount>,
        errors: Vec<Bad>,
    }
    #[derive(serde::Deserialize)]
    struct Mount {
        url: String,
        resolved_ip: IpAddr,
        nfs_version: Option<String>,
        dir: String,
        #[serde(rename = "mount_point")]
        at: PathBuf,
        argv: Vec<String>,
    }
    #[derive(serde::Deserialize)]
    struct Bad {
        url: String,
    }

    #[test]
    fn mounts_are_those_of_the_vectors_but_passwords_are_in_a_file() {
        let vectors: Vectors = serde_json::from_str(include_str!("../tests/vectors/mount-uuid.json")).unwrap();
        for mount in vectors.mounts {
            let url = StoreUrl::parse(&mount.url).unwrap();
            assert_eq!(
                url.directory(&mount.resolved_ip.to_string()),
                mount.dir,
                "{}",
                mount.url
            );
            let command = url.command(
                mount.resolved_ip,
                mount.nfs_version.as_deref().map(|version| version.parse().unwrap()),
                None,
                &mount.at,
                Path::new("/run/c"),
                Duration::from_mins(1),
            );
            let (paths, words) = (&mount.argv[5..], &mount.argv[..5]);
            let expected = format!("{} -- {}", words.join(" "), paths.join(" "));
            let expected = expected.replace("user=u1,password=p1", "credentials=/run/c");
            let said = command.to_string();
            // What ours adds to upstream's options is tested below.
            let said = said.replace(",nolock", "").replace(",retry=0", "");
            assert_eq!(said, expected);
            if let Some(credentials) = url.credentials() {
                assert_eq!(credentials.expose(), "username=u1\npassword=p1\n");
            }
        }
        for bad in vectors.errors {
            // A name that does not resolve is found out later.
            let is_bad = StoreUrl::parse(&bad.url).is_err();
            assert_eq!(is_bad, !bad.url.contains("no-such-host"), "{}", bad.url);
        }
    }

    #[test]
    fn what_an_operator_says_stays_and_v3_needs_no_lock_daemon() {
        let url = StoreUrl::parse("nfs://192.0.2.5/e").unwrap();
        let options = |version: Option<&str>, options: Option<&str>| {
            let version = version.map(|version| version.parse().unwrap());
            let ip = "192.0.2.5".parse().unwrap();
            let (at, none) = (Path::new("/mnt/x"), Path::new("/none"));
            let command = url
                .command(ip, version, options, at, none, Duration::from_mins(1))
                .to_string();
            let words = command.strip_prefix("mount -t nfs -o ").unwrap();
            words.strip_suffix(" -- 192.0.2.5:/e /mnt/x").unwrap().to_owned()
        };
        assert_eq!(options(Some("3"), None), format!("{NFS_OPTIONS},vers=3,nolock,retry=0"));
        assert_eq!(options(Some("4.1"), None), format!("{NFS_OPTIONS},vers=4.1,retry=0"));
        // It may become v3.
        assert_eq!(options(None, None), format!("{NFS_OPTIONS},nolock,retry=0"));
        assert_eq!(
            options(Some("3"), Some("hard,lock,retry=2")),
            "hard,lock,retry=2,vers=3"
        );
    }

    #[test]
    fn only_versions_that_the_kernel_speaks_are_taken() {
        for bad in ["", "2", "5", "4.3", "4.1,suid", "4 ", "v4"] {
            let error = bad.parse::<NfsVersion>().unwrap_err().to_string();
            assert!(error.ends_with("to 3, 4, 4.0, 4.1, 4.2, or to nothing"), "{error}");
        }
    }

    #[test]
    fn other_schemes_and_smuggled_options_are_refused() {
        assert_eq!(
            StoreUrl::parse("ftp://192.168.10.6/share").unwrap_err().to_string(),
            "Unsupported storage device scheme ftp in uri ftp://192.168.10.6/share"
        );
        for url in [
            "nfs://192.168.10.5",
            "nfs:///x",
            "cifs://h/s?user=a&password=b%2Csuid",
            "nfs://h/a,b",
        ] {
            assert!(StoreUrl::parse(url).is_err(), "{url}");
        }
        let error = StoreUrl::parse("cifs://h/s?password=hush").unwrap_err().to_string();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn the_mount_table_is_read_with_its_escapes() {
        let table = "36 35 98:0 / /mnt/Sec\\040Storage/x rw - nfs 10.0.0.5:/e rw\n";
        assert!(is_mounted(table, Path::new("/mnt/Sec Storage/x")));
        assert!(!is_mounted(table, Path::new("/mnt/Sec")));
    }
}
