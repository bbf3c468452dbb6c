//! `vm`: instances of users; and `console`.

use std::path::Path;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::administrator::{Administrator, OFFERINGS, SYSTEM_VMS, TEMPLATES, VMS, number, text};
use super::table::{Table, plain};
use super::{Ended, print, tell};

/// The smallest one.
const OFFERING: &str = "Small Instance";

/// VMs of users: list, deploy, start, stop, reboot, destroy, recover
///
/// VM is a name or an id.
///
/// Examples:
///   mgmt-stub vm deploy --template debian --name web-1
///   mgmt-stub vm list
///   mgmt-stub console web-1
///   mgmt-stub vm destroy web-1 --expunge
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Vm {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List them.
    List {
        /// For programs, with the fields of the API.
        #[arg(long)]
        json: bool,
    },
    /// Make one of a template, and start it. It has no NIC: there are no guest networks yet.
    Deploy(Deploy),
    /// Start one.
    Start(One),
    /// Ask one to shut down; it is powered off if it does not.
    Stop(OneForced),
    /// Restart one that runs.
    Reboot(OneForced),
    /// Stop one, and remove it after a while (setting expunge.delay); until then it can be recovered.
    Destroy {
        #[command(flatten)]
        one: One,
        /// Remove it at once, with its disk.
        #[arg(long)]
        expunge: bool,
    },
    /// Take back that one was destroyed.
    Recover(One),
}

#[derive(Debug, Args)]
struct Deploy {
    /// Its name or id.
    #[arg(long)]
    template: String,
    /// Letters, digits and -; else the server chooses one.
    #[arg(long)]
    name: Option<String>,
    /// How big it is: name or id of a service offering.
    #[arg(long, default_value = OFFERING)]
    offering: String,
    /// Leave it stopped.
    #[arg(long)]
    no_start: bool,
    /// For programs, with the fields of the API.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct One {
    vm: String,
    /// For programs, with the fields of the API.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct OneForced {
    #[command(flatten)]
    one: One,
    /// Without asking it, as if the power failed.
    #[arg(long)]
    force: bool,
}

/// Print a URL that shows the screen of a VM in a browser: good once, within two minutes
///
/// Examples:
///   mgmt-stub console web-1
///   mgmt-stub console s-1-VM      (also of a system VM)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Console {
    /// Name or id of a VM.
    vm: String,
    /// For programs, with what a page of one's own needs.
    #[arg(long)]
    json: bool,
}

/// Does it.
pub(crate) async fn run(data_dir: &Path, arguments: Vm) -> anyhow::Result<Ended> {
    let administrator = Administrator::new(data_dir);
    let administrator = &administrator;
    match arguments.action {
        Action::List { json } => {
            let vms = administrator.list(VMS).await?;
            print(&if json {
                format!("{:#}\n", Value::from(vms))
            } else {
                table(&vms)
            })?;
        }
        Action::Deploy(deploy) => deployed(administrator, &deploy).await?,
        Action::Start(one) => act(administrator, "startVirtualMachine", &one, &[]).await?,
        Action::Stop(vm) => act(administrator, "stopVirtualMachine", &vm.one, &forced(vm.force)).await?,
        Action::Reboot(vm) => act(administrator, "rebootVirtualMachine", &vm.one, &forced(vm.force)).await?,
        Action::Destroy { one, expunge } => {
            let expunge = [("expunge", if expunge { "true" } else { "false" })];
            act(administrator, "destroyVirtualMachine", &one, &expunge).await?;
        }
        Action::Recover(one) => act(administrator, "recoverVirtualMachine", &one, &[]).await?,
    }
    Ok(Ended::Done)
}

/// Makes the URL of a console.
pub(crate) async fn console(data_dir: &Path, arguments: Console) -> anyhow::Result<Ended> {
    let administrator = Administrator::new(data_dir);
    let system_vms = administrator.list(SYSTEM_VMS).await?;
    let is_it = |vm: &Value| [text(vm, "name"), text(vm, "id")].contains(&arguments.vm.as_str());
    let vm = match system_vms.into_iter().find(is_it) {
        Some(vm) => vm,
        None => administrator.find(VMS, &arguments.vm).await?,
    };
    let id = [("virtualmachineid", text(&vm, "id"))];
    let answer = administrator.call("createConsoleEndpoint", &id).await?;
    let endpoint = &answer["consoleendpoint"];
    if endpoint["success"] != true {
        bail!(
            "there is no console of {}: {}",
            arguments.vm,
            plain(text(endpoint, "details"))
        );
    }
    print(&if arguments.json {
        format!("{endpoint:#}\n")
    } else {
        format!("{}\n", text(endpoint, "url"))
    })?;
    Ok(Ended::Done)
}

fn table(vms: &[Value]) -> String {
    if vms.is_empty() {
        return "There are no VMs; `mgmt-stub vm deploy` makes one.\n".into();
    }
    let mut table = Table::new(&["NAME", "STATE", "TEMPLATE", "MEMORY", "HYPERVISOR", "REASON"]);
    for vm in vms {
        let memory = number(vm, "memory");
        let memory = if memory.is_empty() { memory } else { memory + " MiB" };
        table.row([
            text(vm, "name"),
            text(vm, "state"),
            text(vm, "templatename"),
            &memory,
            text(vm, "hypervisor"),
            text(vm, "reason"),
        ]);
    }
    table.to_string()
}

fn forced(force: bool) -> [(&'static str, &'static str); 1] {
    [("forced", if force { "true" } else { "false" })]
}

async fn act(administrator: &Administrator, command: &str, one: &One, more: &[(&str, &str)]) -> anyhow::Result<()> {
    let vm = administrator.find(VMS, &one.vm).await?;
    let id = [("id", text(&vm, "id"))];
    let answer = administrator.call(command, &[&id, more].concat()).await?;
    shown(&answer, one.json)
}

async fn deployed(administrator: &Administrator, deploy: &Deploy) -> anyhow::Result<()> {
    let zone = administrator.zone_id().await?;
    let template = administrator.find(TEMPLATES, &deploy.template).await?;
    let offering = administrator.find(OFFERINGS, &deploy.offering).await?;
    let mut parameters = vec![
        ("zoneid", zone.as_str()),
        ("templateid", text(&template, "id")),
        ("serviceofferingid", text(&offering, "id")),
        ("startvm", if deploy.no_start { "false" } else { "true" }),
    ];
    if let Some(name) = &deploy.name {
        parameters.push(("name", name));
    }
    let answer = administrator.call("deployVirtualMachine", &parameters).await?;
    shown(&answer, deploy.json)
}

fn shown(answer: &Value, json: bool) -> anyhow::Result<()> {
    if json {
        return print(&format!("{answer:#}\n"));
    }
    match &answer["virtualmachine"] {
        Value::Null => tell("It is gone."),
        vm => tell(plain(&format!("{}: {}", text(vm, "name"), text(vm, "state")))),
    }
    Ok(())
}
