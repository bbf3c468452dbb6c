//! What scenarios do and ask alike.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Format, Nic, Ssh, Vm, has_kvm, scan};

/// The MAC address of the first NIC of VMs that do not start cold: one address, so that one snapshot serves all. The tests
/// of the image have it, too.
const FIRST_MAC: &str = "0e:00:a9:fe:0e:57";
/// For a program of a VM to start and to connect, under emulation.
const LIMIT: Duration = Duration::from_mins(2);
/// How many times as long as a real machine an emulated one may take.
const EMULATED: u32 = 4;
const LOOK: Duration = Duration::from_millis(500);

/// A VM like that of the example, switched off.
pub(crate) fn like(example: Example, site: &Site) -> Vm {
    let vm = Vm::new(Format::Qcow2).net(&site.net);
    example.nics().into_iter().fold(vm, Vm::nic)
}

/// A VM that has booted before, with the NICs of the example, and no boot arguments yet.
pub(crate) async fn resume(example: Example, site: &Site) -> anyhow::Result<Booted> {
    let mut nics = example.nics();
    let mut first = nics.remove(0);
    FIRST_MAC.clone_into(&mut first.mac);
    let vm = Vm::new(Format::Qcow2).net(&site.net).nic(first).resume().await?;
    for (device, nic) in (1..).zip(nics) {
        plug(&vm, &format!("eth{device}"), &nic).await?;
    }
    Ok(vm)
}

/// Plugs in a NIC and waits until the guest has it under this name.
pub(crate) async fn plug(vm: &Booted, device: &str, nic: &Nic) -> anyhow::Result<()> {
    vm.plug(device, nic).await?;
    vm.text(&["udevadm", "wait", "--timeout=30", &format!("/sys/class/net/{device}")])
        .await
        .map(drop)
}

/// Passes boot arguments and waits until sshd answers at the control address.
pub(crate) async fn configure(vm: &Booted, site: &Site, line: &str, control: &str) -> anyhow::Result<Duration> {
    let started = Instant::now();
    vm.pass_cmdline(line).await?;
    site.opens(control, 3922, BOOT_LIMIT).await?;
    Ok(started.elapsed())
}

/// Waits until the VM says that it is ready: `boot_up_done`. Over ssh, as hosts look.
pub(crate) async fn ready(host: &Ssh) -> anyhow::Result<Duration> {
    let started = Instant::now();
    eventually("boot_up_done", BOOT_LIMIT, async || {
        host.run("test -e /var/cache/cloud/boot_up_done")
            .await
            .map_err(Into::into)
    })
    .await?;
    Ok(started.elapsed())
}

/// Tries until it succeeds.
pub(crate) async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut work: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        match work().await {
            Ok(done) => return Ok(done),
            Err(error) if started.elapsed() > limit => {
                return Err(error).with_context(|| format!("{what}: not within {limit:?}"));
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Whether something took no longer than a machine with KVM may take. An emulated one, whose host does other things, too, may
/// take four times as long: what takes longer hangs.
pub(crate) async fn within(took: Duration, limit: Duration) -> anyhow::Result<()> {
    let limit = if has_kvm().await { limit } else { limit * EMULATED };
    ensure!(took <= limit, "it took {took:?}, and may take {limit:?}");
    Ok(())
}

pub(crate) async fn ping(site: &Site, address: &str) -> anyhow::Result<()> {
    let ping = Cmd::new("ping").args(["-c", "1", "-W", "5", address]);
    site.net.run(ping).await.map(drop)
}

/// What a command line in the VM prints, which must end with this exit code.
pub(crate) async fn exits(host: &Ssh, command_line: &str, code: i32) -> anyhow::Result<String> {
    let exited = host.exec(command_line, b"").await?;
    let stdout = String::from_utf8_lossy(&exited.stdout).into_owned();
    ensure!(
        exited.status.code() == Some(code),
        "`{command_line}` ends with {} instead of {code}; it prints {stdout:?} and {:?}",
        exited.status,
        exited.stderr
    );
    Ok(stdout)
}

/// The states of units, by `systemctl is-active`, as the management server and its tests ask.
pub(crate) async fn units_are(host: &Ssh, wanted: &[(&str, bool)]) -> anyhow::Result<()> {
    for (unit, is_wanted) in wanted {
        let is_active = async || {
            let state = host.exec(&format!("systemctl is-active {unit}"), b"").await?;
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ensure!((state == "active") == *is_wanted, "the unit {unit} is {state:?}");
            Ok(())
        };
        if *is_wanted {
            eventually(unit, LIMIT, is_active).await?;
        } else {
            is_active().await?;
        }
    }
    Ok(())
}

/// Looks at all sides of a VM for open ports. `wanted` are those that should be open, as `ADDRESS PROTOCOL/NUMBER`; `maybe`
/// those that may answer something.
pub(crate) async fn only_open(site: &Site, addresses: &[&str], wanted: &[&str], maybe: &[&str]) -> anyhow::Result<()> {
    let found = scan::ports(&site.net, addresses).await?;
    let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
    let is_allowed = |port: &&String| {
        let is_in = |list: &[&str]| {
            list.iter()
                .any(|known| port.strip_prefix(known).is_some_and(|rest| rest.starts_with(' ')))
        };
        !is_in(wanted) && !is_in(maybe)
    };
    let too_many: Vec<_> = shown.iter().filter(is_allowed).collect();
    ensure!(too_many.is_empty(), "these should not be: {too_many:?}");
    for port in wanted {
        ensure!(shown.contains(&format!("{port} open")), "{port} is not open: {shown:?}");
    }
    Ok(())
}
