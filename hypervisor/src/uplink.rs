//! The way out of a network of VMs: a wire to the host's network, and NAT on both ends of it.
//!
//! It is the only thing that changes in the host's network: an interface, a table of nftables with rules of our own, and
//! forwarding for that interface and for those with a default route. What was switched is written down before, and
//! switched back by [`remove`]. What comes out of the wire reaches neither the host itself, nor link-local addresses (where
//! clouds keep secrets), nor a network that the host has no default route to; nobody reaches into it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use nix::net::if_::if_nametoindex;
use platform::exec::{Cmd, ExecError};
use platform::files::{self, FileError};
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::network::namespace::{Name, Namespace, NamespaceError, set_parameter};
use crate::network::{BadInterfaceName, InterfaceName, UPLINK};

const MAX_STATE: u64 = 64 << 10;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Both ends of the wire, in one network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Uplink {
    /// On the host.
    pub outside: Ipv4Net,
    /// In the namespace.
    pub inside: Ipv4Net,
}

/// What we have done to the host, in a file.
#[derive(PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    uplink: Uplink,
    /// Of the machine's boot: afterwards nothing of it is left.
    boot: String,
    /// Interfaces that did not forward before.
    switched: BTreeSet<String>,
}

/// Why there is no way out.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The host has none itself.
    #[error("this machine has no default route, so there is nowhere to go; start without the uplink, or give it one")]
    NoRoute,
    /// The wire.
    #[error("cannot make the wire between the host's network and that of VMs")]
    Wire(#[source] ExecError),
    /// The rules on the host.
    #[error("cannot load the rules of NAT; the kernel needs nftables with NAT and connection tracking")]
    Rules(#[source] ExecError),
    /// The other end.
    #[error(transparent)]
    Inside(#[from] NamespaceError),
    /// What `ip` says.
    #[error("cannot understand what `ip -j route` prints")]
    Printed(#[source] serde_json::Error),
    /// An interface of the host that rules cannot name.
    #[error(transparent)]
    Interface(#[from] BadInterfaceName),
    /// The file in which changes are kept.
    #[error(transparent)]
    File(#[from] FileError),
    /// The same.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Uplink {
    /// Makes it, or takes it over. What it changes on the host is kept in the file `state`.
    ///
    /// # Errors
    /// The host has no default route, or the kernel cannot.
    pub async fn build(&self, namespace: &Namespace, state: &Path) -> Result<(), UplinkError> {
        let name = namespace.name();
        let ways = ways_out().await?;
        let outer = outer(name);
        let earlier = read(state)?;
        if earlier.as_ref().is_some_and(|earlier| earlier.uplink != *self) {
            remove(name, state).await?;
        }
        let earlier = read(state)?.map(|earlier| earlier.switched).unwrap_or_default();
        let off = ways.iter().filter(|way| !forwards(way)).map(ToString::to_string);
        let changes = State {
            uplink: *self,
            boot: boot_id()?,
            switched: earlier.into_iter().chain(off).collect(),
        };
        let text = serde_json::to_vec_pretty(&changes).expect("it is plain data");
        let _ = files::replace(state, text, 0o600)?;

        // The rules first: they are about interfaces that need not be there.
        let script = rules(name, &outer, &ways, self, &changes.switched);
        nft(&script).await.map_err(UplinkError::Rules)?;
        let has_inner = namespace.inside(|| if_nametoindex(UPLINK).is_ok())?;
        if if_nametoindex(outer.as_str()).is_err() || !has_inner {
            delete_link(&outer).await?;
            let add = format!("link add {outer} type veth peer name {UPLINK} netns {name}");
            ip(&add).await.map_err(UplinkError::Wire)?;
        }
        let up = format!("address replace {} dev {outer}\nlink set {outer} up", self.outside);
        ip(&up).await.map_err(UplinkError::Wire)?;
        let inside = format!(
            "address replace {} dev {UPLINK}\nlink set {UPLINK} up\nroute replace default via {}",
            self.inside,
            self.outside.addr()
        );
        namespace.ip(&inside).await?;
        namespace.set_parameters(&[("ipv4/ip_forward", "1")])?;
        for interface in [outer.as_str()]
            .into_iter()
            .chain(changes.switched.iter().map(String::as_str))
        {
            set_parameter(&forwarding(interface), "1")?;
        }
        info!(namespace = %name, interface = %outer, out = ?ways, "VMs have a way out");
        Ok(())
    }
}

/// Takes it away, and switches back what was switched for it. Without one it does nothing.
///
/// # Errors
/// The kernel cannot.
pub async fn remove(name: &Name, state: &Path) -> Result<(), UplinkError> {
    let outer = outer(name);
    let earlier = read(state)?;
    if earlier.is_none() && if_nametoindex(outer.as_str()).is_err() {
        return remove_file(state);
    }
    for interface in earlier.map(|earlier| earlier.switched).unwrap_or_default() {
        set_parameter(&forwarding(&interface), "0")?;
    }
    delete_link(&outer).await?;
    let table = table(name);
    let script = format!("table inet {table} {{}}\ndelete table inet {table}\n");
    nft(&script).await.map_err(UplinkError::Rules)?;
    remove_file(state)?;
    info!(namespace = %name, interface = %outer, "Way out removed");
    Ok(())
}

/// The end of the wire on the host: `sv-1f2e3d4c`.
fn outer(name: &Name) -> InterfaceName {
    let name = name.to_string();
    let short = name.strip_prefix("sysvm-").filter(|rest| rest.len() <= 12);
    match short {
        Some(rest) => format!("sv-{rest}")
            .parse()
            .expect("a namespace's name has only letters that fit"),
        None => InterfaceName::of_tap(&name, 0),
    }
}

/// nftables takes no `-` in names.
fn table(name: &Name) -> String {
    name.to_string().replace('-', "_")
}

fn forwarding(interface: &str) -> String {
    format!("ipv4/conf/{interface}/forwarding")
}

fn forwards(interface: &InterfaceName) -> bool {
    let path = Path::new("/proc/sys/net").join(forwarding(interface.as_str()));
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "1")
}

/// The interfaces of the host with a default route.
async fn ways_out() -> Result<BTreeSet<InterfaceName>, UplinkError> {
    #[derive(Deserialize)]
    struct Route {
        dev: Option<String>,
    }
    let ip = Cmd::new("ip").args(["-4", "-j", "route", "show", "default"]);
    let printed = ip.run().await.map_err(UplinkError::Wire)?;
    let routes: Vec<Route> = serde_json::from_slice(&printed.stdout).map_err(UplinkError::Printed)?;
    let interfaces = routes.into_iter().filter_map(|route| route.dev);
    let ways = interfaces
        .map(|name| name.parse())
        .collect::<Result<BTreeSet<InterfaceName>, _>>()?;
    if ways.is_empty() {
        return Err(UplinkError::NoRoute);
    }
    Ok(ways)
}

/// The host's own table. Interfaces that we have made to forward do so for nobody else.
fn rules(
    name: &Name,
    outer: &InterfaceName,
    ways: &BTreeSet<InterfaceName>,
    uplink: &Uplink,
    switched: &BTreeSet<String>,
) -> String {
    let list = |names: Vec<&str>| format!("{{ \"{}\" }}", names.join("\", \""));
    let out = list(ways.iter().map(InterfaceName::as_str).collect());
    let (table, inside) = (table(name), uplink.inside.addr());
    let for_nobody_else = if switched.is_empty() {
        String::new()
    } else {
        let switched = list(switched.iter().map(String::as_str).collect());
        format!("    iifname {switched} counter drop\n")
    };
    format!(
        "table inet {table} {{}}\n\
         delete table inet {table}\n\
         table inet {table} {{\n\
         \x20 chain input {{\n\
         \x20   type filter hook input priority -10; policy accept;\n\
         \x20   iifname \"{outer}\" counter drop\n\
         \x20 }}\n\
         \x20 chain forward {{\n\
         \x20   type filter hook forward priority -10; policy accept;\n\
         \x20   iifname \"{outer}\" ip saddr != {inside} counter drop\n\
         \x20   iifname \"{outer}\" ip daddr {{ 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/3 }} counter drop\n\
         \x20   iifname \"{outer}\" oifname {out} accept\n\
         \x20   iifname \"{outer}\" counter drop\n\
         \x20   oifname \"{outer}\" ct state established,related accept\n\
         \x20   oifname \"{outer}\" counter drop\n\
         {for_nobody_else}\
         \x20 }}\n\
         \x20 chain postrouting {{\n\
         \x20   type nat hook postrouting priority srcnat;\n\
         \x20   ip saddr {inside} oifname {out} masquerade\n\
         \x20 }}\n\
         }}\n"
    )
}

async fn ip(batch: &str) -> Result<(), ExecError> {
    Cmd::new("ip").args(["-batch", "-"]).stdin(batch).run().await.map(drop)
}

async fn nft(script: &str) -> Result<(), ExecError> {
    Cmd::new("nft").args(["-f", "-"]).stdin(script).run().await.map(drop)
}

async fn delete_link(outer: &InterfaceName) -> Result<(), UplinkError> {
    if if_nametoindex(outer.as_str()).is_err() {
        return Ok(());
    }
    ip(&format!("link delete {outer}")).await.map_err(UplinkError::Wire)
}

/// What was changed, since this boot of the machine.
fn read(state: &Path) -> Result<Option<State>, UplinkError> {
    let Some(bytes) = files::read_limited(state, MAX_STATE)? else {
        return Ok(None);
    };
    let parsed: Result<State, _> = serde_json::from_slice(&bytes);
    let parsed = parsed.map_err(|error| failed("understand", state)(error.into()))?;
    let boot = boot_id()?;
    Ok(Some(parsed).filter(|state| state.boot == boot))
}

fn boot_id() -> Result<String, UplinkError> {
    let id = fs::read_to_string(BOOT_ID).map_err(failed("read", Path::new(BOOT_ID)))?;
    Ok(id.trim().to_owned())
}

fn remove_file(path: &Path) -> Result<(), UplinkError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UplinkError {
    move |source| UplinkError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}
