//! Every driver does the same: [`mgmt_stub::driver::conformance`] on each of them.

#![expect(clippy::unwrap_used, reason = "tests")]

mod qemu;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mgmt_stub::ca::{Ca, Request};
use mgmt_stub::driver::conformance::{self, Later, Subject};
use mgmt_stub::driver::in_process::{InProcess, Options};
use mgmt_stub::driver::processes::{Processes, Programs};
use mgmt_stub::driver::{Driver, Purpose, VmSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protocol::secret::Secret;
use tempfile::TempDir;

/// A VM whose agent finds nobody: port 9 of this machine is closed.
fn spec(ca: &Ca, name: &str) -> VmSpec {
    let request = Request::new("s-901-VM".into(), vec!["s-901-VM".into()], Vec::new());
    VmSpec {
        name: name.to_owned(),
        purpose: Purpose::SecondaryStorage { stores: Vec::new() },
        boot_args: Secret::new(
            " template=domP type=secstorage host=127.0.0.1 port=9 name=s-901-VM zone=1 pod=1 guid=s-901-VM workers=5 \
             resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource instance=SecStorage \
             sslcopy=false role=templateProcessor mtu=1500 eth2ip=127.0.0.1 eth2mask=255.0.0.0 \
             public.network.device=eth2 eth0ip=0.0.0.0 eth0mask=0.0.0.0 eth1ip=127.0.0.1 eth1mask=255.0.0.0 \
             private.network.device=eth1 keystore_password=cGFzc3dvcmQ= useHttpsToUpload=true"
                .into(),
        ),
        identity: Some(ca.issue(&request).unwrap()),
        nics: Vec::new(),
        cpus: 1,
        memory_mib: 64,
        vnc_password: Secret::new("password".into()),
    }
}

struct Own {
    directory: TempDir,
    ca: Ca,
    driver: Option<Processes>,
}

impl Own {
    fn open(&mut self) {
        let own = std::env::current_exe().unwrap();
        let fake_vm = own.parent().unwrap().parent().unwrap().join("examples/fake_vm");
        assert!(
            fake_vm.exists(),
            "`cargo test` builds it; with --test: cargo build -p mgmt-stub --example fake_vm"
        );
        let programs = Programs {
            ssvm: fake_vm.clone(),
            console_proxy: fake_vm,
            novnc: None,
        };
        self.driver = Some(Processes::open(self.vms(), programs).unwrap());
    }

    fn vms(&self) -> PathBuf {
        self.directory.path().join("vms")
    }
}

impl Subject for Own {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone().unwrap())
    }

    fn spec(&self, name: &str) -> VmSpec {
        spec(&self.ca, name)
    }

    fn kill<'a>(&'a mut self, name: &'a str) -> Later<'a> {
        let text = std::fs::read_to_string(self.vms().join(name).join("process")).unwrap();
        let process: platform::exec::Process = text.parse().unwrap();
        kill(Pid::from_raw(process.pid()), Signal::SIGKILL).unwrap();
        Box::pin(std::future::ready(()))
    }

    fn reopen<'a>(&'a mut self, meanwhile: Option<&'a str>) -> Later<'a> {
        Box::pin(async move {
            self.driver = None;
            if let Some(name) = meanwhile {
                self.kill(name).await;
            }
            self.open();
        })
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(20)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_as_all_drivers_are() {
    platform::crypto::install();
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(directory.path().join("ca")).unwrap();
    let mut subject = Own {
        directory,
        ca,
        driver: None,
    };
    subject.open();
    let checked = conformance::check(&mut subject).await;
    let (_, failed) = subject.driver.unwrap().stop_all().await;
    assert!(failed.is_empty(), "{failed:?}");
    checked.unwrap();
}

struct Simulated {
    ca: Ca,
    driver: InProcess,
}

impl Subject for Simulated {
    fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(self.driver.clone())
    }

    fn spec(&self, name: &str) -> VmSpec {
        spec(&self.ca, name)
    }

    fn kill<'a>(&'a mut self, name: &'a str) -> Later<'a> {
        assert!(self.driver.kill(name, "killed"), "{name} is off");
        Box::pin(std::future::ready(()))
    }

    /// Its VMs live as long as this process: another server here is another clone.
    fn reopen<'a>(&'a mut self, meanwhile: Option<&'a str>) -> Later<'a> {
        if let Some(name) = meanwhile {
            self.driver.kill(name, "killed");
        }
        self.driver = self.driver.clone();
        Box::pin(std::future::ready(()))
    }

    fn limit(&self) -> Duration {
        Duration::from_secs(5)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simulated_vms_are_as_all_drivers_are() {
    platform::crypto::install();
    let directory = tempfile::tempdir().unwrap();
    let mut subject = Simulated {
        ca: Ca::open_or_create(directory.path().join("ca")).unwrap(),
        driver: InProcess::new(Options::default()),
    };
    conformance::check(&mut subject).await.unwrap();
}
