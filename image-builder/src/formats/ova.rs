//! OVA: a tar archive of a description, a manifest with digests, and a VMDK, in this order (image-pipeline.md §10.3).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};

use super::fields::{len, size};
use super::source::Source;
use super::vmdk::{self, Vmdk};
use super::{Bad, Disk, MADE, damaged, ovf, refused};
use crate::cache::hex;

/// What the machine in it is called. Not what the file is called: the same disk is the same archive.
const NAME: &str = "systemvm";
const DESCRIPTOR: &str = "systemvm.ovf";
const MANIFEST: &str = "systemvm.mf";
const DISK: &str = "systemvm-disk1.vmdk";
const BLOCK: u64 = 512;
/// More is no description of one machine.
const MAX_DESCRIPTOR: u64 = 1 << 20;
const MAX_MANIFEST: u64 = 64 << 10;
const MAX_MEMBERS: usize = 64;

pub(super) fn write(disk: &dyn Disk, file: &File) -> io::Result<()> {
    // The description is in front of the disk and has its size in it: room is left for the longest number.
    let room = ovf::render(NAME, DISK, u64::MAX, disk.size()).len();
    let manifest_room = manifest(&[0; 32], &[0; 32]).len();
    let disk_at = 3 * BLOCK + padded(room)? + padded(manifest_room)?;

    let mut out = Hashing {
        digest: Sha256::new(),
        file,
        position: disk_at,
    };
    let disk_len = vmdk::write(disk, DISK, BufWriter::with_capacity(1 << 20, &mut out))?;
    let disk_digest = out.digest.finalize();

    let mut descriptor = ovf::render(NAME, DISK, disk_len, disk.size());
    descriptor.extend(std::iter::repeat_n('\n', room - descriptor.len()));
    let manifest = manifest(&Sha256::digest(descriptor.as_bytes()), &disk_digest);
    let mut front = Vec::new();
    for (name, contents) in [(DESCRIPTOR, &descriptor), (MANIFEST, &manifest)] {
        front.extend_from_slice(&header(name, len(contents.as_bytes()))?);
        front.extend_from_slice(contents.as_bytes());
        front.resize(size(padded(front.len())?)?, 0);
    }
    front.extend_from_slice(&header(DISK, disk_len)?);
    file.write_all_at(&front, 0)?;
    file.set_len((disk_at + disk_len).next_multiple_of(BLOCK) + 2 * BLOCK) // two empty blocks end an archive
}

fn padded(len: usize) -> io::Result<u64> {
    Ok(u64::try_from(len).map_err(io::Error::other)?.next_multiple_of(BLOCK))
}

fn manifest(descriptor: &[u8], disk: &[u8]) -> String {
    format!(
        "SHA256({DESCRIPTOR})= {}\nSHA256({DISK})= {}\n",
        hex(descriptor),
        hex(disk)
    )
}

fn header(name: &str, len: u64) -> io::Result<[u8; 512]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(MADE);
    header.set_size(len);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// A part of the file, and the digest of what went into it.
struct Hashing<'a> {
    digest: Sha256,
    file: &'a File,
    position: u64,
}

impl Write for &mut Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.position)?;
        self.digest.update(bytes);
        self.position += len(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where in the file each member is.
type Members = BTreeMap<String, Source>;

/// Whether the bytes are an archive whose first member is a description.
pub(super) fn is(source: &Source) -> io::Result<bool> {
    if source.len() < BLOCK {
        return Ok(false);
    }
    let header = source.read(BLOCK, 0)?;
    let name = header[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(header[257..262] == *b"ustar" && name.ends_with(b".ovf"))
}

/// The disk in an OVA.
pub(super) fn open(source: &Source) -> Result<Vmdk, Bad> {
    let members = members(source)?;
    let descriptor = descriptor(&members)?;
    let name = ovf::disk_file(&text(&descriptor.1, MAX_DESCRIPTOR)?)?;
    match members.get(&name) {
        Some(disk) => Vmdk::open(disk.clone()),
        None => damaged(format!("its descriptor names {name:?}, which is not in it")),
    }
}

fn descriptor(members: &Members) -> Result<(String, Source), Bad> {
    let mut found = members.iter().filter(|(name, _)| name.strip_suffix(".ovf").is_some());
    match (found.next(), found.next()) {
        (Some((name, source)), None) => Ok((name.clone(), source.clone())),
        (None, _) => damaged("it has no descriptor (.ovf)"),
        _ => damaged("it has several descriptors (.ovf)"),
    }
}

/// Compares the members with the manifest, if there is one.
pub(super) fn check_manifest(source: &Source) -> Result<(), Bad> {
    let members = members(source)?;
    let (descriptor, _) = descriptor(&members)?;
    let manifest = descriptor.trim_end_matches(".ovf").to_owned() + ".mf";
    let Some(manifest) = members.get(&manifest) else {
        return Ok(());
    };
    for line in text(manifest, MAX_MANIFEST)?
        .lines()
        .filter(|line| !line.trim().is_empty())
    {
        let parsed = line
            .strip_prefix("SHA256(")
            .and_then(|rest| rest.rsplit_once(")="))
            .map(|(name, digest)| (name, digest.trim()));
        let Some((name, digest)) = parsed else {
            return refused(format!("its manifest has a line that is no SHA-256: {line:?}"));
        };
        let Some(member) = members.get(name) else {
            return damaged(format!("its manifest names {name:?}, which is not in it"));
        };
        if !hex(&digest_of(member)?).eq_ignore_ascii_case(digest) {
            return damaged(format!("{name} is not what its manifest says"));
        }
    }
    Ok(())
}

fn digest_of(source: &Source) -> io::Result<Vec<u8>> {
    let mut digest = Sha256::new();
    let mut position = 0;
    while position < source.len() {
        let bytes = source.read_up_to(1 << 20, position)?;
        digest.update(&bytes);
        position += len(&bytes);
    }
    Ok(digest.finalize().to_vec())
}

fn text(source: &Source, limit: u64) -> Result<String, Bad> {
    if source.len() > limit {
        return damaged(format!("a text in it has {} bytes, more than {limit}", source.len()));
    }
    match String::from_utf8(source.read(source.len(), 0)?) {
        Ok(text) => Ok(text),
        Err(_) => damaged("a text in it is not UTF-8"),
    }
}

fn members(source: &Source) -> Result<Members, Bad> {
    let mut members = Members::new();
    let mut position = 0;
    let mut count = 0;
    while position < source.len() {
        let mut header = tar::Header::new_old();
        source.read_exact_at(header.as_mut_bytes(), position)?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(members);
        }
        count += 1;
        if count > MAX_MEMBERS {
            return refused(format!("it has more than {MAX_MEMBERS} files"));
        }
        let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
        let stored: u32 = header.as_bytes()[148..156].iter().map(|byte| u32::from(*byte)).sum();
        if header.cksum()? != sum - stored + 8 * 32 {
            return damaged(format!("what is at byte {position} is no header of an archive"));
        }
        let (start, member_len) = (position + BLOCK, header.size()?);
        let Some(member) = source.part(start, member_len) else {
            return damaged("it ends too early; was it transferred completely?");
        };
        let kind = header.entry_type();
        if kind.is_file() {
            let Ok(name) = String::from_utf8(header.path_bytes().into_owned()) else {
                return damaged("a name in it is not UTF-8");
            };
            if members.insert(name.clone(), member).is_some() {
                return damaged(format!("it has {name:?} twice"));
            }
        }
        position = start + member_len.next_multiple_of(BLOCK);
    }
    damaged("it has no end; was it transferred completely?")
}
