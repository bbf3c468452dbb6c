//! Secondary storage over NFS: a real server, and the image's `ssvm` as its client, ordered by the real management server.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::nfs::{Export, Versions};
use platform::exec::Cmd;
use serde_json::Value;
use system_tests::management::ManagementServer;
use system_tests::nfs::NfsServer;
use system_tests::site::{Example, Site};
use system_tests::source::{Content, Source};
use system_tests::vm::{BOOT_LIMIT, Booted, Format, Net, Nic, Ssh, Vm};
use system_tests::wait;
use tokio_util::sync::CancellationToken;

const NAME: &str = "s-1-VM";
const SERVER: &str = "192.0.2.10";
const NFS: &str = "198.51.100.5";
/// The VM's address on the storage network.
const ETH3: &str = "198.51.100.30";
/// For the agent to be Up, or a small template to be there; under emulation, on busy cores.
const LIMIT: Duration = Duration::from_mins(4);
const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_server_answers_after_its_start_and_after_a_restart_and_two_networks_have_one_each() {
    let nets = [Net::new().await.unwrap(), Net::new().await.unwrap()];
    let mut servers = Vec::new();
    for net in &nets {
        net.bridge("storage", "10.77.0.10/24").await.unwrap();
        servers.push(NfsServer::start(net, "10.77.0.10").await.unwrap());
    }
    let mountd = Cmd::new("rpcinfo").args(["-T", "tcp", "10.77.0.10", "100005", "3"]);
    for (net, server) in nets.iter().zip(&servers) {
        assert_eq!(server.url(), "nfs://10.77.0.10/export/secondary");
        net.run(mountd.clone()).await.unwrap();
        server.kill().await.unwrap();
        net.run(mountd.clone()).await.unwrap_err();
        server.start_again().await.unwrap();
        server.stop().await.unwrap();
        net.run(mountd.clone()).await.unwrap_err();
        server.replace_store().await.unwrap();
        net.run(mountd.clone()).await.unwrap();
        assert!(server.directory().is_dir());
    }
}

/// The server that `mgmt-stub serve --driver qemu` starts, which has only some of root's rights.
#[tokio::test]
async fn the_zones_own_server_serves_root_and_others_and_a_vm_goes_on_when_it_is_killed() {
    let net = Net::new().await.unwrap();
    net.bridge("storage", "172.31.3.5/24").await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let export = Export {
        address: Ipv4Addr::new(172, 31, 3, 5),
        directory: files.path().join("secondary"),
        versions: Versions::V4,
    };
    let nfs = hypervisor::nfs::NfsServer::new(net.namespace(), export, &files.path().join("nfs")).unwrap();
    nfs.start().await.unwrap();
    let kept = tokio::spawn({
        let nfs = nfs.clone();
        async move { nfs.keep(CancellationToken::new()).await }
    });
    let nic = Nic::on("storage", "02:00:4c:9f:03:15");
    let vm = Vm::new(Format::Qcow2).net(&net).nic(nic).boot().await.unwrap();
    vm.up().await.unwrap(); // with its NIC
    let run = async |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        vm.text(&words).await.unwrap()
    };
    let links = run("ls /sys/class/net").await;
    let nic = links.lines().find(|name| *name != "lo").unwrap().to_owned();
    run(&format!("ip address add 172.31.3.21/24 dev {nic}")).await;
    run(&format!("ip link set {nic} up")).await;
    run("mount -t nfs -o vers=4.1 172.31.3.5:/export/secondary /mnt").await;
    run("dd if=/dev/urandom of=/mnt/one bs=1M count=4 conv=fsync").await;
    run("chown 1234:5678 /mnt/one").await;
    run("chmod 4000 /mnt/one").await;
    run("cp /mnt/one /mnt/two").await; // nobody may read it but root
    run("mkfifo /mnt/pipe").await;
    run("mknod /mnt/null c 1 3").await;
    run("ln -s one /mnt/link").await;
    run("mv /mnt/two /mnt/three").await;
    let one = fs::metadata(nfs.directory().join("one")).unwrap();
    assert_eq!((one.uid(), one.gid(), one.mode() & 0o7777), (1234, 5678, 0o4000));

    nfs.kill().await;
    run("cp /mnt/three /mnt/four").await; // waits, and goes on
    run("cmp /mnt/one /mnt/four").await;
    assert_eq!(fs::metadata(nfs.directory().join("four")).unwrap().len(), 4 * MIB);
    run("umount /mnt").await;
    kept.abort();
    nfs.kill().await;
}

/// A zone with an SSVM whose store is on the storage network.
struct Zone {
    nfs: NfsServer,
    server: ManagementServer,
    source: Source,
    vm: Booted,
    line: String,
}

impl Zone {
    async fn start() -> Self {
        let site = Site::new().await.unwrap();
        let nfs = NfsServer::start(&site.net, NFS).await.unwrap();
        let serve = ["--image-store", &nfs.url()].map(str::to_owned);
        let server = ManagementServer::start(&site.net, SERVER, &serve).await.unwrap();
        // On the public network, as users' images are.
        let listener = site
            .net
            .inside(|| std::net::TcpListener::bind("203.0.113.1:0"))
            .unwrap()
            .unwrap();
        listener.set_nonblocking(true).unwrap();
        let source = Source::on(tokio::net::TcpListener::from_std(listener).unwrap());
        let host = Ssh::new(&site.net, Example::Ssvm.control()).await.unwrap();
        let line = Example::Ssvm.line(&host).unwrap();
        let vm = Vm::new(Format::Qcow2).net(&site.net);
        let vm = Example::Ssvm.nics().into_iter().fold(vm, Vm::nic).boot().await.unwrap();
        Self {
            nfs,
            server,
            source,
            vm,
            line,
        }
    }

    /// Gives the VM boot arguments with another `nfsVersion`, and starts its service anew: mounts end with it.
    async fn with_version(&self, version: &str) {
        let line = self.line.replace("nfsVersion=4.1", &format!("nfsVersion={version}"));
        self.vm.pass_cmdline(&line).await.unwrap();
        wait::until("the service runs", BOOT_LIMIT, async || {
            let state = self.vm.run(&["systemctl", "is-active", "cs-ssvm"]).await;
            let state = state.map_err(|error| format!("{error:#}"))?;
            (state.stdout == "active\n").then_some(()).ok_or(state.stdout)
        })
        .await;
        self.vm.text(&["systemctl", "restart", "cs-ssvm"]).await.unwrap();
    }

    /// How the store is mounted: the options in the service's own table of mounts.
    async fn mounted(&self) -> String {
        wait::until("the store is mounted", LIMIT, async || {
            let failed = |error: anyhow::Error| format!("{error:#}");
            let pid = self
                .vm
                .text(&["systemctl", "show", "--property=MainPID", "--value", "cs-ssvm"])
                .await
                .map_err(failed)?;
            if pid == "0\n" {
                return Err("the service does not run".to_owned());
            }
            let mounts = self
                .vm
                .read(&format!("/proc/{}/mounts", pid.trim()))
                .await
                .map_err(failed)?;
            let ours = mounts.lines().find(|line| line.starts_with(&self.nfs.device()));
            let options = ours.and_then(|line| line.split(' ').nth(3));
            options.map(str::to_owned).ok_or_else(|| self.vm_says())
        })
        .await
    }

    /// The last words of the management server.
    fn vm_says(&self) -> String {
        let log = self.server.log();
        let tail: Vec<_> = log.lines().rev().take(6).collect();
        tail.join("\n")
    }

    /// Registers a template; its id.
    async fn register(&self, name: &str, size: u64) -> String {
        let content = Content::Noise { size };
        let checksum = content.checksum();
        let url = self.source.put(&format!("{name}.raw"), content);
        let zones = self.server.api("listZones", &[]).await.unwrap();
        let zone = zones["zone"][0]["id"].as_str().unwrap().to_owned();
        let parameters = [
            ("name", name),
            ("displaytext", name),
            ("format", "RAW"),
            ("hypervisor", "KVM"),
            ("url", &url),
            ("zoneid", &zone),
            ("checksum", &checksum),
        ];
        let answer = self.server.api("registerTemplate", &parameters).await.unwrap();
        answer["template"][0]["id"].as_str().unwrap().to_owned()
    }

    async fn template(&self, id: &str) -> Result<Value, String> {
        let filter = [("templatefilter", "all"), ("id", id)];
        let list = self.server.api("listTemplates", &filter).await;
        let mut list = list.map_err(|error| format!("{error:#}"))?;
        Ok(list["template"][0].take())
    }

    /// Waits until a template can be used, and answers its file in the server's directory.
    async fn ready(&self, id: &str, size: u64) -> PathBuf {
        wait::until("the template is ready", LIMIT, async || {
            let template = self.template(id).await?;
            let is_ready = template["isready"] == true;
            is_ready.then_some(()).ok_or_else(|| template.to_string())
        })
        .await;
        let mut files = Vec::new();
        collect(&self.nfs.directory().join("template"), &mut files);
        let of_size = |file: &PathBuf| fs::metadata(file).unwrap().len() == size;
        let file = files.into_iter().find(of_size);
        file.unwrap_or_else(|| unreachable!("no file of {size} bytes on the server"))
    }
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}

#[tokio::test]
async fn a_store_is_used_by_v3_and_v4_and_survives_what_happens_to_its_server() {
    let zone = Zone::start().await;
    let mut size = MIB;
    for version in ["3", "4.0", "4.1"] {
        zone.with_version(version).await;
        let options = zone.mounted().await;
        let words: Vec<_> = options.split(',').collect();
        assert!(words.contains(&format!("vers={version}").as_str()), "{options}");
        for word in ["rw", "soft", "timeo=133", "retrans=2147483647", "acdirmin=0"] {
            assert!(words.contains(&word), "{word}: {options}");
        }
        assert_eq!(words.contains(&"local_lock=all"), version == "3", "{options}");
        // Different sizes tell the files apart.
        size += 4096;
        let id = zone.register(&format!("by-{}", version.replace('.', "-")), size).await;
        zone.ready(&id, size).await;
    }

    // All of it went by the storage network.
    let connections = zone.vm.text(&["ss", "-Htn", "dst", NFS]).await.unwrap();
    let from: Vec<_> = connections
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert!(
        !from.is_empty() && from.iter().all(|from| from.starts_with(&format!("{ETH3}:"))),
        "{connections}"
    );
    let route = zone.vm.text(&["ip", "route", "get", NFS]).await.unwrap();
    assert!(route.contains(" dev eth3 "), "{route}");

    // The server is away in the middle of a download: the agent stays Up, and the download goes on.
    zone.source.set_pace(512 << 10);
    let size = 12 * MIB;
    let id = zone.register("during-a-power-cut", size).await;
    wait::until("the download runs", LIMIT, async || {
        (zone.source.sent() > 6 * MIB)
            .then_some(())
            .ok_or_else(|| zone.source.sent().to_string())
    })
    .await;
    zone.nfs.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(zone.server.agent(NAME).await.unwrap().as_deref(), Some("Up"));
    zone.source.set_pace(0);
    zone.nfs.start_again().await.unwrap();
    zone.ready(&id, size).await;

    // The export is made anew: what was mounted is stale.
    zone.nfs.replace_store().await.unwrap();
    let size = MIB + 512;
    let id = zone.register("after-a-new-export", size).await;
    zone.ready(&id, size).await;

    // Of v4.2, only that it is mounted: reading from nfs-ganesha 4.3 by it gives EIO or wrong bytes. It looks like its READ_PLUS,
    // which no other version has.
    zone.with_version("4.2").await;
    let options = zone.mounted().await;
    assert!(options.contains("vers=4.2"), "{options}");

    // A version that is none is told, and nothing is mounted.
    zone.with_version("4.9").await;
    wait::until("the reason is told", LIMIT, async || {
        let journal = zone
            .vm
            .text(&["journalctl", "--boot", "--output=cat", "--unit=cs-ssvm"])
            .await;
        let journal = journal.map_err(|error| format!("{error:#}"))?;
        let why = "the NFS version \"4.9\" is none that can be mounted; set secstorage.nfs.version";
        journal.contains(why).then_some(()).ok_or(journal)
    })
    .await;
}
