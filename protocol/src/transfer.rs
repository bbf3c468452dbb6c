//! Transfer objects: what is stored, and where (agent-protocol.md §7).

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::command::StringMap;
use crate::gson;
use crate::secret::Secret;

/// Where something is stored. On the wire wrapped as `{"class": {…}}` (§3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DataStoreTO {
    /// NFS or CIFS.
    #[serde(rename = "com.cloud.agent.api.to.NfsTO")]
    Nfs(NfsTO),
    /// S3.
    #[serde(rename = "com.cloud.agent.api.to.S3TO")]
    S3(Box<S3TO>),
    /// OpenStack Swift.
    #[serde(rename = "com.cloud.agent.api.to.SwiftTO")]
    Swift(SwiftTO),
    /// A storage pool.
    #[serde(rename = "org.apache.cloudstack.storage.to.PrimaryDataStoreTO")]
    Primary(Box<PrimaryDataStoreTO>),
    /// Any other image store.
    #[serde(rename = "org.apache.cloudstack.storage.to.ImageStoreTO")]
    ImageStore(ImageStoreTO),
}

/// What is stored. On the wire wrapped as `{"class": {…}}` (§3.4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DataTO {
    /// A template or ISO.
    #[serde(rename = "org.apache.cloudstack.storage.to.TemplateObjectTO")]
    Template(Box<TemplateObjectTO>),
    /// A volume.
    #[serde(rename = "org.apache.cloudstack.storage.to.VolumeObjectTO")]
    Volume(Box<VolumeObjectTO>),
    /// A snapshot.
    #[serde(rename = "org.apache.cloudstack.storage.to.SnapshotObjectTO")]
    Snapshot(Box<SnapshotObjectTO>),
}

/// Hypervisor. Read in any case of letters, but strictly: another one is not answered at all (§3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum HypervisorType {
    None,
    XenServer,
    Kvm,
    VMware,
    Hyperv,
    VirtualBox,
    Parralels,
    BareMetal,
    Simulator,
    Ovm,
    Ovm3,
    Lxc,
    Custom,
    External,
    Any,
}

impl HypervisorType {
    const ALL: [(Self, &str); 15] = [
        (Self::None, "None"),
        (Self::XenServer, "XenServer"),
        (Self::Kvm, "KVM"),
        (Self::VMware, "VMware"),
        (Self::Hyperv, "Hyperv"),
        (Self::VirtualBox, "VirtualBox"),
        (Self::Parralels, "Parralels"),
        (Self::BareMetal, "BareMetal"),
        (Self::Simulator, "Simulator"),
        (Self::Ovm, "Ovm"),
        (Self::Ovm3, "Ovm3"),
        (Self::Lxc, "LXC"),
        (Self::Custom, "Custom"),
        (Self::External, "External"),
        (Self::Any, "Any"),
    ];

    /// Upstream's spelling.
    pub fn as_str(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(value, _)| *value == self)
            .map_or("None", |(_, name)| name)
    }
}

impl Serialize for HypervisorType {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for HypervisorType {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = String::deserialize(from)?;
        let found = Self::ALL.iter().find(|(_, known)| known.eq_ignore_ascii_case(&name));
        found
            .map(|(value, _)| *value)
            .ok_or_else(|| de::Error::unknown_variant(&name, &[]))
    }
}

/// An NFS export or CIFS share (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NfsTO {
    /// `nfs://host/path` or `cifs://…`.
    #[serde(rename = "_url")]
    pub url: Option<String>,
    /// Role.
    #[serde(rename = "_role", deserialize_with = "gson::known")]
    pub role: Option<DataStoreRole>,
    /// UUID.
    pub uuid: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// An S3 bucket (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct S3TO {
    /// Database id.
    pub id: Option<i64>,
    /// UUID.
    pub uuid: Option<String>,
    /// Access key.
    pub access_key: Option<String>,
    /// Secret key.
    pub secret_key: Option<Secret<String>>,
    /// Host of the service.
    pub end_point: Option<String>,
    /// Bucket.
    pub bucket_name: Option<String>,
    /// Signature algorithm.
    pub signer: Option<String>,
    /// Use TLS.
    pub https_flag: Option<bool>,
    /// Use TCP keep-alive.
    #[serde(rename = "useTCPKeepAlive")]
    pub use_tcp_keep_alive: Option<bool>,
    /// Milliseconds.
    pub connection_timeout: Option<i64>,
    /// Tries.
    pub max_error_retry: Option<i64>,
    /// Milliseconds.
    pub socket_timeout: Option<i64>,
    /// Milliseconds.
    pub connection_ttl: Option<i64>,
    /// Date text of the sender's locale.
    pub created: Option<String>,
    /// Reduced redundancy.
    #[serde(rename = "enableRRS")]
    pub enable_rrs: bool,
    /// Larger files go in parts.
    pub max_single_upload_size_in_bytes: i64,
}

/// A Swift container (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SwiftTO {
    /// Database id.
    pub id: Option<i64>,
    /// URL.
    pub url: Option<String>,
    /// Account.
    pub account: Option<String>,
    /// User.
    pub user_name: Option<String>,
    /// Key.
    pub key: Option<Secret<String>>,
    /// Storage policy.
    pub storage_policy: Option<String>,
}

/// A template or ISO (§7).
#[expect(clippy::struct_excessive_bools, reason = "the members are given by the protocol")]
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateObjectTO {
    /// Path.
    pub path: Option<String>,
    /// URL it was registered with.
    pub orig_url: Option<String>,
    /// UUID.
    pub uuid: Option<String>,
    /// Database id.
    pub id: i64,
    /// Image format.
    #[serde(deserialize_with = "gson::known")]
    pub format: Option<ImageFormat>,
    /// Database id of the owner.
    pub account_id: i64,
    /// `{ALGORITHM}hex`, or bare hex recognised by its length.
    pub checksum: Option<String>,
    /// Needs hardware virtualisation.
    pub hvm: bool,
    /// Display text.
    pub display_text: Option<String>,
    /// Store it is on.
    pub image_data_store: Option<DataStoreTO>,
    /// Name.
    pub name: Option<String>,
    /// Guest operating system.
    pub guest_os_type: Option<String>,
    /// Virtual size in bytes.
    pub size: Option<i64>,
    /// Size of the file in bytes.
    pub physical_size: Option<i64>,
    /// Hypervisor.
    pub hypervisor_type: Option<HypervisorType>,
    /// Can be booted.
    pub bootable: bool,
    /// Unique name.
    pub unique_name: Option<String>,
    /// Hosts download it themselves.
    pub direct_download: bool,
    /// An OVA used as it is.
    pub deploy_as_is: bool,
    /// Chosen deployment option.
    pub deploy_as_is_configuration: Option<String>,
    /// Follow HTTP redirects.
    pub follow_redirects: bool,
}

/// A snapshot (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SnapshotObjectTO {
    /// Path.
    pub path: Option<String>,
    /// The volume (not wrapped).
    pub volume: Option<Box<VolumeObjectTO>>,
    /// Snapshot this one is based on.
    pub parent_snapshot_path: Option<String>,
    /// Store it is on.
    pub data_store: Option<DataStoreTO>,
    /// Image store.
    pub image_store: Option<DataStoreTO>,
    /// Incremental.
    pub kvm_incremental_snapshot: bool,
    /// Instance name.
    pub vm_name: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Hypervisor.
    pub hypervisor_type: Option<HypervisorType>,
    /// Database id.
    pub id: i64,
    /// The guest was quiesced.
    pub quiescevm: bool,
    /// Snapshots this one is based on.
    pub parents: Option<Vec<String>>,
    /// Store of the parent.
    pub parent_store: Option<DataStoreTO>,
    /// Checkpoint.
    pub checkpoint_path: Option<String>,
    /// Size of the file in bytes.
    pub physical_size: Option<i64>,
    /// Database id of the owner.
    pub account_id: i64,
    /// Follow HTTP redirects.
    pub follow_redirects: bool,
}

/// A volume (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VolumeObjectTO {
    /// UUID.
    pub uuid: Option<String>,
    /// Kind.
    #[serde(deserialize_with = "gson::known")]
    pub volume_type: Option<VolumeType>,
    /// Store it is on.
    pub data_store: Option<DataStoreTO>,
    /// Name.
    pub name: Option<String>,
    /// Virtual size in bytes.
    pub size: Option<i64>,
    /// Bytes without the header of encryption.
    pub usable_size: Option<i64>,
    /// Path.
    pub path: Option<String>,
    /// Database id.
    pub volume_id: Option<i64>,
    /// Instance name.
    pub vm_name: Option<String>,
    /// Database id of the owner.
    pub account_id: i64,
    /// Chain of disks, as JSON text.
    pub chain_info: Option<String>,
    /// Image format.
    #[serde(deserialize_with = "gson::known")]
    pub format: Option<ImageFormat>,
    /// Allocation.
    #[serde(deserialize_with = "gson::known")]
    pub provisioning_type: Option<ProvisioningType>,
    /// Database id of the pool.
    pub pool_id: Option<i64>,
    /// Database id.
    pub id: i64,
    /// Position at the instance.
    pub device_id: Option<i64>,
    /// Bytes per second read.
    pub bytes_read_rate: Option<i64>,
    /// The same, burst.
    pub bytes_read_rate_max: Option<i64>,
    /// Seconds of burst.
    pub bytes_read_rate_max_length: Option<i64>,
    /// Bytes per second written.
    pub bytes_write_rate: Option<i64>,
    /// The same, burst.
    pub bytes_write_rate_max: Option<i64>,
    /// Seconds of burst.
    pub bytes_write_rate_max_length: Option<i64>,
    /// Reads per second.
    pub iops_read_rate: Option<i64>,
    /// The same, burst.
    pub iops_read_rate_max: Option<i64>,
    /// Seconds of burst.
    pub iops_read_rate_max_length: Option<i64>,
    /// Writes per second.
    pub iops_write_rate: Option<i64>,
    /// The same, burst.
    pub iops_write_rate_max: Option<i64>,
    /// Seconds of burst.
    pub iops_write_rate_max_length: Option<i64>,
    /// Write cache.
    #[serde(deserialize_with = "gson::known")]
    pub cache_mode: Option<DiskCacheMode>,
    /// Hypervisor.
    pub hypervisor_type: Option<HypervisorType>,
    /// For hypervisor hosts.
    pub migration_options: Option<Box<MigrationOptions>>,
    /// Hosts download it themselves.
    pub direct_download: bool,
    /// UUID of the store.
    pub data_store_uuid: Option<String>,
    /// An OVA used as it is.
    pub deploy_as_is: bool,
    /// UUID of the new store.
    #[serde(rename = "updatedDataStoreUUID")]
    pub updated_data_store_uuid: Option<String>,
    /// For VMware.
    #[serde(rename = "vSphereStoragePolicyId")]
    pub vsphere_storage_policy_id: Option<String>,
    /// Key of an encrypted volume.
    #[serde(with = "gson::signed_bytes")]
    pub passphrase: Option<Secret<Vec<u8>>>,
    /// Format of an encrypted volume.
    pub encrypt_format: Option<String>,
    /// Checkpoints.
    pub checkpoint_paths: Option<Vec<String>>,
    /// Where checkpoints are.
    pub checkpoint_image_store_urls: Option<Vec<String>>,
    /// Follow HTTP redirects.
    pub follow_redirects: bool,
}

/// A storage pool (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PrimaryDataStoreTO {
    /// UUID.
    pub uuid: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Database id.
    pub id: i64,
    /// Kind of pool.
    pub pool_type: Option<StoragePoolType>,
    /// Host.
    pub host: Option<String>,
    /// Path.
    pub path: Option<String>,
    /// Port.
    pub port: i64,
    /// URL.
    pub url: Option<String>,
    /// Details.
    pub details: Option<Secret<StringMap>>,
    /// For VMware.
    pub full_clone_flag: Option<bool>,
    /// For VMware.
    pub disk_provisioning_strictness_flag: Option<bool>,
    /// One LUN per volume.
    pub is_managed: bool,
    /// Kind of the parent pool.
    pub parent_pool_type: Option<StoragePoolType>,
}

/// An image store without a type of its own (§7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ImageStoreTO {
    /// Kind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// URL.
    pub uri: Option<String>,
    /// Storage plugin.
    pub provider_name: Option<String>,
    /// Role.
    #[serde(deserialize_with = "gson::known")]
    pub role: Option<DataStoreRole>,
    /// UUID.
    pub uuid: Option<String>,
}

/// How a volume moves between storage pools; not for system VMs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MigrationOptions {
    /// UUID of the source pool.
    pub src_pool_uuid: Option<String>,
    /// Kind of the source pool.
    pub src_pool_type: Option<StoragePoolType>,
    /// Cluster of the source pool.
    pub src_pool_cluster_id: Option<i64>,
    /// Kind.
    #[serde(rename = "type", deserialize_with = "gson::known")]
    pub kind: Option<MigrationType>,
    /// Reach of the source pool.
    #[serde(deserialize_with = "gson::known")]
    pub scope_type: Option<ScopeType>,
    /// Backing file.
    pub src_backing_file_path: Option<String>,
    /// The template must be copied first.
    pub copy_src_template: bool,
    /// UUID of the source volume.
    pub src_volume_uuid: Option<String>,
    /// Seconds.
    pub timeout: i64,
}

/// Write cache of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum DiskCacheMode {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "WRITEBACK")]
    Writeback,
    #[serde(rename = "WRITETHROUGH")]
    Writethrough,
    #[serde(rename = "HYPERVISOR_DEFAULT")]
    HypervisorDefault,
}

/// What a store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum DataStoreRole {
    Primary,
    Image,
    ImageCache,
    Backup,
    Object,
}

/// How the disk is moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum MigrationType {
    LinkedClone,
    FullClone,
}

/// How far a storage pool reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum ScopeType {
    #[serde(rename = "HOST")]
    Host,
    #[serde(rename = "CLUSTER")]
    Cluster,
    #[serde(rename = "ZONE")]
    Zone,
    #[serde(rename = "REGION")]
    Region,
    #[serde(rename = "GLOBAL")]
    Global,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum ImageFormat {
    #[serde(rename = "QCOW2")]
    Qcow2,
    #[serde(rename = "RAW")]
    Raw,
    #[serde(rename = "VHD")]
    Vhd,
    #[serde(rename = "ISO")]
    Iso,
    #[serde(rename = "OVA")]
    Ova,
    #[serde(rename = "VHDX")]
    Vhdx,
    #[serde(rename = "BAREMETAL")]
    Baremetal,
    #[serde(rename = "EXTERNAL")]
    External,
    #[serde(rename = "VMDK")]
    Vmdk,
    #[serde(rename = "VDI")]
    Vdi,
    #[serde(rename = "TAR")]
    Tar,
    #[serde(rename = "ZIP")]
    Zip,
    #[serde(rename = "DIR")]
    Dir,
    #[serde(rename = "PNG")]
    Png,
}

/// How much of a disk is allocated at creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum ProvisioningType {
    #[serde(rename = "THIN")]
    Thin,
    #[serde(rename = "SPARSE")]
    Sparse,
    #[serde(rename = "FAT")]
    Fat,
}

/// Kind of a storage pool. Read strictly: a pool of another kind is not answered at all (§3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum StoragePoolType {
    Filesystem,
    NetworkFilesystem,
    IscsiLUN,
    Iscsi,
    #[serde(rename = "ISO")]
    Iso,
    #[serde(rename = "LVM")]
    Lvm,
    #[serde(rename = "CLVM")]
    Clvm,
    #[serde(rename = "CLVM_NG")]
    ClvmNg,
    #[serde(rename = "RBD")]
    Rbd,
    SharedMountPoint,
    #[serde(rename = "VMFS")]
    Vmfs,
    PreSetup,
    #[serde(rename = "EXT")]
    Ext,
    #[serde(rename = "OCFS2")]
    Ocfs2,
    #[serde(rename = "SMB")]
    Smb,
    Gluster,
    PowerFlex,
    ManagedNFS,
    Linstor,
    DatastoreCluster,
    StorPool,
    FiberChannel,
}

/// What a volume is to its instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum VolumeType {
    #[serde(rename = "UNKNOWN")]
    Unknown,
    #[serde(rename = "ROOT")]
    Root,
    #[serde(rename = "SWAP")]
    Swap,
    #[serde(rename = "DATADISK")]
    Datadisk,
    #[serde(rename = "ISO")]
    Iso,
}
