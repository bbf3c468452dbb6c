//! `up`: a server that goes on by itself, and its zone.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use mgmt_stub::client::ClientError;
use mgmt_stub::embedded::EmbeddedOptions;
use mgmt_stub::password;
use mgmt_stub::running::Running;
use platform::exec::{Cmd, Process};
use platform::files;
use serde_json::json;
use tokio::time::sleep;

use super::administrator::{Administrator, ZONES};
use super::doctor::{self, Finding, Purpose, Wanted};
use super::serve::{DriverKind, one_address};
use super::status;
use super::table::plain;
use super::{Ended, down, open_for_one_change, print, tell};

/// It opens its database and its sockets, and with virtual machines makes their networks and starts the NFS server before.
const SERVER_LIMIT: Duration = Duration::from_mins(2);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
const LOG: &str = "mgmt-stub.log";
/// Until the administrator has chosen another.
const FIRST_PASSWORD: &str = "first-password";
/// Bytes of a log that are looked at, and lines of them that are shown.
const MAX_LOG: u64 = 64 << 20;
const LOG_LINES: usize = 25;

/// Start a server that goes on by itself, with its zone, and wait until that is ready
///
/// Where one runs already it only waits. Before it starts it looks whether this machine can run a zone, as `doctor` does.
///
/// When it is interrupted or the time is over what was started goes on: `status` shows how far it is, `down` ends it.
///
/// The exit code is 3 when the zone is not ready in time. Options of `serve` that are not here go after `--`.
///
/// Examples:
///   mgmt-stub up --image target/image/sysvm.qcow2            (as root: virtual machines)
///   mgmt-stub up --image sysvm.qcow2 --uplink                (which reach the internet)
///   mgmt-stub up --driver processes -- --listen 127.0.0.1:8250 --local-store /srv/secondary
///   mgmt-stub --data-dir /tmp/try up --driver simulator      (to try out page and API)
///   mgmt-stub status && mgmt-stub down
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Up {
    /// Who runs system VMs: see `serve --help`.
    #[arg(long, value_enum, default_value = "qemu")]
    driver: DriverKind,
    /// Address and port of the HTTP API and the web page.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// Where browsers find the first console proxy.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:6080", value_parser = one_address)]
    console_listen: SocketAddr,
    #[command(flatten)]
    embedded: EmbeddedOptions,
    /// Where the server's log goes; that of the time before gets `.old` at its end. Else mgmt-stub.log in the data directory.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Wait for the zone so many seconds at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    limit: u64,
    /// Wait only until the server answers.
    #[arg(long, conflicts_with = "limit")]
    no_wait: bool,
    /// For programs: url, user, password (until another was chosen), pid, log, ready.
    #[arg(long)]
    json: bool,
    /// Other options of `serve`.
    #[arg(last = true, value_name = "OPTION OF serve")]
    more: Vec<OsString>,
}

/// Starts what is not up, and reports.
pub(crate) async fn run(data_dir: &Path, arguments: Up) -> anyhow::Result<Ended> {
    ensure!(
        arguments.driver != DriverKind::None,
        "with --driver none there is no zone to wait for; use `mgmt-stub serve`"
    );
    let data_dir = &std::path::absolute(data_dir)?;
    let log = arguments.log.clone().unwrap_or_else(|| data_dir.join(LOG));
    let administrator = Administrator::new(data_dir);
    let process = match Running::find(data_dir)?.and_then(|running| running.process()) {
        Some(process) => {
            tell(format_args!("The server runs (process {}).", process.pid()));
            process
        }
        None => start(data_dir, &arguments, &log).await?,
    };
    answers(&administrator, &process, &log).await?;
    let password = first_password(data_dir).await?;
    let is_ready = if arguments.no_wait {
        status::is_ready(&administrator).await?
    } else {
        let limit = Duration::from_secs(arguments.limit);
        status::wait_until_ready(&administrator, limit, Some(&process)).await?
    };
    ensure!(process.is_alive(), "the server has ended; {}", end_of(&log)?);
    let running = Running::find(data_dir)?.context("the server has ended")?;
    let user = open_for_one_change(data_dir)?.administrator().await?.user.username;
    if arguments.json {
        let answer = json!({
            "url": running.url(),
            "user": user,
            "password": password,
            "console": running.console,
            "pid": process.pid(),
            "log": log,
            "ready": is_ready,
        });
        print(&format!("{answer:#}\n"))?;
    } else {
        let seen = status::look(&administrator).await?;
        let mut report = status::report(data_dir, Some(&running), &seen);
        let _ = writeln!(report, "\nPage      {}\nUser      {}", running.url(), plain(&user));
        if let Some(password) = &password {
            let _ = writeln!(
                report,
                "Password  {password} (for the first login; then you choose one)"
            );
        }
        let _ = writeln!(report, "Log       {}", log.display());
        let _ = writeln!(report, "End it    mgmt-stub --data-dir {} down", data_dir.display());
        print(&report)?;
    }
    if is_ready || arguments.no_wait {
        return Ok(Ended::Done);
    }
    tell("The zone is not ready in time; it goes on. `mgmt-stub status` shows how far it is.");
    Ok(Ended::NotReady)
}

/// Starts a server in a session of its own.
async fn start(data_dir: &Path, arguments: &Up, log: &Path) -> anyhow::Result<Process> {
    let is_vms = arguments.driver == DriverKind::Qemu;
    ensure!(
        !is_vms || arguments.embedded.image.is_some(),
        "virtual machines need an image: give --image FILE; `cargo xtask image` makes target/image/sysvm.qcow2"
    );
    let wanted = Wanted {
        data_dir,
        purpose: if is_vms { Purpose::Qemu } else { Purpose::Processes },
        image: arguments.embedded.image.as_deref(),
        http: arguments.http,
        console: arguments.console_listen,
    };
    let mut findings = doctor::examine(&wanted).await;
    findings.retain(Finding::is_error);
    if !findings.is_empty() {
        bail!("this machine cannot run the zone yet:\n{}", doctor::report(&findings));
    }
    let driver = arguments.driver.to_possible_value();
    let driver = driver.map_or_else(String::new, |value| value.get_name().to_owned());
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    for directory in [Some(data_dir), log.parent()].into_iter().flatten() {
        let made = private.create(directory);
        made.with_context(|| format!("creating {}", directory.display()))?;
    }
    let mut old = log.as_os_str().to_owned();
    old.push(".old");
    let _ = fs::rename(log, old); // nothing there the first time
    let program = std::env::current_exe().context("looking for this program")?;
    let serve = Cmd::new(program)
        .arg("--data-dir")
        .arg(data_dir)
        .args(["serve", "--driver", &driver, "--http", &arguments.http.to_string()])
        .args(["--console-listen", &arguments.console_listen.to_string()])
        .args(if is_vms {
            arguments.embedded.arguments()?
        } else {
            Vec::new()
        })
        .args(&arguments.more);
    let process = serve.spawn_detached(log)?.process().clone();
    // The server does it again, when it knows its ports. Until then `down` finds it by this.
    let running = Running::of(&process, driver, arguments.http, arguments.console_listen);
    if let Err(error) = running.save(data_dir) {
        process.stop(down::GRACE).await;
        return Err(error.into());
    }
    tell(format_args!(
        "The server starts (process {}, log {}).",
        process.pid(),
        log.display()
    ));
    Ok(process)
}

async fn answers(administrator: &Administrator, server: &Process, log: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match administrator.list(ZONES).await {
            Ok(_) => return Ok(()),
            Err(ClientError::NotThere { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(server.is_alive(), "the server has ended; {}", end_of(log)?);
        ensure!(
            began.elapsed() < SERVER_LIMIT,
            "the server does not answer within {SERVER_LIMIT:?}; {}",
            end_of(log)?
        );
        sleep(LOOK).await;
    }
}

/// Made once: later it would undo the administrator's own. None when he has chosen one.
async fn first_password(data_dir: &Path) -> anyhow::Result<Option<String>> {
    let path = data_dir.join(FIRST_PASSWORD);
    let store = open_for_one_change(data_dir)?;
    let administrator = store.administrator().await?.user;
    if administrator.password_hash.is_none() {
        let password = password::one_time();
        store
            .set_one_time_password(administrator.id, password::hash(&password))
            .await?;
        let _ = files::replace(&path, password.expose().as_bytes(), 0o600)?;
        return Ok(Some(password.expose().to_owned()));
    }
    if !administrator.password_change_required {
        let _ = fs::remove_file(&path); // it is of no use any more
        return Ok(None);
    }
    let kept = files::read_limited(&path, 1024)?;
    Ok(kept.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
}

/// The end of a log, for the error that says it failed.
fn end_of(log: &Path) -> anyhow::Result<String> {
    let bytes = files::read_limited(log, MAX_LOG)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    Ok(format!("the end of {}:\n{end}", log.display()))
}

#[cfg(test)]
mod tests {
    use mgmt_stub::store::account::UserChange;

    use super::*;

    #[test]
    fn only_the_end_of_a_log_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let lines: Vec<String> = (1..=100).map(|line| line.to_string()).collect();
        let _ = files::replace(&log, lines.join("\n"), 0o600).unwrap();
        let end = end_of(&log).unwrap();
        assert!(end.ends_with("\n99\n100"), "{end}");
        assert_eq!(end.lines().count(), 1 + LOG_LINES);
    }

    #[tokio::test]
    async fn the_first_password_is_shown_until_another_was_chosen() {
        let directory = tempfile::tempdir().unwrap();
        let first = first_password(directory.path()).await.unwrap();
        assert!(first.is_some());
        assert_eq!(first_password(directory.path()).await.unwrap(), first);
        let store = open_for_one_change(directory.path()).unwrap();
        let administrator = store.administrator().await.unwrap().user;
        let chosen = UserChange {
            password_hash: Some(password::hash(&"chosen by him".parse().unwrap())),
            ..UserChange::default()
        };
        store.update_user(administrator.id, chosen).await.unwrap();
        drop(store);
        assert_eq!(first_password(directory.path()).await.unwrap(), None);
        assert!(!directory.path().join(FIRST_PASSWORD).exists());
    }
}
