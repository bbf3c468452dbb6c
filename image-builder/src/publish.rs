//! Publishing: the files that a CloudStack management server expects, under the names that it expects
//! (appliance.md §11.1; apache/cloudstack engine/schema/templateConfig.sh and SystemVmTemplateRegistration.java).

use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use bzip2::write::BzEncoder;
use platform::files::{self, FileError};
use sha2::{Digest, Sha512};
use tracing::info;
use url::Url;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use crate::cache::hex;
use crate::formats::{self, Compression, Disk, Format, Watched};
use crate::output::{self, OutputError};

const METADATA: &str = "metadata.ini";
const CHECKSUMS: &str = "sha512sum.txt";

/// The release of CloudStack that asks for the template, such as 4.22.0.0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version([u16; 4]);

/// What is no version of CloudStack.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a version of CloudStack; write it like 4.22.0 or 4.22.0.0")]
pub struct BadVersion(String);

impl FromStr for Version {
    type Err = BadVersion;

    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let bad = || BadVersion(text.to_owned());
        let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let parts: Vec<&str> = text.split('.').collect();
        let mut numbers = [0; 4];
        if !matches!(parts.len(), 3 | 4) || !parts.iter().all(is_number) {
            return Err(bad());
        }
        for (number, part) in numbers.iter_mut().zip(parts) {
            *number = part.parse().map_err(|_| bad())?;
        }
        Ok(Self(numbers))
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self([major, minor, patch, security]) = self;
        write!(f, "{major}.{minor}.{patch}.{security}")
    }
}

impl Version {
    /// As in names of templates: 4.22.0.
    fn short(self) -> String {
        let Self([major, minor, patch, _]) = self;
        format!("{major}.{minor}.{patch}")
    }

    /// The directory that files of this release are in: 4.22.
    fn directory(self) -> String {
        let Self([major, minor, ..]) = self;
        format!("{major}.{minor}")
    }
}

/// A published file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Artifact {
    Kvm,
    Vmware,
    Xen,
    Hyperv,
}

impl Artifact {
    const ALL: [Self; 4] = [Self::Kvm, Self::Vmware, Self::Xen, Self::Hyperv];

    fn file_name(self, version: Version) -> String {
        let ending = match self {
            Self::Kvm => "kvm.qcow2.bz2",
            Self::Vmware => "vmware.ova",
            Self::Xen => "xen.vhd.bz2",
            Self::Hyperv => "hyperv.vhd.zip",
        };
        format!("systemvmtemplate-{}-x86_64-{ending}", version.short())
    }
}

/// Sections of `metadata.ini` that we can fill: their name, their file, and the guest OS that the server looks up in
/// its table. That table knows no Debian 13; the entry only chooses devices and icons.
const SECTIONS: [(&str, Artifact, &str); 5] = [
    ("kvm-x86_64", Artifact::Kvm, "Debian GNU/Linux 12 (64-bit)"),
    ("vmware", Artifact::Vmware, "Other Linux (64-bit)"),
    ("xenserver", Artifact::Xen, "Other Linux (64-bit)"),
    ("hyperv", Artifact::Hyperv, "Debian GNU/Linux 12 (64-bit)"),
    ("lxc", Artifact::Kvm, "Debian GNU/Linux 12 (64-bit)"),
];

/// Why nothing, or not everything, was published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A large file could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A small file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory for the files, or one of them, cannot be used.
    #[error("cannot use {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What to publish, and where.
#[derive(Debug)]
pub struct Publication {
    /// The directory for the files; made if it is not there.
    pub out: PathBuf,
    /// Which server asks for them.
    pub version: Version,
    /// Where a server would download them from: files are in a directory of the release below it.
    pub base_url: Option<Url>,
}

impl Publication {
    /// Makes all files from `disk`. Those that are there are replaced, one by one, each when it is complete;
    /// `metadata.ini` last, so that its checksums are true. Once `stop` is true, it fails soon. Gives the paths of all.
    ///
    /// # Errors
    /// The disk cannot be read, or a file cannot be written.
    pub fn make(&self, disk: &dyn Disk, stop: &AtomicBool) -> Result<Vec<PathBuf>, PublishError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| PublishError::Io { path, source }
        };
        fs::create_dir_all(&self.out).map_err(io(&self.out))?;
        let watched = Watched::new(disk, stop, |_| ());
        let job = Job {
            publication: self,
            disk: &watched,
            stop,
        };
        // Two lanes of about the same length, because bzip2 uses one processor.
        thread::scope(|scope| {
            let lane = scope.spawn(|| job.kvm().and_then(|()| job.vmware()));
            let xen_and_hyperv = job.xen_and_hyperv();
            let lane = lane.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            lane.and(xen_and_hyperv)
        })?;

        let mut checksums = Vec::new();
        for artifact in Artifact::ALL {
            let path = self.path(artifact);
            let checksum = sha512(&path).map_err(io(&path))?;
            checksums.push((artifact, checksum));
        }
        let (sums, metadata) = (self.out.join(CHECKSUMS), self.out.join(METADATA));
        let _ = files::replace(&sums, self.checksums(&checksums), 0o644)?;
        let _ = files::replace(&metadata, self.metadata(&checksums), 0o644)?;
        let mut paths: Vec<_> = Artifact::ALL.map(|artifact| self.path(artifact)).into();
        paths.extend([sums, metadata]);
        Ok(paths)
    }

    fn path(&self, artifact: Artifact) -> PathBuf {
        self.out.join(artifact.file_name(self.version))
    }

    /// As `sha512sum` prints and checks them.
    fn checksums(&self, checksums: &[(Artifact, String)]) -> String {
        let line =
            |(artifact, checksum): &(Artifact, String)| format!("{checksum}  {}\n", artifact.file_name(self.version));
        checksums.iter().map(line).collect()
    }

    fn metadata(&self, checksums: &[(Artifact, String)]) -> String {
        let url = |path: &str| match &self.base_url {
            Some(base) => format!("{}/{path}", base.as_str().trim_end_matches('/')),
            None => String::new(), // the server takes the file beside this one
        };
        let mut parts = vec![format!("[default]\nversion = {}\n", self.version)];
        if self.base_url.is_some() {
            parts.push(format!("downloadrepository = {}\n", url("")));
        }
        for (section, wanted, guest_os) in SECTIONS {
            let (hypervisor, _) = section.split_once('-').unwrap_or((section, ""));
            let (short, file) = (self.version.short(), wanted.file_name(self.version));
            let download = url(&format!("{}/{file}", self.version.directory()));
            let checksum = checksums.iter().find(|(artifact, _)| *artifact == wanted);
            let checksum = checksum.map_or("", |(_, checksum)| checksum);
            parts.push(format!(
                "\n[{section}]
templatename = systemvm-{hypervisor}-{short}-x86_64
checksum = {checksum}
downloadurl = {download}
filename = {file}
arch = x86_64
guestos = {guest_os}
"
            ));
        }
        parts.concat()
    }
}

/// One run of [`Publication::make`].
struct Job<'a> {
    publication: &'a Publication,
    disk: &'a dyn Disk,
    stop: &'a AtomicBool,
}

impl Job<'_> {
    /// bzip2 packs plain clusters better than compressed ones, and hosts read them faster.
    fn kvm(&self) -> Result<(), OutputError> {
        self.write(Artifact::Kvm, |out| {
            let image = self.convert(Format::Qcow2)?;
            self.bzip2(&image, out)
        })
    }

    fn vmware(&self) -> Result<(), OutputError> {
        self.write(Artifact::Vmware, |out| {
            formats::write(self.disk, Format::Ova, Compression::None, out)
        })
    }

    fn xen_and_hyperv(&self) -> Result<(), OutputError> {
        let mut image = None;
        self.write(Artifact::Xen, |out| {
            self.bzip2(image.insert(self.convert(Format::Vhd)?), out)
        })?;
        self.write(Artifact::Hyperv, |out| match &image {
            Some(image) => self.zip(image, out),
            None => Ok(()),
        })
    }

    fn write(&self, artifact: Artifact, work: impl FnOnce(&mut File) -> io::Result<()>) -> Result<(), OutputError> {
        let (path, started) = (self.publication.path(artifact), Instant::now());
        output::write(&path, work)?;
        info!(path = %path.display(), elapsed = ?started.elapsed(), "Published");
        Ok(())
    }

    /// An image that has no name, and is gone when we are.
    fn convert(&self, format: Format) -> io::Result<File> {
        let file = tempfile::tempfile_in(&self.publication.out)?;
        formats::write(self.disk, format, Compression::None, &file)?;
        Ok(file)
    }

    fn bzip2(&self, mut image: &File, out: &mut File) -> io::Result<()> {
        image.seek(SeekFrom::Start(0))?;
        let mut encoder = BzEncoder::new(out, bzip2::Compression::best());
        io::copy(&mut self.stoppable(image), &mut encoder)?;
        encoder.finish()?;
        Ok(())
    }

    fn zip(&self, mut image: &File, out: &mut File) -> io::Result<()> {
        image.seek(SeekFrom::Start(0))?;
        let name = Artifact::Hyperv.file_name(self.publication.version);
        let name = name.trim_end_matches(".zip");
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .compression_level(Some(6))
            .last_modified_time(DateTime::default()) // 1980, the first that zip knows
            .large_file(image.metadata()?.len() >= u64::from(u32::MAX))
            .unix_permissions(0o644);
        let mut archive = ZipWriter::new(out);
        archive.start_file(name, options).map_err(io::Error::other)?;
        io::copy(&mut self.stoppable(image), &mut archive)?;
        archive.finish().map_err(io::Error::other)?;
        Ok(())
    }

    fn stoppable<'a>(&'a self, image: &'a File) -> BufReader<Stoppable<'a>> {
        let stop = self.stop;
        BufReader::with_capacity(1 << 20, Stoppable { image, stop })
    }
}

/// A file that can no longer be read once `stop` is true.
struct Stoppable<'a> {
    image: &'a File,
    stop: &'a AtomicBool,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(formats::stopped());
        }
        self.image.read(buffer)
    }
}

fn sha512(path: &Path) -> io::Result<String> {
    let (mut file, mut digest) = (File::open(path)?, Sha512::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(digest.finalize()));
        }
        digest.update(&buffer[..count]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_have_three_or_four_numbers() {
        assert_eq!("4.22.0".parse::<Version>().unwrap().to_string(), "4.22.0.0");
        assert_eq!("4.20.1.2".parse::<Version>().unwrap().short(), "4.20.1");
        for bad in ["", "4.22", "4.22.0.0.1", "4.22.x", "4.22.+1", "4.22.70000", "4..22"] {
            let error = bad.parse::<Version>().unwrap_err().to_string();
            assert!(
                error.ends_with("is not a version of CloudStack; write it like 4.22.0 or 4.22.0.0"),
                "{error}"
            );
        }
    }

    fn publication(base_url: Option<&str>) -> Publication {
        Publication {
            out: PathBuf::from("published"),
            version: Version([4, 22, 0, 0]),
            base_url: base_url.map(|url| url.parse().unwrap()),
        }
    }

    #[test]
    fn metadata_has_the_stock_shape() {
        let checksums = Artifact::ALL.map(|artifact| (artifact, format!("{artifact:?}").to_lowercase()));
        let text = publication(Some("https://example.org/systemvm/")).metadata(&checksums);
        let begin = "\
[default]
version = 4.22.0.0
downloadrepository = https://example.org/systemvm/

[kvm-x86_64]
templatename = systemvm-kvm-4.22.0-x86_64
checksum = kvm
downloadurl = https://example.org/systemvm/4.22/systemvmtemplate-4.22.0-x86_64-kvm.qcow2.bz2
filename = systemvmtemplate-4.22.0-x86_64-kvm.qcow2.bz2
arch = x86_64
guestos = Debian GNU/Linux 12 (64-bit)

[vmware]
templatename = systemvm-vmware-4.22.0-x86_64
checksum = vmware
";
        assert_eq!(&text[..begin.len()], begin);
        let sections: Vec<_> = text.lines().filter(|line| line.starts_with('[')).collect();
        let wanted = [
            "[default]",
            "[kvm-x86_64]",
            "[vmware]",
            "[xenserver]",
            "[hyperv]",
            "[lxc]",
        ];
        assert_eq!(sections, wanted);
    }

    #[test]
    fn without_a_url_the_server_takes_the_files_beside() {
        let text = publication(None).metadata(&[]);
        assert_eq!(
            text.lines().filter(|line| *line == "downloadurl = ").count(),
            SECTIONS.len()
        );
        assert!(!text.contains("downloadrepository"));
    }
}
