//! Names and small files.

use std::fs;
use std::io::ErrorKind;

use platform::files;

use super::ApplyError;
use crate::appliance::plan::Plan;
use crate::appliance::root::Root;

/// What virtual routers have configured (§5.4).
const ROUTERS_STATE: &str = "/etc/cloudstack";
const TABLES: &str = "/etc/iproute2/rt_tables.d/sysvm.conf";

/// Writes all of them; answers what did not work.
pub fn write(plan: &Plan, root: &Root) -> Vec<ApplyError> {
    let mut done = vec![
        replace(root, "/etc/hosts", &plan.hosts),
        replace(root, "/etc/resolv.conf", &plan.resolv_conf),
    ];
    if let Some(hostname) = &plan.hostname {
        done.push(replace(root, "/etc/hostname", &format!("{hostname}\n")));
        done.push(set_hostname(root, hostname));
    }
    if !plan.route_tables.is_empty() || root.path(TABLES).exists() {
        let lines = plan
            .route_tables
            .iter()
            .map(|(number, name)| format!("{number}\t{name}\n"));
        done.push(replace(root, TABLES, &lines.collect::<String>()));
    }
    done.extend(plan.files.iter().map(|(path, contents)| replace(root, path, contents)));
    done.into_iter().filter_map(Result::err).collect()
}

fn replace(root: &Root, path: &str, contents: &str) -> Result<(), ApplyError> {
    let path = root.path(path);
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        super::make(directory)?;
    }
    let _ = files::replace(path, contents, 0o644)?;
    Ok(())
}

fn set_hostname(root: &Root, hostname: &str) -> Result<(), ApplyError> {
    use std::io::Write;
    let path = root.path("/proc/sys/kernel/hostname");
    let written = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(hostname.as_bytes()));
    written.map_err(|source| ApplyError::Setting {
        name: "kernel.hostname".to_owned(),
        value: hostname.to_owned(),
        source,
    })
}

/// A host that gives boot arguments configures a router anew: what it was before is obsolete (§3.2).
pub fn forget_routers_state(root: &Root) -> Result<(), ApplyError> {
    let entries = fs::read_dir(root.path(ROUTERS_STATE))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let paths = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|end| end == "json"));
    for path in paths {
        match fs::remove_file(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => return Err(ApplyError::Remove { path, source }),
            _ => {}
        }
    }
    Ok(())
}
