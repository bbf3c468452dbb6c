//! `agent keystore-setup` and `agent keystore-cert-import`: what CloudStack calls by scripts of these names.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use agent::keystore::{self, Import, Machine, SYSTEM_CA};
use anyhow::Context;
use platform::logging;
use tracing::{info, warn};

/// How long `keystore-cert-import` waits for what the boot makes; hosts wait longer (appliance.md §9). The stock script has no
/// limit.
const SETUP_LIMIT: Duration = Duration::from_mins(5);

/// Make a key and print a request for its certificate, and nothing else.
///
/// ARGS: <properties> <keystore> <password> <validity days> <csr file>, as CloudStack calls its script. There is
/// no Java key store: the directory of <keystore> is the place of cloud.key and the other PEM files.
#[derive(Debug, clap::Args)]
pub(crate) struct Setup {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Take a certificate into use; in mode ssh the agent is then restarted.
///
/// ARGS: <properties> <password> <keystore> <ssh|agent> <certificate file> <certificate> <CA file> <CA
/// certificates> <key file> <key>, as CloudStack calls its script: in PEM texts ^ is a newline and ~ a space.
#[derive(Debug, clap::Args)]
pub(crate) struct CertImport {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) async fn setup(Setup { args }: &Setup) -> anyhow::Result<()> {
    let request = keystore::keystore_setup(args, &Machine::inspect().await?)?;
    std::io::stdout()
        .write_all(request.as_bytes())
        .context("printing the request")
}

pub(crate) async fn cert_import(CertImport { args }: &CertImport) -> anyhow::Result<()> {
    match keystore::keystore_cert_import(args, Some(Path::new(SYSTEM_CA)), SETUP_LIMIT).await? {
        Import::Skipped { missing } => warn!(missing = %missing.display(), "Nothing given and nothing there; done"),
        Import::Done {
            subject,
            not_after,
            commands,
        } => {
            info!(subject, not_after, "Certificate imported");
            for command in commands {
                // As the original: the files are in place, and a tool that fails changes nothing about that.
                if let Err(error) = command.run().await {
                    warn!(
                        error = logging::chain(&error).to_string(),
                        "Could not tell the rest of the system"
                    );
                }
            }
        }
    }
    Ok(())
}
