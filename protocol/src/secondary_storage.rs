//! Classes of secondary storage agents (agent-protocol.md §5).

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::certificate::Certificates;
use crate::command::StringMap;
use crate::gson;
use crate::ovf::{DatadiskTO, OVFInformationTO};
use crate::secret::Secret;
use crate::transfer::{DataStoreTO, DataTO, ImageFormat, SnapshotObjectTO, StoragePoolType, TemplateObjectTO};

/// Mount this image store (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecStorageSetupCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// Only if copies between zones are encrypted.
    pub certs: Option<Certificates>,
    /// Key that signs browser uploads.
    pub post_upload_key: Option<Secret<String>>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`SecStorageSetupCommand`]; mandatory class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecStorageSetupAnswer {
    /// Name of the mount directory below the mount root.
    #[serde(rename = "_dir")]
    pub dir: Option<String>,
}

/// Who may reach the copy web server (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecStorageFirewallCfgCommand {
    /// Sources; empty = absent on the wire.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_configs: Vec<PortConfig>,
    /// Add to the list instead of replacing it.
    #[serde(rename = "isAppendAIp")]
    pub is_append_ip: bool,
}

/// Allowed internal sites and copy credentials (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecStorageVMSetupCommand {
    /// CIDRs that downloads may reach although they are internal.
    pub allowed_internal_sites: Option<Vec<String>>,
    /// User of the copy web server.
    pub copy_user_name: Option<String>,
    /// Password of the copy web server.
    pub copy_password: Option<Secret<String>>,
}

/// Asks for used and total bytes of a store (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetStorageStatsCommand {
    /// Database id.
    pub id: Option<String>,
    /// For hypervisor hosts.
    pub local_path: Option<String>,
    /// For hypervisor hosts.
    pub pooltype: Option<StoragePoolType>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// The store.
    pub store: Option<DataStoreTO>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`GetStorageStatsCommand`]; mandatory class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetStorageStatsAnswer {
    /// Used bytes.
    pub used_bytes: i64,
    /// Total bytes.
    pub capacity_bytes: i64,
    /// Provisioned operations per second.
    pub capacity_iops: Option<i64>,
    /// Used operations per second.
    pub used_iops: Option<i64>,
}

/// Asks for the checksum of a file (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ComputeChecksumCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// File relative to the store.
    pub template_path: Option<String>,
    /// Such as `SHA-256`; absent: default.
    pub algorithm: Option<String>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Removes the snapshots of a volume (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeleteSnapshotsDirCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// `snapshots/<account>/<volume>`.
    pub directory: Option<String>,
}

/// Stores or deletes a config drive (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HandleConfigDriveIsoCommand {
    /// The ISO in base64.
    pub iso_data: Option<Secret<String>>,
    /// File name.
    pub iso_file: Option<String>,
    /// Store, not delete.
    pub create: bool,
    /// Target store.
    pub dest_store: Option<DataStoreTO>,
    /// For hypervisor hosts.
    pub use_host_cache_on_unsupported_pool: bool,
    /// For hypervisor hosts.
    pub prefer_host_cache: bool,
}

/// Answer to [`HandleConfigDriveIsoCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HandleConfigDriveIsoAnswer {
    /// Where it was stored.
    #[serde(deserialize_with = "gson::known")]
    pub location: Option<Location>,
}

/// Asks what templates a store holds (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListTemplateCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`ListTemplateCommand`]; mandatory class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListTemplateAnswer {
    /// URL of the store.
    pub sec_url: Option<String>,
    /// By unique template name, or by volume id.
    pub template_infos: Option<IndexMap<String, TemplateProp>>,
}

/// Asks what volumes a store holds (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListVolumeCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`ListVolumeCommand`]; mandatory class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListVolumeAnswer {
    /// URL of the store.
    pub sec_url: Option<String>,
    /// By unique template name, or by volume id.
    pub template_infos: Option<IndexMap<String, TemplateProp>>,
}

/// Starts a download into a store (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownloadCommand {
    /// Needs hardware virtualisation.
    pub hvm: bool,
    /// Display text.
    pub description: Option<String>,
    /// `{ALGORITHM}hex`, or bare hex recognised by its length.
    pub checksum: Option<String>,
    /// Credentials at the source.
    pub auth: Option<PasswordAuth>,
    /// HTTP proxy.
    #[serde(rename = "_proxy")]
    pub proxy: Option<Proxy>,
    /// Largest size accepted, in bytes.
    pub max_download_size_in_bytes: Option<i64>,
    /// Database id.
    pub id: i64,
    /// Kind of resource.
    #[serde(deserialize_with = "gson::known")]
    pub resource_type: Option<ResourceType>,
    /// Path relative to the store.
    pub install_path: Option<String>,
    /// Target store.
    #[serde(rename = "_store")]
    pub store: Option<DataStoreTO>,
    /// Staging store.
    pub cache_store: Option<DataStoreTO>,
    /// Follow HTTP redirects.
    pub follow_redirects: bool,
    /// URL.
    pub url: Option<String>,
    /// Image format.
    #[serde(deserialize_with = "gson::known")]
    pub format: Option<ImageFormat>,
    /// Database id of the owner.
    pub account_id: i64,
    /// Unique name; an error when absent.
    pub name: Option<String>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Asks for, or acts on, a download job (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownloadProgressCommand {
    /// Job.
    pub job_id: Option<String>,
    /// What to do.
    #[serde(deserialize_with = "gson::known")]
    pub request: Option<DownloadRequest>,
    /// What it inherits.
    #[serde(rename = "<super>")]
    pub download: DownloadCommand,
}

/// Answer to both download commands; mandatory class also for failure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DownloadAnswer {
    /// Job.
    pub job_id: Option<String>,
    /// Percent done.
    pub download_pct: i64,
    /// Error text.
    pub error_string: Option<String>,
    /// State.
    #[serde(deserialize_with = "gson::known")]
    pub download_status: Option<DownloadStatus>,
    /// Temporary file, absolute.
    pub download_path: Option<String>,
    /// Path relative to the store.
    pub install_path: Option<String>,
    /// Virtual size in bytes.
    pub template_size: i64,
    /// Size of the file in bytes.
    #[serde(rename = "templatePhySicalSize")]
    pub template_physical_size: i64,
    /// Checksum found.
    pub check_sum: Option<String>,
    /// For OVA only.
    #[serde(rename = "ovfInformationTO")]
    pub ovf_information_to: Option<Box<OVFInformationTO>>,
}

/// Makes a file reachable by URL (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CreateEntityDownloadURLCommand {
    /// Path relative to the store.
    pub install_path: Option<String>,
    /// `dir` of the store.
    pub parent: Option<String>,
    /// Last part of the URL.
    #[serde(rename = "filenameInExtractURL")]
    pub filename_in_extract_url: Option<String>,
    /// Directory part of the URL below `userdata`.
    #[serde(rename = "filepathInExtractURL")]
    pub filepath_in_extract_url: Option<String>,
    /// The object.
    pub data: Option<DataTO>,
    /// URL.
    pub url: Option<String>,
    /// Image format.
    #[serde(deserialize_with = "gson::known")]
    pub format: Option<ImageFormat>,
    /// Database id of the owner.
    pub account_id: i64,
    /// Name.
    pub name: Option<String>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`CreateEntityDownloadURLCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateEntityDownloadURLAnswer {}

/// Ends a download URL (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeleteEntityDownloadURLCommand {
    /// Path.
    pub path: Option<String>,
    /// The URL that was handed out.
    pub extract_url: Option<String>,
    /// Kind.
    #[serde(rename = "type", deserialize_with = "gson::known")]
    pub kind: Option<EntityType>,
    /// `dir` of the store.
    pub parent_path: Option<String>,
    /// URL.
    pub url: Option<String>,
    /// Image format.
    #[serde(deserialize_with = "gson::known")]
    pub format: Option<ImageFormat>,
    /// Database id of the owner.
    pub account_id: i64,
    /// Name.
    pub name: Option<String>,
    /// URL of the store.
    pub sec_url: Option<String>,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Asks for the state of a browser upload (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UploadStatusCommand {
    /// UUID of the volume or template.
    pub entity_uuid: Option<String>,
    /// Kind.
    #[serde(deserialize_with = "gson::known")]
    pub entity_type: Option<UploadedEntity>,
    /// Drop the upload.
    pub abort: Option<bool>,
}

/// Answer to [`UploadStatusCommand`]; mandatory class.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct UploadStatusAnswer {
    /// State.
    #[serde(deserialize_with = "gson::known")]
    pub status: Option<UploadStatus>,
    /// Virtual size in bytes.
    pub virtual_size: i64,
    /// Size of the file in bytes.
    pub physical_size: i64,
    /// Path relative to the store.
    pub install_path: Option<String>,
    /// Percent done.
    pub download_percent: i64,
    /// For OVA only.
    #[serde(rename = "ovfInformationTO")]
    pub ovf_information_to: Option<Box<OVFInformationTO>>,
}

/// Not an agent command: what the server signed into the header of a browser upload (ssvm.md).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateOrVolumePostUploadCommand {
    /// Database id.
    pub entity_id: i64,
    /// UUID.
    #[serde(rename = "entityUUID")]
    pub entity_uuid: Option<String>,
    /// Directory relative to the store.
    pub absolute_path: Option<String>,
    /// `{ALGORITHM}hex`, or bare hex recognised by its length.
    pub checksum: Option<String>,
    /// Kind.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// For hypervisor hosts.
    pub local_path: Option<String>,
    /// Needs hardware virtualisation.
    pub requires_hvm: bool,
    /// Image format.
    pub image_format: Option<String>,
    /// URL of the store.
    pub data_to: Option<String>,
    /// Role of the store.
    pub data_to_role: Option<String>,
    /// Address of the SSVM.
    pub remote_end_point: Option<String>,
    /// Largest size accepted.
    pub max_upload_size: Option<String>,
    /// Display text.
    pub description: Option<String>,
    /// Limit of the account in GiB; negative = none.
    #[serde(rename = "defaultMaxSecondaryStorageInGB")]
    pub default_max_secondary_storage_in_gb: i64,
    /// Milliseconds.
    pub process_timeout: i64,
    /// Database id of the owner.
    pub account_id: i64,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
    /// Database id of the zone.
    pub zone_id: i64,
}

/// Copies an object from one store to another (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CopyCommand {
    /// Source.
    #[serde(rename = "srcTO")]
    pub src_to: Option<DataTO>,
    /// Target.
    #[serde(rename = "destTO")]
    pub dest_to: Option<DataTO>,
    /// Staging copy.
    #[serde(rename = "cacheTO")]
    pub cache_to: Option<DataTO>,
    /// Marks the request IN_SEQUENCE.
    pub execute_in_sequence: bool,
    /// Options for the source.
    pub options: Option<StringMap>,
    /// Options for the target.
    pub options2: Option<StringMap>,
}

/// Answer to [`CopyCommand`]; mandatory class for success.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CopyCmdAnswer {
    /// The copy, with only the new facts set.
    pub new_data: Option<DataTO>,
}

/// Deletes a template, volume or snapshot (§5.1).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DeleteCommand {
    /// The object.
    pub data: Option<DataTO>,
    /// Also what the snapshot is based on.
    pub delete_chain: bool,
}

/// Asks for the disks of a multi-disk OVA (§5.3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetDatadisksCommand {
    /// The object.
    pub data: Option<DataTO>,
    /// Chosen deployment option.
    pub configuration_id: Option<String>,
}

/// Answer to [`GetDatadisksCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GetDatadisksAnswer {
    /// The disks.
    pub data_disk_details: Option<Vec<DatadiskTO>>,
}

/// Makes a template of one disk of a multi-disk OVA (§5.3).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CreateDatadiskTemplateCommand {
    /// The template of the disk.
    pub data_disk_template: Option<DataTO>,
    /// Path.
    pub path: Option<String>,
    /// Size of the file in bytes.
    pub file_size: i64,
    /// Can be booted.
    pub bootable: bool,
    /// Id in the descriptor.
    pub disk_id: Option<String>,
}

/// Answer to [`CreateDatadiskTemplateCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CreateDatadiskTemplateAnswer {
    /// The template of the disk.
    pub data_disk_template: Option<TemplateObjectTO>,
}

/// Moves a volume to another account (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct MoveVolumeCommand {
    /// Directory relative to the store.
    pub src_path: Option<String>,
    /// Directory relative to the store.
    pub dest_path: Option<String>,
    /// Name of the volume.
    pub volume_name: Option<String>,
    /// UUID of the volume.
    pub volume_uuid: Option<String>,
    /// URL of the store.
    pub datastore_uri: Option<String>,
}

/// Lists a directory of a store, page by page (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListDataStoreObjectsCommand {
    /// The store.
    pub store: Option<DataStoreTO>,
    /// Path.
    pub path: Option<String>,
    /// First entry wanted.
    pub start_index: i64,
    /// Number of entries wanted.
    pub page_size: i64,
    /// NFS version such as `4.1`; absent: default.
    pub nfs_version: Option<String>,
}

/// Answer to [`ListDataStoreObjectsCommand`]: parallel arrays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ListDataStoreObjectsAnswer {
    /// Whether there is such a directory.
    pub path_exists: bool,
    /// Entries in total.
    pub count: i64,
    /// Names.
    pub names: Option<Vec<String>>,
    /// Paths below the store.
    pub paths: Option<Vec<String>>,
    /// Paths on the SSVM.
    pub abs_paths: Option<Vec<String>>,
    /// Directory or not.
    pub is_dirs: Option<Vec<bool>>,
    /// Bytes.
    pub sizes: Option<Vec<i64>>,
    /// Milliseconds since 1970.
    pub last_modified: Option<Vec<i64>>,
}

/// Asks which files make up a snapshot (§5.2).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QuerySnapshotZoneCopyCommand {
    /// The snapshot (not wrapped).
    pub snapshot: Option<SnapshotObjectTO>,
}

/// Answer to [`QuerySnapshotZoneCopyCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct QuerySnapshotZoneCopyAnswer {
    /// Paths relative to the store.
    pub files: Option<Vec<String>>,
}

/// One source address of [`SecStorageFirewallCfgCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PortConfig {
    /// Open, not close.
    pub add: bool,
    /// Source address.
    pub source_ip: Option<String>,
    /// Port as text: `80` or `443`.
    pub port: Option<String>,
    /// Device: `eth1` private, `eth2` public.
    pub intf: Option<String>,
}

/// What a store knows of a template or a volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct TemplateProp {
    /// Unique name.
    pub template_name: Option<String>,
    /// Path relative to the store.
    pub install_path: Option<String>,
    /// Virtual size in bytes.
    pub size: i64,
    /// Size of the file in bytes.
    pub physical_size: i64,
    /// Database id.
    pub id: i64,
    /// Visible to everybody.
    pub is_public: bool,
    /// To be downloaded again.
    pub is_corrupted: bool,
}

/// Credentials for HTTP basic authentication at the source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PasswordAuth {
    /// User.
    pub user_name: Option<String>,
    /// Password.
    pub password: Option<Secret<String>>,
}

/// HTTP proxy for downloads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Proxy {
    /// Host.
    #[serde(rename = "_host")]
    pub host: Option<String>,
    /// Port.
    #[serde(rename = "_port")]
    pub port: i64,
    /// User.
    #[serde(rename = "_userName")]
    pub user_name: Option<String>,
    /// Password.
    #[serde(rename = "_password")]
    pub password: Option<Secret<String>>,
}

/// Where a config drive is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum Location {
    #[serde(rename = "SECONDARY")]
    Secondary,
    #[serde(rename = "PRIMARY")]
    Primary,
    #[serde(rename = "HOST")]
    Host,
}

/// What a download URL was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum EntityType {
    #[serde(rename = "VOLUME")]
    Volume,
    #[serde(rename = "SNAPSHOT")]
    Snapshot,
    #[serde(rename = "TEMPLATE")]
    Template,
    #[serde(rename = "ISO")]
    Iso,
}

/// How far a download has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum DownloadStatus {
    #[serde(rename = "UNKNOWN")]
    Unknown,
    #[serde(rename = "DOWNLOAD_ERROR")]
    DownloadError,
    #[serde(rename = "NOT_DOWNLOADED")]
    NotDownloaded,
    #[serde(rename = "DOWNLOAD_IN_PROGRESS")]
    DownloadInProgress,
    #[serde(rename = "DOWNLOADED")]
    Downloaded,
    #[serde(rename = "ABANDONED")]
    Abandoned,
    #[serde(rename = "LIMIT_REACHED")]
    LimitReached,
    #[serde(rename = "UPLOADED")]
    Uploaded,
    #[serde(rename = "NOT_UPLOADED")]
    NotUploaded,
    #[serde(rename = "UPLOAD_ERROR")]
    UploadError,
    #[serde(rename = "UPLOAD_IN_PROGRESS")]
    UploadInProgress,
    #[serde(rename = "CREATING")]
    Creating,
    #[serde(rename = "CREATED")]
    Created,
    #[serde(rename = "BYPASSED")]
    Bypassed,
}

/// What is downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum ResourceType {
    #[serde(rename = "VOLUME")]
    Volume,
    #[serde(rename = "TEMPLATE")]
    Template,
    #[serde(rename = "SNAPSHOT")]
    Snapshot,
}

/// What to do with a download job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum DownloadRequest {
    #[serde(rename = "GET_STATUS")]
    GetStatus,
    #[serde(rename = "ABORT")]
    Abort,
    #[serde(rename = "RESTART")]
    Restart,
    #[serde(rename = "PURGE")]
    Purge,
    #[serde(rename = "GET_OR_RESTART")]
    GetOrRestart,
}

/// How far a browser upload has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum UploadStatus {
    #[serde(rename = "UNKNOWN")]
    Unknown,
    #[serde(rename = "IN_PROGRESS")]
    InProgress,
    #[serde(rename = "COMPLETED")]
    Completed,
    #[serde(rename = "ERROR")]
    Error,
}

/// What is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the constants are the protocol's own")]
pub enum UploadedEntity {
    Volume,
    Template,
}
