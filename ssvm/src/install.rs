//! From a verified file to an image in its place (ssvm.md §3.7).
//!
//! Everything here blocks on the store, and works below one open directory: `/proc/self/fd/N` is that directory even if
//! its name is given to something else meanwhile.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;

use nix::fcntl::OFlag;
use platform::files;
use platform::logging::chain;
use protocol::ovf::OVFInformationTO;
use protocol::transfer::ImageFormat;
use time::OffsetDateTime;
use tracing::warn;
use uuid::Uuid;

use crate::image;
use crate::journal::Names;
use crate::order::{Kind, Order, mismatch};
use crate::path::{self, StorePath};
use crate::properties::Image;
use crate::rules::Rules;
use crate::source::Shown;

/// Hypervisor hosts and other SSVMs reach the store as other users (§2).
const FOR_ALL: u32 = 0o666;

/// Where an image goes.
#[derive(Debug)]
pub struct Place {
    /// Of the store.
    pub root: PathBuf,
    /// Install directory, relative to it.
    pub directory: StorePath,
    /// Files in it that are ours.
    pub names: Names,
    /// Decides the name of the properties.
    pub kind: Kind,
}

/// What there is before a transfer.
#[derive(Debug)]
pub struct Prepared {
    /// The temporary file; `None`: gone.
    pub file: Option<File>,
    /// The image is in its place already: only its properties are missing.
    pub has_installed: bool,
}

/// An image in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Installed {
    /// Of the store.
    pub root: PathBuf,
    /// Relative to the store.
    pub path: String,
    /// Bytes the guest sees.
    pub virtual_size: u64,
    /// Bytes of the file.
    pub physical_size: u64,
    /// Of an OVA.
    pub ovf: Option<Box<OVFInformationTO>>,
}

/// Why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotInstalled {
    /// For users.
    pub text: String,
    /// The image is bad, not the store.
    pub is_content: bool,
}

impl From<io::Error> for NotInstalled {
    fn from(error: io::Error) -> Self {
        Self {
            text: format!("Failed to install: the store said: {error}"),
            is_content: false,
        }
    }
}

/// Names for a new job: what a transfer writes to, and the image.
pub fn names(order: &Order) -> Names {
    let installed = match order.format {
        ImageFormat::Iso => format!("{}.iso", file_name(&order.name)),
        format => format!("{}.{}", Uuid::new_v4(), extension(format)),
    };
    Names {
        temporary: format!("dnld{}tmp_", Uuid::new_v4().as_u128()),
        installed,
    }
}

/// The unique name of an ISO as the name of its file (§2). Slashes and the like come from users.
fn file_name(name: &str) -> String {
    let safe = |c: char| {
        if c.is_whitespace() || c.is_control() || c == '/' {
            '_'
        } else {
            c
        }
    };
    let name: String = name.trim().chars().map(safe).collect();
    let mut end = name.len().min(200);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].trim_start_matches('.').to_owned()
}

fn extension(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Qcow2 => "qcow2",
        ImageFormat::Raw => "raw",
        ImageFormat::Vhd => "vhd",
        ImageFormat::Vhdx => "vhdx",
        ImageFormat::Iso => "iso",
        ImageFormat::Ova => "ova",
        ImageFormat::Vmdk => "vmdk",
        ImageFormat::Tar => "tar",
        // None of these can be downloaded: order.rs knows no file names for them.
        ImageFormat::Vdi
        | ImageFormat::Zip
        | ImageFormat::Dir
        | ImageFormat::Png
        | ImageFormat::Baremetal
        | ImageFormat::External => "img",
    }
}

/// An open install directory.
struct Directory(File);

impl Directory {
    fn open(place: &Place, create: bool) -> io::Result<Self> {
        path::open_directory(&place.root, place.directory.as_str(), create).map(Self)
    }

    fn at(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd())).join(name)
    }

    fn open_file(&self, name: &str) -> io::Result<Option<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(OFlag::O_NOFOLLOW.bits());
        match options.open(self.at(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.at(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

impl Directory {
    /// Removes all other files.
    fn remove_all_but(&self, kept: &[&str]) -> io::Result<()> {
        for entry in std::fs::read_dir(self.at("."))? {
            let entry = entry?;
            if entry.file_type()?.is_file() && !kept.iter().any(|name| entry.file_name() == *name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Makes the directory, and the temporary file or finds the one that has been begun.
    ///
    /// # Errors
    /// The store said no.
    pub fn prepare(&self, has_begun: bool) -> io::Result<Prepared> {
        let directory = Directory::open(self, true)?;
        if has_begun {
            return Ok(Prepared {
                file: directory.open_file(&self.names.temporary)?,
                has_installed: directory.open_file(&self.names.installed)?.is_some(),
            });
        }
        // Empty properties: "not finished" for whoever lists the store (§2.1).
        directory.remove(self.properties())?;
        File::create_new(directory.at(self.properties()))?.set_permissions(Permissions::from_mode(FOR_ALL))?;
        directory.remove(&self.names.temporary)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(directory.at(&self.names.temporary))?;
        Ok(Prepared {
            file: Some(file),
            has_installed: false,
        })
    }

    /// Judges the image through an open descriptor, gives it its name, and writes its properties.
    ///
    /// # Errors
    /// The image is not what it should be, or the store said no.
    pub fn install(&self, order: &Order, rules: &Rules) -> Result<Installed, NotInstalled> {
        let directory = Directory::open(self, false)?;
        let temporary = directory.open_file(&self.names.temporary)?;
        let is_moved = temporary.is_none();
        let file = match temporary {
            Some(file) => file,
            None => directory
                .open_file(&self.names.installed)?
                .ok_or_else(|| NotInstalled {
                    text: "Failed to install: the downloaded file was removed from the store".into(),
                    is_content: false,
                })?,
        };
        let judged = image::judge(&file, order.format, &rules.images).map_err(|refusal| refused(refusal, order))?;
        file.set_permissions(Permissions::from_mode(FOR_ALL))?;
        file.sync_all()?;
        if !is_moved {
            std::fs::rename(directory.at(&self.names.temporary), directory.at(&self.names.installed))?;
            directory.0.sync_all()?;
        }
        let physical_size = file.metadata()?.len();
        for warning in &judged.warnings {
            warn!(path = self.names.installed, warning, "Image accepted");
        }
        let mut ovf = None;
        if order.format == ImageFormat::Ova {
            // What a run that was killed has unpacked is in the way of the next.
            directory.remove_all_but(&[&self.names.installed, self.properties()])?;
            let unpacked = image::ova::unpack(&file, &directory.0, &rules.images).map_err(|error| match error {
                image::ova::NotUnpacked::Refused(refusal) => refused(refusal, order),
                image::ova::NotUnpacked::Store { .. } => NotInstalled {
                    text: format!("Failed to install: {} ({})", chain(&error), Shown::new(&order.url)),
                    is_content: false,
                },
            })?;
            let at = self.root.join(self.directory.as_str()).display().to_string();
            let information = unpacked.descriptor.information(&at, &unpacked.files, None);
            let information = information.map_err(|error| NotInstalled {
                text: format!("Failed post download script: {error} ({})", Shown::new(&order.url)),
                is_content: true,
            })?;
            ovf = Some(Box::new(information));
        }
        let image = Image {
            filename: &self.names.installed,
            description: &order.description,
            hvm: order.hvm,
            size: physical_size,
            checksum: match self.kind {
                Kind::Template => None,
                Kind::Volume => Some(order.checksum.as_deref().unwrap_or_default()),
            },
        };
        let finished = image.stage2(order.id, &order.name, extension(order.format), judged.virtual_size);
        let text = finished.render(OffsetDateTime::now_utc());
        // Last, and whole: whoever lists the store sees a finished image or none.
        let _ = files::replace(directory.at(self.properties()), text, FOR_ALL).map_err(|error| NotInstalled {
            text: format!("Failed to install: {}", chain(&error)),
            is_content: false,
        })?;
        Ok(Installed {
            root: self.root.clone(),
            path: format!("{}/{}", self.directory, self.names.installed),
            virtual_size: judged.virtual_size,
            physical_size,
            ovf,
        })
    }

    /// Removes what is ours after a failure, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// The store said no.
    pub fn clean_up(&self) -> io::Result<()> {
        let directory = Directory::open(self, false)?;
        directory.remove(&self.names.temporary)?;
        directory.remove(&self.names.installed)?;
        let _ = std::fs::remove_dir(self.root.join(self.directory.as_str()));
        Ok(())
    }

    fn properties(&self) -> &'static str {
        match self.kind {
            Kind::Template => "template.properties",
            Kind::Volume => "volume.properties",
        }
    }
}

fn refused(refusal: image::Refusal, order: &Order) -> NotInstalled {
    let text = match refusal {
        image::Refusal::Mismatch(found) => mismatch(&found, &order.url),
        image::Refusal::BadQcow2(why) => format!(
            "Failed post download script: The downloaded file is not a valid QCOW2. Ask the administrator to check the \
             logs for more details. ({}: {why})",
            Shown::new(&order.url)
        ),
        image::Refusal::Io(error) => return error.into(),
        image::Refusal::Other(why) => format!("Failed post download script: {why} ({})", Shown::new(&order.url)),
    };
    NotInstalled { text, is_content: true }
}
