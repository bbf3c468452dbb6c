//! An OVA is a tar of flat files: an OVF descriptor, disks, perhaps digests of them (ssvm.md §6.9).
//!
//! We walk the headers ourselves: the `tar` crate reads long names and PAX records of any length into memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;

use tar::{EntryType, Header, PaxExtensions};

use super::ovf::{self, Descriptor};
use super::signature::{self, Signature};
use super::window::Window;
use super::{Limits, Refusal, other, vmdk};
use crate::checksum::Checksum;
use crate::path::{self, StorePath};
use crate::stream::{Digest, SparseFile, StreamError};

const BLOCK: u64 = 512;
const MAX_MEMBERS: usize = 64;
const MAX_PAX: u64 = 64 << 10;
const MAX_MANIFEST: u64 = 64 << 10;

/// What an OVA may hold besides `.strings` and `.msg` files.
const EXTENSIONS: [&str; 9] = ["ovf", "vmdk", "iso", "mf", "cert", "nvram", "xml", "strings", "msg"];

/// Hypervisor hosts and other SSVMs reach the store as other users (§2).
const FOR_ALL: u32 = 0o666;

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// A plain name.
    pub name: String,
    /// Where it begins in the archive.
    offset: u64,
    /// Bytes.
    pub size: u64,
}

/// Members, in order.
#[derive(Debug, Clone)]
pub(super) struct Contents(Vec<Member>);

/// An OVA whose members are files of a directory now.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// What it says of itself.
    pub descriptor: Descriptor,
    /// Names and lengths of the files.
    pub files: BTreeMap<String, u64>,
}

/// Why it is not.
#[derive(Debug, thiserror::Error)]
pub enum NotUnpacked {
    /// It breaks a rule.
    #[error("the OVA cannot be used")]
    Refused(#[from] Refusal),
    /// The store said no.
    #[error("cannot unpack {name}")]
    Store {
        /// The member.
        name: String,
        /// Why.
        source: StreamError,
    },
}

/// Unpacks the members of the OVA `file` into the open `directory`, with modes 0666, as long as `keep_free` bytes stay
/// free there. Nothing that is there is replaced; after a failure what was unpacked is removed again. Digests of a `.mf`
/// member are checked on the way.
pub fn unpack(file: &File, directory: &File, limits: &Limits, keep_free: u64) -> Result<Unpacked, NotUnpacked> {
    let window = Window::of_file(file).map_err(Refusal::Io)?;
    let contents = Contents::read(&window)?;
    contents.judge(&window, limits)?;
    let descriptor = contents.descriptor(&window)?;
    let manifest = contents.manifest(&window)?;
    let mut done = Vec::new();
    let result = contents.0.iter().try_for_each(|member| {
        let file = member.create(directory)?;
        done.push(member.name.clone());
        member.unpack(&window, file, manifest.get(&member.name), keep_free)
    });
    if let Err(error) = result {
        for name in done {
            let _ = nix::unistd::unlinkat(directory, name.as_str(), nix::unistd::UnlinkatFlags::NoRemoveDir);
        }
        return Err(error);
    }
    let files = contents
        .0
        .into_iter()
        .map(|member| (member.name, member.size))
        .collect();
    Ok(Unpacked { descriptor, files })
}

impl Member {
    fn failed(&self, source: StreamError) -> NotUnpacked {
        NotUnpacked::Store {
            name: self.name.clone(),
            source,
        }
    }

    fn create(&self, directory: &File) -> Result<File, NotUnpacked> {
        let name = StorePath::parse_name(&self.name);
        let file = name
            .map_err(Into::into)
            .and_then(|name| path::create_file(directory, &name, 0o600));
        file.map_err(|error| self.failed(StreamError::store(error)))
    }

    fn unpack(
        &self,
        archive: &Window<'_>,
        file: File,
        digest: Option<&Checksum>,
        keep_free: u64,
    ) -> Result<(), NotUnpacked> {
        let store = |error| self.failed(StreamError::store(error));
        file.set_permissions(Permissions::from_mode(FOR_ALL)).map_err(store)?;
        let mut output = SparseFile::resume(file, 0).map_err(store)?.keeping_free(keep_free);
        let mut found = digest.map(|digest| Digest::new(digest.algorithm()));
        let window = self.window(archive);
        let mut at = 0;
        while at < self.size {
            let block = window.read(at, 1 << 20).map_err(Refusal::Io)?;
            if block.is_empty() {
                return Err(Refusal::Other(format!("its member {:?} is cut off", self.name)).into());
            }
            at += u64::try_from(block.len()).unwrap_or(u64::MAX);
            if let Some(found) = &mut found {
                found.update(&block);
            }
            output.write(&block).map_err(|error| self.failed(error))?;
        }
        output.finish().map_err(|error| self.failed(error))?;
        match (found.map(Digest::finish), digest) {
            (Some(found), Some(wanted)) if found != *wanted => Err(Refusal::Other(format!(
                "its member {:?} has the digest {found}, and its manifest says {wanted}; it was damaged",
                self.name
            ))
            .into()),
            _ => Ok(()),
        }
    }

    fn window<'a>(&self, archive: &Window<'a>) -> Window<'a> {
        archive.part(self.offset, self.size)
    }

    fn has_extension(&self, extension: &str) -> bool {
        self.name
            .rsplit_once('.')
            .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
    }
}

impl Contents {
    /// Reads all headers. Names must be plain, known by their extension, and unique.
    pub(super) fn read(window: &Window<'_>) -> Result<Self, Refusal> {
        let mut members = Vec::new();
        let mut names = BTreeSet::new();
        let mut at = 0;
        while let Some((raw, next)) = next_member(window, at)? {
            if members.len() == MAX_MEMBERS {
                return other(format!("it has more than {MAX_MEMBERS} members"));
            }
            let member = raw.checked()?;
            if !names.insert(member.name.to_ascii_lowercase()) {
                return other(format!("it has a member {:?} twice", member.name));
            }
            members.push(member);
            at = next;
        }
        Ok(Self(members))
    }

    /// Gives the virtual size: the sum of the disks.
    pub(super) fn judge(&self, window: &Window<'_>, limits: &Limits) -> Result<u64, Refusal> {
        let descriptor = self.descriptor(window)?;
        for file in &descriptor.files {
            if !self.0.iter().any(|member| member.name == file.href) {
                let error = ovf::Missing(file.href.clone());
                return other(error.to_string());
            }
        }
        for member in &self.0 {
            let part = member.window(window);
            let found = signature::all(&part)?;
            if member.has_extension("vmdk") {
                if found != [Signature::Vmdk] {
                    let found = signature::describe(&part, &found)?;
                    return other(format!("its member {:?} is no sparse VMDK, but {found}", member.name));
                }
                let size = vmdk::judge(&part).map_err(|refusal| in_member(member, refusal))?;
                if size > limits.max_virtual_size {
                    let limit = limits.max_virtual_size;
                    return other(format!(
                        "its disk {:?} has {size} bytes; at most {limit} are allowed",
                        member.name
                    ));
                }
            } else if found
                .iter()
                .any(|signature| *signature != Signature::Iso || !member.has_extension("iso"))
            {
                let found = signature::describe(&part, &found)?;
                return other(format!("its member {:?} is {found}", member.name));
            }
        }
        descriptor.virtual_size()
    }

    fn descriptor(&self, window: &Window<'_>) -> Result<Descriptor, Refusal> {
        let mut descriptors = self.0.iter().filter(|member| member.has_extension("ovf"));
        let (Some(member), None) = (descriptors.next(), descriptors.next()) else {
            return other("it must have exactly one .ovf file in it");
        };
        if usize::try_from(member.size).map_or(true, |size| size > ovf::MAX_BYTES) {
            return other(format!("its OVF descriptor is larger than {} bytes", ovf::MAX_BYTES));
        }
        Descriptor::parse(&member.window(window).read(0, ovf::MAX_BYTES)?)
    }

    /// Digests by the name of the member.
    fn manifest(&self, window: &Window<'_>) -> Result<BTreeMap<String, Checksum>, Refusal> {
        let mut digests = BTreeMap::new();
        for member in self.0.iter().filter(|member| member.has_extension("mf")) {
            if member.size > MAX_MANIFEST {
                return other(format!(
                    "its manifest {:?} is larger than {MAX_MANIFEST} bytes",
                    member.name
                ));
            }
            let bytes = member
                .window(window)
                .read(0, usize::try_from(MAX_MANIFEST).unwrap_or(0))?;
            for line in String::from_utf8_lossy(&bytes).lines().map(str::trim) {
                if line.is_empty() {
                    continue;
                }
                let Some((name, checksum)) = manifest_line(line) else {
                    let line: String = line.chars().take(80).collect();
                    return other(format!(
                        "its manifest has a line that is not `SHA256(name)= digits`: {line:?}"
                    ));
                };
                digests.insert(name.to_owned(), checksum);
            }
        }
        Ok(digests)
    }
}

/// `SHA256(disk.vmdk)= 0123…`
fn manifest_line(line: &str) -> Option<(&str, Checksum)> {
    let (algorithm, rest) = line.split_once('(')?;
    let (name, digits) = rest.rsplit_once(')')?;
    let digits = digits.trim_start().strip_prefix('=')?.trim();
    let algorithm = match algorithm.trim() {
        "SHA1" => "SHA-1",
        "SHA256" => "SHA-256",
        "SHA512" => "SHA-512",
        _ => return None,
    };
    Some((name, Checksum::parse(&format!("{{{algorithm}}}{digits}")).ok()?))
}

fn in_member(member: &Member, refusal: Refusal) -> Refusal {
    match refusal {
        Refusal::Other(why) => Refusal::Other(format!("in its disk {:?}: {why}", member.name)),
        refusal => refusal,
    }
}

/// A TAR that is no OVA: its first member must be readable.
pub(super) fn first_member(window: &Window<'_>) -> Result<(), Refusal> {
    match next_member(window, 0)? {
        Some(_) => Ok(()),
        None => other("there is nothing in the archive"),
    }
}

/// A member as its headers say.
struct RawMember {
    name: Vec<u8>,
    kind: EntryType,
    offset: u64,
    size: u64,
}

impl RawMember {
    fn checked(self) -> Result<Member, Refusal> {
        let shown: String = String::from_utf8_lossy(&self.name).chars().take(80).collect();
        if !matches!(self.kind, EntryType::Regular | EntryType::Continuous) {
            return other(format!(
                "its member {shown:?} is no plain file; links, directories and devices are refused"
            ));
        }
        let Ok(name) = String::from_utf8(self.name) else {
            return other(format!("its member {shown:?} has a name that is not UTF-8"));
        };
        let name = name.strip_prefix("./").unwrap_or(&name).to_owned();
        let is_plain = StorePath::parse_name(&name).is_ok_and(|plain| plain.as_str() == name);
        if !is_plain || name.starts_with('.') || name.contains('\\') {
            return other(format!(
                "its member {shown:?} has a name that leads elsewhere; plain names are possible"
            ));
        }
        let member = Member {
            name,
            offset: self.offset,
            size: self.size,
        };
        if !EXTENSIONS.iter().any(|extension| member.has_extension(extension)) {
            let known = EXTENSIONS.join(", ");
            return other(format!("its member {shown:?} is not one of {known}"));
        }
        Ok(member)
    }
}

/// The member whose headers begin at `at`, and where the next one's do; `None` at the end.
fn next_member(window: &Window<'_>, mut at: u64) -> Result<Option<(RawMember, u64)>, Refusal> {
    let (mut name, mut size) = (None, None);
    // A member has one PAX header at most, and an archive one for all: more is a chain made to be long.
    for _ in 0..4 {
        let block = window.read(at, 512)?;
        if block.is_empty() || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let Some(header) = header(&block) else {
            return other(format!("its header at byte {at} is damaged or cut off"));
        };
        let Ok(header_size) = header.entry_size() else {
            return other(format!("its header at byte {at} has no size"));
        };
        let offset = at + BLOCK;
        match header.entry_type() {
            EntryType::XHeader | EntryType::XGlobalHeader => {
                if header_size > MAX_PAX {
                    return other(format!("its PAX header at byte {at} is larger than {MAX_PAX} bytes"));
                }
                let records = window.read(offset, usize::try_from(header_size).unwrap_or(0))?;
                let is_global = header.entry_type() == EntryType::XGlobalHeader;
                for record in PaxExtensions::new(&records) {
                    let Ok(record) = record else {
                        return other(format!("its PAX header at byte {at} is damaged"));
                    };
                    match record.key_bytes() {
                        b"path" if !is_global => name = Some(record.value_bytes().to_vec()),
                        b"size" if !is_global => {
                            size = Some(
                                record
                                    .value()
                                    .ok()
                                    .and_then(|value| value.parse().ok())
                                    .unwrap_or(u64::MAX),
                            );
                        }
                        key if key.starts_with(b"GNU.sparse") || matches!(key, b"path" | b"size" | b"linkpath") => {
                            return other("it is a sparse or linked archive; make a plain one");
                        }
                        _ => {}
                    }
                }
                at = behind(offset, header_size, window)?;
            }
            EntryType::GNULongName | EntryType::GNULongLink => {
                return other("it has a member with a name of more than 100 bytes; give it a shorter one");
            }
            kind => {
                let size = size.unwrap_or(header_size);
                let member = RawMember {
                    name: name.unwrap_or_else(|| header.path_bytes().into_owned()),
                    kind,
                    offset,
                    size,
                };
                return Ok(Some((member, behind(offset, size, window)?)));
            }
        }
    }
    other("it has a chain of PAX headers")
}

/// Where the next header begins. What should be before it must be there; only the padding of the last may be missing.
fn behind(offset: u64, size: u64, window: &Window<'_>) -> Result<u64, Refusal> {
    match offset.checked_add(size) {
        Some(end) if end <= window.len() => Ok(end.checked_next_multiple_of(BLOCK).unwrap_or(end)),
        _ => other("it is cut off: a member goes on behind its end"),
    }
}

fn header(block: &[u8]) -> Option<&Header> {
    let block: &[u8; 512] = block.try_into().ok()?;
    let header = Header::from_byte_slice(block);
    let is_sum = |(at, _): &(usize, &u8)| (148..156).contains(at);
    let sum = |sum: u32, (at, byte): (usize, &u8)| sum + if is_sum(&(at, byte)) { 32 } else { u32::from(*byte) };
    (header.cksum().ok()? == block.iter().enumerate().fold(0, sum)).then_some(header)
}
