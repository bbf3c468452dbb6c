//! A Debian mirror of a test's own: real packages, made by dpkg-deb, in lists that gpg signs, served over loopback.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use platform::exec::Cmd;
use platform::files;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What a mirror holds, in a directory, and the key that signs it.
pub(crate) struct Archive {
    pub(crate) dir: TempDir,
    gpg_home: PathBuf,
    pub(crate) keyring: PathBuf,
}

/// One package to be made.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// More lines of its control file: `Depends: x\n`.
    pub(crate) fields: &'static str,
    /// Bytes of its only file.
    pub(crate) length: usize,
}

pub(crate) const fn sample(name: &'static str, version: &'static str, fields: &'static str) -> Sample {
    Sample {
        name,
        version,
        fields,
        length: 1000,
    }
}

pub(crate) fn put(path: &Path, contents: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = files::replace(path, contents, 0o644).unwrap();
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

impl Archive {
    /// With these packages in its main suite, and nothing in the other two.
    pub(crate) async fn of(samples: &[Sample]) -> Self {
        let dir = TempDir::new().unwrap();
        let gpg_home = dir.path().join("gpg");
        fs::create_dir_all(&gpg_home).unwrap();
        let archive = Self {
            keyring: dir.path().join("keyring.gpg"),
            gpg_home,
            dir,
        };
        let key = [
            "--batch",
            "--passphrase",
            "",
            "--quick-gen-key",
            "mirror@example.org",
            "ed25519",
            "sign",
            "never",
        ];
        archive.gpg().args(key).run().await.unwrap();
        let export = archive.gpg().arg("--export").run().await.unwrap();
        put(&archive.keyring, export.stdout);
        archive.publish(samples).await;
        archive
    }

    /// Puts packages into the lists, which are then of these only.
    pub(crate) async fn publish(&self, samples: &[Sample]) {
        let mut list = String::new();
        for sample in samples {
            let path = format!(
                "pool/main/{0}/{0}_{1}_all.deb",
                sample.name,
                sample.version.replace(':', "%3a")
            );
            let bytes = self.build(sample).await;
            put(&self.debian().join(&path), &bytes);
            let (size, digest) = (bytes.len(), sha256(&bytes));
            writeln!(
                list,
                "{}Filename: {path}\nSize: {size}\nSHA256: {digest}\n",
                control(sample)
            )
            .unwrap();
        }
        self.suite("debian", "trixie", &list).await;
        self.suite("debian", "trixie-updates", "").await;
        self.suite("debian-security", "trixie-security", "").await;
    }

    /// `file:` address of it, as apt writes such addresses.
    pub(crate) fn url(&self) -> String {
        format!("file:{}", self.dir.path().display())
    }

    pub(crate) fn debian(&self) -> PathBuf {
        self.dir.path().join("debian")
    }

    async fn suite(&self, archive: &str, suite: &str, packages: &str) {
        let dir = self.dir.path().join(archive).join("dists").join(suite);
        put(&dir.join("main/binary-amd64/Packages"), packages);
        let release = format!(
            "Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n\
             Architectures: all amd64\nComponents: main\nSHA256:\n {} {} main/binary-amd64/Packages\n",
            sha256(packages.as_bytes()),
            packages.len()
        );
        let signed = self.gpg().args(["--batch", "--clearsign"]).stdin(release).run().await;
        put(&dir.join("InRelease"), signed.unwrap().stdout);
    }

    async fn build(&self, sample: &Sample) -> Vec<u8> {
        let root = self
            .dir
            .path()
            .join("build")
            .join(sample.name)
            .join(sample.version.replace(':', "_"));
        put(&root.join("DEBIAN/control"), control(sample));
        // Not to be compressed: its length is the package's.
        let noise: Vec<u8> = (0_u32..)
            .flat_map(|number| Sha256::digest(number.to_be_bytes()))
            .take(sample.length)
            .collect();
        put(&root.join("usr/share").join(sample.name).join("file"), noise);
        let deb = root.with_extension("deb");
        let build = Cmd::new("dpkg-deb").args(["-Znone", "--root-owner-group", "-b"]);
        build
            .arg(&root)
            .arg(&deb)
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .run()
            .await
            .unwrap();
        fs::read(deb).unwrap()
    }

    fn gpg(&self) -> Cmd {
        Cmd::new("gpg").args(["--quiet", "--homedir"]).arg(&self.gpg_home)
    }
}

fn control(sample: &Sample) -> String {
    let Sample {
        name, version, fields, ..
    } = sample;
    format!(
        "Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n{fields}\
         Description: for a test\n"
    )
}

/// What a server does with requests for a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// 404.
    Missing,
    /// One byte is another one.
    Changed,
    /// The connection ends in the middle.
    Cut,
    /// Half of it comes, and then nothing.
    Stalled,
}

/// Serves an archive over HTTP until the test ends.
pub(crate) struct Server {
    pub(crate) url: String,
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    /// By a part of the path.
    troubles: Mutex<BTreeMap<String, Trouble>>,
    asked: Mutex<Vec<String>>,
}

impl Server {
    pub(crate) fn start(archive: &Archive) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            dir: archive.dir.path().to_owned(),
            troubles: Mutex::default(),
            asked: Mutex::default(),
        });
        let for_threads = Arc::clone(&shared);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shared = Arc::clone(&for_threads);
                thread::spawn(move || answer(&shared, connection));
            }
        });
        Self { url, shared }
    }

    pub(crate) fn trouble(&self, path: &str, trouble: Trouble) {
        self.shared.troubles.lock().unwrap().insert(path.to_owned(), trouble);
    }

    pub(crate) fn all_is_well(&self) {
        self.shared.troubles.lock().unwrap().clear();
    }

    /// The packages that were asked for since the last time.
    pub(crate) fn asked(&self) -> Vec<String> {
        let mut asked = std::mem::take(&mut *self.shared.asked.lock().unwrap());
        asked.retain(|path| path.strip_suffix(".deb").is_some());
        asked.sort();
        asked
    }
}

fn answer(shared: &Shared, connection: TcpStream) -> Option<()> {
    let mut input = BufReader::new(connection.try_clone().ok()?);
    let mut request = String::new();
    input.read_line(&mut request).ok()?;
    let mut line = String::new();
    while input.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let path = request
        .split(' ')
        .nth(1)?
        .trim_start_matches('/')
        .replace("%2b", "+")
        .replace("%25", "%");
    shared.asked.lock().unwrap().push(path.rsplit('/').next()?.to_owned());
    let trouble = {
        let troubles = shared.troubles.lock().unwrap();
        troubles
            .iter()
            .find(|(part, _)| path.contains(part.as_str()))
            .map(|(_, trouble)| *trouble)
    };
    let contents = fs::read(shared.dir.join(&path))
        .ok()
        .filter(|_| trouble != Some(Trouble::Missing));
    let mut output = connection;
    let Some(mut contents) = contents else {
        let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return output.write_all(head.as_bytes()).ok();
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        contents.len()
    );
    output.write_all(head.as_bytes()).ok()?;
    let middle = contents.len() / 2;
    match trouble {
        Some(Trouble::Cut) => contents.truncate(middle),
        Some(Trouble::Changed) => contents[middle] ^= 1,
        Some(Trouble::Stalled) => {
            output.write_all(&contents[..middle]).ok()?;
            // Until the peer gives up.
            output.set_read_timeout(Some(Duration::from_mins(1))).ok()?;
            output.read_exact(&mut [0]).ok()?;
            return None;
        }
        _ => {}
    }
    output.write_all(&contents).ok()
}
