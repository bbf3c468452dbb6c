//! One Debian package, read in one pass without running anything of it (deb(5)): an `ar` archive with a version, a tar of
//! control files and a tar of what is installed.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use liblzma::read::XzDecoder;
use liblzma::stream::Stream;

use crate::control::{BadControl, Control};
use crate::tree::{Node, Tree, TreeError};

/// What a package brings, and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deb {
    /// Its description.
    pub control: Control,
    /// Files that belong to the administrator once they are installed, as absolute paths: `/etc/ssh/sshd_config`.
    pub conffiles: Vec<String>,
    /// The other files of its control archive by name: `md5sums`, `triggers`, `postinst`. Never run here.
    pub info: BTreeMap<String, Bytes>,
    /// What it installs. Paths are as the package has them, be it `bin/x` or `usr/bin/x`.
    pub data: Tree,
}

/// Why something is not a package that we read.
#[derive(Debug, thiserror::Error)]
pub enum DebError {
    /// Another kind of file, or its frame is damaged.
    #[error("not a Debian package: {0}")]
    Frame(String),
    /// A newer format, or a compression that no package of Debian 13 has.
    #[error("a Debian package of a kind that is not known here: {0}")]
    Unknown(String),
    /// More than a package would have.
    #[error("{what} is larger than the {limit} bytes that are allowed")]
    TooLarge {
        /// Which part.
        what: &'static str,
        /// Bytes, unpacked.
        limit: u64,
    },
    /// The control file cannot be understood.
    #[error("cannot read its control file")]
    Control(#[from] BadControl),
    /// One of the two archives cannot be read, or has something that an image must not contain.
    #[error("cannot unpack {part}")]
    Tar {
        /// `control.tar.xz`, `data.tar.xz`.
        part: String,
        /// Why.
        source: TreeError,
    },
    /// The file cannot be read, or ends early.
    #[error("cannot read it")]
    Read(#[from] io::Error),
}

/// Debian's largest control archives are about 2 MB (templates in all languages, long lists of digests).
const MAX_CONTROL: u64 = 32 << 20;
/// The largest package of an image is the kernel, with 120 MB.
const MAX_DATA: u64 = 1 << 30;
/// `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 256 << 20;

impl Deb {
    /// Reads a package to the end of its data. All checksums that the compression has are checked.
    ///
    /// # Errors
    /// It is none, is damaged, or is larger than any of Debian.
    pub fn read(input: impl Read) -> Result<Self, DebError> {
        let mut ar = Ar::open(BufReader::with_capacity(128 << 10, input))?;

        let version = ar.next("debian-binary", 64)?.0;
        let mut text = String::new();
        version.read_to_string(&mut text)?;
        if !text.starts_with("2.") {
            return Err(DebError::Unknown(format!("format {:?} instead of 2.0", text.trim())));
        }

        let (member, part) = ar.next("control.tar", MAX_CONTROL)?;
        let control_archive = unpack(member, &part, ("its control archive", MAX_CONTROL))?;
        let (member, part) = ar.next("data.tar", MAX_DATA)?;
        let data = unpack(member, &part, ("its data", MAX_DATA))?;

        let mut info = BTreeMap::new();
        for (path, entry) in control_archive.iter() {
            match &entry.node {
                Node::File(contents) => info.insert(path.to_owned(), contents.clone()),
                Node::Directory => continue,
                _ => return Err(DebError::Frame(format!("{part} has a link: {path}"))),
            };
        }
        let text_of = |contents: Bytes, name: &str| {
            String::from_utf8(contents.to_vec()).map_err(|_| DebError::Frame(format!("its {name} file is not UTF-8")))
        };
        let control = info
            .remove("control")
            .ok_or_else(|| DebError::Frame("it has no control file".to_owned()))?;
        let control = Control::parse(&text_of(control, "control")?)?;
        let conffiles = match info.remove("conffiles") {
            Some(contents) => text_of(contents, "conffiles")?,
            None => String::new(),
        };
        // A line may begin with a flag: `remove-on-upgrade /etc/x` (deb-conffiles(5)). Such a file is not shipped.
        let conffiles = conffiles.lines().map(str::trim).filter(|line| line.starts_with('/'));
        let conffiles = conffiles.map(str::to_owned).collect();
        Ok(Self {
            control,
            conffiles,
            info,
            data,
        })
    }
}

/// The frame (deb(5), ar(5)): members one after the other, each with a header of 60 bytes, at even places.
struct Ar<R> {
    input: R,
    /// Of the member whose contents are next.
    left: u64,
    is_odd: bool,
}

impl<R: BufRead> Ar<R> {
    fn open(mut input: R) -> Result<Self, DebError> {
        let mut magic = [0; 8];
        input.read_exact(&mut magic)?;
        if &magic != b"!<arch>\n" {
            return Err(DebError::Frame("it does not begin as an ar archive does".to_owned()));
        }
        Ok(Self {
            input,
            left: 0,
            is_odd: false,
        })
    }

    /// The next member, which must be this one (with any ending), and its full name. Names with `_` before them are for
    /// others and are skipped.
    fn next(&mut self, wanted: &str, limit: u64) -> Result<(&mut dyn BufRead, String), DebError> {
        loop {
            self.skip_rest()?;
            let (name, size) = self.header()?;
            (self.left, self.is_odd) = (size, size % 2 == 1);
            if name.starts_with('_') {
                continue;
            }
            if !name.starts_with(wanted) {
                return Err(DebError::Frame(format!("found {name:?} where {wanted} should be")));
            }
            if size > limit {
                let what = "a member of the package";
                return Err(DebError::TooLarge { what, limit });
            }
            return Ok((self, name));
        }
    }

    fn header(&mut self) -> Result<(String, u64), DebError> {
        let mut header = [0; 60];
        self.input.read_exact(&mut header)?;
        let text = str::from_utf8(&header).ok().filter(|text| text.ends_with("`\n"));
        let fields = text.and_then(|text| Some((text.get(..16)?, text.get(48..58)?)));
        let (name, size) = fields.ok_or_else(|| DebError::Frame("the header of a member is damaged".to_owned()))?;
        let size = size.trim_end().parse();
        let size = size.map_err(|_| DebError::Frame("the size of a member is no number".to_owned()))?;
        Ok((name.trim_end().trim_end_matches('/').to_owned(), size))
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let rest = self.left + u64::from(self.is_odd);
        self.left = 0;
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        if skipped == rest {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}

impl<R: BufRead> Read for Ar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut available = self.fill_buf()?;
        let read = available.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Ar<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length = usize::try_from(self.left).map_or(available.len(), |left| left.min(available.len()));
        Ok(&available[..length])
    }

    fn consume(&mut self, amount: usize) {
        self.input.consume(amount);
        self.left = self.left.saturating_sub(u64::try_from(amount).unwrap_or(u64::MAX));
    }
}

/// Reads the tar in a member to its end, at most `limit` bytes of it.
fn unpack(member: &mut dyn BufRead, part: &str, (what, limit): (&'static str, u64)) -> Result<Tree, DebError> {
    let ending = part.split_once(".tar").map_or("", |(_, ending)| ending);
    let plain: Box<dyn Read + '_> = match ending {
        ".xz" => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, 0).map_err(io::Error::other)?;
            Box::new(XzDecoder::new_stream(member, stream))
        }
        ".zst" => Box::new(zstd::Decoder::with_buffer(member)?),
        ".gz" => Box::new(MultiGzDecoder::new(member)),
        "" => Box::new(member),
        _ => return Err(DebError::Unknown(format!("its member {part}"))),
    };
    let mut plain = plain.take(limit + 1);
    let tree = Tree::read_tar(&mut plain);
    // What is after the end of the tar is padding. Reading it checks the compression's checksum.
    let rest = io::copy(&mut plain, &mut io::sink());
    if plain.limit() == 0 {
        return Err(DebError::TooLarge { what, limit });
    }
    let failed = |source| DebError::Tar {
        part: part.to_owned(),
        source,
    };
    let tree = tree.map_err(failed)?;
    rest.map_err(|error| failed(error.into()))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use platform::exec::Cmd;
    use platform::logging::chain;
    use proptest::prelude::*;

    use super::*;

    /// Makes a package with the real tool.
    async fn built_by_dpkg(dir: &Path, compression: &str) -> Vec<u8> {
        let root = dir.join("root");
        let deb = dir.join("sample.deb");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        let put = |path: &str, contents: &str| {
            let _ = platform::files::replace(root.join(path), contents, 0o644).unwrap();
        };
        put(
            "DEBIAN/control",
            "Package: sample\nVersion: 1:2.0-1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n\
             Description: for a test\n",
        );
        put("DEBIAN/conffiles", "/etc/sample\n");
        put("DEBIAN/md5sums", "d41d8cd98f00b204e9800998ecf8427e  usr/bin/empty\n");
        put("etc/sample", &"setting\n".repeat(10_000));
        put("usr/bin/empty", "");
        put(&format!("usr/bin/{}", "long-name-".repeat(20)), "x");
        let linked = root.join("usr/bin/linked");
        if !linked.exists() {
            fs::hard_link(root.join("etc/sample"), linked).unwrap();
            symlink("empty", root.join("usr/bin/link")).unwrap();
        }
        let build = Cmd::new("dpkg-deb").args([compression, "--root-owner-group", "-b"]);
        build.arg(&root).arg(&deb).run().await.unwrap();
        fs::read(deb).unwrap()
    }

    #[tokio::test]
    async fn packages_read_as_dpkg_reads_them_however_they_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        for compression in ["-Zxz", "-Zgzip", "-Znone", "-Zzstd"] {
            let bytes = built_by_dpkg(dir.path(), compression).await;
            let deb = Deb::read(bytes.as_slice()).unwrap();
            let tar = Cmd::new("dpkg-deb")
                .arg("--fsys-tarfile")
                .arg(dir.path().join("sample.deb"));
            let by_dpkg = Tree::read_tar(tar.run().await.unwrap().stdout.as_slice()).unwrap();
            assert_eq!(deb.data, by_dpkg, "{compression}");
            assert_eq!(deb.data.len(), 8, "{compression}");
            assert_eq!(deb.control.version(), "1:2.0-1");
            assert_eq!(deb.conffiles, ["/etc/sample"]);
            assert_eq!(deb.info.keys().collect::<Vec<_>>(), ["md5sums"]);
        }
    }

    #[tokio::test]
    async fn a_package_that_ends_early_or_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = built_by_dpkg(dir.path(), "-Zxz").await;
        for length in 0..bytes.len() - 1 {
            assert!(
                Deb::read(&bytes[..length]).is_err(),
                "{length} of {} bytes",
                bytes.len()
            );
        }
        // In the data of the xz stream, far from its frame.
        let mut changed = bytes.clone();
        let place = bytes.len() - 150;
        changed[place] ^= 1;
        let error = Deb::read(changed.as_slice()).unwrap_err();
        assert!(
            chain(&error).to_string().starts_with("cannot unpack data.tar.xz: "),
            "{}",
            chain(&error)
        );
    }

    /// A package of these members: their names' endings say how they are compressed.
    fn package((control_name, control): (&str, &[u8]), (data_name, data): (&str, &[u8])) -> Vec<u8> {
        let mut bytes = b"!<arch>\n".to_vec();
        for (name, contents) in [
            ("debian-binary", &b"2.0\n"[..]),
            (control_name, control),
            (data_name, data),
        ] {
            bytes.extend(format!("{name:<16}{:<32}{:<10}`\n", "0", contents.len()).bytes());
            bytes.extend(contents);
            bytes.extend((contents.len() % 2 == 1).then_some(b'\n'));
        }
        bytes
    }

    fn tar_with(path: &str, kind: tar::EntryType, contents: &[u8]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.as_ustar_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_size(contents.len().try_into().unwrap());
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append(&header, contents).unwrap();
        tar.into_inner().unwrap()
    }

    fn control() -> Vec<u8> {
        let text = b"Package: x\nVersion: 1\nArchitecture: all\n";
        tar_with("control", tar::EntryType::Regular, text)
    }

    #[test]
    fn what_an_image_must_not_contain_is_named() {
        let error_of = |path, kind| {
            let data = tar_with(path, kind, b"");
            let bytes = package(("control.tar", &control()), ("data.tar", &data));
            chain(&Deb::read(bytes.as_slice()).unwrap_err()).to_string()
        };
        assert_eq!(
            error_of("./dev/sda", tar::EntryType::Block),
            "cannot unpack data.tar: dev/sda is a block; only files, directories and links can be in an image"
        );
        assert_eq!(
            error_of("./usr/../../etc/x", tar::EntryType::Regular),
            "cannot unpack data.tar: \"usr/../../etc/x\" is not a path below the root; write it like usr/bin/agent"
        );
    }

    #[test]
    fn what_is_no_package_is_told_apart() {
        let error_of = |bytes: &[u8]| Deb::read(bytes).unwrap_err().to_string();
        let (good, other) = (control(), tar_with("md5sums", tar::EntryType::Regular, b""));
        assert_eq!(
            error_of(&package(("control.tar", &other), ("data.tar", &good))),
            "not a Debian package: it has no control file"
        );
        assert_eq!(
            error_of(&package(("control.tar", &good), ("data.tar.lz", &good))),
            "a Debian package of a kind that is not known here: its member data.tar.lz"
        );
        assert_eq!(
            error_of(&package(("data.tar", &good), ("control.tar", &good))),
            "not a Debian package: found \"data.tar\" where control.tar should be"
        );
        assert_eq!(
            error_of(b"PK\x03\x04 and so on"),
            "not a Debian package: it does not begin as an ar archive does"
        );
        assert!(Deb::read(package(("control.tar", &good), ("data.tar", &good)).as_slice()).is_ok());
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let zeros = vec![0; usize::try_from(MAX_CONTROL).unwrap()];
        let bomb = tar_with("control", tar::EntryType::Regular, &zeros);
        let bomb = zstd::encode_all(bomb.as_slice(), 1).unwrap();
        let bytes = package(("control.tar.zst", &bomb), ("data.tar", &[]));
        assert!(bytes.len() < 10_000, "{}", bytes.len());
        assert_eq!(
            Deb::read(bytes.as_slice()).unwrap_err().to_string(),
            "its control archive is larger than the 33554432 bytes that are allowed"
        );
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(Deb::read(noise.as_slice()).is_err());
            for ending in ["", ".xz", ".gz", ".zst"] {
                let (control_name, data_name) = (format!("control.tar{ending}"), format!("data.tar{ending}"));
                Deb::read(package((&control_name, &noise), ("data.tar", &control())).as_slice()).ok();
                Deb::read(package(("control.tar", &control()), (&data_name, &noise)).as_slice()).ok();
            }
        }

        #[test]
        fn a_changed_byte_never_panics(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = package(("control.tar", &control()), ("data.tar", &control()));
            let place = place.index(bytes.len());
            bytes[place] = byte;
            Deb::read(bytes.as_slice()).ok();
        }
    }
}
