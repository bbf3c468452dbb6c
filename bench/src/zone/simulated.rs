//! Many system VMs of one server, simulated in this process: both ends of each link are in the figures.

use std::net::Ipv4Addr;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mgmt_stub::ca::{Ca, Presented};
use mgmt_stub::configuration::Configuration;
use mgmt_stub::driver::in_process::{InProcess, Options};
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::server::{Fixed, Server};
use mgmt_stub::settings::Settings;
use mgmt_stub::store::Store;
use mgmt_stub::store::id::{AccountId, PodId, ZoneId};
use mgmt_stub::store::instance::{InstanceType, NewInstance};
use mgmt_stub::system_vms::{AddressRange, Network, Networks, Place, SystemVms};
use mgmt_stub::zone::{Zone, ZoneHooks};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::process::rss;

/// For all to come Up, and for half of them to return.
const LIMIT: Duration = Duration::from_mins(10);
const LOOK: Duration = Duration::from_millis(50);
/// Starts that are asked for at the same time.
const AT_ONCE: usize = 128;

/// What came out.
#[derive(Debug)]
pub(super) struct Scale {
    /// From the first order until the last one is Up.
    pub(super) came: Duration,
    /// From the death of every second one until all are Up again.
    pub(super) returned: Duration,
    /// Of each VM, both ends, its row and its addresses.
    pub(super) kib_each: f64,
}

/// Brings so many up, kills every second one, and waits for all.
pub(super) async fn measure(count: u16) -> anyhow::Result<Scale> {
    let directory = tempfile::tempdir()?;
    let store = Store::open(directory.path())?;
    for (name, value) in [
        ("consoleproxy.management.state", "Manual"),
        ("system.vm.auto.reserve.capacity", "false"),
    ] {
        store.set_setting(name, value).await?;
    }
    let ca = Ca::open_or_create(directory.path().join("ca"))?;
    let presented = Presented::Leaf {
        names: vec!["mgmt".into()],
        addresses: Vec::new(),
    };
    let hooks = ZoneHooks::new();
    let shared: Arc<ZoneHooks> = Arc::clone(&hooks);
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let (settings, fixed) = (Settings::default(), Fixed::default());
    let server = Server::bind(address, store.clone(), ca.clone(), presented, settings, shared, fixed).await?;
    let configuration = Configuration::load(store.clone()).await?;
    let place = Place {
        zone: ZoneId(1),
        pod: PodId(1),
        servers: vec![Ipv4Addr::LOCALHOST.to_string()],
        port: server.local_addr()?.port(),
        console: (Ipv4Addr::LOCALHOST, 6080).into(),
        authorized_key: None,
        networks: Some(networks()?),
    };
    let driver = InProcess::new(Options::default());
    let agents = server.agents();
    let vms = SystemVms::new(
        store.clone(),
        agents.clone(),
        configuration.clone(),
        ca,
        Arc::new(driver.clone()),
        place,
    );
    let (zone, books) = Zone::new(store.clone(), agents, configuration, Some(vms.clone()), None);
    hooks.set(zone.clone());
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(zone.run(books, store.clone(), stop.clone()));
    tasks.spawn(server.serve(async move { stopped.cancelled().await }));

    let scale = run(&store, &vms, &driver, count).await;
    stop.cancel();
    tasks.join_all().await;
    scale
}

async fn run(store: &Store, vms: &SystemVms, driver: &InProcess, count: u16) -> anyhow::Result<Scale> {
    let before = rss(process::id())?;
    let began = Instant::now();
    let mut orders = JoinSet::new();
    for _ in 0..count {
        if orders.len() >= AT_ONCE {
            orders.join_next().await.context("there are orders")???;
        }
        let (store, vms) = (store.clone(), vms.clone());
        orders.spawn(async move {
            let vm = store.create_instance(console_proxy(), None).await?;
            vms.start(vm.id).await?;
            anyhow::Ok(())
        });
    }
    while let Some(order) = orders.join_next().await {
        order??;
    }
    all_are_up(store, count).await?;
    let came = began.elapsed();
    let kib = f64::from(rss(process::id())?.saturating_sub(before));

    let began = Instant::now();
    for vm in store.instances().await?.iter().step_by(2) {
        ensure!(driver.kill(&vm.name, "the power went"), "{} was off", vm.name);
    }
    // Nobody has seen it yet: the server must, before all are Up "again".
    while up(store).await? == usize::from(count) {
        ensure!(began.elapsed() < LIMIT, "nobody has seen the VMs die");
        sleep(LOOK / 10).await;
    }
    all_are_up(store, count).await?;
    Ok(Scale {
        came,
        returned: began.elapsed(),
        kib_each: kib / f64::from(count),
    })
}

async fn all_are_up(store: &Store, count: u16) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let up = up(store).await?;
        if up == usize::from(count) {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            bail!("{up} of {count} VMs are Up after {LIMIT:?}");
        }
        sleep(LOOK).await;
    }
}

async fn up(store: &Store) -> anyhow::Result<usize> {
    let vms = store.instances().await?;
    let running = vms.iter().filter(|vm| vm.state == InstanceState::Running).count();
    let hosts = store.hosts().await?;
    let up = hosts.iter().filter(|host| host.status == HostStatus::Up).count();
    Ok(running.min(up))
}

fn console_proxy() -> NewInstance {
    NewInstance {
        kind: InstanceType::ConsoleProxy,
        name: None,
        display_name: None,
        suffix: "VM".into(),
        hypervisor: "Simulator".into(),
        state: InstanceState::Stopped,
        reason: "new".into(),
        zone: ZoneId(1),
        pod: Some(PodId(1)),
        account: AccountId(1),
        role: None,
        os_type: None,
        public_ip: None,
        vnc: None,
    }
}

/// With room for 4,000 in each.
fn networks() -> anyhow::Result<Networks> {
    let mut networks = Networks::of_zone("172.16.0.0/12".parse()?)?;
    widen(&mut networks.management, Ipv4Addr::new(172, 16, 0, 0))?;
    widen(&mut networks.public, Ipv4Addr::new(172, 17, 0, 0))?;
    Ok(networks)
}

fn widen(network: &mut Network, first: Ipv4Addr) -> anyhow::Result<()> {
    let base = u32::from(first);
    network.subnet = format!("{first}/20").parse()?;
    network.gateway = (base + 1).into();
    network.ranges = vec![AddressRange {
        first: (base + 10).into(),
        last: (base + 4009).into(),
        is_for_system_vms: true,
    }];
    Ok(())
}
