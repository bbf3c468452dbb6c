//! What the management server is told of a descriptor (ssvm.md §6.9).

use std::collections::BTreeMap;
use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use protocol::gson;
use protocol::ovf::{
    DatadiskTO, HardwareResourceType, OVFConfigurationTO, OVFEulaSectionTO, OVFInformationTO, OVFNetworkTO,
    OVFPropertyTO, OVFVirtualHardwareItemTO, OVFVirtualHardwareSectionTO,
};
use protocol::secret::Secret;

use super::xml::{Node, Space};
use super::{Descriptor, FileReference};

/// CIM's number of a disk drive.
const DISK_DRIVE: &str = "17";
const ETHERNET_ADAPTER: &str = "10";

/// The descriptor speaks of a file that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("One of the attached disk or ISOs as stated on OVF does not exists {0}")]
pub struct Missing(pub String);

impl Descriptor {
    /// All of it, for the configuration `wanted` (`None`: all). `directory` is where its files are, `sizes` how long
    /// they are, by name.
    pub fn information(
        &self,
        directory: &str,
        sizes: &BTreeMap<String, u64>,
        wanted: Option<&str>,
    ) -> Result<OVFInformationTO, Missing> {
        Ok(OVFInformationTO {
            properties: Some(self.properties()),
            networks: Some(self.networks()),
            disks: Some(self.data_disks(directory, sizes, wanted)?),
            hardware_section: Some(self.hardware()),
            eula_sections: Some(self.licences()),
            guest_os_info: self.guest_os(),
        })
    }

    fn items(&self) -> Vec<&Node> {
        let sections = self.envelope.all(Space::Ovf, "VirtualHardwareSection");
        let items = |section: &&Node| section.children.iter().filter(|child| child.is_named("Item")).count();
        let first = sections.first().filter(|section| items(section) > 0);
        first.map_or_else(Vec::new, |section| {
            section.children.iter().filter(|child| child.is_named("Item")).collect()
        })
    }

    fn data_disks(
        &self,
        directory: &str,
        sizes: &BTreeMap<String, u64>,
        wanted: Option<&str>,
    ) -> Result<Vec<DatadiskTO>, Missing> {
        let items = self.items();
        let place = |file: &FileReference| {
            let path = format!("{}/{}", directory.trim_end_matches('/'), file.href);
            match sizes.get(&file.href) {
                Some(found) => Ok((path, file.size.unwrap_or(*found))),
                None => Err(Missing(path)),
            }
        };
        let bootable = self
            .files
            .iter()
            .find(|file| !file.is_iso())
            .map(|file| file.id.as_str());
        let mut disks = Vec::new();
        for item in &items {
            if item.child_text("ResourceType") != Some(DISK_DRIVE) || !is_wanted(item, wanted) {
                continue;
            }
            let id = item
                .child_text("HostResource")
                .and_then(|resource| resource.rsplit('/').next());
            let Some(disk) = self.disks.iter().find(|disk| Some(disk.id.as_str()) == id) else {
                continue;
            };
            let Some(file) = self.files.iter().find(|file| file.id == disk.file) else {
                continue; // a disk that begins empty
            };
            let (path, size) = place(file)?;
            let controller = controller(&items, item);
            let of_controller = |name| {
                Some(
                    controller
                        .and_then(|it| it.child_text(name))
                        .unwrap_or_default()
                        .to_owned(),
                )
            };
            disks.push(DatadiskTO {
                path: Some(path),
                virtual_size: signed(disk.capacity),
                file_size: signed(size),
                bootable: bootable == Some(file.id.as_str()),
                disk_id: Some(disk.id.clone()),
                is_iso: false,
                disk_controller: of_controller("ElementName"),
                disk_controller_sub_type: of_controller("ResourceSubType"),
                disk_number: count(disks.len()),
                configuration: Some(
                    item.attribute(Space::Ovf, "configuration")
                        .unwrap_or_default()
                        .to_owned(),
                ),
            });
        }
        for file in self.files.iter().filter(|file| file.is_iso()) {
            let (path, size) = place(file)?;
            disks.push(DatadiskTO {
                path: Some(path),
                virtual_size: signed(size),
                file_size: signed(size),
                bootable: false,
                disk_id: Some(file.id.clone()),
                is_iso: true,
                disk_controller: Some(String::new()),
                disk_controller_sub_type: Some(String::new()),
                disk_number: count(disks.len()),
                configuration: None,
            });
        }
        Ok(disks)
    }

    fn networks(&self) -> Vec<OVFNetworkTO> {
        let items = self.items();
        let is_adapter = |item: &&&Node| item.child_text("ResourceType") == Some(ETHERNET_ADAPTER);
        let network = |network: &Node| {
            let name = network.attribute(Space::Ovf, "name").unwrap_or_default();
            let nic = items
                .iter()
                .filter(is_adapter)
                .find(|item| item.child_text("Connection") == Some(name));
            let of_nic = |field: &str| nic.and_then(|nic| nic.child_text(field)).map(str::to_owned);
            let number = |field: &str| of_nic(field).and_then(|text| text.parse().ok()).unwrap_or_default();
            OVFNetworkTO {
                name: Some(name.to_owned()),
                network_description: network.child_text("Description").map(str::to_owned),
                address_on_parent: number("AddressOnParent"),
                automatic_allocation: of_nic("AutomaticAllocation").is_some_and(|text| is_true(&text)),
                nic_description: of_nic("Description"),
                element_name: of_nic("ElementName"),
                instance_id: number("InstanceID"),
                resource_sub_type: of_nic("ResourceSubType"),
                resource_type: of_nic("ResourceType"),
            }
        };
        self.envelope
            .all(Space::Ovf, "Network")
            .into_iter()
            .map(network)
            .collect()
    }

    fn properties(&self) -> Vec<OVFPropertyTO> {
        let mut properties = Vec::new();
        for section in self.envelope.all(Space::Ovf, "ProductSection") {
            let mut category = None;
            for child in &section.children {
                if child.is(Space::Ovf, "Category") {
                    category = Some(child.text().to_owned());
                }
                let text = |name| child.attribute(Space::Ovf, name).unwrap_or_default();
                if !child.is(Space::Ovf, "Property") || !is_true(text("userConfigurable")) {
                    continue;
                }
                properties.push(OVFPropertyTO {
                    key: Some(text("key").to_owned()),
                    kind: Some(text("type").to_owned()),
                    value: Some(text("value").to_owned()),
                    qualifiers: Some(text("qualifiers").to_owned()),
                    user_configurable: Some(true),
                    label: child.child_text("Label").map(str::to_owned),
                    description: child.child_text("Description").map(str::to_owned),
                    password: Some(is_true(text("password"))),
                    index: count(properties.len()),
                    category: category.clone(),
                });
            }
        }
        properties
    }

    fn hardware(&self) -> OVFVirtualHardwareSectionTO {
        let items = self.items();
        let mut types: Vec<_> = self
            .envelope
            .all(Space::Ovf, "System")
            .into_iter()
            .filter_map(|system| system.child_text("VirtualSystemType"))
            .flat_map(|types| types.split(','))
            .map(str::trim)
            .filter(|one| !one.is_empty())
            .collect();
        types.sort_unstable();
        let options = self.envelope.all(Space::Ovf, "Configuration");
        let configuration = |(index, option): (usize, &&Node)| {
            let id = option.attribute(Space::Ovf, "id").unwrap_or_default();
            let own = |item: &&&Node| {
                let named = item.attribute(Space::Ovf, "configuration").unwrap_or_default();
                named.split_whitespace().any(|name| name == id)
            };
            OVFConfigurationTO {
                id: Some(id.to_owned()),
                label: option.child_text("Label").map(str::to_owned),
                description: option.child_text("Description").map(str::to_owned),
                hardware_items: Some(items.iter().filter(own).map(|item| hardware_item(item)).collect()),
                index: count(index),
            }
        };
        let is_common = |item: &&&Node| item.attribute(Space::Ovf, "configuration").is_none_or(str::is_empty);
        OVFVirtualHardwareSectionTO {
            minimium_hardware_version: types.first().map(|one| (*one).to_owned()),
            configurations: Some(options.iter().enumerate().map(configuration).collect()),
            common_hardware_items: Some(items.iter().filter(is_common).map(|item| hardware_item(item)).collect()),
        }
    }

    fn licences(&self) -> Vec<OVFEulaSectionTO> {
        let sections = self.envelope.all(Space::Ovf, "EulaSection");
        let licence = |(index, section): (usize, &&Node)| OVFEulaSectionTO {
            info: section.child_text("Info").map(str::to_owned),
            compressed_license: Some(Secret::new(gzip(section.child_text("License").unwrap_or_default()))),
            index: count(index),
        };
        sections.iter().enumerate().map(licence).collect()
    }

    /// (kind for VMware, text for people).
    fn guest_os(&self) -> Option<gson::Value> {
        let section = *self.envelope.all(Space::Ovf, "OperatingSystemSection").first()?;
        let kind = section.attribute(Space::Vmware, "osType").unwrap_or_default();
        let text = section.child_text("Description").unwrap_or_default();
        serde_json::from_value(serde_json::json!({ "first": kind, "second": text })).ok()
    }
}

fn is_true(text: &str) -> bool {
    text.trim().eq_ignore_ascii_case("true")
}

/// Items without a configuration are in all of them.
fn is_wanted(item: &Node, wanted: Option<&str>) -> bool {
    let named = item.attribute(Space::Ovf, "configuration").unwrap_or_default();
    wanted.is_none_or(|wanted| named.is_empty() || named.split_whitespace().any(|name| name == wanted))
}

/// The top ancestor of an item. A chain that is longer than all items is a ring.
fn controller<'a>(items: &[&'a Node], item: &Node) -> Option<&'a Node> {
    let mut parent = item.child_text("Parent")?;
    let mut top = None;
    for _ in 0..items.len() {
        let Some(found) = items
            .iter()
            .find(|other| other.child_text("InstanceID") == Some(parent))
        else {
            break;
        };
        top = Some(*found);
        match found.child_text("Parent") {
            Some(next) => parent = next,
            None => break,
        }
    }
    top
}

fn hardware_item(item: &Node) -> OVFVirtualHardwareItemTO {
    let text = |name: &str| item.child_text(name).map(str::to_owned);
    let number = |name: &str| item.child_text(name).and_then(|text| text.parse().ok());
    let flag = |name: &str| item.child_text(name).is_some_and(is_true);
    OVFVirtualHardwareItemTO {
        address: text("Address"),
        address_on_parent: text("AddressOnParent"),
        allocation_units: text("AllocationUnits"),
        automatic_allocation: flag("AutomaticAllocation"),
        automatic_deallocation: flag("AutomaticDeallocation"),
        caption: text("Caption"),
        changeable_type: text("ChangeableType"),
        connection: text("Connection"),
        description: text("Description"),
        element_name: text("ElementName"),
        generation: number("Generation"),
        host_resource: text("HostResource"),
        instance_id: text("InstanceID"),
        limit: number("Limit"),
        other_resource_type: text("OtherResourceType"),
        parent: text("Parent"),
        pool_id: text("PoolID"),
        reservation: number("Reservation"),
        resource_subtype: text("ResourceSubType"),
        resource_type: item.child_text("ResourceType").and_then(resource_type),
        virtual_quantity: number("VirtualQuantity"),
        virtual_quantity_units: text("VirtualQuantityUnits"),
        weight: number("Weight").unwrap_or_default(),
        configuration_ids: Some(
            item.attribute(Space::Ovf, "configuration")
                .unwrap_or_default()
                .to_owned(),
        ),
        ..OVFVirtualHardwareItemTO::default()
    }
}

/// CIM_ResourceAllocationSettingData.ResourceType.
fn resource_type(number: &str) -> Option<HardwareResourceType> {
    use HardwareResourceType::*;
    const KINDS: [HardwareResourceType; 33] = [
        Other,
        ComputerSystem,
        Processor,
        Memory,
        IDEController,
        ParallelSCSIHBA,
        FcHba,
        ISCSIHba,
        IbHca,
        EthernetAdapter,
        OtherNetworkAdapter,
        IoSlot,
        IoDevice,
        FloppyDrive,
        CdDrive,
        DvdDrive,
        DiskDrive,
        TapeDrive,
        StorageExtent,
        OtherStorageDevice,
        SerialPort,
        ParallelPort,
        USBController,
        GraphicsController,
        Ieee1394Controller,
        PartitionableUnit,
        BasePartitionableUnit,
        PowerSupply,
        CoolingCapacity,
        EthernetSwitchPort,
        LogicalDisk,
        StorageVolume,
        EthernetConnection,
    ];
    let number: usize = number.parse().ok()?;
    KINDS.get(number.checked_sub(1)?).copied()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let written = gzip.write_all(text.as_bytes());
    written.and_then(|()| gzip.finish()).unwrap_or_default() // a Vec takes everything
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn count(index: usize) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}
