//! `agent guest-channel`.

use std::path::PathBuf;
use std::process::ExitCode;

use agent::appliance::guest_channel::{self, Work};
use agent::appliance::root::Root;
use platform::{exit, shutdown};

/// Serve the hypervisor's host over a virtio-serial port: boot progress, facts, checks, shutdown, clock, diagnostics.
///
/// Started by udev when the port is there (cs-guest-channel.service). Needs no network and no boot arguments. What travels is
/// described in docs/guest-channel.md: one JSON object in a line, with the names of oVirt's guest agent.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples (on the host, with QEMU's -chardev socket,id=ch,server=on,wait=off,path=/run/vm/channel
          -device virtio-serial-pci -device virtserialport,chardev=ch,name=org.sysvm.agent.0):
  socat - UNIX-CONNECT:/run/vm/channel                    see what the VM tells
  echo '{\"__name__\": \"run-check\", \"id\": 1}' | socat -t 20 - UNIX-CONNECT:/run/vm/channel")]
pub(crate) struct GuestChannel {
    /// The device of the port.
    #[arg(long, default_value = guest_channel::PORT)]
    port: PathBuf,
    /// Have systemd run checks and diagnostics in units of their own: this program then needs no rights for them.
    #[arg(long)]
    work_apart: bool,
}

pub(crate) async fn run(args: &GuestChannel) -> ExitCode {
    let work = if args.work_apart { Work::Apart } else { Work::Here };
    match guest_channel::run(&Root::default(), &args.port, work, shutdown::signal()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&platform::logging::chain(&error)),
    }
}
