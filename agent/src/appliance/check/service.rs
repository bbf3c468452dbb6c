//! The program of an SSVM or CPVM: its unit, its link, its certificate, its stores.

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use platform::exec::Cmd;
use protocol::boot::Role;
use time::OffsetDateTime;
use tokio::task::JoinSet;
use tokio::time::timeout;
use x509_parser::parse_x509_certificate;

use super::look::{Look, Store};
use super::network::{answers_ping, on_thread};
use super::{Finding, RUN_LIMIT};
use crate::keystore::KeyStore;
use crate::link_status::{self, LinkStatus, State};

/// Where CloudStack puts certificates (§9).
const CONF: &str = "/usr/local/cloud/systemvm/conf";
/// Days before its end in which a certificate should have been renewed.
const RENEWAL: i64 = 15;
/// Addresses that are pinged at most.
const MAX_PINGS: usize = 16;

pub(super) async fn service(look: &Look) -> Vec<Finding> {
    let words = ["show", "--property=ActiveState,Result,NRestarts", "--", "cloud.service"];
    let shown = Cmd::new("systemctl").args(words).time_limit(RUN_LIMIT).run().await;
    let shown = shown.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let unit = match shown {
        Ok(text) => unit(&text),
        Err(error) => {
            let error = platform::logging::chain(&error).to_string();
            Finding::warning("service", error, "is systemd there? `agent check` is for system VMs")
        }
    };
    let link = match link_status::read(&look.root.path(link_status::FILE)) {
        Ok(status) => link(status.as_ref()),
        Err(error) => {
            let error = platform::logging::chain(&error).to_string();
            Finding::warning("service", error, "restart the unit `cloud`")
        }
    };
    vec![unit.about("unit cloud"), link.about("agent link")]
}

/// Of what `systemctl show` prints.
fn unit(text: &str) -> Finding {
    let get = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let (state, result, restarts) = (get("ActiveState"), get("Result"), get("NRestarts"));
    let todo = "`systemctl status cloud` and `journalctl -b -u cloud` say why";
    match (state, restarts) {
        ("active", "0" | "") => Finding::ok("service", "active"),
        ("active", restarts) => {
            Finding::warning("service", format!("active, but started again {restarts} times"), todo)
        }
        _ => Finding::error("service", format!("is {state}, its last result is {result}"), todo),
    }
}

/// Of what the agent says of its link.
fn link(status: Option<&LinkStatus>) -> Finding {
    let Some(status) = status else {
        let todo = "`systemctl status cloud` says whether the program runs";
        return Finding::error("service", "no program says that it has one", todo);
    };
    let server = status.server.as_deref().unwrap_or("a management server");
    let why = status.last_error.as_deref();
    let todo = "see the check management-server; `journalctl -b -u cloud` has each attempt";
    match status.state {
        State::Ready => Finding::ok("service", format!("ready at {server}")),
        State::Connected => Finding::warning(
            "service",
            format!("connected to {server}, which has not yet said that it is ready"),
            "wait a moment; else the log of the management server says why",
        ),
        State::Connecting => {
            let why = why.map(|why| format!(": {why}")).unwrap_or_default();
            Finding::error("service", format!("not connected to {server}{why}"), todo)
        }
        State::Stopped => {
            let why = why.unwrap_or("it was asked to");
            Finding::error(
                "service",
                format!("the agent has stopped: {why}"),
                "`systemctl start cloud`",
            )
        }
    }
}

pub(super) fn certificate(look: &Look) -> Vec<Finding> {
    vec![judge_certificate(&look.root.path(CONF), OffsetDateTime::now_utc())]
}

fn judge_certificate(directory: &Path, now: OffsetDateTime) -> Finding {
    let todo = "let the management server make a new one: `provisionCertificate`, or restart this VM";
    let identity = match KeyStore::in_directory(directory).load() {
        Ok(identity) => identity,
        Err(error) => return Finding::error("certificate", platform::logging::chain(&error).to_string(), todo),
    };
    let Some(own) = identity.and_then(|identity| identity.own) else {
        return Finding::ok(
            "certificate",
            "there is none; a management server with strict checks sends one before it takes this VM",
        );
    };
    let end = own.cert.first().and_then(|certificate| {
        let (_, certificate) = parse_x509_certificate(certificate).ok()?;
        Some(certificate.validity().not_after.to_datetime())
    });
    let Some(end) = end else {
        return Finding::error("certificate", "it cannot be read", todo);
    };
    let days = (end - now).whole_days();
    let date = end.date();
    if days < 0 {
        Finding::error(
            "certificate",
            format!("it ended on {date}, or the clock is wrong"),
            todo,
        )
    } else if days <= RENEWAL {
        Finding::warning("certificate", format!("it ends on {date}, in {days} days"), todo)
    } else {
        Finding::ok("certificate", format!("it is good until {date}"))
    }
}

pub(super) async fn stores(look: &Look) -> Vec<Finding> {
    let mut written = JoinSet::new();
    for store in look.stores() {
        written.spawn(async move {
            let result = try_write(store.path.clone()).await;
            (store, result)
        });
    }
    let mut written = written.join_all().await;
    written.sort_by(|(one, _), (other, _)| one.place.cmp(&other.place));
    if written.is_empty() {
        return no_store(look).await;
    }
    written
        .into_iter()
        .map(|(store, result)| judge_store(&store, result))
        .collect()
}

fn judge_store(store: &Store, result: Result<(), String>) -> Finding {
    let Store {
        device, place, kind, ..
    } = store;
    match result {
        Ok(()) => Finding::ok("storage", format!("{kind}, mounted on {place}, can be written")),
        Err(error) => Finding::error(
            "storage",
            format!("{kind}, mounted on {place}, cannot be written: {error}"),
            "is the file server up and not full, and does it export with no_root_squash and rw to this VM's storage address?",
        ),
    }
    .about(device)
}

/// A store is only mounted when the management server speaks of it, which it does after the agent has connected.
async fn no_store(look: &Look) -> Vec<Finding> {
    let mut asked = JoinSet::new();
    for (name, ip) in storage_addresses(look) {
        asked.spawn(async move { (name, ip, answers_ping(ip).await) });
    }
    let mut findings = vec![Finding::warning(
        "storage",
        "no store is mounted",
        "it is mounted when the management server sends it: is there a secondary store in the zone, and is the agent link ready?",
    )];
    findings.extend(asked.join_all().await.into_iter().map(|(name, ip, answers)| {
        let finding = if answers {
            Finding::ok("storage", format!("{name} answers pings"))
        } else {
            let todo = "see `ip route get` for the way that packets to it take";
            Finding::warning("storage", format!("{name} does not answer pings"), todo)
        };
        finding.about(ip)
    }));
    findings
}

/// Who should be there: file servers by their addresses, else the storage network's gateway (§8.4).
pub(super) fn storage_addresses(look: &Look) -> Vec<(&'static str, IpAddr)> {
    let Some(Role::SecondaryStorage(ssvm)) = look.vm().map(|vm| &vm.role) else {
        return Vec::new();
    };
    let servers: Vec<_> = ssvm.stores.iter().filter_map(|store| store.parse().ok()).collect();
    if !servers.is_empty() {
        return servers
            .into_iter()
            .take(MAX_PINGS)
            .map(|ip| ("the file server", ip))
            .collect();
    }
    let gateway = ssvm.storage.as_ref().and_then(|storage| storage.gateway);
    gateway
        .into_iter()
        .map(|ip| ("the storage network's gateway", ip.into()))
        .collect()
}

/// Makes and removes a small file. The file server may be gone, and then this would wait for ever.
pub(super) async fn try_write(directory: PathBuf) -> Result<(), String> {
    let work = on_thread(move || {
        let mut file = tempfile::Builder::new()
            .prefix(".sysvm-check-")
            .tempfile_in(directory)?;
        file.write_all(b"agent check\n")?;
        file.as_file().sync_all()?;
        file.close()
    });
    match timeout(RUN_LIMIT, work).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {RUN_LIMIT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    #[test]
    fn a_unit_is_good_when_it_is_active_and_was_not_restarted() {
        let outcome = |text: &str| unit(text).outcome;
        assert_eq!(
            outcome("Result=success\nNRestarts=0\nActiveState=active\n"),
            Outcome::Ok
        );
        assert_eq!(
            outcome("Result=success\nNRestarts=2\nActiveState=active\n"),
            Outcome::Warning
        );
        let failed = unit("Result=exit-code\nNRestarts=0\nActiveState=failed\n");
        assert_eq!(failed.what, "is failed, its last result is exit-code");
        assert_eq!(outcome(""), Outcome::Error);
    }

    #[test]
    fn a_link_is_good_when_the_server_is_ready() {
        let mut status = LinkStatus {
            state: State::Connecting,
            server: Some("192.0.2.10:8250".into()),
            since: 1,
            last_error: Some("cannot connect: Connection refused".into()),
            next_attempt: None,
            attempts: 1,
            links: 0,
        };
        let what = |status: &LinkStatus| link(Some(status)).what;
        assert_eq!(
            what(&status),
            "not connected to 192.0.2.10:8250: cannot connect: Connection refused"
        );
        status.state = State::Connected;
        assert_eq!(link(Some(&status)).outcome, Outcome::Warning);
        status.state = State::Ready;
        assert_eq!(link(Some(&status)), Finding::ok("service", "ready at 192.0.2.10:8250"));
        assert_eq!(link(None).outcome, Outcome::Error);
    }

    #[test]
    fn a_certificate_is_judged_by_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        assert_eq!(
            judge_certificate(directory.path(), now).outcome,
            Outcome::Ok,
            "none is needed"
        );
        let mut params = rcgen::CertificateParams::new(vec!["s-1-VM".into()]).unwrap();
        params.not_before = now - time::Duration::days(1);
        params.not_after = now + time::Duration::days(365);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        for (name, text) in [
            ("cloud.crt", pem.clone()),
            ("cloud.ca.crt", pem),
            ("cloud.key", key.serialize_pem()),
        ] {
            let _ = platform::files::replace(directory.path().join(name), text, 0o600).unwrap();
        }
        let outcome = |days| judge_certificate(directory.path(), now + time::Duration::days(days)).outcome;
        assert_eq!(outcome(0), Outcome::Ok);
        assert_eq!(outcome(355), Outcome::Warning);
        assert_eq!(outcome(366), Outcome::Error);
    }

    #[tokio::test]
    async fn a_store_is_tried_by_writing_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        try_write(directory.path().to_owned()).await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let error = try_write("/proc/self".into()).await.unwrap_err();
        assert!(!error.is_empty());
    }
}
