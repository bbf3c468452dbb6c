//! Our OVF descriptor, by the rules of the public schema (DMTF DSP8023 1.1, with the CIM classes that it uses), and read
//! by another program.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, XmlVersion};

use super::*;

/// Downloading and unpacking on a slow machine.
const MINUTES: Duration = Duration::from_secs(600);
const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";
const RASD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData";
const VSSD: &str = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData";

#[derive(Default)]
struct Element {
    namespace: String,
    name: String,
    /// In the namespace of OVF.
    attributes: BTreeMap<String, String>,
    children: Vec<Element>,
    text: String,
}

impl Element {
    fn parse(text: &str) -> Self {
        let mut reader = NsReader::from_str(text);
        let mut open = vec![Self::default()];
        loop {
            match reader.read_resolved_event().unwrap() {
                (namespace, Event::Start(start)) => {
                    let element = Self::begin(&namespace, &start);
                    open.push(element);
                }
                (namespace, Event::Empty(start)) => {
                    let element = Self::begin(&namespace, &start);
                    open.last_mut().unwrap().children.push(element);
                }
                (_, Event::End(_)) => {
                    let element = open.pop().unwrap();
                    open.last_mut().unwrap().children.push(element);
                }
                (_, Event::Text(text)) => open.last_mut().unwrap().text += &text,
                (_, Event::Eof) => return open.pop().unwrap().children.pop().unwrap(),
                _ => {}
            }
        }
    }

    fn begin(namespace: &ResolveResult<'_>, start: &BytesStart<'_>) -> Self {
        let attributes = start.attributes().map(Result::unwrap).filter_map(|attribute| {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).unwrap();
            // This prefix is what CloudStack looks for, too.
            let name = attribute.key.as_ref().strip_prefix("ovf:")?;
            Some((name.to_owned(), value.into_owned()))
        });
        Self {
            namespace: match namespace {
                ResolveResult::Bound(namespace) => namespace.as_ref().to_owned(),
                _ => String::new(),
            },
            name: start.local_name().as_ref().to_owned(),
            attributes: attributes.collect(),
            ..Self::default()
        }
    }

    fn is(&self, name: &str) -> bool {
        self.namespace == OVF && self.name == name
    }

    fn all(&self, name: &str) -> Vec<&Self> {
        let below = self.children.iter().flat_map(|child| child.all(name));
        self.is(name).then_some(self).into_iter().chain(below).collect()
    }

    fn get(&self, child: &str) -> Option<&str> {
        self.children
            .iter()
            .find(|element| element.name == child)
            .map(|element| element.text.trim())
    }
}

/// Attributes that the schema requires, and children in the order that it requires; `*`: others may follow.
const RULES: [(&str, &[&str], &[&str]); 8] = [
    ("Envelope", &[], &["References", "DiskSection", "VirtualSystem"]),
    ("References", &[], &["File"]),
    ("File", &["href", "id"], &[]),
    ("DiskSection", &[], &["Info", "Disk"]),
    ("Disk", &["diskId", "capacity"], &[]),
    (
        "VirtualSystem",
        &["id"],
        &["Info", "Name", "OperatingSystemSection", "VirtualHardwareSection"],
    ),
    ("OperatingSystemSection", &["id"], &["Info", "Description"]),
    ("VirtualHardwareSection", &[], &["Info", "System", "Item", "*"]),
];

/// Every rule that the descriptor breaks.
fn broken(root: &Element) -> Vec<String> {
    let mut broken = Vec::new();
    let mut expect = |holds: bool, rule: String| {
        if !holds {
            broken.push(rule);
        }
    };
    expect(root.is("Envelope"), "the root is an Envelope".to_owned());
    for (name, attributes, children) in RULES {
        let elements = root.all(name);
        expect(!elements.is_empty(), format!("there is a {name}"));
        for element in elements {
            for attribute in attributes {
                expect(
                    element.attributes.contains_key(*attribute),
                    format!("a {name} has ovf:{attribute}"),
                );
            }
            let place = |child: &Element| {
                let known = children.iter().position(|wanted| child.is(wanted));
                known.or_else(|| (child.namespace != OVF).then(|| children.iter().position(|wanted| *wanted == "*"))?)
            };
            let places: Vec<_> = element.children.iter().map(place).collect();
            expect(
                places.iter().all(Option::is_some),
                format!("all in a {name} belongs there"),
            );
            expect(places.is_sorted(), format!("what is in a {name} is in order"));
        }
    }

    let values = |name: &str, attribute: &str| -> Vec<String> {
        root.all(name)
            .iter()
            .filter_map(|element| element.attributes.get(attribute).cloned())
            .collect()
    };
    let (files, disks) = (values("File", "id"), values("Disk", "diskId"));
    expect(
        values("Disk", "fileRef").iter().all(|file| files.contains(file)),
        "a Disk's file exists".to_owned(),
    );
    let is_number = |text: &String| text.parse::<u64>().is_ok();
    expect(
        values("Disk", "capacity").iter().all(is_number),
        "a capacity is a number".to_owned(),
    );
    expect(
        values("File", "size").iter().all(is_number),
        "a size is a number".to_owned(),
    );
    let is_unit = |unit: &String| {
        unit == "byte"
            || unit
                .strip_prefix("byte * 2^")
                .is_some_and(|power| power.parse::<u8>().is_ok())
    };
    expect(
        values("Disk", "capacityAllocationUnits").iter().all(is_unit),
        "units are programmatic units".to_owned(),
    );

    let mut ids = BTreeSet::new();
    for (name, namespace, required) in [
        ("System", VSSD, ["ElementName", "InstanceID", "InstanceID"]),
        ("Item", RASD, ["ElementName", "InstanceID", "ResourceType"]),
    ] {
        for element in root.all(name) {
            for child in required {
                expect(element.get(child).is_some(), format!("{name}: has {child}"));
            }
            expect(
                element.children.iter().all(|child| child.namespace == namespace),
                format!("{name}: of its CIM class"),
            );
            expect(
                element.children.is_sorted_by_key(|child| &child.name),
                format!("{name}: in order"),
            );
            expect(
                ids.insert(element.get("InstanceID").map(str::to_owned)),
                format!("{name}: its id is its own"),
            );
            let parent = element.get("Parent").map(str::to_owned);
            expect(
                parent.is_none() || ids.contains(&parent),
                format!("{name}: its parent exists"),
            );
            let disk = element
                .get("HostResource")
                .map(|resource| resource.strip_prefix("ovf:/disk/"));
            let exists = disk.is_none_or(|disk| disk.is_some_and(|disk| disks.iter().any(|known| known == disk)));
            expect(exists, format!("{name}: its disk exists"));
        }
    }
    broken
}

/// The descriptor in an OVA of the sample.
async fn descriptor(dir: &Path) -> String {
    let ova = dir.join("sample.ova");
    convert(&sample(dir), &ova, Format::Ova, Compression::None);
    let tar = Cmd::new("tar").args(["-x", "-O", "-f"]).arg(&ova).arg("systemvm.ovf");
    tar.run().await.unwrap().text()
}

#[tokio::test]
async fn the_descriptor_keeps_the_rules_of_the_schema() {
    let dir = TempDir::new().unwrap();
    let text = descriptor(dir.path()).await;
    assert_eq!(broken(&Element::parse(&text)), [""; 0]);
    let cloudstack_needs = "ovf:capacityAllocationUnits=\"byte\"";
    assert!(text.contains(cloudstack_needs), "{text}");
}

#[tokio::test]
async fn a_descriptor_that_breaks_a_rule_would_be_found() {
    let dir = TempDir::new().unwrap();
    let text = descriptor(dir.path()).await;
    let changes = [
        ("ovf:href=", "ovf:link=", "a File has ovf:href"),
        ("ovf:fileRef=\"file1\"", "ovf:fileRef=\"file2\"", "a Disk's file exists"),
        ("ovf:/disk/vmdisk1", "ovf:/disk/vmdisk2", "Item: its disk exists"),
        ("<rasd:Parent>3<", "<rasd:Parent>9<", "Item: its parent exists"),
        ("<rasd:InstanceID>5<", "<rasd:InstanceID>4<", "Item: its id is its own"),
        ("Units=\"byte\"", "Units=\"MB\"", "units are programmatic units"),
        (
            "<Name>",
            "<Name/><Info/><Name>",
            "what is in a VirtualSystem is in order",
        ),
        (
            "<rasd:Address>0</rasd:Address>",
            "<rasd:Weight>0</rasd:Weight>",
            "Item: in order",
        ),
        (
            "<vmw:Config",
            "<Config",
            "all in a VirtualHardwareSection belongs there",
        ),
        (
            "<vssd:ElementName>",
            "<rasd:ElementName/><vssd:ElementName>",
            "System: of its CIM class",
        ),
    ];
    for (from, to, rule) in changes {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert!(broken(&Element::parse(&changed)).contains(&rule.to_owned()), "{rule}");
    }
}

/// virt-v2v, which imports machines from VMware into KVM. Installing it brings a hundred packages, services among them,
/// so it is unpacked where only this test finds it.
async fn virt_v2v() -> Cmd {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("virt-v2v");
    let root = home.join("root");
    if !home.join("complete").exists() {
        fs::remove_dir_all(&home).ok();
        let archives = home.join("archives");
        fs::create_dir_all(archives.join("partial")).unwrap();
        let option = format!("Dir::Cache::archives={}", archives.display());
        let download = Cmd::new("apt-get").args(["-y", "--no-install-recommends", "--download-only"]);
        let download = download.args([
            "-o",
            "Debug::NoLocking=true",
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            &option,
        ]);
        let download = download.args(["install", "virt-v2v"]).time_limit(MINUTES);
        download
            .run()
            .await
            .expect("apt-get can download virt-v2v; are its package lists there (apt-get update)?");
        for entry in fs::read_dir(&archives).unwrap() {
            let package = entry.unwrap().path();
            if package.extension().is_some_and(|extension| extension == "deb") {
                let unpack = Cmd::new("dpkg-deb")
                    .arg("-x")
                    .arg(package)
                    .arg(&root)
                    .time_limit(MINUTES);
                unpack.run().await.unwrap();
            }
        }
        File::create(home.join("complete")).unwrap();
    }
    let libraries =
        ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| root.join(path).display().to_string());
    Cmd::new(root.join("usr/bin/virt-v2v"))
        .env("LD_LIBRARY_PATH", libraries.join(":"))
        .time_limit(MINUTES)
}

#[tokio::test]
async fn virt_v2v_imports_the_machine_that_cloudstack_wants() {
    let dir = TempDir::new().unwrap();
    descriptor(dir.path()).await;
    let import = virt_v2v()
        .await
        .args(["-i", "ova", "--print-source"])
        .arg(dir.path().join("sample.ova"));
    let printed = import.run().await.unwrap().text();
    let (_, found) = printed.split_once("Source guest information").unwrap();
    let lines: Vec<_> = found.lines().map(str::trim).collect();
    for wanted in [
        "source name: systemvm",
        "hypervisor type: vmware",
        "memory: 268435456 (bytes)",
        "nr vCPUs: 1",
        "firmware: bios",
        "0 [scsi]",
        "CD-ROM [ide] in slot 0",
    ] {
        assert!(lines.contains(&wanted), "{wanted} is not in:\n{printed}");
    }
}
