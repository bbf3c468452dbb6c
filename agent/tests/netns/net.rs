//! Network namespaces as machines.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use agent::appliance::plan::current::Current;
use agent::appliance::plan::{Plan, changes};
use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns};
use platform::exec::{Cmd, ExecError, Output, Running};

/// Where `ip netns` keeps its namespaces: ip-netns(8).
const NAMESPACES: &str = "/run/netns";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A machine that has nothing but a loopback interface. It is gone when it is dropped.
pub(crate) struct Machine {
    name: String,
}

impl Machine {
    pub(crate) async fn new() -> Self {
        remove_abandoned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("plan-{}-{number}", std::process::id());
        Cmd::new("ip").args(["netns", "add", &name]).run().await.unwrap();
        let machine = Self { name };
        machine.ip("link set lo up").await;
        machine
    }

    /// One whose NICs `eth0`, `eth1`, … are each on a wire with another machine, on which the other end is `wire`.
    pub(crate) async fn with_nics<const N: usize>() -> (Self, [Self; N]) {
        let machine = Self::new().await;
        let mut others = Vec::new();
        for index in 0..N {
            let other = Self::new().await;
            let Self { name } = &other;
            machine
                .ip(&format!("link add eth{index} type veth peer name wire netns {name}"))
                .await;
            other.ip("link set wire up").await;
            others.push(other);
        }
        (machine, others.try_into().ok().unwrap())
    }

    pub(crate) async fn ip(&self, batch: &str) {
        let ip = Cmd::new("ip").args(["-n", &self.name, "-batch", "-"]);
        ip.stdin(batch).run().await.unwrap();
    }

    pub(crate) async fn run(&self, cmd: Cmd) -> Output {
        self.try_run(cmd).await.unwrap()
    }

    pub(crate) async fn try_run(&self, cmd: Cmd) -> Result<Output, ExecError> {
        let outer = Cmd::new("ip").args(["netns", "exec", &self.name]);
        cmd.through(outer).run().await
    }

    /// Starts a program that goes on; what it prints is in the file.
    pub(crate) fn spawn(&self, cmd: Cmd, log: &Path) -> Running {
        let outer = Cmd::new("ip").args(["netns", "exec", &self.name]);
        cmd.through(outer).spawn(log).unwrap()
    }

    pub(crate) async fn current(&self) -> Current {
        Current::read(&self.run(Current::question()).await.stdout).unwrap()
    }

    /// Carries out the network part of a plan; the lines for `ip`.
    pub(crate) async fn apply(&self, plan: &Plan) -> String {
        self.inside(|| plan.sysctl.iter().for_each(|(name, value)| set(name, value)));
        let batch = plan.ip_batch(&self.current().await);
        if !batch.is_empty() {
            self.run(changes::command(batch.clone())).await;
        }
        batch
    }

    pub(crate) async fn load(&self, plan: &Plan) {
        self.run(Cmd::new("nft").args(["-f", "-"]).stdin(plan.firewall.render()))
            .await;
    }

    pub(crate) async fn rules(&self) -> String {
        self.run(Cmd::new("nft").args(["list", "ruleset"])).await.text()
    }

    /// Calls `work` on a thread that is inside. Sockets made there stay inside wherever they are used then.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(self.path()).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            worker.join().unwrap()
        })
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMESPACES).join(&self.name)
    }
}

/// A kernel setting of the namespace that this thread is in. Those of NICs that are not there are left out.
fn set(name: &str, value: &str) {
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    match OpenOptions::new().write(true).open(&path) {
        Ok(mut file) => file.write_all(value.as_bytes()).unwrap(),
        Err(error) if error.kind() == ErrorKind::NotFound && name.contains(".eth") => {}
        Err(error) => unreachable!("{}: {error}", path.display()),
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// As `ip netns delete` does, but without waiting for a program: this is called while a test falls over.
fn remove(name: &str) {
    let path = Path::new(NAMESPACES).join(name);
    umount2(&path, MntFlags::MNT_DETACH).ok();
    std::fs::remove_file(&path).ok();
}

/// Removes namespaces of test runs that were killed.
fn remove_abandoned() {
    let entries = std::fs::read_dir(NAMESPACES)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix("plan-").and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}
