//! The first content of `agent.properties`, where CloudStack's tools and its documentation expect it (§5.4, §6).

use std::fs;
use std::path::Path;

use platform::files::{self, FileError};
use protocol::boot::{BootArgs, Role, SystemVm};

use crate::appliance::root::Root;
use crate::properties::Properties;

/// Where stock images have it.
pub const PROPERTIES: &str = "/usr/local/cloud/systemvm/conf/agent.properties";
/// Left out: secrets, which our agent reads from the boot arguments; what is only for this machine's first minutes; and
/// what says nothing.
const LEFT_OUT: [&str; 8] = [
    "vmpassword",
    "keystore_password",
    "authorized_key",
    "userdata",
    "router_password",
    "privatekey",
    "baremetalnotificationapikey",
    "baremetalnotificationsecuritykey",
];
/// What the management server tells the agent later, and the agent keeps.
const KEPT: [&str; 1] = ["host"];

/// Writes the boot arguments into the file of a VM with an agent; other lines of the file stay. Mode 0600.
pub fn write(vm: &SystemVm, args: &BootArgs, root: &Root) -> Result<(), FileError> {
    let own: &[(&str, &str)] = match vm.role {
        Role::SecondaryStorage(_) => &[],
        Role::ConsoleProxy(_) => &[
            ("instance", "ConsoleProxy"),
            ("resource", "com.cloud.agent.resource.consoleproxy.ConsoleProxyResource"),
        ],
        _ => return Ok(()),
    };
    let path = root.path(PROPERTIES);
    make_if_missing(&path)?;
    let wanted = own.iter().copied().chain(args.iter());
    let wanted: Vec<_> = wanted.filter(|(key, _)| !LEFT_OUT.contains(key)).collect();
    let _ = Properties::edit(&path, |properties| {
        for (key, value) in &wanted {
            if !(KEPT.contains(key) && properties.get(key).is_some()) {
                properties.set(key, value);
            }
        }
    })?;
    Ok(())
}

fn make_if_missing(path: &Path) -> Result<(), FileError> {
    if !fs::exists(path).unwrap_or(true) {
        let _ = files::replace(path, "", 0o600)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write_line(root: &Root, line: &str) {
        let args = BootArgs::parse(line).unwrap();
        write(&SystemVm::parse(&args).unwrap(), &args, root).unwrap();
    }

    #[test]
    fn an_agent_finds_its_boot_arguments_there_and_no_secret() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let path = root.path(PROPERTIES);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_line(&root, "type=router name=r-4-VM");
        assert!(!path.exists());

        write_line(
            &root,
            "type=consoleproxy host=192.0.2.10 guid=Proxy.2 vmpassword=hush keystore_password=aHVzaA== zone=1",
        );
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            "instance=ConsoleProxy\nresource=com.cloud.agent.resource.consoleproxy.ConsoleProxyResource\n\
             type=consoleproxy\nhost=192.0.2.10\nguid=Proxy.2\nzone=1\n"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);

        // What the agent has noted since stays.
        let _ = Properties::edit(&path, |properties| {
            properties.set("host", "192.0.2.11");
            properties.set("ConsoleProxyResource.id", "7");
        })
        .unwrap();
        write_line(&root, "type=consoleproxy host=192.0.2.10 guid=Proxy.2 zone=2");
        let properties = Properties::load(&path).unwrap();
        for (key, value) in [("host", "192.0.2.11"), ("ConsoleProxyResource.id", "7"), ("zone", "2")] {
            assert_eq!(properties.get(key), Some(value));
        }
    }
}
