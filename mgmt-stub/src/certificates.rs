//! Certificates over the agent link: issue, renew (agent-protocol.md §1.5, management.md §13.4).

use protocol::answer::AnswerBody;
use protocol::certificate::{SetupCertificateCommand, SetupKeyStoreCommand};
use protocol::command::Command;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agents::{Agents, NoAnswer};
use crate::ca::{Ca, CsrNames, IssueError, Request, VALIDITY_DAYS};
use crate::random;
use crate::settings::Settings;
use crate::store::host::Host;
use crate::store::id::HostId;
use crate::store::{Store, StoreError};

/// Waits for one certificate command: as long as these commands say themselves.
const LIMIT: std::time::Duration = std::time::Duration::from_mins(2);

/// Gives agents certificates of our CA; cheap to clone.
#[derive(Clone)]
pub struct Provision {
    pub(crate) ca: Ca,
    pub(crate) store: Store,
    pub(crate) agents: Agents,
}

/// Why an agent has no new certificate. It keeps what it had.
#[derive(Debug, thiserror::Error)]
pub enum ProvisionError {
    /// The agent did not answer.
    #[error("{step}: {source}")]
    NoAnswer {
        /// Which command.
        step: &'static str,
        /// Why.
        source: NoAnswer,
    },
    /// The agent could not do it.
    #[error("{step}: the agent answered: {details}")]
    Refused {
        /// Which command.
        step: &'static str,
        /// The agent's words.
        details: String,
    },
    /// The CA could not issue it.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Provision {
    /// Asks the agent for a signing request, signs it and sends the certificate back; with `reconnect` the link is then
    /// closed, because the agent uses the certificate only at its next connection.
    ///
    /// # Errors
    /// One step failed; the agent goes on with what it has.
    pub async fn provision(&self, id: HostId, reconnect: bool) -> Result<(), ProvisionError> {
        let host = self.store.host(id).await?.ok_or(StoreError::NoSuchHost(id))?;
        let csr = self.signing_request(&host).await?;
        let signed = self.ca.sign_csr(&csr, &request_for(&host), CsrNames::Ignored)?;
        self.store.record_certificate(&signed, Some(id)).await?;
        let setup = SetupCertificateCommand {
            certificate: Some(signed.certificate.clone()),
            private_key: Some(Secret::new(String::new())), // the agent made its key itself
            ca_certificates: Some(signed.ca.clone()),
            handle_by_agent: true,
            ..SetupCertificateCommand::default()
        };
        self.ask(id, "SetupCertificateCommand", Command::new(setup)).await?;
        info!(host = host.name, serial = %signed.serial, not_after = %signed.not_after, "Certificate provisioned");
        if reconnect {
            self.agents.reconnect(id);
        }
        Ok(())
    }

    async fn signing_request(&self, host: &Host) -> Result<String, ProvisionError> {
        let setup = SetupKeyStoreCommand {
            validity_days: i64::from(VALIDITY_DAYS.get()),
            keystore_password: Some(Secret::new(random::standard(16))),
            handle_by_agent: true,
            ..SetupKeyStoreCommand::default()
        };
        let step = "SetupKeyStoreCommand";
        match self.ask(host.id, step, Command::new(setup)).await? {
            AnswerBody::SetupKeystore(answer) if answer.csr.is_some() => Ok(answer.csr.unwrap_or_default()),
            _ => Err(ProvisionError::Refused {
                step,
                details: "no signing request".into(),
            }),
        }
    }

    async fn ask(&self, id: HostId, step: &'static str, command: Command) -> Result<AnswerBody, ProvisionError> {
        let answers = self.agents.send(id, vec![command], LIMIT).await;
        let answers = answers.map_err(|source| ProvisionError::NoAnswer { step, source })?;
        match answers.into_iter().next() {
            Some(answer) if answer.result => Ok(answer.body),
            Some(answer) => Err(ProvisionError::Refused {
                step,
                details: answer.details.unwrap_or_default(),
            }),
            None => Err(ProvisionError::Refused {
                step,
                details: "nothing".into(),
            }),
        }
    }
}

/// The names and addresses we know of a host; what it asks for itself does not count.
fn request_for(host: &Host) -> Request {
    let nics = [&host.private, &host.public, &host.storage];
    let mut addresses: Vec<_> = nics.iter().filter_map(|nic| nic.ip).collect();
    addresses.sort();
    addresses.dedup();
    Request::new(host.name.clone(), vec![host.name.clone()], addresses)
}

/// Renews, every `renewal_check`, the certificates that agents presented and that end within `renewal_period`.
pub(crate) async fn renew(provision: Provision, settings: Settings, stopping: CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(settings.renewal_check) => {}
            () = stopping.cancelled() => return,
        }
        let now = OffsetDateTime::now_utc();
        for entry in provision.agents.entries() {
            let ends_soon = entry
                .certificate
                .as_ref()
                .is_some_and(|shown| shown.expires_within(settings.renewal_period, now));
            if ends_soon && let Err(error) = provision.provision(entry.host.id, true).await {
                warn!(host = entry.host.name, %error, "Cannot renew a certificate; trying again at the next check");
            }
        }
    }
}
