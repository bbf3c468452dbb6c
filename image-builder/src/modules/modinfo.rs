//! What a kernel module says of itself: the `.modinfo` section of its ELF file.

use std::io::{self, Read};

use bytes::Bytes;

/// The largest module of the whole kernel has 9 MB, unpacked.
const MAX_BYTES: u64 = 64 * 1024 * 1024;
const SECTION: &[u8] = b".modinfo";
/// ELF, 64 bit, little-endian.
const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const SECTION_HEADER: usize = 64;

/// A module's own words. Names have `_` for `-`, aliases are as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules that it cannot be loaded without.
    pub needs: Vec<String>,
    /// Modules or aliases that should be loaded before it (`softdep=pre:`).
    pub before: Vec<String>,
    /// Modules or aliases that should be loaded after it (`softdep=post:`).
    pub after: Vec<String>,
    /// Patterns of what it answers to.
    pub aliases: Vec<String>,
}

/// Why a module cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadModule {
    /// It cannot be unpacked.
    #[error("it cannot be unpacked")]
    Unpack(#[from] io::Error),
    /// It is larger than any module.
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// It is not an ELF file with this section.
    #[error("it is no kernel module: it has no .modinfo")]
    NoModInfo,
}

/// Unpacks a module's file by the ending of its name.
pub(super) fn unpack(path: &str, packed: &Bytes) -> Result<Bytes, BadModule> {
    let reader: Box<dyn Read + '_> = match path.rsplit_once('.') {
        Some((_, "xz")) => Box::new(liblzma::read::XzDecoder::new(packed.as_ref())),
        Some((_, "zst")) => Box::new(zstd::Decoder::new(packed.as_ref())?),
        _ => return Ok(packed.clone()),
    };
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_BYTES) {
        return Err(BadModule::TooLarge);
    }
    Ok(bytes.into())
}

impl ModInfo {
    /// Reads it from an unpacked module.
    ///
    /// # Errors
    /// It is not one.
    pub fn read(module: &[u8]) -> Result<Self, BadModule> {
        let section = section(module).ok_or(BadModule::NoModInfo)?;
        let mut info = Self::default();
        for record in section.split(|byte| *byte == 0) {
            let Some((key, value)) = std::str::from_utf8(record)
                .ok()
                .and_then(|record| record.split_once('='))
            else {
                continue;
            };
            match key {
                "depends" => info
                    .needs
                    .extend(value.split(',').filter(|name| !name.is_empty()).map(normal)),
                "alias" => info.aliases.push(value.to_owned()),
                "softdep" => info.add_soft(value),
                _ => {}
            }
        }
        Ok(info)
    }

    /// `pre: a b post: c`; what comes before either word is ignored, as modprobe does (modprobe.d(5)).
    fn add_soft(&mut self, value: &str) {
        let mut list = None;
        for word in value.split_ascii_whitespace() {
            match (word, &mut list) {
                ("pre:", _) => list = Some(&mut self.before),
                ("post:", _) => list = Some(&mut self.after),
                (name, Some(list)) => list.push(name.to_owned()),
                (_, None) => {}
            }
        }
    }
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// System V ABI, "Object Files": the section's bytes.
fn section(elf: &[u8]) -> Option<&[u8]> {
    if !elf.starts_with(MAGIC) {
        return None;
    }
    let headers = number(elf, 0x28, 8)?;
    let (size, count, names) = (number(elf, 0x3A, 2)?, number(elf, 0x3C, 2)?, number(elf, 0x3E, 2)?);
    let header = |index: usize| {
        let start = headers.checked_add(index.checked_mul(size)?)?;
        elf.get(start..start.checked_add(SECTION_HEADER)?)
    };
    let contents = |header: &[u8]| {
        let start = number(header, 0x18, 8)?;
        elf.get(start..start.checked_add(number(header, 0x20, 8)?)?)
    };
    let names = contents(header(names)?)?;
    let is_it = |header: &[u8]| {
        let name = number(header, 0, 4).and_then(|at| names.get(at..));
        name.and_then(|name| name.strip_prefix(SECTION))
            .is_some_and(|rest| rest.first() == Some(&0))
    };
    (0..count)
        .filter_map(header)
        .find(|header| is_it(header))
        .and_then(contents)
}

fn number(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    let mut number = [0; 8];
    number[..length].copy_from_slice(bytes.get(at..at.checked_add(length)?)?);
    usize::try_from(u64::from_le_bytes(number)).ok()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The smallest ELF file that has this section: header, three section headers, their names, the section.
    pub(in super::super) fn module(records: &[&str]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let info: Vec<u8> = records
            .iter()
            .flat_map(|record| [record.as_bytes(), b"\0"].concat())
            .collect();
        let header = |name: u32, offset: usize, size: usize| {
            let mut header = vec![0; SECTION_HEADER];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&u64::try_from(offset).unwrap().to_le_bytes());
            header[0x20..0x28].copy_from_slice(&u64::try_from(size).unwrap().to_le_bytes());
            header
        };
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(MAGIC);
        elf[0x28..0x30].copy_from_slice(&64_u64.to_le_bytes());
        elf[0x3A..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        let data = 64 + 3 * SECTION_HEADER;
        elf.extend(header(0, 0, 0));
        elf.extend(header(1, data + names.len(), info.len()));
        elf.extend(header(10, data, names.len()));
        elf.extend(names);
        elf.extend(info);
        elf
    }

    #[test]
    fn a_module_says_what_it_needs_and_is_for() {
        let records = [
            "license=GPL",
            "softdep=pre: crypto-crc32c post: b-c",
            "softdep=gcm",
            "alias=fs-ext4",
            "depends=jbd2,a-b",
        ];
        let info = ModInfo::read(&module(&records)).unwrap();
        let wanted = ModInfo {
            needs: vec!["jbd2".to_owned(), "a_b".to_owned()],
            before: vec!["crypto-crc32c".to_owned()],
            after: vec!["b-c".to_owned()],
            aliases: vec!["fs-ext4".to_owned()],
        };
        assert_eq!(info, wanted);
        assert_eq!(ModInfo::read(&module(&["depends="])).unwrap(), ModInfo::default());
    }

    proptest! {
        #[test]
        fn damage_is_read_without_a_panic(at in 0..300_usize, byte: u8, cut in 0..300_usize) {
            let mut elf = module(&["depends=a,b", "alias=c"]);
            if let Some(here) = elf.get_mut(at) {
                *here = byte;
            }
            elf.truncate(cut);
            let _ = ModInfo::read(&elf);
        }
    }
}
