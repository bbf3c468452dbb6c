//! The commands of an operator, against a real server with the driver `simulator`; and `doctor`.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::{Cmd, Exited};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

/// On two busy cores, with a debug build.
const LIMIT: Duration = Duration::from_mins(2);

fn program(data: &Path) -> Cmd {
    let program = Cmd::new(env!("CARGO_BIN_EXE_mgmt-stub"));
    program.arg("--data-dir").arg(data).time_limit(LIMIT)
}

async fn run(data: &Path, words: &[&str]) -> (Option<i32>, String, String) {
    let Exited { status, stdout, stderr } = program(data).args(words).run_to_exit().await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), stderr)
}

async fn json(data: &Path, words: &[&str]) -> Value {
    let (code, stdout, stderr) = run(data, words).await;
    assert_eq!(code, Some(0), "{words:?}: {stderr}");
    serde_json::from_str(&stdout).unwrap()
}

fn free_ports() -> [String; 2] {
    let taken = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    taken.map(|listener| listener.local_addr().unwrap().to_string())
}

/// A zone that is up; `down` ends it when it is dropped, too.
struct Zone {
    /// What its data directory is made in.
    _place: TempDir,
    data: PathBuf,
}

impl Zone {
    async fn up() -> (Self, Value) {
        let place = tempdir().unwrap();
        let zone = Self {
            data: place.path().join("data"),
            _place: place,
        };
        let [http, console] = free_ports();
        let words = [
            "up",
            "--json",
            "--driver",
            "simulator",
            "--http",
            &http,
            "--console-listen",
            &console,
        ];
        let store = [
            "--",
            "--listen",
            "127.0.0.1:0",
            "--image-store",
            "nfs://172.31.3.5/export",
        ];
        let answer = json(zone.path(), &[&words[..], &store[..]].concat()).await;
        (zone, answer)
    }

    fn path(&self) -> &Path {
        &self.data
    }

    fn pid(&self) -> Option<i32> {
        let file = std::fs::read(self.path().join("server.json")).ok()?;
        let file: Value = serde_json::from_slice(&file).unwrap();
        file["process"].as_str()?.split(' ').next()?.parse().ok()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        if let Some(pid) = self.pid() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[tokio::test]
async fn a_zone_comes_up_is_looked_at_and_goes_down() {
    let (zone, up) = Zone::up().await;
    let data = zone.path();
    assert_eq!((&up["ready"], &up["user"]), (&true.into(), &"admin".into()), "{up}");
    let password = up["password"].as_str().unwrap();
    let url = up["url"].as_str().unwrap();
    let address: SocketAddr = url
        .strip_prefix("http://")
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(std::net::TcpStream::connect(address).is_ok());

    let (code, again, _) = run(data, &["up", "--driver", "simulator"]).await;
    assert_eq!(code, Some(0));
    assert!(again.contains(password) && again.contains(url), "{again}");
    let log = std::fs::read_to_string(data.join("mgmt-stub.log")).unwrap();
    assert!(!log.contains(password), "passwords are in no log");

    let status = json(data, &["status", "--json"]).await;
    assert_eq!(status["server"]["pid"], up["pid"]);
    assert_eq!(status["server"]["driver"], "simulator");
    let names: Vec<_> = status["systemvms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| &vm["name"])
        .collect();
    assert_eq!(names.len(), 2, "{status}");
    let (code, table, _) = run(data, &["status"]).await;
    assert_eq!(code, Some(0));
    for part in [
        "State     ready",
        "SYSTEM VM  TYPE ",
        "console proxy",
        "secondary storage VM",
    ] {
        assert!(table.contains(part), "{part:?} is not in:\n{table}");
    }
    let (code, nothing, _) = run(data, &["status", "--quiet"]).await;
    assert_eq!((code, nothing.as_str()), (Some(0), ""));

    let (code, _, told) = run(data, &["down"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(
        told.ends_with(&format!("All is down. The data are in {}.\n", data.display())),
        "{told}"
    );
    assert_eq!(zone.pid(), None);
    let (code, text, _) = run(data, &["status"]).await;
    assert_eq!(code, Some(3));
    assert!(
        text.starts_with(&format!("Server    does not run in {}", data.display())),
        "{text}"
    );
    let (code, _, error) = run(data, &["sysvm", "list"]).await;
    assert_eq!(code, Some(3));
    assert!(error.starts_with("error: cannot reach a server at "), "{error}");
}

#[tokio::test]
async fn system_vms_are_shown_and_destroyed_by_name() {
    let (zone, _) = Zone::up().await;
    let data = zone.path();
    let vms = json(data, &["sysvm", "list", "--json"]).await;
    let name = vms[0]["name"].as_str().unwrap().to_owned();
    let (_, table, _) = run(data, &["sysvm", "list"]).await;
    assert!(table.contains(&name), "{table}");
    let (_, shown, _) = run(data, &["sysvm", "show", &name]).await;
    let has = |field: &str, value: &str| {
        let mut lines = shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.any(|words| words == [field, value])
    };
    assert!(has("name", &name) && has("state", "Running"), "{shown}");
    let (code, _, error) = run(data, &["sysvm", "show", "s-77-VM"]).await;
    assert_eq!(code, Some(1));
    assert_eq!(
        error,
        "error: there is no system VM s-77-VM; `mgmt-stub sysvm list` shows those that there are\n"
    );
    let (code, _, told) = run(data, &["sysvm", "destroy", &name]).await;
    assert_eq!((code, told), (Some(0), format!("{name} is gone.\n")));
    let (code, _, error) = run(data, &["sysvm", "log", "v-2-VM"]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains(" has no log here: "), "{error}");
    let (code, _, error) = run(data, &["sysvm", "checks", "v-2-VM"]).await;
    assert_eq!(code, Some(1), "{error}");
}

#[tokio::test]
async fn templates_and_vms_are_found_by_name_and_refusals_are_told() {
    let (zone, _) = Zone::up().await;
    let data = zone.path();
    let (_, none, _) = run(data, &["template", "list"]).await;
    assert_eq!(
        none,
        "There are no templates; `mgmt-stub template register` brings one.\n"
    );
    let (_, none, _) = run(data, &["vm", "list"]).await;
    assert_eq!(none, "There are no VMs; `mgmt-stub vm deploy` makes one.\n");
    let (code, _, error) = run(data, &["template", "register", "file:///etc/passwd", "--name", "bad"]).await;
    assert_eq!(code, Some(1));
    assert!(error.contains("(errorcode 431)"), "{error}");

    let url = "http://192.0.2.1/a.qcow2";
    let registered = json(data, &["template", "register", url, "--name", "a", "--json"]).await;
    assert_eq!(registered["url"], url);
    let listed = json(data, &["template", "list", "--json"]).await;
    assert_eq!(listed[0]["id"], registered["id"]);
    let (code, _, error) = run(data, &["vm", "deploy", "--template", "b"]).await;
    assert_eq!(code, Some(1));
    assert_eq!(
        error,
        "error: there is no template b; `mgmt-stub template list` shows those that there are\n"
    );

    let register = [
        "api",
        "registerExternalVirtualMachine",
        "name=web-1",
        "vncaddress=127.0.0.1",
        "vncport=5999",
    ];
    json(data, &register).await;
    let (_, table, _) = run(data, &["vm", "list"]).await;
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "STATE", "TEMPLATE", "MEMORY", "HYPERVISOR", "REASON"]);
    assert_eq!(rows[1][..5], ["web-1", "Running", "-", "-", "External"]);
    let (code, url, error) = run(data, &["console", "web-1"]).await;
    assert_eq!(code, Some(0), "{error}");
    assert!(url.starts_with("http"), "{url}");
}

#[tokio::test]
async fn a_zone_that_was_killed_is_ended_by_down() {
    let (zone, up) = Zone::up().await;
    let pid = i32::try_from(up["pid"].as_i64().unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let (code, _, told) = run(zone.path(), &["down"]).await;
    assert_eq!(code, Some(0), "{told}");
    assert!(!zone.path().join("server.json").exists());
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let data = tempdir().unwrap();
    let [http, console] = free_ports();
    let words = [
        "up",
        "--driver",
        "simulator",
        "--http",
        &http,
        "--console-listen",
        &console,
    ];
    let (code, _, error) = run(data.path(), &[&words[..], &["--", "--threads", "0"]].concat()).await;
    assert_eq!(code, Some(1));
    assert!(
        error.contains("the server has ended; the end of ") && error.contains("--threads"),
        "{error}"
    );

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let words = [
        "up",
        "--driver",
        "simulator",
        "--http",
        &taken,
        "--console-listen",
        &console,
    ];
    let (code, _, error) = run(data.path(), &words).await;
    assert_eq!(code, Some(1));
    assert!(
        error.contains("cannot run the zone yet") && error.contains("choose another with --http"),
        "{error}"
    );
}

#[tokio::test]
async fn down_where_nothing_is_up_changes_nothing() {
    let data = tempdir().unwrap();
    let nowhere = data.path().join("nowhere");
    let (code, _, told) = run(&nowhere, &["down"]).await;
    assert_eq!(
        (code, told),
        (Some(0), format!("Nothing is up in {}.\n", nowhere.display()))
    );
    assert!(!nowhere.exists());
}

/// The findings of a check.
fn results<'a>(findings: &'a Value, check: &str) -> Vec<(&'a str, &'a str)> {
    let findings = findings.as_array().unwrap().iter();
    let found = findings.filter(|finding| finding["check"] == check);
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    found
        .map(|finding| (text(&finding["result"]), text(&finding["fix"])))
        .collect()
}

#[tokio::test]
async fn a_doctor_without_programs_names_the_packages() {
    let data = tempdir().unwrap();
    let doctor = program(data.path()).args(["doctor", "--json"]).env("PATH", "/nowhere");
    let answered = doctor.run_to_exit().await.unwrap();
    assert_eq!(answered.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&answered.stdout).unwrap();
    let programs = results(&findings, "programs");
    for package in [
        "qemu-system-x86",
        "qemu-utils",
        "iproute2",
        "nftables",
        "openssh-client",
        "nfs-ganesha",
    ] {
        let fix = format!("apt-get install {package}");
        assert!(programs.contains(&("error", &fix)), "{package} is not in {programs:?}");
    }
    assert_eq!(results(&findings, "networks"), [], "it cannot be tried without them");
}

#[tokio::test]
async fn a_doctor_tries_the_machine_and_the_image() {
    let (data, images) = (tempdir().unwrap(), tempdir().unwrap());
    let image = images.path().join("sysvm.qcow2");
    let path = image.to_str().unwrap();
    let make = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2", path, "1M"]);
    make.run().await.unwrap();
    let sums = format!("{}  sysvm.qcow2\n", "0".repeat(64));
    let _ = platform::files::replace(images.path().join("SHA256SUMS"), sums, 0o644).unwrap();
    let [http, console] = free_ports();
    let words = [
        "doctor",
        "--json",
        "--image",
        path,
        "--http",
        &http,
        "--console-listen",
        &console,
    ];
    let (code, findings, _) = run(data.path(), &words).await;
    assert_eq!(code, Some(1));
    let findings: Value = serde_json::from_str(&findings).unwrap();
    assert_eq!(
        results(&findings, "image")[0].0,
        "error",
        "the digest is another: {findings}"
    );
    for check in [
        "root",
        "tap devices",
        "networks",
        "port of the page",
        "port of consoles",
        "left-overs",
    ] {
        assert_eq!(results(&findings, check), [("ok", "")], "{check}: {findings}");
    }
    let left: Vec<_> = std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    let left = left
        .iter()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("doctor-"));
    assert_eq!(left.count(), 0, "what was tried is removed");
}
