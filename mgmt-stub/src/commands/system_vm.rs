//! `sysvm`: system VMs, one by one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use hypervisor::network::namespace::{Name, Namespace};
use hypervisor::ssh::{Key, Ssh};
use hypervisor::vm::Places;
use serde_json::{Map, Value};

use super::administrator::{Administrator, SYSTEM_VMS, text};
use super::table::plain;
use super::{Ended, print, status, tell};

/// For all checks in a VM that is emulated.
const CHECKS_LIMIT: Duration = Duration::from_mins(2);
/// Bytes of a log that are shown when nobody says how many lines.
const MAX_LOG: u64 = 1 << 20;

/// System VMs: list, show, start, stop, reboot, destroy, log, checks
///
/// NAME is a name or an id.
///
/// Examples:
///   mgmt-stub sysvm list
///   mgmt-stub sysvm show s-1-VM           (all that is known, and the steps of its start)
///   mgmt-stub sysvm log s-1-VM            (what its console, or the program, has printed last)
///   mgmt-stub sysvm checks s-1-VM         (what it finds when it looks at itself)
///   mgmt-stub sysvm destroy s-1-VM        (a new one is made where one is needed)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct SystemVm {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them.
    List(Output),
    /// Show all that is known of one, with the steps of its start.
    Show(One),
    /// Start one that is stopped.
    Start(One),
    /// Stop one. One that is needed is started again by the next scan.
    Stop(OneForced),
    /// Stop and start one.
    Reboot(OneForced),
    /// Destroy one with its disk. Where one is needed a new one is made.
    Destroy(One),
    /// Show what the VM's console has printed last, or the program if it is one; on the server's machine.
    Log(Log),
    /// Let one look at itself: network, server, NFS, certificate, clock, disk and more (`agent check`). It is asked by
    /// ssh, as the hypervisor's host: needs root on the server's machine, and --driver qemu. The exit code is 1 if it finds
    /// an error.
    Checks(One),
}

#[derive(Debug, Args)]
struct Output {
    /// For programs, with the fields of the API.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct One {
    name: String,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct OneForced {
    #[command(flatten)]
    one: One,
    /// Without asking it, as if the power failed.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct Log {
    name: String,
    /// So many lines from its end.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    lines: usize,
    /// What QEMU has said, instead of what the VM's console has printed.
    #[arg(long)]
    qemu: bool,
}

/// Does it.
pub(crate) async fn run(data_dir: &Path, arguments: SystemVm) -> anyhow::Result<Ended> {
    let administrator = Administrator::new(data_dir);
    match arguments.action {
        Action::List(output) => {
            let vms = administrator.list(SYSTEM_VMS).await?;
            print(&if output.json {
                format!("{:#}\n", Value::from(vms))
            } else {
                status::system_vms(&vms)
            })?;
        }
        Action::Show(one) => {
            let vm = administrator.find(SYSTEM_VMS, &one.name).await?;
            print(&if one.output.json {
                format!("{vm:#}\n")
            } else {
                describe(&vm)
            })?;
        }
        Action::Start(one) => act(&administrator, "startSystemVm", &one, None).await?,
        Action::Stop(OneForced { one, force }) => act(&administrator, "stopSystemVm", &one, Some(force)).await?,
        Action::Reboot(OneForced { one, force }) => act(&administrator, "rebootSystemVm", &one, Some(force)).await?,
        Action::Destroy(one) => act(&administrator, "destroySystemVm", &one, None).await?,
        Action::Log(log) => {
            let vm = administrator.find(SYSTEM_VMS, &log.name).await?;
            show_log(data_dir, &vm, &log)?;
        }
        Action::Checks(one) => {
            let vm = administrator.find(SYSTEM_VMS, &one.name).await?;
            return checks(data_dir, &vm, one.output.json).await;
        }
    }
    Ok(Ended::Done)
}

async fn act(administrator: &Administrator, command: &str, one: &One, force: Option<bool>) -> anyhow::Result<()> {
    let vm = administrator.find(SYSTEM_VMS, &one.name).await?;
    let mut parameters = vec![("id", text(&vm, "id"))];
    if let Some(force) = force {
        parameters.push(("forced", if force { "true" } else { "false" }));
    }
    let answer = administrator.call(command, &parameters).await?;
    if one.output.json {
        return print(&format!("{answer:#}\n"));
    }
    match &answer["systemvm"] {
        Value::Null => tell(format_args!("{} is gone.", text(&vm, "name"))),
        vm => tell(status::line(vm)),
    }
    Ok(())
}

/// All fields that say something, then the steps of its start.
fn describe(vm: &Value) -> String {
    let nothing = Map::new();
    let fields = vm.as_object().unwrap_or(&nothing);
    let shown: Vec<(&String, String)> = fields
        .iter()
        .filter_map(|(name, value)| match value {
            Value::String(text) => Some((name, text.clone())),
            Value::Number(number) => Some((name, number.to_string())),
            Value::Bool(flag) => Some((name, flag.to_string())),
            Value::Null | Value::Array(_) | Value::Object(_) => None,
        })
        .collect();
    let width = shown.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let mut out = String::new();
    for (name, value) in shown {
        let _ = writeln!(out, "{name:width$}  {}", plain(&value));
    }
    let steps = vm["bootprogress"].as_array().map(Vec::as_slice).unwrap_or_default();
    if !steps.is_empty() {
        out += "\nSteps of its start:\n";
    }
    let first = steps.first().and_then(|step| step["at"].as_u64()).unwrap_or_default();
    for step in steps {
        let after = step["at"].as_u64().unwrap_or_default().saturating_sub(first);
        let seconds = format!("{}.{}", after / 1000, after % 1000 / 100);
        let (outcome, name, detail) = (text(step, "outcome"), text(step, "name"), text(step, "detail"));
        let line = format!("  {seconds:>6} s  {outcome:8}{name}");
        out += &plain(&line);
        if !detail.is_empty() {
            let _ = write!(out, ": {}", plain(detail));
        }
        out.push('\n');
    }
    out
}

fn show_log(data_dir: &Path, vm: &Value, log: &Log) -> anyhow::Result<()> {
    let name = text(vm, "name");
    let is_program = text(vm, "hypervisor") == "External";
    ensure!(
        !(is_program && log.qemu),
        "{name} is a program, not a virtual machine; leave out --qemu"
    );
    let places = Places::new(&data_dir.join("vms").join(name));
    let path = if is_program || log.qemu {
        places.log()
    } else {
        places.console()
    };
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            anyhow::bail!("{name} has no log here: {} is not there", path.display())
        }
        opened => opened.with_context(|| format!("opening {}", path.display()))?,
    };
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or_default();
    let reading = || format!("reading {}", path.display());
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG)))
        .with_context(reading)?;
    let mut bytes = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut bytes).with_context(reading)?;
    let contents = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = contents
        .lines()
        .map(|line| plain(line.trim_end_matches('\r')))
        .collect();
    let end = lines[lines.len().saturating_sub(log.lines)..].join("\n");
    print(&if end.is_empty() { end } else { end + "\n" })
}

async fn checks(data_dir: &Path, vm: &Value, json: bool) -> anyhow::Result<Ended> {
    let name = text(vm, "name");
    let address = text(vm, "linklocalip").parse::<Ipv4Addr>();
    let address = address.ok().with_context(|| {
        format!("{name} has no control address, by which it could be asked; is it a virtual machine of --driver qemu?")
    })?;
    let network = Name::of_directory(data_dir);
    let namespace = Namespace::open(&network)?;
    let namespace = namespace.with_context(|| {
        format!("there is no network {network} here: run this as root on the server's machine; the server needs --driver qemu")
    })?;
    let data_dir = std::path::absolute(data_dir)?;
    let key = Key::open_or_create(&data_dir.join("ssh")).await?;
    let ssh = Ssh::new(&namespace, address, &key, &data_dir.join("vms").join(name))?;
    let command = if json { "agent check --json" } else { "agent check" };
    let answered = ssh.exec(command, b"", CHECKS_LIMIT).await;
    ssh.close().await;
    let answered =
        answered.with_context(|| format!("asking {name} at {address}; `mgmt-stub sysvm log {name}` may say more"))?;
    let report = String::from_utf8_lossy(&answered.stdout);
    // It comes from the VM.
    let lines: String = report.lines().map(|line| plain(line) + "\n").collect();
    print(&lines)?;
    match answered.status.code() {
        Some(0 | 1) => Ok(Ended::Done),
        Some(2) => Ok(Ended::Failed),
        _ => anyhow::bail!("`{command}` failed in {name}: {}", plain(answered.stderr.trim())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_vm_is_described_with_the_steps_of_its_start() {
        let vm = json!({
            "name": "s-1-VM", "memory": 512, "reason": null, "hasscreen": true,
            "bootprogress": [
                {"name": "qemu", "outcome": "done", "at": 1_000, "detail": "process 7"},
                {"name": "ssh", "outcome": "running", "at": 13_450, "detail": null},
            ],
        });
        assert_eq!(
            describe(&vm),
            "hasscreen  true\n\
             memory     512\n\
             name       s-1-VM\n\
             \n\
             Steps of its start:\n\
             \x20    0.0 s  done    qemu: process 7\n\
             \x20   12.4 s  running ssh\n"
        );
    }
}
