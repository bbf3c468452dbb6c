//! A VM that runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use hypervisor::guest_agent::{GuestAgent, Ran};
use hypervisor::qmp::Event;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use platform::exec::{Cmd, Running};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::evidence::{self, Evidence, Label};
use super::hardware::{LEASH, Machine, Nic, Places};
use super::{BOOT_LIMIT, Vm};
use crate::qmp::Monitor;

/// For a program in the guest, unless the test says otherwise.
const RUN_LIMIT: Duration = Duration::from_mins(1);
/// For QEMU to open its sockets.
const SOCKET_LIMIT: Duration = Duration::from_secs(30);
/// For a QEMU that has closed its monitor to be gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For the guest to let go of a NIC.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);
/// For a killed QEMU to be gone, and reaped by whoever does that here.
const GONE_LIMIT: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);

/// A running VM. Dropping it kills it.
#[derive(Debug)]
pub struct Booted {
    vm: Vm,
    places: Places,
    label: Label,
    qemu: Mutex<Running>,
    /// There until the drop.
    monitor: Mutex<Option<Monitor>>,
    agent: Mutex<Option<GuestAgent>>,
    has_evidence: AtomicBool,
    /// Dropped last: QEMU has its files in here.
    directory: Arc<TempDir>,
}

impl Booted {
    pub(super) async fn start(
        vm: Vm,
        directory: Arc<TempDir>,
        mut places: Places,
        more_arguments: &[&str],
    ) -> anyhow::Result<Self> {
        vm.make_parts(&mut places).await?;
        let qemu = Cmd::new("setpriv")
            .args(LEASH)
            .args(vm.hardware.arguments(&places))
            .args(more_arguments);
        let qemu = match &vm.net {
            Some(net) => net.command(qemu),
            None => qemu,
        };
        let log = directory.path().join(evidence::QEMU_LOG);
        let mut running = qemu.spawn(&log)?;
        let socket = places.monitor();
        let ended_at_once = |status| anyhow::anyhow!("QEMU ended at once ({status})");
        let mut monitor = tokio::select! {
            monitor = Monitor::connect(&socket) => monitor,
            ended = running.wait() => Err(ended_at_once(ended?)),
        };
        // It may open its monitor before it finds something that it does not like.
        if monitor.is_err()
            && let Ok(ended) = timeout(LAST_WORDS, running.wait()).await
        {
            monitor = Err(ended_at_once(ended?));
        }
        let monitor = monitor.with_context(|| {
            let printed = fs::read_to_string(&log).unwrap_or_default();
            format!("starting `{qemu}`: {}", printed.trim())
        })?;
        Ok(Self {
            vm,
            places,
            label: Label::next(),
            qemu: Mutex::new(running),
            monitor: Mutex::new(Some(monitor)),
            agent: Mutex::new(None),
            has_evidence: AtomicBool::new(false),
            directory,
        })
    }

    /// Starts a VM that has ended once more, from its own disk, as a host does after a stop. Waits for nothing.
    ///
    /// # Errors
    /// It still runs, or as [`Vm::start`].
    pub async fn start_again(self) -> anyhow::Result<Self> {
        ensure!(
            self.qemu.lock().await.id().is_none(),
            "the VM still runs; wait with Booted::ended"
        );
        let places = Places {
            taps: Vec::new(),
            ..self.places.clone()
        };
        Self::start(self.vm.clone(), Arc::clone(&self.directory), places, &[]).await
    }

    /// Cuts its power: what the guest has not flushed to its disk may be lost. [`Booted::start_again`] gives it back.
    ///
    /// # Errors
    /// It cannot be killed.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        let mut qemu = self.qemu.lock().await;
        if let Some(group) = qemu.id().and_then(|id| i32::try_from(id).ok()) {
            let group = Pid::from_raw(group);
            killpg(group, Signal::SIGKILL).context("killing QEMU")?;
            qemu.wait().await?;
            // That was the program that keeps QEMU on its leash. QEMU itself has the disk until it is gone, too.
            let started = Instant::now();
            while killpg(group, None).is_ok() && started.elapsed() < GONE_LIMIT {
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Waits until the guest agent answers.
    ///
    /// # Errors
    /// It does not within `limit`, or QEMU ends.
    pub async fn agent_up(&self, limit: Duration) -> anyhow::Result<()> {
        // QEMU serves one connection at a time: an earlier one of ours would be in the way.
        *self.agent.lock().await = None;
        let answers = async {
            let mut agent = GuestAgent::connect(&self.places.guest_agent(), SOCKET_LIMIT).await?;
            agent.up(limit).await?;
            anyhow::Ok(agent)
        };
        let answered = tokio::select! {
            answered = answers => answered,
            ended = self.wait_for_end() => Err(anyhow::anyhow!("QEMU ended ({})", ended?)),
        };
        let agent = self.judge(answered).await?;
        *self.agent.lock().await = Some(agent);
        Ok(())
    }

    /// Waits until the guest has started all it starts, and knows all its devices: it starts before it has loaded the
    /// drivers of those that it needs not start.
    ///
    /// # Errors
    /// A unit has failed, or this takes too long.
    pub async fn up(&self) -> anyhow::Result<()> {
        let wait = ["systemctl", "is-system-running", "--wait"];
        let state = self.run_within(BOOT_LIMIT, &wait).await?;
        if state.stdout == "running\n" {
            self.text(&["udevadm", "settle", "--timeout=60"]).await?;
            return Ok(());
        }
        let failed = self.run(&["systemctl", "--failed", "--no-legend", "--plain"]).await?;
        let why = anyhow::anyhow!("the guest is {}; failed units:\n{}", state.stdout.trim(), failed.stdout);
        self.judge(Err(why)).await
    }

    /// Runs a program in the guest: its name, then its arguments; no shell. Any exit code is an answer.
    ///
    /// # Errors
    /// It does not start, or has not ended after a minute.
    pub async fn run(&self, words: &[&str]) -> anyhow::Result<Ran> {
        self.run_within(RUN_LIMIT, words).await
    }

    /// As [`Booted::run`], with another limit.
    ///
    /// # Errors
    /// As [`Booted::run`].
    pub async fn run_within(&self, limit: Duration, words: &[&str]) -> anyhow::Result<Ran> {
        self.with_agent(async |agent| Ok(agent.exec(words, b"", limit).await?))
            .await
    }

    /// What a program prints that must succeed.
    ///
    /// # Errors
    /// Its exit code is not 0, or as [`Booted::run`].
    pub async fn text(&self, words: &[&str]) -> anyhow::Result<String> {
        let ran = self.run(words).await?;
        self.judge(ran.success(words).map_err(Into::into)).await
    }

    /// A file of the guest as text, also one of `/proc` or `/sys`.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub async fn read(&self, path: &str) -> anyhow::Result<String> {
        let contents = self.with_agent(async |agent| Ok(agent.read(path).await?)).await?;
        String::from_utf8(contents).with_context(|| format!("reading {path} of the guest"))
    }

    /// Writes a file of the guest. A new one can be written by everybody there.
    ///
    /// # Errors
    /// The guest cannot.
    pub async fn write(&self, path: &str, contents: &[u8]) -> anyhow::Result<()> {
        self.with_agent(async |agent| Ok(agent.write(path, contents).await?))
            .await
    }

    /// Gives the guest its boot arguments, as a KVM host does.
    ///
    /// # Errors
    /// The guest does not take them.
    pub async fn pass_cmdline(&self, line: &str) -> anyhow::Result<()> {
        self.with_agent(async |agent| Ok(agent.pass_cmdline(line, RUN_LIMIT).await?))
            .await
    }

    /// Anything else that the agent can do.
    ///
    /// # Errors
    /// Those of `work`, and before [`Booted::agent_up`].
    pub async fn with_agent<T>(
        &self,
        work: impl AsyncFnOnce(&mut GuestAgent) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let done = match self.agent.lock().await.as_mut() {
            Some(agent) => work(agent).await,
            None => bail!("the guest agent has not answered yet; wait with Booted::agent_up"),
        };
        self.judge(done).await
    }

    /// QEMU's monitor.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn with_monitor<T>(
        &self,
        work: impl AsyncFnOnce(&mut Monitor) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let done = match self.monitor.lock().await.as_mut() {
            Some(monitor) => work(monitor).await,
            None => bail!("the VM is being dropped"),
        };
        self.judge(done).await
    }

    /// Presses the power button.
    ///
    /// # Errors
    /// QEMU refuses.
    pub async fn press_power_button(&self) -> anyhow::Result<()> {
        self.with_monitor(async |monitor| monitor.call("system_powerdown", json!({})).await.map(drop))
            .await
    }

    /// Presses the reset button. The agent is gone until [`Booted::agent_up`].
    ///
    /// # Errors
    /// QEMU refuses, or the VM was not made with [`Vm::may_reboot`].
    pub async fn reset(&self) -> anyhow::Result<()> {
        ensure!(
            self.vm.hardware.may_reboot,
            "a reset would end this VM; make it with Vm::may_reboot"
        );
        *self.agent.lock().await = None;
        self.with_monitor(async |monitor| monitor.call("system_reset", json!({})).await.map(drop))
            .await
    }

    /// Asks the guest, through its agent, to power off.
    ///
    /// # Errors
    /// It cannot be asked.
    pub async fn shut_down(&self) -> anyhow::Result<()> {
        self.with_agent(async |agent| Ok(agent.shutdown().await?)).await
    }

    /// Waits until QEMU has ended; how long that took.
    ///
    /// # Errors
    /// It has not within `limit`, or has failed.
    pub async fn ended(&self, limit: Duration) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let ended = match timeout(limit, self.wait_for_end()).await {
            Ok(Ok(status)) if status.success() => Ok(started.elapsed()),
            Ok(Ok(status)) => Err(anyhow::anyhow!("QEMU failed ({status})")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(anyhow::anyhow!("the VM still runs after {limit:?}")),
        };
        self.judge(ended).await
    }

    async fn wait_for_end(&self) -> anyhow::Result<ExitStatus> {
        Ok(self.qemu.lock().await.wait().await?)
    }

    /// Plugs in a NIC while the VM runs. `id` names it for [`Booted::unplug`].
    ///
    /// # Errors
    /// QEMU refuses, or the mainboard cannot do it.
    pub async fn plug(&self, id: &str, nic: &Nic) -> anyhow::Result<()> {
        let machine = self.vm.hardware.machine;
        ensure!(
            machine == Machine::Pc,
            "NICs can be plugged into a running Machine::Pc, not into {machine:?}"
        );
        let backend = match nic.tap(self.vm.net.as_ref()).await? {
            Some(tap) => json!({"type": "tap", "id": id, "ifname": tap, "script": "no", "downscript": "no"}),
            None => json!({"type": "hubport", "id": id, "hubid": self.vm.hardware.nics.len()}),
        };
        let device = json!({"driver": nic.model.device(), "id": format!("{id}-device"), "netdev": id, "mac": nic.mac});
        self.with_monitor(async |monitor| {
            monitor.call("netdev_add", backend).await?;
            monitor.call("device_add", device).await.map(drop)
        })
        .await
    }

    /// Unplugs a NIC that [`Booted::plug`] has plugged in, and waits until the guest has let go of it.
    ///
    /// # Errors
    /// It does not.
    pub async fn unplug(&self, id: &str) -> anyhow::Result<()> {
        let device = format!("{id}-device");
        self.with_monitor(async |monitor| {
            monitor.call("device_del", json!({"id": device})).await?;
            let is_it = |event: &Event| {
                let Event::Other { name, data } = event else {
                    return false;
                };
                name == "DEVICE_DELETED" && data["device"] == device.as_str()
            };
            monitor.event(UNPLUG_LIMIT, is_it).await?;
            monitor.call("netdev_del", json!({"id": id})).await.map(drop)
        })
        .await
    }

    /// Connects to a virtio-serial port of [`Vm::port`].
    ///
    /// # Errors
    /// The VM has none of that name.
    pub async fn port(&self, name: &str) -> anyhow::Result<UnixStream> {
        Ok(UnixStream::connect(self.socket(name)?).await?)
    }

    /// The socket of a virtio-serial port.
    pub(super) fn socket(&self, name: &str) -> anyhow::Result<PathBuf> {
        let number = self.vm.hardware.ports.iter().position(|port| port == name);
        let number = number.with_context(|| format!("the VM has no port {name}; give it one with Vm::port"))?;
        Ok(self.places.port(number))
    }

    /// What the guest has written to its serial console, without terminal escapes.
    pub fn console(&self) -> String {
        evidence::plain(&fs::read(self.places.console()).unwrap_or_default())
    }

    /// Waits until the guest has written `text` to its serial console.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub async fn says(&self, text: &str, limit: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        while !self.console().contains(text) {
            if started.elapsed() > limit {
                let why = anyhow::anyhow!("the console does not say {text:?} within {limit:?}");
                return self.judge(Err(why)).await;
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Sets the guest's clock to ours: a VM from a snapshot has the time at which that was made.
    pub(super) async fn set_clock(&self) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        self.text(&["date", "--set", &format!("@{}", now.as_secs())])
            .await
            .map(drop)
    }

    /// Where its files are while it runs.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.places.disk()
    }

    /// Keeps what is known of this VM for somebody who wants to know why its test failed: done by itself when a method
    /// fails or the test panics; to be called when it fails otherwise. The directory that it is in.
    pub async fn keep_evidence(&self) -> &Path {
        if !self.has_evidence.swap(true, Ordering::Relaxed) {
            let mut evidence = Evidence::new(&self.label, self.directory.path());
            if let Some(monitor) = self.monitor.lock().await.as_mut() {
                evidence.ask_monitor(monitor).await;
            }
            if let Some(agent) = self.agent.lock().await.as_mut() {
                evidence.ask_agent(agent).await;
            }
            evidence.tell();
        }
        &self.label.0
    }

    async fn judge<T>(&self, result: anyhow::Result<T>) -> anyhow::Result<T> {
        if result.is_err() {
            self.keep_evidence().await;
        }
        result
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.has_evidence.swap(true, Ordering::Relaxed) {
            let monitor = self.monitor.get_mut().take();
            // QEMU serves one client at a time, and our runtime stands still.
            let has_agent = self.agent.get_mut().take().is_some();
            evidence::collect_outside(&self.label, &self.places, monitor, has_agent);
        }
    }
}
