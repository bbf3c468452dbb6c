//! Certificates over the agent link: issue, renew (agent-protocol.md §1.5, management.md §13.4).

use std::sync::Arc;
use std::time::Duration;

use protocol::answer::AnswerBody;
use protocol::certificate::{SetupCertificateCommand, SetupKeyStoreCommand};
use protocol::command::Command;
use protocol::secret::Secret;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::agents::{Agents, Entry, NoAnswer};
use crate::ca::{Ca, CsrNames, IssueError, Request, VALIDITY_DAYS};
use crate::random;
use crate::settings::Settings;
use crate::store::host::Host;
use crate::store::id::HostId;
use crate::store::{Store, StoreError};

/// Waits for one certificate command: as long as these commands say themselves.
const LIMIT: Duration = Duration::from_mins(2);

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
    #[error("{step} has no answer")]
    NoAnswer {
        /// Which command.
        step: &'static str,
        /// Why.
        source: NoAnswer,
    },
    /// The agent could not do it.
    #[error("{step} was answered: {details}")]
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
    /// The certificate names what we know: the host, and the address its link comes from. What an agent claims of
    /// itself does not count, or one could get a certificate for another's address.
    ///
    /// # Errors
    /// One step failed; the agent goes on with what it has.
    pub async fn provision(&self, id: HostId, reconnect: bool) -> Result<(), ProvisionError> {
        let step = "SetupKeyStoreCommand";
        let source = NoAnswer::NotConnected;
        let entry = self.agents.entry(id).ok_or(ProvisionError::NoAnswer { step, source })?;
        let request = match &entry.certificate {
            // Renewed as it is, whatever its owner calls himself today: it was checked when it was issued.
            Some(shown) => {
                let name = shown.common_name().unwrap_or(&entry.host.name);
                Request::new(name.to_owned(), shown.names.clone(), shown.addresses.clone())
            }
            None => Request::new(entry.host.name.clone(), vec![entry.host.name.clone()], vec![entry.peer]),
        };
        let csr = self.signing_request(&entry.host).await?;
        let signed = self.ca.sign_csr(&csr, &request, CsrNames::Ignored)?;
        self.store.record_certificate(&signed, Some(id)).await?;
        let setup = SetupCertificateCommand {
            certificate: Some(signed.certificate.clone()),
            private_key: Some(Secret::new(String::new())), // the agent made its key itself
            ca_certificates: Some(signed.ca.clone()),
            handle_by_agent: true,
            ..SetupCertificateCommand::default()
        };
        self.ask(id, "SetupCertificateCommand", Command::new(setup)).await?;
        let name = entry.host.name.as_str();
        info!(host = %id, name, serial = %signed.serial, not_after = %signed.not_after, "Certificate provisioned");
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

/// Renewals at the same time: an agent that does not answer must not hold up the others.
const AT_ONCE: usize = 16;

/// A server that was just started looks at the certificates after this time, then every `renewal_check`.
const FIRST_CHECK: Duration = Duration::from_mins(1);

/// A new certificate must be good for at least this much longer, or renewing is pointless: the CA itself ends soon.
const WORTH_IT: time::Duration = time::Duration::days(1);

/// Renews the certificates that agents presented and that end within `renewal_period`.
pub(crate) async fn renew(provision: Provision, settings: Settings, stopping: CancellationToken) {
    let mut wait = FIRST_CHECK.min(settings.renewal_check);
    loop {
        let checked = async {
            tokio::time::sleep(wait).await;
            provision.renew_all(settings.renewal_period).await;
        };
        tokio::select! {
            () = checked => {}
            () = stopping.cancelled() => return,
        }
        wait = settings.renewal_check;
    }
}

impl Provision {
    async fn renew_all(&self, period: time::Duration) {
        let now = OffsetDateTime::now_utc();
        let ca_ends = self.ca.not_after();
        if ca_ends < now + 2 * period {
            error!(%ca_ends, "The CA certificate ends soon; put a new one in its place and restart");
        }
        let ends_soon = |entry: &Arc<Entry>| {
            let shown = entry.certificate.as_ref();
            let ends = shown
                .filter(|shown| shown.expires_within(period, now))
                .map(|shown| shown.not_after);
            entry.is_up() && ends.is_some_and(|ends| ca_ends - ends >= WORTH_IT)
        };
        let mut running = JoinSet::new();
        for entry in self.agents.entries().into_iter().filter(ends_soon) {
            if running.len() >= AT_ONCE {
                running.join_next().await;
            }
            let provision = self.clone();
            running.spawn(async move {
                if let Err(error) = provision.provision(entry.host.id, true).await {
                    let error = platform::logging::chain(&error).to_string();
                    warn!(
                        name = entry.host.name,
                        error, "Cannot renew a certificate; trying again at the next check"
                    );
                }
            });
        }
        while running.join_next().await.is_some() {}
    }
}
