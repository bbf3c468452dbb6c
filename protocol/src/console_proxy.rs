//! Classes of console proxy agents (agent-protocol.md §6).

use serde::{Deserialize, Serialize};

use crate::gson;
use crate::secret::Secret;

/// Asks for the sessions of a console proxy; no current server sends it (§6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct CheckConsoleProxyLoadCommand {
    /// Database id of the proxy VM.
    pub proxy_vm_id: i64,
    /// Instance name of the proxy.
    pub proxy_vm_name: Option<String>,
    /// Management address of the proxy.
    pub proxy_management_ip: Option<String>,
    /// Command port of the proxy.
    pub proxy_cmd_port: i64,
}

/// The same, repeated every `interval` seconds (§6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct WatchConsoleProxyLoadCommand {
    /// Database id of the proxy VM.
    pub proxy_vm_id: i64,
    /// Instance name of the proxy.
    pub proxy_vm_name: Option<String>,
    /// Management address of the proxy.
    pub proxy_management_ip: Option<String>,
    /// Command port of the proxy.
    pub proxy_cmd_port: i64,
    /// Seconds.
    pub interval: i64,
}

/// Starts the browser side of a console proxy (§6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StartConsoleProxyAgentHttpHandlerCommand {
    /// A JKS key store; absent without TLS.
    #[serde(with = "gson::signed_bytes")]
    pub keystore_bits: Option<Secret<Vec<u8>>>,
    /// Password of the key store.
    pub keystore_password: Option<Secret<String>>,
    /// Key of the console tokens: JSON text (console-proxy.md).
    pub encryptor_password: Option<Secret<String>>,
    /// A token is bound to the viewer's address.
    pub is_source_ip_check_enabled: Option<bool>,
}

/// A session may be opened once (§6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct AllowConsoleAccessCommand {
    /// Console session.
    pub session_uuid: Option<String>,
}

/// Answer to both load commands; `details` is the status as JSON text.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsoleProxyLoadAnswer {
    /// Database id of the proxy VM.
    pub proxy_vm_id: i64,
    /// Instance name of the proxy.
    pub proxy_vm_name: Option<String>,
}

/// May this viewer see this screen? (§6)
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsoleAccessAuthenticationCommand {
    /// VNC host.
    #[serde(rename = "_host")]
    pub host: Option<String>,
    /// VNC port, as text.
    #[serde(rename = "_port")]
    pub port: Option<String>,
    /// UUID or id of the VM.
    #[serde(rename = "_vmId")]
    pub vm_id: Option<String>,
    /// VNC password.
    #[serde(rename = "_sid")]
    pub sid: Option<Secret<String>>,
    /// Ticket.
    #[serde(rename = "_ticket")]
    pub ticket: Option<Secret<String>>,
    /// Console session.
    pub session_uuid: Option<String>,
    /// Address of the viewer.
    pub client_address: Option<String>,
    /// The session exists already.
    #[serde(rename = "_isReauthenticating")]
    pub is_reauthenticating: bool,
}

/// Answer to [`ConsoleAccessAuthenticationCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsoleAccessAuthenticationAnswer {
    /// Access is granted.
    #[serde(rename = "_success")]
    pub success: bool,
    /// The session exists already.
    #[serde(rename = "_isReauthenticating")]
    pub is_reauthenticating: bool,
    /// VNC host, when asked again.
    #[serde(rename = "_host")]
    pub host: Option<String>,
    /// VNC port, as a number.
    #[serde(rename = "_port")]
    pub port: i64,
    /// XenServer tunnel.
    #[serde(rename = "_tunnelUrl")]
    pub tunnel_url: Option<String>,
    /// XenServer session.
    #[serde(rename = "_tunnelSession")]
    pub tunnel_session: Option<String>,
}

/// The sessions of a console proxy (§6).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ConsoleProxyLoadReportCommand {
    /// Database id of the proxy VM.
    #[serde(rename = "_proxyVmId")]
    pub proxy_vm_id: i64,
    /// The sessions as JSON text.
    #[serde(rename = "_loadInfo")]
    pub load_info: Option<String>,
}
