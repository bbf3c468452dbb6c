//! A driver whose VMs are entries of a table: it records what it is told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use mgmt_stub::driver::{Doing, Driver, DriverError, Power, Purpose, Screen, Usage, VmSpec};
use tokio::sync::watch;

#[derive(Default)]
pub(crate) struct FakeDriver {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
pub(crate) struct State {
    /// Of each VM that it knows: how it was started, and why it is off.
    pub(crate) vms: BTreeMap<String, (VmSpec, Option<String>)>,
    /// Such as `start i-1-1-VM`.
    pub(crate) calls: Vec<String>,
    /// The next start fails.
    pub(crate) is_broken: bool,
}

impl FakeDriver {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// It ends without having been asked to.
    pub(crate) fn end(&self, name: &str, why: &str) {
        self.state().vms.get_mut(name).unwrap().1 = Some(why.into());
        self.changed.send_modify(|count| *count += 1);
    }

    /// Somebody should look.
    pub(crate) fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn off(&self, call: &str, name: &str) {
        let mut state = self.state();
        state.calls.push(format!("{call} {name}"));
        if let Some(vm) = state.vms.get_mut(name) {
            vm.1 = Some("stopped".into());
        }
    }
}

impl Driver for FakeDriver {
    fn hypervisor(&self) -> &'static str {
        "KVM"
    }

    fn start<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(async move {
            let mut state = self.state();
            state.calls.push(format!("start {}", vm.name));
            if std::mem::take(&mut state.is_broken) {
                return Err(DriverError::Name("/secret/path".into()));
            }
            state.vms.insert(vm.name.clone(), (vm.clone(), None));
            Ok(())
        })
    }

    fn stop<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            self.off("stop", name);
            Ok(())
        })
    }

    fn power_off<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            self.off("power off", name);
            Ok(())
        })
    }

    fn reboot<'a>(&'a self, vm: &'a VmSpec) -> Doing<'a, ()> {
        Box::pin(async move {
            self.state().calls.push(format!("reboot {}", vm.name));
            Ok(())
        })
    }

    fn destroy<'a>(&'a self, name: &'a str) -> Doing<'a, ()> {
        Box::pin(async move {
            let mut state = self.state();
            state.calls.push(format!("destroy {name}"));
            state.vms.remove(name);
            Ok(())
        })
    }

    fn power(&self, name: &str) -> Power {
        match self.state().vms.get(name) {
            Some((_, None)) => Power::On,
            Some((_, Some(why))) => Power::Off(why.clone()),
            None => Power::Off("it is not known".into()),
        }
    }

    fn last_words(&self, name: &str) -> Option<String> {
        self.state().vms.contains_key(name).then(|| "login: ".into())
    }

    fn usage(&self, name: &str) -> Option<Usage> {
        let is_on = matches!(self.power(name), Power::On);
        is_on.then_some(Usage {
            cpu: Duration::from_secs(1),
            memory: 64 << 20,
            received: 2048,
            sent: 1024,
        })
    }

    fn screen(&self, name: &str) -> Option<Screen> {
        let state = self.state();
        let (spec, off) = state.vms.get(name)?;
        let is_of_user = matches!(spec.purpose, Purpose::User { .. });
        (off.is_none() && is_of_user).then(|| Screen {
            address: "172.31.1.1:5900".parse().unwrap(),
            password: spec.vnc_password.clone(),
        })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
