//! Certificates over the link: SetupKeyStoreCommand and SetupCertificateCommand (agent-protocol.md §4.7).

use protocol::answer::Answer;
use protocol::certificate::{
    SetupCertificateAnswer, SetupCertificateCommand, SetupKeyStoreCommand, SetupKeystoreAnswer,
};
use protocol::command::{Command, CommandBody};
use tracing::{info, warn};

use crate::agent::{blocking, chain};
use crate::keystore::{Import, KeyStore, Machine};

/// Whether a command is for this module.
pub(crate) fn is_work(command: &Command) -> bool {
    match &command.body {
        CommandBody::SetupKeyStore(setup) => setup.handle_by_agent,
        CommandBody::SetupCertificate(setup) => setup.handle_by_agent,
        _ => false,
    }
}

/// Carries it out. Takes time: the system is asked for its name, and others may hold the files.
pub(crate) async fn work(keystore: KeyStore, command: Command) -> Answer {
    match command.body {
        CommandBody::SetupKeyStore(setup) => setup_keystore(keystore, setup).await,
        CommandBody::SetupCertificate(setup) => setup_certificate(keystore, setup).await,
        _ => Answer::unsupported(&command),
    }
}

async fn setup_keystore(keystore: KeyStore, setup: SetupKeyStoreCommand) -> Answer {
    let password = setup.keystore_password.unwrap_or_default();
    let made = match Machine::inspect().await {
        Ok(Machine { fqdn, addresses }) => {
            blocking(move || keystore.setup_keystore(&password, setup.validity_days, &fqdn, &addresses)).await
        }
        Err(error) => Err(chain(&error)),
    };
    made.map_or_else(Answer::failure, |csr| {
        Answer::new(SetupKeystoreAnswer { csr: Some(csr) })
    })
}

async fn setup_certificate(keystore: KeyStore, setup: SetupCertificateCommand) -> Answer {
    let certificate = setup.certificate.unwrap_or_default();
    let ca_certificates = setup.ca_certificates.unwrap_or_default();
    let key = setup.private_key.unwrap_or_default();
    match blocking(move || keystore.setup_certificate(&certificate, &key, &ca_certificates)).await {
        Ok(Import::Done {
            subject,
            not_after,
            commands,
        }) => {
            info!(
                subject,
                not_after, "Certificate set up; it is used at the next connection"
            );
            for command in commands {
                if let Err(error) = command.run().await {
                    warn!(
                        error = chain(&error),
                        "Could not tell the rest of the system about the CA"
                    );
                }
            }
            Answer::new(SetupCertificateAnswer {})
        }
        Ok(Import::Skipped { missing }) => Answer::failure(format!(
            "no certificate was sent and {} does not exist",
            missing.display()
        )),
        Err(error) => Answer::failure(error),
    }
}
