//! A network of a test's own: a network namespace with bridges, to which VMs and programs of the host are attached.
//!
//! Everything is in the namespace, so tests run side by side with the same addresses, and the host's own network is not
//! touched. It is gone when the last [`Net`] and the last VM in it are dropped; what a killed test run has left is
//! removed by the next one.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use hypervisor::network::namespace::{Name, Namespace};
use platform::exec::{Cmd, Output};

use super::leftovers;

/// In the names of ours.
const KIND: &str = "test";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace. Clones are the same namespace.
#[derive(Clone, Debug)]
pub struct Net(Arc<Own>);

#[derive(Debug)]
struct Own {
    namespace: Namespace,
    taps: AtomicU32,
}

impl Net {
    /// A namespace with nothing in it but a loopback interface.
    ///
    /// # Errors
    /// We are not root, or the kernel has no network namespaces.
    pub async fn new() -> anyhow::Result<Self> {
        remove_abandoned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name: Name = format!("{}{number}", leftovers::prefix(KIND)).parse()?;
        let namespace = Namespace::open_or_create(&name)
            .await
            .context("making a network namespace (tests with VMs in networks need root)")?;
        let taps = AtomicU32::new(0);
        Ok(Self(Arc::new(Own { namespace, taps })))
    }

    /// A bridge, up, on which the host has `address` (`169.254.0.1/16`). Its name has at most 15 bytes.
    ///
    /// # Errors
    /// There is one of that name, or the address is none.
    pub async fn bridge(&self, name: &str, address: &str) -> anyhow::Result<()> {
        // Without spanning tree a port forwards from the first moment.
        self.ip(&format!(
            "link add {name} type bridge stp_state 0 forward_delay 0\n\
             address add {address} dev {name}\n\
             link set {name} up"
        ))
        .await
    }

    /// A new tap on a bridge, for a NIC of a VM; its name.
    pub(crate) async fn tap(&self, bridge: &str) -> anyhow::Result<String> {
        let tap = format!("tap{}", self.0.taps.fetch_add(1, Ordering::Relaxed));
        self.ip(&format!("tuntap add {tap} mode tap\nlink set {tap} master {bridge} up"))
            .await?;
        Ok(tap)
    }

    /// Runs commands of ip(8), one on each line: `link set br0 mtu 9000`.
    ///
    /// # Errors
    /// One of them fails; the message of `ip` has its number.
    pub async fn ip(&self, batch: &str) -> anyhow::Result<()> {
        Ok(self.0.namespace.ip(batch).await?)
    }

    /// Runs a program of the host inside.
    ///
    /// # Errors
    /// As [`Cmd::run`] has them.
    pub async fn run(&self, cmd: Cmd) -> anyhow::Result<Output> {
        Ok(self.command(cmd).run().await?)
    }

    /// The same command, inside: for [`Cmd::spawn`].
    pub fn command(&self, cmd: Cmd) -> Cmd {
        self.0.namespace.command(cmd)
    }

    /// Calls `work` on a thread that is inside. Sockets made there stay inside wherever they are used then:
    /// `net.inside(|| TcpListener::bind("169.254.0.1:8250"))`.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` does.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        Ok(self.0.namespace.inside(work)?)
    }

    /// For setns(2).
    pub(crate) fn open(&self) -> anyhow::Result<File> {
        let path = self.0.namespace.path();
        File::open(path).with_context(|| format!("opening {}", path.display()))
    }

    /// The namespace itself.
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// As `ip netns` shows it.
    pub fn name(&self) -> String {
        self.0.namespace.name().to_string()
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // Without waiting for a program: this is called while a test falls over.
        Namespace::drop_name(self.namespace.name()).ok();
    }
}

/// Removes namespaces of test runs that were killed.
fn remove_abandoned() {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for name in names.filter(|name| leftovers::is_abandoned(KIND, name)) {
        if let Ok(name) = name.parse() {
            Namespace::drop_name(&name).ok();
        }
    }
}
