//! What makes a system VM of a machine that runs: the second half of its start (appliance.md §3.2, §9).

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::ssh::Ssh;
use hypervisor::vm::{Ended, Vm};
use platform::exec::Exited;
use platform::logging::chain;
use protocol::secret::Secret;
use tokio::time::{Instant, sleep, timeout};

use super::facts::Deed;
use super::start::{CONNECT, Cause, Failure, UPLOAD_LIMIT, because};
use super::{Qemu, SharedFacts};
use crate::ca::Issued;
use crate::driver::{Traffic, VmSpec};

/// Between two looks at what is not there yet; hosts wait for a second.
const LOOK: Duration = Duration::from_secs(1);
/// For the end of a VM to be known, after its sockets were closed.
const TO_BE_KNOWN: Duration = Duration::from_secs(1);
/// One try for the certificate may take this part of the step's limit.
const TRIES: u32 = 3;
/// Names of what may be uploaded, in the order of a KVM host; the last is a bundle of our own (docs/upgrade.md).
const UPLOADS: [&str; 4] = ["agent.zip", "cloud-scripts.tgz", "patch-sysvms.sh", "sysvm-bundle"];
/// Where to.
const UPLOAD_TO: &str = "/var/cache/cloud/";
/// What a host runs to see that a system VM has its files.
const FILES: &str = "/opt/cloud/bin/patched.sh /opt/cloud/bin/keystore*";
/// Characters of what a command in the VM printed that go into an error.
const MAX_PRINTED: usize = 400;

impl Qemu {
    /// Makes a system VM of a machine that runs. When the machine ends meanwhile, then that is why it fails, and not what
    /// its end did to a step.
    pub(super) async fn set_up_or_ended(
        &self,
        vm: &Vm,
        spec: &VmSpec,
        directory: &Path,
        facts: &SharedFacts,
    ) -> Result<(), Failure> {
        let mut doing = Deed::GuestAgent;
        let has_ended = |doing, ended: &Ended| Failure {
            deed: doing,
            cause: format!("the VM has ended: {ended}"),
        };
        let failure = tokio::select! {
            outcome = self.set_up(vm, spec, directory, facts, &mut doing) => match outcome {
                Ok(()) => return Ok(()),
                Err(failure) => failure,
            },
            ended = vm.ended() => return Err(has_ended(doing, &ended)),
        };
        match timeout(TO_BE_KNOWN, vm.ended()).await {
            Ok(ended) => Err(has_ended(failure.deed, &ended)),
            Err(_) => Err(failure),
        }
    }

    /// Guest agent, boot arguments, ssh, files, certificate.
    async fn set_up(
        &self,
        vm: &Vm,
        spec: &VmSpec,
        directory: &Path,
        facts: &SharedFacts,
        doing: &mut Deed,
    ) -> Result<(), Failure> {
        *doing = Deed::GuestAgent;
        let limit = self.limit(Deed::GuestAgent);
        let mut agent = self
            .step(facts, Deed::GuestAgent, async {
                let began = Instant::now();
                let agent = vm.guest_agent(limit).await?;
                Ok((agent, format!("answered after {} s", began.elapsed().as_secs())))
            })
            .await?;
        *doing = Deed::BootArguments;
        let limit = self.limit(Deed::BootArguments);
        self.step(facts, Deed::BootArguments, async {
            agent.pass_cmdline(spec.boot_args.expose(), limit).await?;
            Ok(((), format!("{} bytes", spec.boot_args.expose().len())))
        })
        .await?;
        drop(agent);

        *doing = Deed::Ssh;
        let ssh = self.step(facts, Deed::Ssh, self.log_in(spec, directory, facts)).await?;
        *doing = Deed::Files;
        self.step(facts, Deed::Files, self.files(&ssh)).await?;
        if let Some(identity) = &spec.identity {
            *doing = Deed::Certificate;
            self.step(facts, Deed::Certificate, self.import(&ssh, identity)).await?;
        }
        ssh.close().await;
        Ok(())
    }

    /// Waits for port 3922 on the control address.
    async fn log_in(&self, spec: &VmSpec, directory: &Path, facts: &SharedFacts) -> Result<(Ssh, String), Cause> {
        let settings = &self.inner.settings;
        let address = control_address(spec).ok_or_else(|| because("the VM has no control address"))?;
        let ssh = Ssh::new(settings.network.namespace(), address, &settings.key, directory)?;
        // What another start has left: its host keys are new whenever its disk is.
        ssh.forget().await?;
        let began = Instant::now();
        while !ssh.is_open(CONNECT).await {
            if let Some(problem) = facts.lock().bad_arguments() {
                return Err(because(problem));
            }
            sleep(LOOK).await;
        }
        Ok((ssh, format!("{address} is open after {} s", began.elapsed().as_secs())))
    }

    /// Uploads what there is to upload, and waits until the VM has what a host looks for.
    async fn files(&self, ssh: &Ssh) -> Result<((), String), Cause> {
        let settings = &self.inner.settings;
        let limit = self.limit(Deed::Files);
        let uploads = settings.files.as_deref().map(uploads).unwrap_or_default();
        if !uploads.is_empty() {
            let paths: Vec<&Path> = uploads.iter().map(PathBuf::as_path).collect();
            ssh.upload(&paths, UPLOAD_TO, settings.accelerator.scaled(UPLOAD_LIMIT))
                .await?;
        }
        let names: Vec<_> = uploads.iter().filter_map(|path| path.file_name()?.to_str()).collect();
        let detail = if names.is_empty() {
            "there".into()
        } else {
            format!("uploaded {}", names.join(", "))
        };
        let deadline = Instant::now() + limit;
        loop {
            let last = match ssh.exec(FILES, b"", limit).await {
                Ok(exited) if exited.status.success() => return Ok(((), detail)),
                Ok(exited) => said(&exited),
                Err(error) => chain(&error).to_string(),
            };
            if Instant::now() + LOOK >= deadline {
                return Err(because(last));
            }
            sleep(LOOK).await;
        }
    }

    /// Gives the VM its certificate and key. The command line, with the key, goes through standard input: arguments of ssh
    /// could be read by everybody on this machine.
    async fn import(&self, ssh: &Ssh, identity: &Issued) -> Result<((), String), Cause> {
        let limit = self.limit(Deed::Certificate);
        let command = import_command(identity)?;
        let deadline = Instant::now() + limit;
        loop {
            let last = match ssh.exec("bash -s", command.expose().as_bytes(), limit / TRIES).await {
                Ok(exited) if exited.status.success() => {
                    let detail = format!("good until {}", identity.signed.not_after.date());
                    return Ok(((), detail));
                }
                Ok(exited) => said(&exited),
                Err(error) => chain(&error).to_string(),
            };
            // ssh is open before the VM has set up what the certificate is for: on a busy machine much earlier.
            if Instant::now() + LOOK >= deadline {
                return Err(because(last));
            }
            sleep(LOOK).await;
        }
    }
}

/// What there is, of what a system VM knows what to do with.
fn uploads(directory: &Path) -> Vec<PathBuf> {
    let paths = UPLOADS.iter().map(|name| directory.join(name));
    paths.filter(|path| path.is_file()).collect()
}

fn control_address(spec: &VmSpec) -> Option<Ipv4Addr> {
    let nic = spec.nics.iter().find(|nic| nic.traffic == Traffic::Control)?;
    nic.address.map(|net| net.addr())
}

/// The end of what a command in the VM printed.
fn said(exited: &Exited) -> String {
    let printed = if exited.stderr.trim().is_empty() {
        String::from_utf8_lossy(&exited.stdout).into_owned()
    } else {
        exited.stderr.clone()
    };
    let start = printed.trim().chars().count().saturating_sub(MAX_PRINTED);
    let end: String = printed
        .trim()
        .chars()
        .skip(start)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("{}: {end}", exited.status)
}

/// `keystore-cert-import` with its ten arguments (appliance.md §9). The passphrase is for a Java key store; ours has none.
fn import_command(identity: &Issued) -> Result<Secret<String>, Cause> {
    let conf = "/usr/local/cloud/systemvm/conf";
    let signed = &identity.signed;
    let [certificate, ca, key] =
        [&signed.certificate, &signed.ca, identity.private_key.expose()].map(|pem| armoured(pem));
    let (certificate, ca, key) = (certificate?, ca?, key?);
    let passphrase = crate::random::letters(16);
    Ok(Secret::new(format!(
        "/opt/cloud/bin/keystore-cert-import {conf}/agent.properties {passphrase} {conf}/cloud.jks ssh \
         {conf}/cloud.crt '{certificate}' {conf}/cloud.ca.crt '{ca}' {conf}/cloud.key '{key}'\n"
    )))
}

/// A PEM text on one line, as CloudStack writes it: `^` is a newline, `~` a blank. It stands between quotes that a shell
/// reads, so nothing else may be in it.
fn armoured(pem: &str) -> Result<String, Cause> {
    let text = pem.replace('\n', "^").replace(' ', "~");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "+/=-^~".contains(c);
    if text.chars().all(is_plain) {
        Ok(text)
    } else {
        Err(because("a certificate is not plain PEM"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_system_vm_knows_is_uploaded() {
        let directory = tempfile::tempdir().unwrap();
        assert!(uploads(directory.path()).is_empty());
        for name in ["patch-sysvms.sh", "notes.txt", "cloud-scripts.tgz"] {
            let _ = platform::files::replace(directory.path().join(name), "", 0o600).unwrap();
        }
        let wanted = ["cloud-scripts.tgz", "patch-sysvms.sh"].map(|name| directory.path().join(name));
        assert_eq!(uploads(directory.path()), wanted);
    }

    #[test]
    fn a_pem_text_is_one_word_and_nothing_else() {
        let pem = "-----BEGIN CERTIFICATE-----\nMIIB+/=\n-----END CERTIFICATE-----\n";
        assert_eq!(
            armoured(pem).unwrap(),
            "-----BEGIN~CERTIFICATE-----^MIIB+/=^-----END~CERTIFICATE-----^"
        );
        for bad in ["'", "$(reboot)", "`", "\\", "\r"] {
            assert!(armoured(bad).is_err(), "{bad:?}");
        }
    }
}
