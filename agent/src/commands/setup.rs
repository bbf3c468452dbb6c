//! `agent setup`, and the two commands whose units it starts: `agent grow-disk` and `agent user-data`.

use std::process::ExitCode;

use agent::appliance::root::{LINE, Root};
use agent::appliance::setup::disk::RootDisk;
use agent::appliance::setup::{self, NoVm};
use platform::exit;
use tracing::info;

/// Make this machine what its boot arguments say, as far as that comes after the network: disk, kernel settings, services,
/// user data, and the mark `/var/cache/cloud/boot_up_done` at the end.
///
/// cs-setup.service runs it when `agent boot` has opened SSH. It may be run again at any time: services go on, unless the boot
/// arguments have changed. What fails is in the log and in /run/sysvm/setup.json; everything else is done, and the exit
/// status is 1. Exit status 78: the boot arguments make no sense.
///
/// Examples:
///   systemctl restart cs-setup       do it again
///   journalctl -u cs-setup           what was done
///   cat /run/sysvm/setup.json        the same for programs
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Setup {}

/// Let the root file system take the whole disk, if the disk is larger than the image.
///
/// cs-grow-disk.service runs it when `agent setup` sees that there is something to do. Safe to repeat, and to interrupt at any
/// moment.
#[derive(Debug, clap::Args)]
pub(crate) struct GrowDisk {}

/// Do what the user data in the boot arguments wants: a script, or write_files and runcmd of #cloud-config.
///
/// cs-user-data.service runs it, once for each VM and each text: a second run does nothing. To do it again, remove
/// /var/lib/sysvm/user-data/begun first.
#[derive(Debug, clap::Args)]
pub(crate) struct UserData {}

pub(crate) async fn run(_: &Setup) -> ExitCode {
    match setup::run(&Root::default()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE, // each failure is in the log
        Err(why) => no_vm(why),
    }
}

pub(crate) async fn grow_disk(_: &GrowDisk) -> ExitCode {
    let grown = async {
        match RootDisk::find(&Root::default())? {
            Some(disk) => disk.grow().await,
            None => Ok(None),
        }
    };
    match grown.await {
        Ok(Some(bytes)) => {
            info!(bytes, "Root file system grown");
            ExitCode::SUCCESS
        }
        Ok(None) => {
            info!("Root file system has its size already");
            ExitCode::SUCCESS
        }
        Err(error) => exit::failed(&anyhow::Error::from(error)),
    }
}

pub(crate) async fn user_data(_: &UserData) -> ExitCode {
    match setup::first_start(&Root::default()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => no_vm(why),
    }
}

fn no_vm(why: NoVm) -> ExitCode {
    match why {
        NoVm::Bad(problems) => exit::bad_config(&problems.found_in(LINE)),
        other => exit::failed(&anyhow::Error::from(other)),
    }
}
