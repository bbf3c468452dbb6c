//! Ways from this machine to console proxies that are VMs in the zone's network: each has a port of ours, and what comes
//! there goes to its public address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hypervisor::network::namespace::Namespace;
use hypervisor::relay::{Forward, RelayError};
use platform::logging::chain;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::instance_state::InstanceState;
use crate::store::Store;
use crate::store::instance::{Instance, InstanceType};

/// Where a console proxy VM serves page and consoles: console-proxy.md §3.1.
const CONSOLE_PORT: u16 = 8080;
/// Many changes come together.
const SETTLE: Duration = Duration::from_millis(200);
/// After an error: of the store, or of a port that somebody else has.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Keeps them; [`Forwards::run`] does the work.
pub struct Forwards {
    store: Store,
    namespace: Namespace,
    /// Of this machine.
    address: IpAddr,
    open: HashMap<u16, Open>,
}

/// A port of ours.
struct Open {
    target: watch::Sender<Option<SocketAddr>>,
    stop: CancellationToken,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Forwards {
    /// None is open yet.
    pub fn new(store: Store, namespace: Namespace, address: IpAddr) -> Self {
        Self {
            store,
            namespace,
            address,
            open: HashMap::new(),
        }
    }

    /// Opens and closes them until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut changes = self.store.changes();
        loop {
            changes.borrow_and_update();
            let is_complete = self.follow().await;
            let again = async {
                if is_complete {
                    std::future::pending::<()>().await;
                } else {
                    tokio::time::sleep(TRY_AGAIN).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
                () = again => {}
            }
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Whether all are open that shall be.
    async fn follow(&mut self) -> bool {
        let instances = match self.store.instances().await {
            Ok(instances) => instances,
            Err(error) => {
                error!(error = %chain(&error), "Cannot look for console proxies");
                return false;
            }
        };
        let wanted: HashMap<u16, Option<SocketAddr>> = instances.iter().filter_map(target).collect();
        self.open.retain(|port, _| wanted.contains_key(port));
        let mut is_complete = true;
        for (port, target) in wanted {
            if let Some(open) = self.open.get(&port) {
                open.target
                    .send_if_modified(|current| std::mem::replace(current, target) != target);
                continue;
            }
            match self.open(port, target).await {
                Ok(open) => drop(self.open.insert(port, open)),
                Err(error) => {
                    is_complete = false;
                    warn!(port, error = %chain(&error), "Consoles cannot be reached from this machine; trying again");
                }
            }
        }
        is_complete
    }

    async fn open(&self, port: u16, target: Option<SocketAddr>) -> Result<Open, RelayError> {
        let listen = SocketAddr::new(self.address, port);
        let (target, followed) = watch::channel(target);
        let forward = Forward::bind(listen, &self.namespace, followed).await?;
        let stop = CancellationToken::new();
        tokio::spawn(forward.serve(stop.clone()));
        info!(%listen, "Consoles can be reached");
        Ok(Open { target, stop })
    }
}

/// The port of ours for a console proxy, and where it goes now.
fn target(vm: &Instance) -> Option<(u16, Option<SocketAddr>)> {
    if vm.kind != InstanceType::ConsoleProxy {
        return None;
    }
    let address = vm.public_ip.map(|ip| SocketAddr::new(ip, CONSOLE_PORT));
    let is_on = matches!(vm.state, InstanceState::Running | InstanceState::Stopping);
    Some((vm.console_port?, address.filter(|_| is_on)))
}
