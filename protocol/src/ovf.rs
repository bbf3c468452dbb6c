//! What an OVF descriptor says, as [`DownloadAnswer`](crate::secondary_storage::DownloadAnswer) reports it.

use serde::{Deserialize, Serialize};

use crate::gson;
use crate::secret::Secret;

/// What the OVF descriptor of an OVA says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFInformationTO {
    /// Properties.
    pub properties: Option<Vec<OVFPropertyTO>>,
    /// Networks.
    pub networks: Option<Vec<OVFNetworkTO>>,
    /// Disks.
    pub disks: Option<Vec<DatadiskTO>>,
    /// Virtual hardware.
    pub hardware_section: Option<OVFVirtualHardwareSectionTO>,
    /// Licences.
    pub eula_sections: Option<Vec<OVFEulaSectionTO>>,
    /// Guest operating system: a pair, passed on as it came.
    pub guest_os_info: Option<gson::Value>,
}

/// One disk of an OVA.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DatadiskTO {
    /// Path.
    pub path: Option<String>,
    /// Virtual size in bytes.
    pub virtual_size: i64,
    /// Size of the file in bytes.
    pub file_size: i64,
    /// Can be booted.
    pub bootable: bool,
    /// Id in the descriptor.
    pub disk_id: Option<String>,
    /// An ISO.
    pub is_iso: bool,
    /// Controller.
    pub disk_controller: Option<String>,
    /// Kind of controller.
    pub disk_controller_sub_type: Option<String>,
    /// Position.
    pub disk_number: i64,
    /// Deployment option.
    pub configuration: Option<String>,
}

/// A property of the virtual appliance.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFPropertyTO {
    /// Key.
    pub key: Option<String>,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Value.
    pub value: Option<String>,
    /// Allowed values.
    pub qualifiers: Option<String>,
    /// A user may set it.
    pub user_configurable: Option<bool>,
    /// Label.
    pub label: Option<String>,
    /// Display text.
    pub description: Option<String>,
    /// The value is a password.
    pub password: Option<bool>,
    /// Position.
    pub index: i64,
    /// Category.
    pub category: Option<String>,
}

/// A network the virtual appliance wants.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFNetworkTO {
    /// Name.
    pub name: Option<String>,
    /// Description.
    pub network_description: Option<String>,
    /// Position on the parent.
    pub address_on_parent: i64,
    /// Allocated at power-on.
    pub automatic_allocation: bool,
    /// Description of the NIC.
    pub nic_description: Option<String>,
    /// Name of the item.
    pub element_name: Option<String>,
    /// Id in the descriptor.
    #[serde(rename = "InstanceID")]
    pub instance_id: i64,
    /// Kind of device.
    pub resource_sub_type: Option<String>,
    /// Kind of resource.
    pub resource_type: Option<String>,
}

/// The virtual hardware section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFVirtualHardwareSectionTO {
    /// Least hardware version (spelled so upstream).
    pub minimium_hardware_version: Option<String>,
    /// Deployment options.
    pub configurations: Option<Vec<OVFConfigurationTO>>,
    /// Items of every deployment option.
    pub common_hardware_items: Option<Vec<OVFVirtualHardwareItemTO>>,
}

/// A licence to accept.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFEulaSectionTO {
    /// Summary.
    pub info: Option<String>,
    /// Text of the licence, compressed.
    #[serde(with = "gson::signed_bytes")]
    pub compressed_license: Option<Secret<Vec<u8>>>,
    /// Position.
    pub index: i64,
}

/// A deployment option.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFConfigurationTO {
    /// Database id.
    pub id: Option<String>,
    /// Label.
    pub label: Option<String>,
    /// Display text.
    pub description: Option<String>,
    /// Items of this option.
    pub hardware_items: Option<Vec<OVFVirtualHardwareItemTO>>,
    /// Position.
    pub index: i64,
}

/// An item of virtual hardware: CIM_ResourceAllocationSettingData.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct OVFVirtualHardwareItemTO {
    /// Address.
    pub address: Option<String>,
    /// Position on the parent.
    pub address_on_parent: Option<String>,
    /// Unit of quantities.
    pub allocation_units: Option<String>,
    /// Allocated at power-on.
    pub automatic_allocation: bool,
    /// Released at power-off.
    pub automatic_deallocation: bool,
    /// Short text.
    pub caption: Option<String>,
    /// What may change.
    pub changeable_type: Option<String>,
    /// Setting.
    pub component_setting: Option<String>,
    /// Deployment option.
    pub configuration_name: Option<String>,
    /// Network.
    pub connection: Option<String>,
    /// Visibility.
    #[serde(deserialize_with = "gson::known")]
    pub customer_visibility: Option<CustomerVisibility>,
    /// Display text.
    pub description: Option<String>,
    /// Name of the item.
    pub element_name: Option<String>,
    /// Generation.
    pub generation: Option<i64>,
    /// Backing of the device.
    pub host_resource: Option<String>,
    /// Id in the descriptor.
    pub instance_id: Option<String>,
    /// Most.
    pub limit: Option<i64>,
    /// How it maps to the host.
    #[serde(deserialize_with = "gson::known")]
    pub mapping_behavior: Option<MappingBehavior>,
    /// Kind when `resource_type` is Other.
    pub other_resource_type: Option<String>,
    /// `dir` of the store.
    pub parent: Option<String>,
    /// Pool.
    pub pool_id: Option<String>,
    /// Least.
    pub reservation: Option<i64>,
    /// Kind of device.
    pub resource_subtype: Option<String>,
    /// Kind of resource.
    #[serde(deserialize_with = "gson::known")]
    pub resource_type: Option<HardwareResourceType>,
    /// Not used.
    pub so_id: Option<String>,
    /// Not used.
    pub so_org_id: Option<String>,
    /// Quantity.
    pub virtual_quantity: Option<i64>,
    /// Unit.
    pub virtual_quantity_units: Option<String>,
    /// Priority.
    pub weight: i64,
    /// Deployment options it belongs to.
    pub configuration_ids: Option<String>,
}

/// CIM_ResourceAllocationSettingData.ConsumerVisibility.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum CustomerVisibility {
    Unknown,
    PassedThrough,
    Virtualized,
    NotRepresented,
    DMTFReserved,
    VendorReserved,
}

/// CIM_ResourceAllocationSettingData.ResourceType.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum HardwareResourceType {
    Other,
    ComputerSystem,
    Processor,
    Memory,
    IDEController,
    ParallelSCSIHBA,
    #[serde(rename = "FC_HBA")]
    FcHba,
    #[serde(rename = "iSCSI_HBA")]
    ISCSIHba,
    #[serde(rename = "IB_HCA")]
    IbHca,
    EthernetAdapter,
    OtherNetworkAdapter,
    #[serde(rename = "IO_Slot")]
    IoSlot,
    #[serde(rename = "IO_Device")]
    IoDevice,
    FloppyDrive,
    #[serde(rename = "CD_Drive")]
    CdDrive,
    #[serde(rename = "DVD_Drive")]
    DvdDrive,
    DiskDrive,
    TapeDrive,
    StorageExtent,
    OtherStorageDevice,
    SerialPort,
    ParallelPort,
    USBController,
    GraphicsController,
    #[serde(rename = "IEEE_1394_Controller")]
    Ieee1394Controller,
    PartitionableUnit,
    BasePartitionableUnit,
    PowerSupply,
    CoolingCapacity,
    EthernetSwitchPort,
    LogicalDisk,
    StorageVolume,
    EthernetConnection,
    #[serde(rename = "DMTF_reserved")]
    DmtfReserved,
    VendorReserved,
}

/// CIM_ResourceAllocationSettingData.MappingBehavior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum MappingBehavior {
    Unknown,
    NotSupported,
    Dedicated,
    SoftAffinity,
    HardAffinity,
    DMTFReserved,
    VendorReserved,
}
