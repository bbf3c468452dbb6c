//! Where packages are fetched from: this machine's own Debian mirror, as apt knows it, or one that is named. No address of
//! any mirror is built in.

use std::collections::BTreeMap;
use std::path::Path;

use clap::Args;
use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};
use url::Url;

use crate::lock::ARCHIVES;

/// Which mirrors to use, as said on the command line.
#[derive(Debug, Clone, Default, Args)]
pub struct Source {
    /// A Debian mirror to use instead of those in this machine's apt configuration; may be repeated.
    ///
    /// Either the place that has debian/ and debian-security/ below it, or one of the two (its last part says which), or
    /// ARCHIVE=URL where the address does not say it, as for a snapshot:
    /// debian=https://snapshot.example.org/archive/debian/20260101T000000Z. What the first does not have is taken from the
    /// next. http, https and file addresses are understood; apt's proxy and auth.conf settings count.
    #[arg(id = "mirror", long, value_name = "URL", verbatim_doc_comment)]
    pub mirrors: Vec<String>,
    /// Use no network: everything must be in the cache.
    #[arg(long, conflicts_with = "mirror")]
    pub offline: bool,
}

/// For each archive (`debian`, `debian-security`) the addresses of its copies, the best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirrors(BTreeMap<&'static str, Vec<String>>);

/// Why there is no mirror.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// Not an address.
    #[error("{url:?} cannot be a mirror: {why}")]
    Bad {
        /// As it was given.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// Nobody has one of the archives.
    #[error(
        "{place} no copy of Debian's archive {archive:?}; name one with --mirror, such as --mirror https://mirror.example.org/{archive}"
    )]
    None {
        /// Where was looked.
        place: &'static str,
        /// `debian` or `debian-security`.
        archive: &'static str,
    },
    /// apt did not answer.
    #[error("cannot ask apt for this machine's mirrors; name one with --mirror")]
    Apt(#[from] ExecError),
    /// apt's configuration names a list of mirrors which cannot be read.
    #[error("cannot read a list of mirrors")]
    List(#[from] FileError),
}

impl Mirrors {
    /// Those that the command line names, or else this machine's.
    ///
    /// # Errors
    /// There are none, or one of them is no address.
    pub async fn of(source: &Source) -> Result<Self, MirrorError> {
        if source.mirrors.is_empty() {
            Self::of_machine().await
        } else {
            Self::named(&source.mirrors)
        }
    }

    /// Those with these addresses, as [`Source::mirrors`] has them.
    ///
    /// # Errors
    /// One is no address.
    pub fn named(urls: &[String]) -> Result<Self, MirrorError> {
        let mut mirrors = Self::empty();
        for given in urls {
            let named = ARCHIVES.into_iter().find_map(|archive| {
                let url = given.strip_prefix(archive)?.strip_prefix('=')?;
                Some((archive, url))
            });
            if let Some((archive, url)) = named {
                mirrors.add(archive, check(url)?);
                continue;
            }
            let url = check(given)?;
            match archive_of(&url) {
                Some(archive) => mirrors.add(archive, url),
                None => ARCHIVES
                    .into_iter()
                    .for_each(|archive| mirrors.add(archive, format!("{url}/{archive}"))),
            }
        }
        mirrors.complete("--mirror names")
    }

    /// Those of this machine's apt configuration, whatever release of Debian it runs: a mirror has all.
    ///
    /// # Errors
    /// It has none of Debian, or no apt.
    pub async fn of_machine() -> Result<Self, MirrorError> {
        let format = "$(CREATED_BY)\t$(ORIGIN)\t$(LABEL)\t$(REPO_URI)";
        let targets = Cmd::new("apt-get")
            .args(["indextargets", "--format", format])
            .env("LC_ALL", "C");
        let mut mirrors = Self::empty();
        for (archive, url) in targets.run().await?.text().lines().filter_map(debian_target) {
            match list_of(&url) {
                Some(list) => {
                    for url in read_list(list)? {
                        mirrors.add(archive, url);
                    }
                }
                None => mirrors.add(archive, url),
            }
        }
        mirrors.complete("this machine's apt configuration has")
    }

    /// The addresses of an archive's copies, without a slash at their ends.
    pub fn of_archive(&self, archive: &str) -> &[String] {
        self.0.get(archive).map_or(&[], Vec::as_slice)
    }

    fn empty() -> Self {
        Self(ARCHIVES.into_iter().map(|archive| (archive, Vec::new())).collect())
    }

    fn add(&mut self, archive: &'static str, url: String) {
        let known = self.0.entry(archive).or_default();
        if !known.contains(&url) {
            known.push(url);
        }
    }

    fn complete(self, place: &'static str) -> Result<Self, MirrorError> {
        match self.0.iter().find(|(_, urls)| urls.is_empty()) {
            Some((archive, _)) => Err(MirrorError::None { place, archive }),
            None => Ok(self),
        }
    }
}

/// The archive that an address' last part names.
fn archive_of(url: &str) -> Option<&'static str> {
    let last = url.rsplit('/').next()?;
    ARCHIVES.into_iter().find(|archive| *archive == last)
}

/// One line of apt's index targets, if it is a list of packages of one of Debian's archives. Before the first
/// `apt-get update` apt does not know whose a mirror is; then its address says it.
fn debian_target(line: &str) -> Option<(&'static str, String)> {
    let [created_by, origin, label, url] = line.split('\t').collect::<Vec<_>>().try_into().ok()?;
    let url = url.trim_end_matches('/').to_owned();
    if created_by != "Packages" {
        return None;
    }
    match (origin, label) {
        ("Debian", "Debian") => Some(("debian", url)),
        ("Debian", "Debian-Security") => Some(("debian-security", url)),
        ("", _) => Some((archive_of(&url)?, url)),
        _ => None,
    }
}

/// The file that lists the mirrors, for addresses such as `mirror+file:/etc/apt/mirrors/debian.list` (apt-transport-mirror(1)):
/// Debian's cloud images have them. Only apt itself understands such an address, and only for lists of packages.
fn list_of(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("mirror+file:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    path.starts_with('/').then(|| Path::new(path))
}

fn read_list(path: &Path) -> Result<Vec<String>, MirrorError> {
    const MAX: u64 = 1 << 20;
    let text = files::read_limited(path, MAX)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let urls = text.lines().filter_map(|line| line.split_whitespace().next());
    let urls = urls.filter(|url| !url.starts_with('#'));
    Ok(urls.map(|url| url.trim_end_matches('/').to_owned()).collect())
}

/// An address that apt understands and that can be written into its list of sources.
fn check(given: &str) -> Result<String, MirrorError> {
    let bad = |why: &str| MirrorError::Bad {
        url: given.to_owned(),
        why: why.to_owned(),
    };
    let url = Url::parse(given).map_err(|error| bad(&error.to_string()))?;
    if !["http", "https", "file"].contains(&url.scheme()) {
        return Err(bad("only http, https and file addresses are understood"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        let url = "https://…@…".to_owned(); // not shown again
        let why =
            "it has a user's name or password in it; write them into a file below /etc/apt/auth.conf.d".to_owned();
        return Err(MirrorError::Bad { url, why });
    }
    if url.query().is_some() || url.fragment().is_some() || given.contains(['[', ']', '%']) {
        return Err(bad("it has one of ?, #, [, ] and % in it"));
    }
    let url = url.as_str().trim_end_matches('/');
    // As apt itself writes it.
    Ok(url
        .strip_prefix("file://")
        .map_or_else(|| url.to_owned(), |path| format!("file:{path}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(urls: &[&str]) -> Result<Mirrors, String> {
        let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
        Mirrors::named(&urls).map_err(|error| error.to_string())
    }

    #[test]
    fn one_address_can_have_both_archives_below_it() {
        let mirrors = named(&["https://mirror.example.org/", "file:///srv"]).unwrap();
        assert_eq!(
            mirrors.of_archive("debian"),
            ["https://mirror.example.org/debian", "file:/srv/debian"]
        );
        assert_eq!(
            mirrors.of_archive("debian-security"),
            [
                "https://mirror.example.org/debian-security",
                "file:/srv/debian-security"
            ]
        );
    }

    #[test]
    fn each_archive_can_be_named_alone() {
        let last_parts = ["http://a.example.org/debian/", "http://b.example.org/x/debian-security"];
        let mirrors = named(&last_parts).unwrap();
        assert_eq!(mirrors.of_archive("debian"), ["http://a.example.org/debian"]);
        assert_eq!(
            mirrors.of_archive("debian-security"),
            ["http://b.example.org/x/debian-security"]
        );

        let mirrors = named(&[
            "debian=http://s.example.org/20260101T000000Z",
            "debian-security=http://s.example.org/x",
        ]);
        assert_eq!(
            mirrors.unwrap().of_archive("debian"),
            ["http://s.example.org/20260101T000000Z"]
        );
    }

    #[test]
    fn what_cannot_be_a_mirror_is_refused() {
        assert_eq!(
            named(&["http://a.example.org/debian"]).unwrap_err(),
            "--mirror names no copy of Debian's archive \"debian-security\"; name one with --mirror, such as \
             --mirror https://mirror.example.org/debian-security"
        );
        assert_eq!(
            named(&["mirror.example.org"]).unwrap_err(),
            "\"mirror.example.org\" cannot be a mirror: relative URL without a base"
        );
        assert_eq!(
            named(&["gopher://a.example.org"]).unwrap_err(),
            "\"gopher://a.example.org\" cannot be a mirror: only http, https and file addresses are understood"
        );
        let secret = named(&["https://me:swordfish@a.example.org"]).unwrap_err();
        assert!(
            !secret.contains("swordfish") && secret.contains("auth.conf.d"),
            "{secret}"
        );
        assert!(named(&["https://a.example.org/[trusted=yes]"]).is_err());
        assert!(named(&["https://a.example.org/ x"]).unwrap().of_archive("debian")[0].contains("%20x"));
    }

    #[test]
    fn debians_lists_are_found_among_apts_targets() {
        let of = |line: &str| debian_target(line).map(|(archive, url)| format!("{archive} {url}"));
        assert_eq!(
            of("Packages\tDebian\tDebian\thttp://m.example.org/any/").as_deref(),
            Some("debian http://m.example.org/any")
        );
        assert_eq!(
            of("Packages\tDebian\tDebian-Security\thttp://m.example.org/s/").as_deref(),
            Some("debian-security http://m.example.org/s")
        );
        assert_eq!(
            of("Packages\t\t\thttp://m.example.org/debian-security/").as_deref(),
            Some("debian-security http://m.example.org/debian-security")
        );
        assert_eq!(of("Packages\tUbuntu\tUbuntu\thttp://m.example.org/debian/"), None);
        assert_eq!(
            of("Packages\tDebian Backports\tDebian Backports\thttp://m.example.org/debian/"),
            None
        );
        assert_eq!(of("DEP-11\tDebian\tDebian\thttp://m.example.org/debian/"), None);
        assert_eq!(of("Packages\t\t\thttp://m.example.org/ubuntu/"), None);
    }

    #[test]
    fn a_list_of_mirrors_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("debian.list");
        let text = "# ours first\nhttps://a.example.org/debian/\tpriority:1\n\nhttps://b.example.org/debian\n";
        let _ = files::replace(&path, text, 0o644).unwrap();
        let url = format!("mirror+file://{}", path.display());
        let urls = read_list(list_of(&url).unwrap()).unwrap();
        assert_eq!(urls, ["https://a.example.org/debian", "https://b.example.org/debian"]);
        assert_eq!(list_of("https://a.example.org/debian"), None);
    }
}
