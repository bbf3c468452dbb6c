//! Real clients of the API, from PyPI, against the built server.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::time::Duration;

use platform::exec::{Cmd, Running};
use serde_json::{Value, json};
use system_tests::programs::built;
use system_tests::python::Python;
use system_tests::source::{Content, Source};
use system_tests::wait;
use system_tests::zone::Zone;
use tempfile::TempDir;

/// A management server without system VMs.
struct Server {
    directory: TempDir,
    running: Running,
    /// HOST:PORT of the API.
    address: String,
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("log");
        let store = directory.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let running = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--local-store",
            ])
            .arg(store)
            .env("SYSVM_LOG", "info")
            .env("SYSVM_LOG_FORMAT", "json")
            .spawn(&log)
            .unwrap();
        let address = wait::until("the address of the API", Duration::from_secs(30), async || {
            let log = std::fs::read_to_string(&log).unwrap();
            let line = log
                .lines()
                .find(|line| line.contains("API at /client/api"))
                .ok_or(log.clone())?;
            let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
            let listen = line
                .pointer("/fields/listen")
                .or(line.get("listen"))
                .and_then(Value::as_str);
            listen.map(str::to_owned).ok_or(line.to_string())
        })
        .await;
        Self {
            directory,
            running,
            address,
        }
    }

    async fn api(&self, words: &[&str]) -> Value {
        let call = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .arg("api")
            .args(words);
        match call.run().await {
            Ok(output) => serde_json::from_slice(&output.stdout).unwrap(),
            Err(error) => panic!("{error}"),
        }
    }

    /// A new key and its secret.
    async fn keys(&self) -> (String, String) {
        let users = self.api(&["listUsers"]).await;
        let id = format!("id={}", users["user"][0]["id"].as_str().unwrap());
        let made = self.api(&["registerUserKeys", &id]).await;
        let text = |name: &str| made["userkeys"][name].as_str().unwrap().to_owned();
        (text("apikey"), text("secretkey"))
    }
}

#[tokio::test]
async fn cs_lists_pages_waits_for_jobs_and_is_told_what_is_wrong() {
    let (server, python) = (Server::start().await, Python::with_clients().await);
    let (key, secret) = server.keys().await;
    let endpoint = format!("http://{}/client/api", server.address);
    let seen = python.run("cs_client.py", &[&endpoint, &key, &secret]).await;
    let not_authenticated = "unable to verify user credentials and/or request signature";
    let refused = |code: u32, exception: u32, text: &str| json!({ "errorcode": code, "cserrorcode": exception, "errortext": text, "uuidList": [] });
    let unknown = "The given command 'frobnicate' either does not exist, is not available for user, or not available \
                   from ip address";
    let wanted = json!({
        "registered": ["cirros", "CirrOS ~ 1/2", false, "zone1"],
        "listed": [true],
        "deleted": { "success": true },
        "listed_then": [],
        "no_such_template": seen["no_such_template"],
        "bad_url": 431,
        "zones": ["zone1"],
        "tagged": { "success": true },
        "value": true,
        "by_tag": 1,
        "os_types": seen["os_types_count"],
        "os_types_count": seen["os_types_count"],
        "by_post": 1,
        "by_expiring": 1,
        "wrong_secret": refused(401, 9999, not_authenticated),
        "unknown": refused(432, 9999, unknown),
        "pagesize_alone": refused(431, 4350, "pagesize needs page, too"),
    });
    assert_eq!(seen, wanted);
    assert!(seen["os_types_count"].as_u64() > Some(20));
    server.running.stop(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn libcloud_lists_what_there_is_and_tags_it() {
    let (server, python) = (Server::start().await, Python::with_clients().await);
    let (key, secret) = server.keys().await;
    let (host, port) = server.address.rsplit_once(':').unwrap();
    let seen = python.run("libcloud_client.py", &[host, port, &key, &secret]).await;
    let wanted = json!({
        "images": [], // it asks for executable ones, and nothing can be downloaded without an SSVM
        "locations": ["zone1"],
        "networks": 0,
        "volumes": 0,
        "os_types": true,
        "wrong_secret": "'Invalid provider credentials'",
    });
    assert_eq!(seen, wanted);
    let tags = server.api(&["listTags", "key=origin"]).await;
    assert_eq!(tags["tag"][0]["value"], "libcloud ~ /");
    server.running.stop(Duration::from_secs(10)).await;
}

/// Register, wait for Ready, list, console, delete: what a person does first.
#[tokio::test(flavor = "multi_thread")]
async fn both_clients_drive_a_zone() {
    let (zone, source, python) = (Zone::start().await, Source::start().await, Python::with_clients().await);
    let content = Content::Noise { size: 8 << 20 };
    let (image, checksum) = (source.put("small.raw", content.clone()), content.checksum());
    let screen = [("name", "desk"), ("vncaddress", "127.0.0.1"), ("vncport", "5999")];
    let vm = zone.api("registerExternalVirtualMachine", &screen).await.unwrap();
    let vm = vm["virtualmachine"]["id"].as_str().unwrap();
    let users = zone.list("listUsers", "user", &[]).await.unwrap();
    let made = zone
        .api("registerUserKeys", &[("id", users[0]["id"].as_str().unwrap())])
        .await
        .unwrap();
    let (key, secret) = (
        made["userkeys"]["apikey"].as_str(),
        made["userkeys"]["secretkey"].as_str(),
    );
    let (key, secret) = (key.unwrap(), secret.unwrap());

    let endpoint = format!("http://{}/client/api", zone.http);
    let seen = python
        .run("cs_zone.py", &[&endpoint, key, secret, &image, &checksum, vm])
        .await;
    let wanted = json!({
        "ready": {
            "name": "from-cs", "isready": true, "status": "Download Complete", "size": 8 << 20, "format": "RAW",
            "zonename": "zone1", "checksum": checksum,
        },
        "system_vms": [["consoleproxy", "Running"], ["secondarystoragevm", "Running"]],
        "console": [true, "http:", ["host", "path", "port", "token"]],
        "deleted": { "success": true },
        "left": [],
    });
    assert_eq!(seen, wanted);

    let (host, port) = (zone.http.ip().to_string(), zone.http.port().to_string());
    let seen = python
        .run("libcloud_zone.py", &[&host, &port, key, secret, &image, &checksum, vm])
        .await;
    let wanted = json!({
        "ready": ["from-libcloud", "KVM", "RAW", 8 << 20],
        "console": [true, "http:"],
        "deleted": { "success": true },
        "left": [],
    });
    assert_eq!(seen, wanted);
}
