//! From a verified file to an image in its place (ssvm.md §3.7).
//!
//! Everything here blocks on the store, and works below one open directory: `/proc/self/fd/N` is that directory even if
//! its name is given to something else meanwhile.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
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
    /// The temporary file; `None`: gone, or without what was in it.
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
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn has_file(&self, name: &str) -> bool {
        std::fs::symlink_metadata(self.at(name)).is_ok_and(|found| found.is_file())
    }

    /// `false`: it was not there.
    fn remove(&self, name: &str) -> io::Result<bool> {
        match std::fs::remove_file(self.at(name)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes plain files.
    fn remove_where(&self, is_unwanted: impl Fn(&str) -> bool) -> io::Result<()> {
        for entry in std::fs::read_dir(self.at("."))? {
            let entry = entry?;
            let name = entry.file_name().into_string();
            if entry.file_type()?.is_file() && name.as_ref().is_ok_and(|name| is_unwanted(name)) {
                match std::fs::remove_file(entry.path()) {
                    Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Makes properties that say "not finished" to whoever lists the store (§2.1): they are empty.
    fn write_empty(&self, properties: &str) -> io::Result<()> {
        self.remove(properties)?;
        File::create_new(self.at(properties))?.set_permissions(Permissions::from_mode(FOR_ALL))
    }
}

/// What another job or SSVM is writing, or an NFS client keeps because somebody has it open.
fn is_in_use(name: &str) -> bool {
    let is_temporary = name.starts_with("dnld") && name.ends_with("tmp_");
    is_temporary || name.starts_with(".nfs")
}

impl Place {
    /// Makes the directory, and the temporary file or finds the one that has been begun, with so many bytes at least. An
    /// image that is there already stays valid until the new one takes its place.
    ///
    /// # Errors
    /// The store said no.
    pub fn prepare(&self, begun: Option<u64>) -> io::Result<Prepared> {
        let directory = Directory::open(self, true)?;
        if let Some(begun) = begun {
            let file = directory.open_file(&self.names.temporary)?;
            let has_all = |file: &File| file.metadata().is_ok_and(|found| found.len() >= begun);
            return Ok(Prepared {
                file: file.filter(has_all),
                has_installed: directory.has_file(&self.names.installed),
            });
        }
        if !directory.has_file(self.properties()) {
            directory.write_empty(self.properties())?;
        }
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

    /// Judges the image through an open descriptor, gives it its name, and writes its properties. Then whatever else is
    /// in the directory goes: what is left of an older image.
    ///
    /// # Errors
    /// The image is not what it should be, or the store said no.
    pub fn install(&self, order: &Order, rules: &Rules) -> Result<Installed, NotInstalled> {
        let directory = Directory::open(self, false)?;
        let temporary = directory.open_file(&self.names.temporary)?;
        let mut is_moved = temporary.is_none();
        let file = match temporary {
            Some(file) => file,
            None => directory
                .open_file(&self.names.installed)?
                .ok_or_else(|| NotInstalled {
                    text: "Failed to install: the downloaded file was removed from the store".into(),
                    is_content: false,
                })?,
        };
        let installed = self.install_file(&directory, &file, &mut is_moved, order, rules);
        match &installed {
            Ok(_) if order.format == ImageFormat::Ova => {} // it has removed the older one, to make room for its members
            Ok(_) => {
                if let Err(error) = self.remove_others(&directory) {
                    warn!(%error, "Cannot remove what is left of an older image");
                }
            }
            Err(_) if is_moved => {
                directory.remove(&self.names.installed)?;
                if order.format == ImageFormat::Ova {
                    self.remove_others(&directory)?;
                }
            }
            Err(_) => {}
        }
        installed
    }

    /// Removes what does not belong to our image.
    fn remove_others(&self, directory: &Directory) -> io::Result<()> {
        let ours = [self.names.installed.as_str(), self.properties()];
        directory.remove_where(|name| !ours.contains(&name) && !is_in_use(name))
    }

    fn install_file(
        &self,
        directory: &Directory,
        file: &File,
        is_moved: &mut bool,
        order: &Order,
        rules: &Rules,
    ) -> Result<Installed, NotInstalled> {
        let judged = image::judge(file, order.format, &rules.images).map_err(|refusal| refused(refusal, order))?;
        file.set_permissions(Permissions::from_mode(FOR_ALL))?;
        file.sync_all()?;
        let (installed, properties) = (self.names.installed.as_str(), self.properties());
        // Where files of an older image get new contents under their names, it is not valid from now on.
        if order.format == ImageFormat::Ova || directory.has_file(installed) {
            directory.write_empty(properties)?;
        }
        if !*is_moved {
            std::fs::rename(directory.at(&self.names.temporary), directory.at(installed))?;
            *is_moved = true;
            directory.0.sync_all()?;
        }
        let physical_size = file.metadata()?.len();
        for warning in &judged.warnings {
            warn!(path = installed, warning, "Image accepted");
        }
        let ovf = match order.format {
            ImageFormat::Ova => Some(Box::new(self.unpack(directory, file, order, rules)?)),
            _ => None,
        };
        let image = Image {
            filename: installed,
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
        let _ = files::replace(directory.at(properties), text, FOR_ALL).map_err(|error| NotInstalled {
            text: format!("Failed to install: {}", chain(&error)),
            is_content: false,
        })?;
        Ok(Installed {
            root: self.root.clone(),
            path: format!("{}/{installed}", self.directory),
            virtual_size: judged.virtual_size,
            physical_size,
            ovf,
        })
    }

    fn unpack(
        &self,
        directory: &Directory,
        file: &File,
        order: &Order,
        rules: &Rules,
    ) -> Result<OVFInformationTO, NotInstalled> {
        self.remove_others(directory)?; // what an older image, or a run that was killed, has unpacked is in the way
        let unpacked =
            image::ova::unpack(file, &directory.0, &rules.images, rules.reserve_bytes).map_err(
                |error| match error {
                    image::ova::NotUnpacked::Refused(refusal) => refused(refusal, order),
                    image::ova::NotUnpacked::Store { .. } => NotInstalled {
                        text: format!("Failed to install: {} ({})", chain(&error), Shown::new(&order.url)),
                        is_content: false,
                    },
                },
            )?;
        let at = self.root.join(self.directory.as_str()).display().to_string();
        unpacked
            .descriptor
            .information(&at, &unpacked.files, None)
            .map_err(|error| NotInstalled {
                text: format!("Failed post download script: {error} ({})", Shown::new(&order.url)),
                is_content: true,
            })
    }

    /// Removes what is ours after a failure, and the directories that are empty then. With `may_be_moved` also the image,
    /// if it has its name already.
    ///
    /// # Errors
    /// The store said no.
    pub fn clean_up(&self, may_be_moved: bool) -> io::Result<()> {
        path::open_root(&self.root)?; // without the store nothing is known
        let directory = match Directory::open(self, false) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            directory => directory?,
        };
        if !directory.remove(&self.names.temporary)? && may_be_moved {
            directory.remove(&self.names.installed)?;
        }
        directory.remove_where(|name| name.starts_with(files::BESIDE))?;
        let properties = std::fs::symlink_metadata(directory.at(self.properties()));
        if properties.is_ok_and(|found| found.len() == 0) {
            directory.remove(self.properties())?;
        }
        let depth = match self.kind {
            Kind::Template => 3,
            Kind::Volume => 2,
        };
        path::remove_empty(&self.root, &self.directory, depth)
    }

    fn properties(&self) -> &'static str {
        match self.kind {
            Kind::Template => "template.properties",
            Kind::Volume => "volume.properties",
        }
    }
}

/// What users are told of an image that is refused.
pub fn refused(refusal: image::Refusal, order: &Order) -> NotInstalled {
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
