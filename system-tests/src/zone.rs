//! A zone of plain processes in a directory of its own: the management server with its process driver, the system VMs
//! that it starts, a local directory as secondary storage.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::{Cmd, ExecError, Running};
use serde_json::Value;
use tempfile::TempDir;

use crate::programs::{built, novnc};
use crate::wait;

/// For a zone to have its system VMs Up. Debug builds on two busy cores are slow.
const READY_LIMIT: Duration = Duration::from_mins(2);

/// A running zone. Dropping it kills all its processes and deletes its directory.
#[derive(Debug)]
pub struct Zone {
    directory: TempDir,
    store: PathBuf,
    /// Where the API and the page are.
    pub http: SocketAddr,
    agents: SocketAddr,
    console: SocketAddr,
    server: Option<Running>,
}

/// One object of a list: the first that `is_wanted`.
fn find(list: &Value, is_wanted: impl Fn(&Value) -> bool) -> Option<&Value> {
    list.as_array()?.iter().find(|object| is_wanted(object))
}

impl Zone {
    /// Starts a zone and waits until its system VMs are Up.
    pub async fn start() -> Self {
        let zone = Self::start_with_store(None).await;
        zone.system_vms_up().await;
        zone
    }

    /// Starts a zone whose secondary storage is an existing directory. Its system VMs are on their way.
    ///
    /// # Panics
    /// The server cannot be started.
    pub async fn start_with_store(store: Option<&Path>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("sysvm-zone-")
            .tempdir()
            .expect("a temporary directory can be made");
        let store = store.map_or_else(|| directory.path().join("store"), Path::to_owned);
        fs::create_dir_all(&store).expect("the store can be made");
        let mut zone = Self {
            http: free_port(),
            agents: free_port(),
            console: free_port(),
            server: None,
            store,
            directory,
        };
        zone.start_server().await;
        // URLs of tests are on loopback, which is refused unless an administrator allows it.
        zone.api(
            "updateConfiguration",
            &[("name", "secstorage.allowed.internal.sites"), ("value", "127.0.0.0/8")],
        )
        .await
        .expect("the setting exists");
        zone
    }

    /// The directory that is the secondary storage.
    pub fn store(&self) -> &Path {
        &self.store
    }

    fn data_dir(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Starts the management server, again after [`Zone::kill_server`], and waits until it answers.
    ///
    /// # Panics
    /// It does not start.
    pub async fn start_server(&mut self) {
        let server = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["serve", "--driver", "processes", "--ping-interval", "5"])
            .args(["--listen", &self.agents.to_string(), "--http", &self.http.to_string()])
            .args(["--console-listen", &self.console.to_string()])
            .arg("--novnc")
            .arg(novnc())
            .arg("--local-store")
            .arg(&self.store)
            .env("SYSVM_LOG", "debug")
            .spawn(self.directory.path().join("mgmt-stub.log"))
            .expect("mgmt-stub can be started");
        self.server = Some(server);
        wait::until("the API", READY_LIMIT, async || {
            self.api("listZones", &[]).await.map(drop)
        })
        .await;
    }

    /// As a power cut would: nothing is said to anybody.
    pub async fn kill_server(&mut self) {
        self.server = None; // kills it
        wait::until("the port of the API is free", Duration::from_secs(10), async || {
            TcpListener::bind(self.http)
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .await;
    }

    /// One API call through the server's own command line; the object inside the answer.
    ///
    /// # Errors
    /// What the command line printed.
    pub async fn api(&self, command: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let call = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["api", command])
            .args(parameters.iter().map(|(name, value)| format!("{name}={value}")));
        let printed = call.run().await.map_err(|error: ExecError| error.to_string())?;
        serde_json::from_slice(&printed.stdout).map_err(|error| format!("{error}: {}", printed.text()))
    }

    /// A new one-time password of the administrator.
    ///
    /// # Panics
    /// There is none.
    pub async fn one_time_password(&self) -> String {
        let reset = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.data_dir())
            .arg("reset-admin-password");
        let printed = reset.run().await.expect("the password can be reset");
        printed.text().trim().to_owned()
    }

    /// The objects of a list command; none at all is an empty list.
    ///
    /// # Errors
    /// The call failed.
    pub async fn list(&self, command: &str, object: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let mut answer = self.api(command, parameters).await?;
        Ok(answer.get_mut(object).map_or(Value::Array(Vec::new()), Value::take))
    }

    /// The id of the zone.
    ///
    /// # Panics
    /// It has none.
    pub async fn id(&self) -> String {
        let zones = self.list("listZones", "zone", &[]).await.expect("zones can be listed");
        zones[0]["id"].as_str().expect("a zone has an id").to_owned()
    }

    /// Waits until the SSVM and the console proxy are Running with their agents Up.
    pub async fn system_vms_up(&self) {
        for kind in ["secondarystoragevm", "consoleproxy"] {
            self.system_vm_up(kind).await;
        }
    }

    /// Waits for one system VM; answers its name.
    pub async fn system_vm_up(&self, kind: &str) -> String {
        let up = wait::until(kind, READY_LIMIT, async || {
            let vms = self.list("listSystemVms", "systemvm", &[]).await?;
            let is_up = |vm: &Value| vm["systemvmtype"] == kind && vm["state"] == "Running" && vm["agentstate"] == "Up";
            find(&vms, is_up).cloned().ok_or_else(|| vms.to_string())
        });
        up.await["name"].as_str().unwrap_or_default().to_owned()
    }

    /// Registers a template; answers its id.
    ///
    /// # Panics
    /// It is refused.
    pub async fn register(&self, name: &str, format: &str, url: &str, more: &[(&str, &str)]) -> String {
        let zone = self.id().await;
        let mut parameters = vec![
            ("name", name),
            ("displaytext", name),
            ("format", format),
            ("hypervisor", "KVM"),
            ("url", url),
            ("zoneid", &zone),
        ];
        parameters.extend(more);
        let answer = self
            .api("registerTemplate", &parameters)
            .await
            .expect("the template is taken");
        let id = &answer["template"][0]["id"];
        id.as_str().unwrap_or_else(|| panic!("no id in {answer}")).to_owned()
    }

    /// The template as the API shows it.
    ///
    /// # Errors
    /// It cannot be listed.
    pub async fn template(&self, id: &str) -> Result<Value, String> {
        let filter = [("templatefilter", "all"), ("id", id)];
        let mut list = self.list("listTemplates", "template", &filter).await?;
        let first = list.get_mut(0).map(Value::take);
        first.ok_or_else(|| format!("there is no template {id}"))
    }

    /// Percent of a template's download, as its `downloaddetails` say.
    ///
    /// # Errors
    /// It cannot be listed.
    pub async fn percent(&self, id: &str) -> Result<u64, String> {
        let template = self.template(id).await?;
        let percent = &template["downloaddetails"][0]["downloadPercent"];
        let number = percent.as_u64().or_else(|| percent.as_str()?.parse().ok());
        Ok(number.unwrap_or_default())
    }

    /// Waits until a template is Ready.
    pub async fn template_ready(&self, id: &str, limit: Duration) -> Value {
        wait::until("the template is ready", limit, async || {
            let template = self.template(id).await?;
            if template["isready"] == true {
                Ok(template)
            } else {
                Err(template.to_string())
            }
        })
        .await
    }

    /// Kills the process of a system VM, as `kill -9` does.
    ///
    /// # Panics
    /// It has none.
    pub fn kill_system_vm(&self, name: &str) {
        let pid = self.processes_with(name);
        assert!(!pid.is_empty(), "no process of {name}");
        for pid in pid {
            kill(pid, Signal::SIGKILL).expect("it can be killed");
        }
    }

    /// The file of a template on the store.
    ///
    /// # Panics
    /// There is none.
    pub fn stored(&self, template: &Value) -> PathBuf {
        let mut found = Vec::new();
        images_below(&self.store, &mut found);
        let size = template["physicalsize"].as_u64();
        let matching = found
            .iter()
            .find(|path| fs::metadata(path).is_ok_and(|file| Some(file.len()) == size));
        matching
            .unwrap_or_else(|| panic!("{size:?} bytes are not in {found:?}"))
            .clone()
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("mgmt-stub.log")).unwrap_or_default()
    }

    /// Processes that have the zone's directory and `word` on their command line.
    fn processes_with(&self, word: &str) -> Vec<Pid> {
        let directory = self.directory.path().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ours = entries.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).into_owned();
            (line.contains(&directory) && line.contains(word)).then(|| Pid::from_raw(pid))
        });
        ours.filter(|pid| *pid != Pid::this()).collect()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(60).collect();
            for line in tail.iter().rev() {
                println!("mgmt-stub: {line}");
            }
        }
        self.server = None;
        for pid in self.processes_with("") {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

fn images_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            images_below(&path, found);
        } else if path.extension().is_none_or(|extension| extension != "properties") {
            found.push(path);
        }
    }
}

/// Free when asked; the port range is large enough that it still is a moment later.
fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("there is a free port");
    listener.local_addr().expect("a bound socket has an address")
}
