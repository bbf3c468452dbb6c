//! The two commands that the management server runs over ssh, with the arguments of the scripts they stand for:
//! apache/cloudstack scripts/util/keystore-setup and keystore-cert-import, called by utils/…/KeyStoreUtils.java.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;
use platform::exec::Cmd;
use protocol::secret::Secret;
use tokio::time::{Instant, sleep};

use super::{Import, KeyStore, KeyStoreError, is_reachable};

/// The directory is in our image; where it is not, a boot step is about to make it.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// `systemctl restart` waits for the old process to finish what it does (systemd gives it 90 s) and for the new one to
/// be ready.
const RESTART_LIMIT: Duration = Duration::from_mins(3);

const SETUP_USAGE: &str = "keystore-setup <properties> <keystore> <password> <validity days> <csr file>";
const IMPORT_USAGE: &str = "keystore-cert-import <properties> <password> <keystore> <ssh|agent> <certificate file> \
                            <certificate> <CA file> <CA certificates> <key file> <key>";

/// What a signing request says of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub fqdn: String,
    pub addresses: Vec<IpAddr>,
}

/// The arguments of `keystore-setup`. There is no Java key store; its directory is the place of our files.
#[derive(Debug)]
pub struct SetupArgs {
    pub store: KeyStore,
    pub password: Secret<String>,
    pub validity_days: i64,
}

/// The arguments of `keystore-cert-import`. Certificates and key are still as they were passed.
#[derive(Debug)]
pub struct CertImportArgs {
    pub store: KeyStore,
    pub password: Secret<String>,
    pub mode: ImportMode,
    pub certificate: String,
    pub ca_certificates: String,
    pub private_key: Secret<String>,
}

/// Who asked for an import.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImportMode {
    /// The hypervisor host: the agent is restarted to use the certificate at once.
    Ssh,
    /// The agent itself, which uses the certificate for its next connection.
    Agent,
}

/// Makes a key and a signing request. The caller prints what this returns, the request as PEM, and nothing else.
pub fn keystore_setup(args: &[String], machine: &Machine) -> Result<String, KeyStoreError> {
    let args = SetupArgs::parse(args)?;
    args.store
        .setup_keystore(&args.password, args.validity_days, &machine.fqdn, &machine.addresses)
}

/// Takes a certificate into use, also for the system's other programs (`system_ca`, usually [`super::SYSTEM_CA`]), and
/// says which commands the caller runs then. Waits up to `wait` for the file of properties and its directory: a host may ask
/// as soon as ssh is open, and the set-up of the VM goes on then.
pub async fn keystore_cert_import(
    args: &[String],
    system_ca: Option<&Path>,
    wait: Duration,
) -> Result<Import, KeyStoreError> {
    let mut args = CertImportArgs::parse(args)?;
    args.store.system_ca = system_ca.map(Path::to_owned);
    let deadline = Instant::now() + wait;
    wait_for_directory_of(&args.store.properties, wait).await?;
    while !args.store.keep_passphrase(&args.password)? {
        if Instant::now() >= deadline {
            return Err(KeyStoreError::NoProperties {
                path: args.store.properties,
            });
        }
        sleep(LOOK_AGAIN).await;
    }
    let mut import = args
        .store
        .setup_certificate(&args.certificate, &args.private_key, &args.ca_certificates)?;
    if let (Import::Done { commands, .. }, ImportMode::Ssh) = (&mut import, args.mode) {
        commands.push(
            Cmd::new("systemctl")
                .args(["restart", "cloud"])
                .time_limit(RESTART_LIMIT),
        );
    }
    Ok(import)
}

impl SetupArgs {
    pub fn parse(args: &[String]) -> Result<Self, KeyStoreError> {
        let [properties, keystore, password, validity_days, request] = args else {
            return Err(wrong_number(args, 5, SETUP_USAGE));
        };
        let Ok(validity_days) = validity_days.parse() else {
            return Err(usage("<validity days> is not a whole number", SETUP_USAGE));
        };
        Ok(Self {
            store: KeyStore {
                properties: properties.into(),
                request: request.into(),
                ..KeyStore::in_directory(Path::new(keystore).parent().unwrap_or(Path::new("")))
            },
            password: Secret::new(password.clone()),
            validity_days,
        })
    }
}

impl CertImportArgs {
    pub fn parse(args: &[String]) -> Result<Self, KeyStoreError> {
        let [
            properties,
            password,
            _keystore,
            mode,
            certificate_file,
            certificate,
            ca_file,
            ca,
            key_file,
            key,
        ] = args
        else {
            return Err(wrong_number(args, 10, IMPORT_USAGE));
        };
        let mode = match &**mode {
            "ssh" => ImportMode::Ssh,
            "agent" => ImportMode::Agent,
            _ => return Err(usage("the fourth argument is neither ssh nor agent", IMPORT_USAGE)),
        };
        Ok(Self {
            store: KeyStore {
                properties: properties.into(),
                certificate: certificate_file.into(),
                ca: ca_file.into(),
                key: key_file.into(),
                ..KeyStore::in_directory(Path::new(key_file).parent().unwrap_or(Path::new("")))
            },
            password: Secret::new(password.clone()),
            mode,
            certificate: certificate.clone(),
            ca_certificates: ca.clone(),
            private_key: Secret::new(key.clone()),
        })
    }
}

impl Machine {
    /// Asks the system. Without a domain the name is the host name.
    pub async fn inspect() -> Result<Self, KeyStoreError> {
        let asked = Cmd::new("hostname").arg("--fqdn").run().await;
        let fqdn = match asked.map(|output| output.text().trim().to_owned()) {
            Ok(name) if !name.is_empty() => name,
            // It cannot resolve its own name, which is no reason to have none.
            _ => fs::read_to_string("/proc/sys/kernel/hostname")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        Ok(Self {
            fqdn,
            addresses: addresses().map_err(|source| KeyStoreError::Addresses { source })?,
        })
    }
}

/// In the order of the interfaces; only those by which others can reach this machine.
fn addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|found| IpAddr::from(found.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|found| IpAddr::from(found.ip())))
    });
    Ok(addresses.filter(|address| is_reachable(*address)).collect())
}

async fn wait_for_directory_of(file: &Path, wait: Duration) -> Result<(), KeyStoreError> {
    let Some(directory) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    let deadline = Instant::now() + wait;
    while !directory.is_dir() {
        if Instant::now() >= deadline {
            return Err(KeyStoreError::NoDirectory {
                path: directory.to_owned(),
                waited: wait,
            });
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn wrong_number(args: &[String], wanted: usize, synopsis: &str) -> KeyStoreError {
    usage(
        &format!("{wanted} arguments are needed, {} were given", args.len()),
        synopsis,
    )
}

/// Does not repeat the arguments: some are secret.
fn usage(problem: &str, synopsis: &str) -> KeyStoreError {
    KeyStoreError::Usage(format!("{problem}\nusage: {synopsis}"))
}
