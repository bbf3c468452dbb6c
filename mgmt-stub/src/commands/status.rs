//! `status`: what is up, what is not, and why.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use clap::Args;
use mgmt_stub::client::ClientError;
use mgmt_stub::running::Running;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::administrator::{Administrator, HOSTS, IMAGE_STORES, SYSTEM_VMS, TEMPLATES, VMS, ZONES, is_up, text};
use super::table::{Table, plain};
use super::{Ended, print, tell};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// Show what is up, what is not, why, and what to do; or wait until all is
///
/// It shows the server, its zone, hosts, system VMs with the reason why one is not of use and what to do, and templates that
/// are not ready.
///
/// The exit code is 3 while the zone is not ready: no server, or no secondary storage VM or console proxy that is Up.
///
/// Examples:
///   mgmt-stub status
///   mgmt-stub status --wait 600     (until it is ready, 10 minutes at most)
///   mgmt-stub status --json | jq .ready
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Status {
    /// Wait until the zone is ready, so many seconds at most; changes are told on standard error.
    #[arg(long, value_name = "SECONDS")]
    wait: Option<u64>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Only the exit code, and with --wait what changes.
    #[arg(long, conflicts_with = "json")]
    quiet: bool,
}

/// Shows it.
pub(crate) async fn run(data_dir: &Path, arguments: Status) -> anyhow::Result<Ended> {
    let administrator = Administrator::new(data_dir);
    if let Some(seconds) = arguments.wait {
        let server = Running::find(data_dir)?.and_then(|running| running.process());
        wait_until_ready(&administrator, Duration::from_secs(seconds), server.as_ref()).await?;
    }
    let running = Running::find(data_dir)?;
    let seen = match look(&administrator).await {
        Ok(seen) => Some(seen),
        Err(ClientError::NotThere { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let is_ready = seen.as_ref().is_some_and(|seen| seen.missing().is_empty());
    let answer = if arguments.quiet {
        String::new()
    } else if arguments.json {
        format!("{:#}\n", as_json(running.as_ref(), seen.as_ref()))
    } else {
        match &seen {
            Some(seen) => report(data_dir, running.as_ref(), seen),
            None => without_server(data_dir, running.as_ref()),
        }
    };
    print(&answer)?;
    Ok(if is_ready { Ended::Done } else { Ended::NotReady })
}

/// Waits, and tells what changes. Answers whether it is ready. While `server` is given and has ended it does not go on.
pub(crate) async fn wait_until_ready(
    administrator: &Administrator,
    limit: Duration,
    server: Option<&platform::exec::Process>,
) -> anyhow::Result<bool> {
    let began = Instant::now();
    let mut shown: Vec<String> = Vec::new();
    loop {
        let (is_ready, lines) = match look(administrator).await {
            Ok(seen) => (seen.missing().is_empty(), seen.system_vms.iter().map(line).collect()),
            Err(ClientError::NotThere { .. }) => (false, vec!["The server does not answer.".to_owned()]),
            Err(error) => return Err(error.into()),
        };
        for line in lines.iter().filter(|line| !shown.contains(*line)) {
            tell(line);
        }
        shown = lines;
        if is_ready {
            return Ok(true);
        }
        if began.elapsed() >= limit || server.is_some_and(|server| !server.is_alive()) {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

/// Whether it is.
pub(crate) async fn is_ready(administrator: &Administrator) -> Result<bool, ClientError> {
    Ok(look(administrator).await?.missing().is_empty())
}

/// What a server shows.
pub(crate) struct Seen {
    zones: Vec<Value>,
    hosts: Vec<Value>,
    image_stores: usize,
    system_vms: Vec<Value>,
    templates: Vec<Value>,
    vms: Vec<Value>,
}

pub(crate) async fn look(administrator: &Administrator) -> Result<Seen, ClientError> {
    Ok(Seen {
        zones: administrator.list(ZONES).await?,
        hosts: administrator.list(HOSTS).await?,
        image_stores: administrator.list(IMAGE_STORES).await?.len(),
        system_vms: administrator.list(SYSTEM_VMS).await?,
        templates: administrator.list(TEMPLATES).await?,
        vms: administrator.list(VMS).await?,
    })
}

impl Seen {
    /// Kinds of which none is Up, though the zone needs one.
    fn missing(&self) -> Vec<&'static str> {
        let needed = [
            ("secondarystoragevm", "secondary storage VM", self.image_stores > 0),
            ("consoleproxy", "console proxy", true),
        ];
        let is_there = |kind: &str| {
            let mut vms = self.system_vms.iter();
            vms.any(|vm| text(vm, "systemvmtype") == kind && is_up(vm))
        };
        let missing = needed
            .into_iter()
            .filter(|(kind, _, is_needed)| *is_needed && !is_there(kind));
        missing.map(|(_, words, _)| words).collect()
    }

    fn coming(&self) -> impl Iterator<Item = &Value> {
        self.templates.iter().filter(|template| template["isready"] != true)
    }
}

/// What people read.
pub(crate) fn report(data_dir: &Path, running: Option<&Running>, seen: &Seen) -> String {
    let mut out = String::new();
    match running {
        Some(running) => out += &["Server    ", &running.url(), ", driver ", &running.driver, "\n"].concat(),
        None => out += &["Server    runs in ", &data_dir.display().to_string(), "\n"].concat(),
    }
    for zone in &seen.zones {
        let _ = writeln!(out, "Zone      {}", plain(text(zone, "name")));
    }
    let _ = write!(out, "State     {}\n\n", state(seen));
    out += &system_vms(&seen.system_vms);
    out += &advice(&seen.system_vms);

    let mut hosts = Table::new(&["HOST", "TYPE", "STATE", "ADDRESS", "REASON"]);
    for host in &seen.hosts {
        let (name, state) = (text(host, "name"), text(host, "state"));
        let reason = if state == "Up" { "" } else { text(host, "statereason") };
        hosts.row([name, text(host, "type"), state, text(host, "ipaddress"), reason]);
    }
    if !hosts.is_empty() {
        let _ = write!(out, "\n{hosts}");
    }
    let mut vms = Table::new(&["VM", "STATE", "REASON"]);
    for vm in &seen.vms {
        vms.row([text(vm, "name"), text(vm, "state"), text(vm, "reason")]);
    }
    if !vms.is_empty() {
        let _ = write!(out, "\n{vms}");
    }
    let mut coming = Table::new(&["TEMPLATE", "STATUS"]);
    for template in seen.coming() {
        coming.row([text(template, "name"), &super::progress::line(template)]);
    }
    if !coming.is_empty() {
        let _ = write!(out, "\n{coming}");
    }
    out
}

fn state(seen: &Seen) -> String {
    let missing = seen.missing();
    if missing.is_empty() {
        "ready".into()
    } else {
        format!("not ready: no {} is Up", missing.join(" and no "))
    }
}

/// A table of system VMs.
pub(crate) fn system_vms(vms: &[Value]) -> String {
    if vms.is_empty() {
        return "There are no system VMs; the server makes them, if it was started with a --driver.\n".into();
    }
    let mut table = Table::new(&["SYSTEM VM", "TYPE", "STATE", "AGENT", "PUBLIC IP", "REASON"]);
    for vm in vms {
        let kind = match text(vm, "systemvmtype") {
            "consoleproxy" => "console proxy",
            _ => "secondary storage VM",
        };
        table.row([
            text(vm, "name"),
            kind,
            text(vm, "state"),
            text(vm, "agentstate"),
            text(vm, "publicip"),
            text(vm, "reason"),
        ]);
    }
    table.to_string()
}

/// What a person can do.
fn advice(vms: &[Value]) -> String {
    let advice = vms.iter().filter(|vm| !text(vm, "whattodo").is_empty());
    let lines = advice.map(|vm| format!("{}: {}\n", plain(text(vm, "name")), plain(text(vm, "whattodo"))));
    lines.collect::<Vec<_>>().concat()
}

/// A system VM on one line: state, agent, and the reason why it is not of use.
pub(crate) fn line(vm: &Value) -> String {
    let (state, agent, reason) = (text(vm, "state"), text(vm, "agentstate"), text(vm, "reason"));
    if !is_up(vm) && reason.starts_with(state) {
        return plain(&format!("{}: {reason}", text(vm, "name")));
    }
    let mut line = format!("{}: {state}", text(vm, "name"));
    if !agent.is_empty() {
        let _ = write!(line, ", agent {agent}");
    }
    if !is_up(vm) && !reason.is_empty() {
        let _ = write!(line, ": {reason}");
    }
    plain(&line)
}

fn without_server(data_dir: &Path, running: Option<&Running>) -> String {
    match running {
        Some(running) => {
            let pid = running.process().map(|process| process.pid()).unwrap_or_default();
            format!("Server    process {pid} runs, but does not answer yet\n")
        }
        None => format!(
            "Server    does not run in {}; `mgmt-stub up` starts one, `mgmt-stub doctor` looks whether it can\n",
            data_dir.display()
        ),
    }
}

fn as_json(running: Option<&Running>, seen: Option<&Seen>) -> Value {
    let pick = |objects: &[Value], fields: &[&str]| -> Vec<Value> {
        let pick = |object: &Value| {
            let fields = fields.iter().map(|field| ((*field).to_owned(), object[field].clone()));
            Value::Object(fields.collect())
        };
        objects.iter().map(pick).collect()
    };
    let server = json!({
        "answers": seen.is_some(),
        "url": running.map(Running::url),
        "driver": running.map(|running| &running.driver),
        "version": running.map(|running| &running.version),
        "pid": running.and_then(Running::process).map(|process| process.pid()),
    });
    let Some(seen) = seen else {
        return json!({ "ready": false, "server": server });
    };
    let coming: Vec<Value> = seen.coming().cloned().collect();
    json!({
        "ready": seen.missing().is_empty(),
        "missing": seen.missing(),
        "server": server,
        "zones": pick(&seen.zones, &["id", "name"]),
        "systemvms": pick(
            &seen.system_vms,
            &["id", "name", "systemvmtype", "state", "agentstate", "publicip", "privateip", "reason", "reasonsince", "whattodo"],
        ),
        "virtualmachines": pick(&seen.vms, &["id", "name", "state", "reason"]),
        "hosts": pick(&seen.hosts, &["id", "name", "type", "state", "statereason", "ipaddress", "version"]),
        "templates": pick(
            &coming,
            &["id", "name", "status", "downloadstate", "downloadpercent", "downloadbytes", "downloadrate", "downloadeta", "downloaderror"],
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            zones: vec![json!({"name": "zone1"})],
            hosts: vec![
                json!({"name": "v-2-VM", "type": "ConsoleProxy", "state": "Up", "statereason": "ready", "ipaddress": "172.31.1.11"}),
            ],
            image_stores: 1,
            system_vms: vec![
                json!({"name": "s-1-VM", "systemvmtype": "secondarystoragevm", "state": "Starting",
                    "reason": "waits for NFS", "whattodo": "start the NFS server"}),
                json!({"name": "v-2-VM", "systemvmtype": "consoleproxy", "state": "Running", "agentstate": "Up",
                    "publicip": "172.31.2.10"}),
            ],
            templates: vec![
                json!({"name": "old", "isready": true}),
                json!({"name": "new", "isready": false, "status": "Processing"}),
            ],
            vms: vec![json!({"name": "web-1", "state": "Running"})],
        }
    }

    #[test]
    fn a_zone_that_is_not_ready_says_what_is_missing_why_and_what_to_do() {
        assert_eq!(
            report(Path::new("/data"), None, &seen()),
            "Server    runs in /data\n\
             Zone      zone1\n\
             State     not ready: no secondary storage VM is Up\n\
             \n\
             SYSTEM VM  TYPE                  STATE     AGENT  PUBLIC IP    REASON\n\
             s-1-VM     secondary storage VM  Starting  -      -            waits for NFS\n\
             v-2-VM     console proxy         Running   Up     172.31.2.10  -\n\
             s-1-VM: start the NFS server\n\
             \n\
             HOST    TYPE          STATE  ADDRESS      REASON\n\
             v-2-VM  ConsoleProxy  Up     172.31.1.11  -\n\
             \n\
             VM     STATE    REASON\n\
             web-1  Running  -\n\
             \n\
             TEMPLATE  STATUS\n\
             new       Processing\n"
        );
    }

    #[test]
    fn a_zone_without_image_stores_needs_no_ssvm() {
        let mut seen = seen();
        assert_eq!(seen.missing(), ["secondary storage VM"]);
        seen.image_stores = 0;
        assert_eq!(seen.missing(), [""; 0]);
        seen.system_vms.clear();
        assert_eq!(seen.missing(), ["console proxy"]);
    }

    #[test]
    fn a_line_has_the_reason_only_while_it_is_not_up() {
        let down = json!({"name": "s-1-VM", "state": "Running", "agentstate": "Disconnected", "reason": "no ping"});
        assert_eq!(line(&down), "s-1-VM: Running, agent Disconnected: no ping");
        let starting = json!({"name": "s-1-VM", "state": "Starting", "reason": "Starting: qemu goes on"});
        assert_eq!(line(&starting), "s-1-VM: Starting: qemu goes on");
        let up = json!({"name": "s-1-VM", "state": "Running", "agentstate": "Up", "reason": "Up"});
        assert_eq!(line(&up), "s-1-VM: Running, agent Up");
    }
}
