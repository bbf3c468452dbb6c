//! OVF descriptors (DMTF DSP0243), read by ssvm.md §6.9.
//!
//! The XML is read whole into a small tree first: it has a limit in every direction, no DTD and no entities but XML's own.

mod information;
mod xml;

use super::Refusal;
use super::other;
use crate::path::StorePath;
use xml::{Node, Space};

pub use information::Missing;
pub(super) use xml::MAX_BYTES;

/// A file that a descriptor names and that CloudStack uses: a disk or an ISO.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReference {
    /// Referred to by disks.
    pub id: String,
    /// Its name in the archive.
    pub href: String,
    /// Bytes, if the descriptor tells.
    pub size: Option<u64>,
}

impl FileReference {
    /// An ISO, not a disk.
    pub fn is_iso(&self) -> bool {
        has_extension(&self.href, "iso")
    }
}

/// A virtual disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Referred to by hardware items.
    pub id: String,
    /// Id of its file; empty for a disk that begins empty.
    pub file: String,
    /// Bytes the guest sees.
    pub capacity: u64,
}

/// A descriptor that follows the rules.
#[derive(Debug, Clone)]
pub struct Descriptor {
    /// In order.
    pub files: Vec<FileReference>,
    /// In order.
    pub disks: Vec<Disk>,
    envelope: Node,
}

impl Descriptor {
    /// Reads the text of an `.ovf` file.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = xml::parse(bytes).or_else(|why| other(format!("its OVF descriptor cannot be read: {why}")))?;
        if !envelope.is(Space::Ovf, "Envelope") {
            return other("its OVF descriptor has no Envelope of http://schemas.dmtf.org/ovf/envelope/1");
        }
        let systems = envelope.all(Space::Ovf, "VirtualSystem").len();
        if systems != 1 {
            return other(format!(
                "found {systems} system definitions in OVA, can only handle exactly one."
            ));
        }
        Ok(Self {
            files: files(&envelope)?,
            disks: disks(&envelope)?,
            envelope,
        })
    }

    /// What a template of this descriptor counts as: the sum of its disks.
    pub fn virtual_size(&self) -> Result<u64, Refusal> {
        let sum = self
            .disks
            .iter()
            .try_fold(0_u64, |sum, disk| sum.checked_add(disk.capacity));
        match sum {
            Some(sum) => Ok(sum),
            None => other("the capacities of its disks make no sense"),
        }
    }
}

fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

fn files(envelope: &Node) -> Result<Vec<FileReference>, Refusal> {
    let mut files = Vec::new();
    for file in envelope.all(Space::Ovf, "File") {
        let href = file.attribute(Space::Ovf, "href").unwrap_or_default();
        if !has_extension(href, "vmdk") && !has_extension(href, "iso") {
            continue;
        }
        let is_plain = StorePath::parse_name(href).is_ok_and(|name| name.as_str() == href) && !href.starts_with('.');
        if !is_plain || href.contains(['\\', ':']) {
            return other(format!(
                "its OVF descriptor names a file {href:?}, which is not a plain name in the archive"
            ));
        }
        files.push(FileReference {
            id: file.attribute(Space::Ovf, "id").unwrap_or_default().to_owned(),
            href: href.to_owned(),
            size: file
                .attribute(Space::Ovf, "size")
                .and_then(|size| size.trim().parse().ok()),
        });
    }
    Ok(files)
}

fn disks(envelope: &Node) -> Result<Vec<Disk>, Refusal> {
    let mut disks = Vec::new();
    for disk in envelope.all(Space::Ovf, "Disk") {
        let id = disk.attribute(Space::Ovf, "diskId").unwrap_or_default();
        let capacity = disk.attribute(Space::Ovf, "capacity").unwrap_or_default();
        // `${…}` stands for something that is asked at deployment; upstream counts it as one unit.
        let number: u64 = capacity.trim().parse().unwrap_or(1);
        let unit = disk
            .attribute(Space::Ovf, "capacityAllocationUnits")
            .map_or(Some(1), unit);
        let bytes = unit.and_then(|unit| number.checked_mul(unit));
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else {
            return other(format!(
                "its OVF descriptor gives the disk {id:?} a capacity of {capacity:?}"
            ));
        };
        disks.push(Disk {
            id: id.to_owned(),
            file: disk.attribute(Space::Ovf, "fileRef").unwrap_or_default().to_owned(),
            capacity: bytes,
        });
    }
    Ok(disks)
}

/// Bytes of `KB`, `KiloBytes`, `byte * 2^10` and so on; what is not known counts as bytes, as upstream has it.
fn unit(text: &str) -> Option<u64> {
    let text: String = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect::<String>()
        .to_ascii_lowercase();
    match text.as_str() {
        "kb" | "kilobytes" => return Some(1 << 10),
        "mb" | "megabytes" => return Some(1 << 20),
        "gb" | "gigabytes" => return Some(1 << 30),
        _ => {}
    }
    match text.strip_prefix("byte*2^").map(str::parse) {
        Some(Ok(power)) => 1_u64.checked_shl(power),
        _ => Some(1),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const SAMPLE: &str = include_str!("../../tests/vectors/ovf/sample.ovf");

    fn with_capacity(capacity: &str, units: Option<&str>) -> String {
        let units = units.map_or(String::new(), |units| {
            format!("ovf:capacityAllocationUnits=\"{units}\"")
        });
        format!(
            "<ovf:Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><ovf:DiskSection>\
             <ovf:Disk ovf:capacity=\"{capacity}\" {units}/></ovf:DiskSection><ovf:VirtualSystem/></ovf:Envelope>"
        )
    }

    #[test]
    fn capacities_are_those_of_the_vectors() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/virtual-size.json");
        let vectors: Value = serde_json::from_reader(File::open(path).unwrap()).unwrap();
        for case in vectors["ovf_capacity"].as_array().unwrap() {
            let text = with_capacity(
                case["capacity"].as_str().unwrap(),
                case["capacityAllocationUnits"].as_str(),
            );
            let found = Descriptor::parse(text.as_bytes()).and_then(|descriptor| descriptor.virtual_size());
            let wanted = case["bytes"].as_u64().or(case["bytes_required"].as_u64());
            assert_eq!(found.ok(), wanted, "{case}");
        }
    }

    #[test]
    fn the_sample_reads_as_the_vectors_say() {
        let descriptor = Descriptor::parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(descriptor.virtual_size().unwrap(), 2_157_969_408);
        let names: Vec<_> = descriptor.files.iter().map(|file| file.href.as_str()).collect();
        assert_eq!(names, ["demo-disk1.vmdk", "demo-disk2.vmdk", "tools.iso"]);
        assert_eq!(descriptor.disks[1].file, "file2");
    }

    #[test]
    fn prefixes_do_not_matter_but_name_spaces_do() {
        let other_prefix = SAMPLE.replace("ovf:", "o:").replace("xmlns:ovf", "xmlns:o");
        assert_eq!(Descriptor::parse(other_prefix.as_bytes()).unwrap().disks.len(), 2);
        let foreign = SAMPLE.replace("http://schemas.dmtf.org/ovf/envelope/1", "urn:else");
        Descriptor::parse(foreign.as_bytes()).unwrap_err();
    }

    #[test]
    fn links_out_of_the_archive_are_refused() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/paths.json");
        let vectors: Value = serde_json::from_reader(File::open(path).unwrap()).unwrap();
        for case in vectors["ovf_href"].as_array().unwrap() {
            let text = SAMPLE.replace("demo-disk1.vmdk", case["href"].as_str().unwrap());
            assert_eq!(
                Descriptor::parse(text.as_bytes()).is_ok(),
                case["ok"].as_bool().unwrap(),
                "{case}"
            );
        }
    }

    #[test]
    fn two_systems_are_one_too_many() {
        let text = SAMPLE.replace("</ovf:Envelope>", "<ovf:VirtualSystem/></ovf:Envelope>");
        assert_eq!(
            Descriptor::parse(text.as_bytes()).unwrap_err().to_string(),
            "found 2 system definitions in OVA, can only handle exactly one."
        );
    }

    #[test]
    fn xml_that_is_made_to_hurt_is_refused() {
        let entity = "<!DOCTYPE x [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><x>&a;</x>";
        let deep = format!("{}{}", "<a>".repeat(100), "</a>".repeat(100));
        let wide = format!("<a>{}</a>", "<b/>".repeat(100_000));
        for text in [
            entity,
            &deep,
            &wide,
            "<x>&unknown;</x>",
            "<a><b></a>",
            "",
            "<a/><a/>",
            "\u{0}",
        ] {
            assert!(
                Descriptor::parse(text.as_bytes()).is_err(),
                "{}",
                &text[..text.len().min(40)]
            );
        }
        assert!(Descriptor::parse(&vec![b' '; 5 << 20]).is_err());
        assert!(Descriptor::parse(&[0xff, 0xfe, 0x00]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_broken_sample_never_panics(cut in 0..SAMPLE.len(), byte in any::<u8>(), length in 0_usize..40) {
            let mut bytes = SAMPLE.as_bytes().to_vec();
            let end = (cut + length).min(bytes.len());
            bytes.splice(cut..end, [byte]);
            let _ = Descriptor::parse(&bytes).map(|descriptor| descriptor.virtual_size());
        }
    }
}
