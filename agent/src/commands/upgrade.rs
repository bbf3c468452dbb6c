//! `agent upgrade`.

use std::fmt::Display;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agent::appliance::root::{RUN, Root, UPLOADS};
use agent::appliance::upgrade::bundle::{BadBundle, Bundle};
use agent::appliance::upgrade::change::{Machine, Patience, change};
use agent::appliance::upgrade::keys::TrustedKeys;
use agent::appliance::upgrade::machine::Systemd;
use agent::appliance::upgrade::store::{Attempt, Outcome, Side, Store};
use agent::appliance::upgrade::{UPLOADED, image_version};
use anyhow::{Context, bail, ensure};
use platform::watch::{Watch, Written};
use platform::{exit, shutdown};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

/// For the rest of an upload.
const UPLOAD_LIMIT: Duration = Duration::from_mins(5);
/// The new programs were tried, and the old ones run again.
const TAKEN_BACK: u8 = 3;

/// Take the programs of a signed bundle into use while the VM runs, or say how the last upgrade went.
///
/// The bundle is checked whole before anything is unpacked; then services are restarted with the new programs. Unless they all
/// run again, stay so for ten seconds, the management server uses the VM as before and `agent check` finds nothing new, the old
/// programs are taken back. The same happens at the next start if the VM loses its power meanwhile. SSH stays open.
///
/// Exit status: 0 done, or there was nothing to do; 1 refused or failed, and nothing has changed; 3 taken back.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "clap keeps them apart, and nothing else reads them"
)]
#[command(after_help = "\
Examples:
  agent upgrade /root/sysvm-0.2.0.sysvm      as `image-builder bundle` has made it
  agent upgrade --status                     what runs, and how the last upgrade went
  agent upgrade --rollback                   back to what ran before
  scp -P 3922 new.sysvm root@VM:/var/cache/cloud/sysvm-bundle    the same from outside, without a command")]
pub(crate) struct Upgrade {
    /// The bundle.
    #[arg(required_unless_present_any = ["status", "rollback", "uploaded", "at_boot", "recover"])]
    bundle: Option<PathBuf>,
    /// Also one that is older than what runs.
    #[arg(long, requires = "bundle")]
    allow_downgrade: bool,
    /// Say what runs, what is being tried, and how the last upgrade went.
    #[arg(long, conflicts_with_all = ["bundle", "rollback"])]
    status: bool,
    /// With --status: one JSON object instead of text.
    #[arg(long, requires = "status")]
    json: bool,
    /// Go back to what ran before the last upgrade.
    #[arg(long, conflicts_with = "bundle")]
    rollback: bool,
    /// What a host has uploaded: for cs-upgrade.service.
    #[arg(long, hide = true, conflicts_with_all = ["bundle", "status", "rollback"])]
    uploaded: bool,
    /// Make good what a power cut has left: for cs-upgrade-check.service, before anything of ours runs.
    #[arg(long, hide = true, conflicts_with_all = ["bundle", "status", "rollback", "uploaded"])]
    at_boot: bool,
    /// The same when an upgrade was killed while the VM runs on: for cs-upgrade.service.
    #[arg(long, hide = true, conflicts_with_all = ["bundle", "status", "rollback", "uploaded", "at_boot"])]
    recover: bool,
}

pub(crate) async fn run(args: &Upgrade) -> ExitCode {
    let root = Root::default();
    let done = if args.status {
        status(&root, args.json).map(|()| None)
    } else if args.at_boot {
        at_boot(&root)
    } else if args.recover {
        recover(&root).await
    } else {
        upgrade(&root, args).await
    };
    match done {
        Ok(Some(attempt)) if attempt.outcome == Outcome::RolledBack && !(args.at_boot || args.recover) => {
            let why = anyhow::anyhow!(
                "the new programs were taken back, and the old ones run again: {}",
                attempt.why
            );
            let _ = exit::failed(&why);
            ExitCode::from(TAKEN_BACK)
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

async fn upgrade(root: &Root, args: &Upgrade) -> anyhow::Result<Option<Attempt>> {
    // Whoever looks on from an ssh session may go away.
    let _hung_up = signal(SignalKind::hangup()).context("outliving the session")?;
    let interrupted = shutdown::signal();
    let store = Store::new(root.clone());
    let machine = Systemd::new(root.clone(), store.clone());
    let Some(_lock) = lock(root)? else {
        bail!("another upgrade is running; `agent upgrade --status` says more");
    };
    // One that was killed, while the machine went on: nobody watches what it has begun.
    if let Some(left) = make_good(&store, &machine).await? {
        say(format_args!("An earlier upgrade was taken back: {}", left.why));
        if args.rollback {
            return Ok(None);
        }
    }
    let to = if args.rollback {
        store.state()?.previous.unwrap_or(Side::Image)
    } else if args.uploaded {
        let uploaded = root.path(UPLOADED);
        let taken = take_uploaded(root, &store, &uploaded, args).await;
        // Whatever it was: another start must not try it again, and the disk is small.
        let removed = std::fs::remove_file(&uploaded);
        let taken = taken?;
        removed.with_context(|| format!("removing {}", uploaded.display()))?;
        taken
    } else {
        let path = args.bundle.as_deref().context("no bundle is named")?;
        take(root, &store, path, args)?
    };
    let (from, to_version) = (store.current()?, store.version(&to)?);
    if from == to {
        say(format_args!(
            "Nothing to do: {} runs already",
            described(&to, to_version)
        ));
        return Ok(None);
    }
    say(format_args!(
        "From {} to {}",
        described(&from, store.version(&from)?),
        described(&to, to_version)
    ));
    let attempt = change(&store, &machine, &to, Patience::default(), interrupted, |text| {
        say(text);
    })
    .await?;
    if attempt.outcome == Outcome::Confirmed {
        say(format_args!("Done: {} runs", described(&to, to_version)));
    }
    Ok(Some(attempt))
}

/// Checks a bundle and unpacks it.
fn take(root: &Root, store: &Store, path: &Path, args: &Upgrade) -> anyhow::Result<Side> {
    say(format_args!("Checking {}", path.display()));
    let keys = TrustedKeys::read(root)?;
    let mut bundle = Bundle::open(path, &keys).with_context(|| format!("{} is refused", path.display()))?;
    let manifest = &bundle.manifest;
    say(format_args!(
        "Version {}, signed with {}, {} MiB",
        manifest.version,
        bundle.signed_by,
        manifest.unpacked_bytes() >> 20
    ));
    let image = image_version(root)?;
    ensure!(
        manifest.image.contains(image),
        "the bundle is for images from {} and below {}, and this one is {image}; take a bundle for it, or a new image",
        manifest.image.at_least,
        manifest.image.below,
    );
    let running = store.version(&store.current()?)?;
    if manifest.version < running && !args.allow_downgrade {
        bail!(
            "the bundle has version {}, which is older than {running}, which runs; --allow-downgrade takes it all the same",
            manifest.version
        );
    }
    Ok(store.add(&mut bundle)?)
}

/// What a host uploads. systemd starts us when the file appears: its end may still be on its way.
async fn take_uploaded(root: &Root, store: &Store, uploaded: &Path, args: &Upgrade) -> anyhow::Result<Side> {
    let deadline = Instant::now() + UPLOAD_LIMIT;
    // Before the first look: the end may come between the two.
    let mut watch = Watch::new(root.path(UPLOADS))?;
    loop {
        let taken = take(root, store, uploaded, args);
        let is_incomplete = |error: &anyhow::Error| matches!(error.downcast_ref(), Some(BadBundle::Shape(_)));
        if !taken.as_ref().is_err_and(is_incomplete) {
            return taken;
        }
        say("It is not whole; waiting for its writer to close it");
        if !is_closed(&mut watch, uploaded, deadline).await {
            return taken;
        }
    }
}

/// Waits until somebody has written the file to its end; `false` when nobody does.
async fn is_closed(watch: &mut Watch, file: &Path, deadline: Instant) -> bool {
    loop {
        match timeout_at(deadline, watch.next()).await {
            Ok(Ok(Written::File(name))) if Some(name.as_os_str()) != file.file_name() => {}
            Ok(Ok(_)) => return true,
            Ok(Err(_)) | Err(_) => return false,
        }
    }
}

/// After one that was killed: the old programs are put back, and run again.
async fn recover(root: &Root) -> anyhow::Result<Option<Attempt>> {
    let store = Store::new(root.clone());
    let machine = Systemd::new(root.clone(), store.clone());
    // Somebody else's upgrade is none of our business.
    match lock(root)? {
        Some(_lock) => make_good(&store, &machine).await,
        None => Ok(None),
    }
}

async fn make_good(store: &Store, machine: &Systemd) -> anyhow::Result<Option<Attempt>> {
    let recovered = store.recover()?;
    if recovered.is_some() {
        let units: Vec<_> = machine.look(false).await?.units.into_keys().collect();
        machine.restart(&units).await?;
    }
    Ok(recovered)
}

/// Before anything of ours runs.
fn at_boot(root: &Root) -> anyhow::Result<Option<Attempt>> {
    let store = Store::new(root.clone());
    let recovered = store.recover()?;
    if let Some(attempt) = &recovered {
        tracing::warn!(?attempt, "An upgrade was taken back");
    } else {
        tracing::info!(current = ?store.current()?, "The programs are whole");
    }
    Ok(recovered)
}

fn status(root: &Root, is_json: bool) -> anyhow::Result<()> {
    let store = Store::new(root.clone());
    let (state, current) = (store.state()?, store.current()?);
    let is_running = lock(root)?.is_none();
    if is_json {
        let version = store.version(&current).map(|version| version.to_string()).ok();
        let status = json!({
            "current": current,
            "version": version,
            "image_version": image_version(root).map(|version| version.to_string()).ok(),
            "is_running": is_running,
            "pending": state.pending,
            "previous": state.previous,
            "last": state.last,
        });
        say(format_args!("{status:#}"));
        return Ok(());
    }
    say(format_args!("Runs:     {}", shown(&store, &current)));
    if let Some(previous) = &state.previous {
        say(format_args!(
            "Before:   {} (agent upgrade --rollback)",
            shown(&store, previous)
        ));
    }
    match (&state.pending, is_running) {
        (Some(pending), true) => say(format_args!(
            "Trying:   {}, which is not confirmed yet",
            shown(&store, &pending.to)
        )),
        (Some(pending), false) => say(format_args!(
            "Left:     {}, which nobody watches any more; `agent upgrade --rollback` or a restart of the VM takes it back",
            shown(&store, &pending.to)
        )),
        (None, true) => say("Trying:   a bundle is being checked"),
        (None, false) => {}
    }
    if let Some(last) = &state.last {
        let outcome = match last.outcome {
            Outcome::Confirmed => "confirmed".to_owned(),
            Outcome::RolledBack => format!("taken back: {}", last.why),
        };
        let tried = shown(&store, &last.to);
        say(format_args!("Last:     {tried}, {outcome} ({} s since 1970)", last.at));
    }
    Ok(())
}

fn shown(store: &Store, side: &Side) -> String {
    match (store.version(side), side) {
        (Ok(version), side) => described(side, version),
        (Err(_), Side::Image) => "the image's programs".to_owned(),
        (Err(_), Side::Bundle(id)) => format!("the bundle {id}, which is not on the disk any more"),
    }
}

fn described(side: &Side, version: impl Display) -> String {
    match side {
        Side::Image => format!("{version} of the image"),
        Side::Bundle(id) => format!("{version} of the bundle {}", &id.to_string()[..12]),
    }
}

/// One at a time: `None` while another runs. Freed when the file is dropped, or the process ends.
fn lock(root: &Root) -> anyhow::Result<Option<File>> {
    let directory = root.path(RUN);
    DirBuilder::new().recursive(true).create(&directory)?;
    let path = directory.join("upgrade.lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// That nobody reads on is no reason to stop in the middle.
fn say(text: impl Display) {
    let mut stdout = std::io::stdout();
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}
