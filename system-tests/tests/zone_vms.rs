//! A zone whose system VMs are virtual machines, from `cargo xtask up` to `cargo xtask down`. One zone for all, as each boot
//! takes its time.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use hypervisor::network::namespace::{Name, Namespace};
use hypervisor::ssh::{Key, Ssh};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::files;
use serde_json::Value;
use sha2::{Digest, Sha512};
use system_tests::browser::Browser;
use system_tests::console::status;
use system_tests::up::{UpZone, VMS_UP_LIMIT};
use system_tests::wait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For a reason to be told: management.md §1.
const REASON_LIMIT: Duration = Duration::from_secs(2);
/// For one call of the API's command line on a busy machine, which the time above is measured with.
const CALL: Duration = Duration::from_secs(3);
/// One command in a VM, without KVM.
const COMMAND: Duration = Duration::from_mins(4);

/// The system VMs by their types.
async fn system_vms(zone: &UpZone) -> Result<BTreeMap<String, Value>, String> {
    let mut list = zone.api("listSystemVms", &[]).await?;
    let vms = list["systemvm"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let by_type = |vm: Value| (vm["systemvmtype"].as_str().unwrap_or_default().to_owned(), vm);
    Ok(vms.into_iter().map(by_type).collect())
}

/// Both are Up.
async fn are_up(zone: &UpZone) -> Result<BTreeMap<String, Value>, String> {
    let vms = system_vms(zone).await?;
    let up = vms
        .values()
        .filter(|vm| vm["agentstate"] == "Up" && vm["state"] == "Running");
    if up.count() == 2 {
        Ok(vms)
    } else {
        Err(format!("{vms:#?}"))
    }
}

/// Processes of QEMU by the VM that they are.
fn machines(zone: &UpZone) -> BTreeMap<String, i32> {
    let qemus = zone.processes().into_iter().filter_map(|(pid, line)| {
        let name = line.split("guest=").nth(1)?.split([',', ' ']).next()?;
        Some((name.to_owned(), pid))
    });
    qemus.collect()
}

/// A `cloud-scripts.tgz` as a management server has it, and its digest.
fn scripts(directory: &Path) -> String {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let mut header = tar::Header::new_gnu();
    let script = b"#!/bin/sh\nexit 1\n";
    header.set_size(u64::try_from(script.len()).unwrap());
    header.set_mode(0o755);
    archive
        .append_data(&mut header, "opt/cloud/bin/patched.sh", &script[..])
        .unwrap();
    let bytes = archive.into_inner().unwrap().finish().unwrap();
    let _ = files::replace(directory.join("cloud-scripts.tgz"), &bytes, 0o644).unwrap();
    let mut hex = String::new();
    for byte in Sha512::digest(&bytes) {
        write!(hex, "{byte:02x}").unwrap();
    }
    hex
}

/// What a console proxy answers to somebody who wants its page.
async fn page_of(console: SocketAddr) -> String {
    let mut stream = TcpStream::connect(console).await.unwrap();
    let request = format!("GET /resource/noVNC/vnc.html HTTP/1.1\r\nHost: {console}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(COMMAND, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The network of a zone.
fn network_of(zone: &UpZone) -> (Name, Namespace) {
    let name = Name::of_directory(&zone.path().join("data").canonicalize().unwrap());
    let namespace = Namespace::open(&name).unwrap().unwrap();
    (name, namespace)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_of_virtual_machines_comes_up_outlives_its_server_and_leaves_nothing() {
    let (zone, uploads) = (UpZone::with_vms(), tempfile::tempdir().unwrap());
    let signature = scripts(uploads.path());
    let up = || {
        zone.up()
            .arg("--system-vm-files")
            .arg(uploads.path())
            .env("SYSVM_LOG", "info")
    };

    // Up, with a template that has come over the network into the NFS export.
    let printed = up().run().await.unwrap_or_else(|error| panic!("{error}")).stderr;
    for part in [
        "secondary storage VM",
        "Running, agent Up",
        "demo-guest  Running",
        "Ready",
        "Password",
    ] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
    assert!(printed.contains(" % "), "no progress of the template:\n{printed}");
    let vms = are_up(&zone).await.unwrap();
    let (ssvm, cpvm) = (&vms["secondarystoragevm"], &vms["consoleproxy"]);
    assert_eq!(ssvm["hypervisor"], "KVM");
    let hosts = zone.api("listHosts", &["type=Routing"]).await.unwrap();
    assert_eq!(hosts["host"][0]["state"], "Up", "{hosts}");
    let templates = zone.path().join("data/secondary/template/tmpl");
    assert!(templates.is_dir(), "nothing on the NFS export");

    // What is secret is on no command line.
    let secrets: Vec<String> = ["s-1-VM", "v-2-VM"]
        .map(|name| fs::read(zone.path().join("data/vms").join(name).join("vm.json")).unwrap())
        .iter()
        .map(|record| {
            serde_json::from_slice::<Value>(record).unwrap()["vnc_password"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    for (_, line) in zone.processes() {
        let leaked = secrets.iter().any(|secret| line.contains(secret.as_str())) || line.contains("PRIVATE");
        assert!(!leaked, "{line}");
    }

    // What was uploaded was remembered, and not unpacked.
    let (name, namespace) = network_of(&zone);
    let key = Key::open_or_create(&zone.path().join("data/ssh")).await.unwrap();
    let nic = ssvm["linklocalip"]
        .as_str()
        .expect("the SSVM has a control address")
        .parse()
        .unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let ssh = Ssh::new(&namespace, nic, &key, elsewhere.path()).unwrap();
    let version = ssh
        .exec("/opt/cloud/bin/get_template_version.sh", b"", COMMAND)
        .await
        .unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    assert_eq!(version.trim().split('&').nth(1), Some(signature.as_str()), "{version}");
    ssh.close().await;

    // The page of the console proxy, through a port of this machine.
    let page = page_of(zone.console()).await;
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");

    // The screen of an instance that was made of the template, in a browser, through the VM that is the console proxy.
    let instances = zone.api("listVirtualMachines", &["listall=true"]).await.unwrap();
    let instance = &instances["virtualmachine"][0];
    let id = format!("virtualmachineid={}", instance["id"].as_str().unwrap());
    let endpoint = zone.api("createConsoleEndpoint", &[&id]).await.unwrap();
    let url = endpoint["consoleendpoint"]["url"]
        .as_str()
        .unwrap_or_else(|| panic!("{endpoint}"));
    let browser = Browser::start().await.unwrap();
    let page = browser.open(url).await.unwrap();
    status(&page, "Connected").await;
    page.screenshot("zone-vms-console").await.unwrap();
    page.close().await.unwrap();
    drop(browser);

    // The server is killed and comes again: VMs have gone on, and their agents come back.
    let before = machines(&zone);
    assert_eq!(before.len(), 3, "{before:?}");
    zone.kill("mgmt-stub").await;
    up().run().await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(machines(&zone), before);
    are_up(&zone).await.unwrap();

    // A VM that ends is known to have ended at once, and is started again without help.
    let proxy = cpvm["name"].as_str().unwrap();
    kill(Pid::from_raw(before[proxy]), Signal::SIGKILL).unwrap();
    let killed = Instant::now();
    wait::until("the reason is told", REASON_LIMIT + CALL, async || {
        let vms = system_vms(&zone).await?;
        let reason = vms["consoleproxy"]["reason"].as_str().unwrap_or_default().to_owned();
        if reason.contains("QEMU is gone") {
            Ok(())
        } else {
            Err(reason)
        }
    })
    .await;
    println!("The reason was told after {:?}", killed.elapsed());
    wait::until("it is up again", VMS_UP_LIMIT, async || are_up(&zone).await).await;
    assert_ne!(machines(&zone)[proxy], before[proxy]);

    // All that can be killed is; nothing is left after `down`.
    zone.kill("mgmt-stub").await;
    zone.kill("ganesha.nfsd").await;
    kill(Pid::from_raw(machines(&zone)[proxy]), Signal::SIGKILL).unwrap();
    drop(namespace);
    zone.down().await;
    assert_eq!(zone.processes(), []);
    assert!(Namespace::open(&name).unwrap().is_none(), "{name} is still there");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(
        !mounts.contains(&name.to_string()) && !mounts.contains(&*zone.path().to_string_lossy()),
        "{mounts}"
    );
    assert!(templates.is_dir(), "the data stay");
}
