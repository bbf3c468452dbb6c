//! Classes of certificate renewal over the link (agent-protocol.md §1.5, §4.7).

use serde::{Deserialize, Serialize};

use crate::command::StringMap;
use crate::secret::Secret;

/// Asks for a key and a certificate signing request (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetupKeyStoreCommand {
    /// Days the certificate shall be valid.
    pub validity_days: i64,
    /// Password of the key store.
    pub keystore_password: Option<Secret<String>>,
    /// For the agent itself, not for a VM behind it.
    pub handle_by_agent: bool,
    /// How to reach a VM behind the agent.
    pub access_details: Option<StringMap>,
    /// Address of a VM behind the agent.
    pub router_access_ip: Option<String>,
}

/// Answer to [`SetupKeyStoreCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetupKeystoreAnswer {
    /// PEM of the signing request.
    pub csr: Option<String>,
}

/// Brings an issued certificate (§4.7).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SetupCertificateCommand {
    /// PEM of the certificate.
    pub certificate: Option<String>,
    /// PEM of the private key; may be empty.
    pub private_key: Option<Secret<String>>,
    /// PEM of the CA certificate(s).
    pub ca_certificates: Option<String>,
    /// For the agent itself, not for a VM behind it.
    pub handle_by_agent: bool,
    /// How to reach a VM behind the agent.
    pub access_details: Option<StringMap>,
    /// Address of a VM behind the agent.
    pub router_access_ip: Option<String>,
}

/// Answer to [`SetupCertificateCommand`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SetupCertificateAnswer {}

/// Internal to hypervisor agents; never on a system VM's link (§1.5).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PostCertificateRenewalCommand {}

/// TLS material for the web server of copies between zones.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Certificates {
    /// PEM of the private key.
    pub priv_key: Option<Secret<String>>,
    /// PEM of the certificate.
    pub priv_cert: Option<String>,
    /// PEM of intermediate certificates.
    pub cert_chain: Option<String>,
    /// PEM of the CA certificate.
    #[serde(rename = "rootCACert")]
    pub root_ca_cert: Option<String>,
}
