//! NICs, addresses, routes and rules: what ip(8) and the kernel's settings do.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::time::Duration;

use platform::exec::{Cmd, Output};
use tokio::time::{Instant, sleep};

use super::{ApplyError, dhcp, names};
use crate::appliance::plan::current::Current;
use crate::appliance::plan::{Plan, changes};
use crate::appliance::root::Root;

/// Drivers are loaded while the system starts, and hosts plug NICs into running VMs (§10.1).
const NICS_LIMIT: Duration = Duration::from_secs(15);
/// When the way in is there, the others get this long: hosts wait for it.
const OTHERS_LIMIT: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What came of it.
#[derive(Debug, Default)]
pub struct Done {
    /// NICs that are not there.
    pub missing: Vec<String>,
    /// What did not work.
    pub failures: Vec<ApplyError>,
}

/// Waits for the NICs, names them, and makes settings, addresses, routes and rules what the plan wants.
pub async fn apply(plan: &Plan, root: &Root) -> Done {
    let mut done = Done::default();
    let current = match wait_for_nics(plan, &mut done.failures).await {
        Ok(current) => current,
        Err(error) => {
            done.failures.push(error);
            return done;
        }
    };
    done.missing = missing(plan, &current);
    done.failures.extend(set_all(plan, root));
    let batch = plan.ip_batch(&current);
    if !batch.is_empty() {
        let changed = changes::command(batch).run().await;
        done.failures.extend(changed.err().map(ApplyError::from));
    }
    if !done.missing.is_empty() {
        let names = done.missing.clone();
        done.failures.push(ApplyError::Missing { names });
    }
    done.failures.extend(dhcp::apply(plan, root).await.err());
    done
}

/// The network as it is when all NICs of the plan are there with their names, or when it is time to go on without some.
async fn wait_for_nics(plan: &Plan, failures: &mut Vec<ApplyError>) -> Result<Current, ApplyError> {
    let started = Instant::now();
    loop {
        failures.clear();
        let mut current = current().await?;
        let renames = names::renames(&current.links, &plan.nic_macs);
        if !renames.is_empty() {
            failures.extend(ip(renames).await.err().map(ApplyError::from));
            current = self::current().await?;
        }
        let missing = missing(plan, &current);
        let way_in = plan.sshd.as_ref().and_then(|sshd| sshd.link.as_ref());
        let has_way_in = way_in.is_none_or(|link| current.link(link.as_str()).is_some());
        let limit = if has_way_in { OTHERS_LIMIT } else { NICS_LIMIT };
        if missing.is_empty() || started.elapsed() >= limit {
            return Ok(current);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Those of the plan, and those that are to get their names by an address that no NIC has.
fn missing(plan: &Plan, current: &Current) -> Vec<String> {
    let named = plan.missing(current).into_iter().map(ToString::to_string);
    let has = |mac| current.links.iter().any(|link| link.mac == Some(mac));
    let by_mac = plan
        .nic_macs
        .iter()
        .filter(|mac| !has(**mac))
        .map(|mac| format!("NIC with address {mac}"));
    named.chain(by_mac).collect()
}

async fn current() -> Result<Current, ApplyError> {
    let Output { stdout, .. } = Current::question().run().await?;
    Ok(Current::read(&stdout)?)
}

async fn ip(batch: String) -> Result<Output, platform::exec::ExecError> {
    changes::command(batch).run().await
}

/// Kernel settings, in their order. One about a NIC that is not there waits for it; one that this kernel does not have
/// is a failure.
pub fn set_all(plan: &Plan, root: &Root) -> Vec<ApplyError> {
    let set = plan.sysctl.iter().map(|(name, value)| set(root, name, value));
    set.filter_map(Result::err).collect()
}

fn set(root: &Root, name: &str, value: &str) -> Result<(), ApplyError> {
    let path = root.path("/proc/sys").join(name.replace('.', "/"));
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(value.as_bytes()));
    match written {
        Err(error) if error.kind() == ErrorKind::NotFound && name.contains(".conf.eth") => Ok(()),
        written => written.map_err(|source| ApplyError::Setting {
            name: name.to_owned(),
            value: value.to_owned(),
            source,
        }),
    }
}

/// Tells the neighbours where our addresses are now, and sends what makes a switch learn them (§3.4). Nobody waits for it,
/// and whether anybody hears does not matter.
pub async fn announce(plan: Plan) {
    const LIMIT: Duration = Duration::from_secs(10);
    for (link, address) in plan.gratuitous_arp {
        let told = Cmd::new("arping")
            .args(["-U", "-c", "2", "-w", "3", "-I", link.as_str()])
            .arg(address.to_string());
        told.time_limit(LIMIT).run().await.ok(); // exit code 1: nobody answered
    }
    for address in plan.keep_alive_ping {
        let sent = Cmd::new("ping")
            .args(["-n", "-q", "-c", "3", "-W", "1"])
            .arg(address.to_string());
        sent.time_limit(LIMIT).run().await.ok(); // likewise
    }
}
