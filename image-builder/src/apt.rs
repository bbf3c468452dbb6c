//! Asking apt which packages are needed today, without touching this machine's apt: in a root of its own, with an empty list
//! of installed packages, and with nothing of this machine's settings but those of how to download (`Acquire`: proxies,
//! transports, limits) and its credentials (image-pipeline.md §2.2).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};
use tempfile::TempDir;
use tracing::info;

use crate::cache::sha256_of;
use crate::control::{BadControl, Control, is_package_name, is_word};
use crate::lock::{ARCHIVES, BadLock, Lock, Package, Suite};
use crate::mirror::Mirrors;

/// Of the Debian package debian-archive-keyring.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloading the package lists over a slow line; apt gives up on a mirror that is silent much earlier.
const UPDATE_LIMIT: Duration = Duration::from_mins(30);
/// Resolving takes 3 s of a processor, and a busy machine may not give them soon.
const ANSWER_LIMIT: Duration = Duration::from_mins(5);

/// What to resolve.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Debian's release: `trixie`. Its updates and security suites belong to it.
    pub suite: &'a str,
    /// The packages of the image. What is essential for any Debian comes with them.
    pub image: &'a [String],
    /// The packages of the tools.
    pub tools: &'a [String],
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The keys of Debian's archive are not here.
    #[error(
        "{0} with the keys of Debian's archive is missing; install the package debian-archive-keyring, or name it with --keyring"
    )]
    NoKeyring(PathBuf),
    /// What the recipe says is no name.
    #[error("{0:?} cannot be the name of a package or of a Debian release; correct the recipe")]
    BadName(String),
    /// The recipe's packages do not exist.
    #[error("{suite} has no package {names}; correct the recipe's list of packages for the {part}")]
    Unknown {
        /// `image` or `tools`.
        part: &'static str,
        /// The release.
        suite: String,
        /// Their names.
        names: String,
    },
    /// The temporary directory cannot be used.
    #[error("cannot prepare a directory for apt")]
    Io(#[from] io::Error),
    /// A file in it cannot.
    #[error("cannot prepare a directory for apt")]
    File(#[from] FileError),
    /// The lists of packages cannot be had, or their signatures are wrong.
    #[error("cannot get the lists of packages from {mirrors}")]
    Update {
        /// From where.
        mirrors: String,
        /// What apt says.
        source: Box<ExecError>,
    },
    /// apt cannot do it.
    #[error("cannot resolve the packages")]
    Apt(#[source] Box<ExecError>),
    /// apt describes a package in a way that is not understood.
    #[error("cannot understand what apt says of a package")]
    Control(#[from] BadControl),
    /// apt's answers do not fit together.
    #[error("cannot understand what apt says: {0}")]
    Answer(String),
    /// What came out is no lock.
    #[error("what apt says makes no lock file")]
    Lock(#[from] BadLock),
}

/// Finds out which packages the image and the tools need, and which versions there are now.
///
/// # Errors
/// A package does not exist, the mirror does not answer, or its lists are not signed by a key of `keyring`.
pub async fn resolve(wanted: Wanted<'_>, mirrors: &Mirrors, keyring: &Path) -> Result<Lock, ResolveError> {
    if !is_word(wanted.suite, "-.") {
        return Err(ResolveError::BadName(wanted.suite.to_owned()));
    }
    if let Some(name) = wanted
        .image
        .iter()
        .chain(wanted.tools)
        .find(|name| !is_package_name(name))
    {
        return Err(ResolveError::BadName(name.clone()));
    }
    let keyring = fs::canonicalize(keyring).map_err(|_| ResolveError::NoKeyring(keyring.to_owned()))?;
    let apt = Apt::prepare(wanted.suite, mirrors, &keyring).await?;
    info!("Getting the lists of packages");
    apt.update(mirrors).await?;
    let mut image: Vec<String> = wanted.image.to_vec();
    image.push("?essential".to_owned());
    let image = apt.closure("image", wanted.suite, &image).await?;
    let tools = apt.closure("tools", wanted.suite, wanted.tools).await?;
    let known = apt.describe(image.values().chain(tools.values())).await?;
    let suites = apt.suites(wanted.suite)?;

    let packages = |found: &BTreeMap<String, Found>| {
        let packages = found.values().map(|found| package(found, &known, mirrors));
        packages.collect::<Result<Vec<_>, _>>()
    };
    let lock = Lock::new(wanted.image, suites, packages(&image)?, packages(&tools)?);
    // As strict with apt as with a file: what is written can be read.
    let text = lock.render().map_err(|error| ResolveError::Answer(error.to_string()))?;
    Ok(Lock::parse(&text)?)
}

impl From<ExecError> for ResolveError {
    fn from(error: ExecError) -> Self {
        Self::Apt(Box::new(error))
    }
}

/// What `apt-get --print-uris` says of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    name: String,
    version: String,
    url: String,
    sha256: String,
}

/// A directory in which apt has everything that it else has in `/etc/apt` and `/var/lib/apt`.
struct Apt {
    dir: TempDir,
}

impl Apt {
    async fn prepare(suite: &str, mirrors: &Mirrors, keyring: &Path) -> Result<Self, ResolveError> {
        let dir = TempDir::with_prefix("sysvm-apt-")?;
        for name in [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "etc/trusted.gpg.d",
            "log",
        ] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        for name in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.path().join(name))?;
        }
        let dump = Cmd::new("apt-config")
            .arg("dump")
            .env("LC_ALL", "C")
            .run()
            .await?
            .text();
        let netrc = [
            "shell",
            "netrc",
            "Dir::Etc::netrc/f",
            "netrcparts",
            "Dir::Etc::netrcparts/d",
        ];
        let netrc = Cmd::new("apt-config")
            .args(netrc)
            .env("LC_ALL", "C")
            .run()
            .await?
            .text();
        let apt = Self { dir };
        let root = apt.dir.path().to_string_lossy();
        // There may be the passwords of proxies in it.
        let _ = files::replace(apt.path("apt.conf"), config(&root, &dump, &netrc), 0o600)?;
        let _ = files::replace(apt.path("etc/sources.list"), sources(suite, mirrors, keyring), 0o600)?;
        let _ = files::replace(apt.path("status"), "", 0o600)?;
        Ok(apt)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn cmd(&self, program: &str) -> Cmd {
        let config = self.path("apt.conf");
        let cmd = Cmd::new(program).env("APT_CONFIG", config).env("LC_ALL", "C");
        cmd.time_limit(ANSWER_LIMIT)
    }

    async fn update(&self, mirrors: &Mirrors) -> Result<(), ResolveError> {
        // Without Error-Mode, apt is content with the lists of some suites.
        let update = ["-q", "-o", "APT::Update::Error-Mode=any", "update"];
        let update = self.cmd("apt-get").args(update).time_limit(UPDATE_LIMIT);
        update.run().await.map(drop).map_err(|source| ResolveError::Update {
            mirrors: all_of(mirrors).join(" and "),
            source: Box::new(source),
        })
    }

    /// The packages and all that they need, by their digests.
    async fn closure(
        &self,
        part: &'static str,
        suite: &str,
        packages: &[String],
    ) -> Result<BTreeMap<String, Found>, ResolveError> {
        let install = [
            "install",
            "-qq",
            "--print-uris",
            "-o",
            "Acquire::ForceHash=SHA256",
            "--",
        ];
        match self.cmd("apt-get").args(install).args(packages).run().await {
            Ok(output) => parse_uris(&output.text()),
            Err(ExecError::Failed { printed, .. }) if !unknown(&printed).is_empty() => Err(ResolveError::Unknown {
                part,
                suite: suite.to_owned(),
                names: unknown(&printed).join(", "),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// What apt knows of packages, by the digests of their files.
    async fn describe(&self, found: impl Iterator<Item = &Found>) -> Result<BTreeMap<String, Control>, ResolveError> {
        let versions = found.map(|found| format!("{}={}", found.name, found.version));
        let show = self.cmd("apt-cache").args(["show", "--"]).args(versions);
        let mut known = BTreeMap::new();
        for control in Control::parse_all(&show.run().await?.text())? {
            if let Some(sha256) = control.get("SHA256") {
                known.insert(sha256.to_owned(), control);
            }
        }
        Ok(known)
    }

    /// The signed lists that were used.
    fn suites(&self, suite: &str) -> Result<Vec<Suite>, ResolveError> {
        let lists: Vec<_> = fs::read_dir(self.path("state/lists"))?.collect::<io::Result<_>>()?;
        let of = |(_, name): (_, String)| {
            let ending = format!("_dists_{name}_InRelease");
            let mut files = lists
                .iter()
                .filter(|file| file.file_name().to_string_lossy().ends_with(&ending));
            let file = files.next();
            let file = file.ok_or_else(|| ResolveError::Answer(format!("it has no InRelease file of {name}")))?;
            let in_release = sha256_of(File::open(file.path())?)?;
            Ok(Suite { name, in_release })
        };
        suites_of(suite).into_iter().map(of).collect()
    }
}

/// Archives and the suites that are taken from them.
fn suites_of(suite: &str) -> [(&'static str, String); 3] {
    [
        ("debian", suite.to_owned()),
        ("debian", format!("{suite}-updates")),
        ("debian-security", format!("{suite}-security")),
    ]
}

/// apt's settings in that directory. `dump` and `netrc` are what `apt-config` says of this machine's.
fn config(root: &str, dump: &str, netrc: &str) -> String {
    /// What of `Acquire` is not about how to download.
    const NOT_INHERITED: [&str; 4] = ["Allow", "IndexTargets", "Languages", "ForceHash"];
    let mut lines = format!(
        "Dir \"{root}/\";\nDir::State \"state\";\nDir::State::status \"{root}/status\";\nDir::Cache \"cache\";\n\
         Dir::Etc \"etc\";\nDir::Log \"log\";\nAPT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
         APT::Install-Recommends \"false\";\nAPT::Solver \"internal\";\nAcquire::Languages \"none\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    for line in dump.lines() {
        let inherited = line.strip_prefix("Acquire::").is_some_and(|setting| {
            setting.ends_with("\";") && !NOT_INHERITED.iter().any(|prefix| setting.starts_with(prefix))
        });
        if inherited {
            lines.extend([line, "\n"]);
        }
    }
    for line in netrc.lines() {
        if let Some((name, path)) = line.split_once('=') {
            let path = path.trim_matches('\'');
            lines.extend(["Dir::Etc::", name, " \"", path, "\";\n"]);
        }
    }
    lines
}

fn sources(suite: &str, mirrors: &Mirrors, keyring: &Path) -> String {
    let line = |(archive, suite): (&str, String)| {
        let url = mirrors.of_archive(archive).first();
        let url = url.map_or("", String::as_str);
        format!("deb [signed-by={}] {url} {suite} main\n", keyring.display())
    };
    suites_of(suite).into_iter().map(line).collect()
}

fn all_of(mirrors: &Mirrors) -> Vec<&str> {
    let first = |archive: &&str| mirrors.of_archive(archive).first();
    ARCHIVES.iter().filter_map(first).map(String::as_str).collect()
}

/// Lines such as `'http://mirror.example.org/debian/pool/…/libc6_2.41_amd64.deb' libc6_1%3a2.41_amd64.deb 123 SHA256:12ab…`.
fn parse_uris(text: &str) -> Result<BTreeMap<String, Found>, ResolveError> {
    let found = |line: &str| {
        let (url, rest) = line.strip_prefix('\'')?.split_once("' ")?;
        let [file, _size, hash] = rest.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        let [name, version, _arch] = file.split('_').collect::<Vec<_>>().try_into().ok()?;
        let sha256 = hash.strip_prefix("SHA256:")?.to_owned();
        let found = Found {
            name: name.to_owned(),
            version: version.replace("%3a", ":"),
            url: url.to_owned(),
            sha256: sha256.clone(),
        };
        Some((sha256, found))
    };
    let not_understood = |line: &str| ResolveError::Answer(format!("{line:?} is not the address of a package"));
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines
        .map(|line| found(line).ok_or_else(|| not_understood(line)))
        .collect()
}

/// The packages that apt does not know, in what it prints then.
fn unknown(printed: &str) -> Vec<&str> {
    let name = |line| {
        let line = str::strip_prefix(line, "E: ")?;
        let missing = line.strip_prefix("Unable to locate package ");
        let quoted = line
            .strip_prefix("Package '")
            .and_then(|rest| rest.split_once("' has no installation candidate"));
        missing.or(quoted.map(|(name, _)| name))
    };
    printed.lines().filter_map(name).map(str::trim).collect()
}

/// Both of apt's answers together.
fn package(found: &Found, known: &BTreeMap<String, Control>, mirrors: &Mirrors) -> Result<Package, ResolveError> {
    let Found {
        name,
        version,
        url,
        sha256,
    } = found;
    let lacks = |what: &str| ResolveError::Answer(format!("it says no {what} of {name} {version}"));
    let control = known.get(sha256).ok_or_else(|| lacks("description"))?;
    let path = control.get("Filename").ok_or_else(|| lacks("file name"))?;
    let size = control.get("Size").and_then(|size| size.parse().ok());
    let comes_from = |archive: &&str| {
        let bases = mirrors.of_archive(archive).iter();
        bases
            .filter_map(|base| url.strip_prefix(base.as_str()))
            .any(|rest| rest.starts_with('/'))
    };
    // The longest: an archive may be below another one.
    let longest = |archive: &&str| mirrors.of_archive(archive).first().map_or(0, String::len);
    let archive = ARCHIVES.into_iter().filter(comes_from).max_by_key(longest);
    let (source, source_version) = control.source();
    Ok(Package {
        name: control.package().to_owned(),
        version: control.version().to_owned(),
        arch: control.architecture().to_owned(),
        sha256: sha256.clone(),
        size: size.ok_or_else(|| lacks("size"))?,
        source: source.to_owned(),
        source_version: source_version.to_owned(),
        archive: archive.ok_or_else(|| lacks("archive"))?.to_owned(),
        path: path.trim_start_matches("./").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_this_machines_settings_only_how_to_download_is_inherited() {
        let dump = "APT \"\";\nAPT::Install-Recommends \"1\";\nAcquire::http::Proxy \"http://proxy.example.org:3128\";\n\
            Acquire::AllowInsecureRepositories \"1\";\nAcquire::IndexTargets::deb::DEP-11 \"\";\nDir::Etc \"etc/apt\";\n\
            Acquire::Languages:: \"de\";\nAcquire::Retries \"3\";\n";
        let netrc = "netrc='/etc/apt/auth.conf'\nnetrcparts='/etc/apt/auth.conf.d/'\n";
        let config = config("/tmp/x", dump, netrc);
        let (_, inherited) = config.split_once("APT::Sandbox::User \"root\";\n").unwrap();
        assert_eq!(
            inherited,
            "Acquire::http::Proxy \"http://proxy.example.org:3128\";\nAcquire::Retries \"3\";\n\
             Dir::Etc::netrc \"/etc/apt/auth.conf\";\nDir::Etc::netrcparts \"/etc/apt/auth.conf.d/\";\n"
        );
    }

    #[test]
    fn the_address_of_a_package_says_what_it_is() {
        let sha256 = "ab".repeat(32);
        let line = format!(
            "'http://m.example.org/debian/pool/main/d/dbus/dbus_1.16%2bx_amd64.deb' dbus_1%3a1.16+x_amd64.deb 10 SHA256:{sha256}"
        );
        let found = parse_uris(&format!("{line}\n\n")).unwrap();
        let dbus = &found[&sha256];
        assert_eq!((dbus.name.as_str(), dbus.version.as_str()), ("dbus", "1:1.16+x"));
        for bad in ["", "'x", "http://x", "md5"].map(|hash| line.replace(&format!("SHA256:{sha256}"), hash)) {
            assert!(parse_uris(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_unknown_packages_are_named() {
        let printed = "E: Unable to locate package one\nE: Package 'two' has no installation candidate\nE: Broken";
        assert_eq!(unknown(printed), ["one", "two"]);
        assert!(unknown("E: Unable to correct problems, you have held broken packages.").is_empty());
    }
}
