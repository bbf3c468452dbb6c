//! The description of a virtual machine inside of an OVA (DMTF DSP0243; image-pipeline.md §10.3).

use std::collections::BTreeMap;

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::ResolveResult;
use quick_xml::{NsReader, XmlVersion};

use super::{Bad, damaged, refused};

const MIB: u64 = 1 << 20;
/// The namespace of OVF 1.x.
const OVF: &str = "http://schemas.dmtf.org/ovf/envelope/1";

/// What CloudStack's own template for VMware has: one processor, 256 MiB, BIOS, LSI Logic, a CD-ROM drive, no NIC. The
/// management server sets processors, memory and NICs of each VM itself; what it reads here is the disk, and
/// `ovf:capacityAllocationUnits` it must find (apache/cloudstack OVFHelper.java).
pub(super) fn render(name: &str, file: &str, file_size: u64, disk_size: u64) -> String {
    let (capacity, units) = if disk_size.is_multiple_of(MIB) {
        (disk_size / MIB, "byte * 2^20")
    } else {
        (disk_size, "byte")
    };
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:href="{file}" ovf:id="file1" ovf:size="{file_size}"/>
  </References>
  <DiskSection>
    <Info>Virtual disk information</Info>
    <Disk ovf:capacity="{capacity}" ovf:capacityAllocationUnits="{units}" ovf:diskId="vmdisk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <VirtualSystem ovf:id="{name}">
    <Info>A system VM</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="101" vmw:osType="otherLinux64Guest">
      <Info>The kind of installed guest operating system</Info>
      <Description>Other Linux (64-bit)</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Virtual hardware requirements</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:Description>Number of virtual CPUs</rasd:Description>
        <rasd:ElementName>1 virtual CPU</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>1</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:Description>Memory size</rasd:Description>
        <rasd:ElementName>256 MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>256</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:Description>SCSI controller</rasd:Description>
        <rasd:ElementName>SCSI controller 0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>lsilogic</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:Description>IDE controller</rasd:Description>
        <rasd:ElementName>IDE controller 0</rasd:ElementName>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:ResourceType>5</rasd:ResourceType>
      </Item>
      <Item ovf:required="false">
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>false</rasd:AutomaticAllocation>
        <rasd:ElementName>CD/DVD drive 1</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:Parent>4</rasd:Parent>
        <rasd:ResourceSubType>vmware.cdrom.remotepassthrough</rasd:ResourceSubType>
        <rasd:ResourceType>15</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>Hard disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/vmdisk1</rasd:HostResource>
        <rasd:InstanceID>6</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="bios"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"#
    )
}

/// The name of the file with the only disk.
pub(super) fn disk_file(descriptor: &str) -> Result<String, Bad> {
    let mut reader = NsReader::from_str(descriptor);
    let mut files = BTreeMap::new();
    let mut disks = Vec::new();
    loop {
        let event = match reader.read_resolved_event() {
            Ok((ResolveResult::Bound(namespace), Event::Start(element) | Event::Empty(element)))
                if namespace.as_ref() == OVF =>
            {
                element
            }
            Ok((_, Event::Eof)) => break,
            Ok(_) => continue,
            Err(error) => return damaged(format!("its descriptor is not XML: {error}")),
        };
        match event.local_name().as_ref() {
            "File" => {
                if attribute(&event, "compression")?.is_some_and(|kind| kind != "identity") {
                    return refused("files in it are compressed; convert it first (ovftool)");
                }
                if let (Some(id), Some(href)) = (attribute(&event, "id")?, attribute(&event, "href")?) {
                    files.insert(id, href);
                }
            }
            "Disk" => disks.extend(attribute(&event, "fileRef")?),
            _ => {}
        }
    }
    match disks.as_slice() {
        [disk] => match files.remove(disk) {
            Some(file) => Ok(file),
            None => damaged(format!(
                "its descriptor names the file {disk:?} and does not say where it is"
            )),
        },
        disks => refused(format!("it has {} disks; only one can be read", disks.len())),
    }
}

/// The value of the attribute, whatever its prefix.
fn attribute(element: &BytesStart<'_>, name: &str) -> Result<Option<String>, Bad> {
    for attribute in element.attributes() {
        let Ok(attribute) = attribute else {
            return damaged("its descriptor has an attribute that is not XML");
        };
        if attribute.key.local_name().as_ref() == name {
            return match attribute.normalized_value(XmlVersion::Implicit1_0) {
                Ok(value) => Ok(Some(value.into_owned())),
                Err(error) => damaged(format!("its descriptor is not XML: {error}")),
            };
        }
    }
    Ok(None)
}
