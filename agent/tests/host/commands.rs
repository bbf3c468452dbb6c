//! Names of `/opt/cloud/bin` against the real nft, ip, haproxy and file systems, in network namespaces.

use std::fs;
use std::path::Path;
use std::time::Duration;

use platform::exec::{Cmd, Running};
use tempfile::TempDir;

use crate::sshd::{AGENT, said, until, vm, write};

/// A network, with mounts of its own, that ends with this value.
struct Namespace {
    process: Running,
    _log: TempDir,
}

impl Namespace {
    async fn new() -> Self {
        let log = tempfile::tempdir().unwrap();
        let process = Cmd::new("unshare").args(["--net", "--mount", "sleep", "1000"]);
        let process = process.spawn(log.path().join("log")).unwrap();
        let namespace = Self { process, _log: log };
        let (own, ours) = (format!("/proc/{}/ns/net", namespace.id()), "/proc/self/ns/net");
        until("a namespace", || {
            fs::read_link(&own).is_ok_and(|own| own != fs::read_link(ours).unwrap())
        })
        .await;
        namespace.ip("link set lo up").await;
        namespace
    }

    fn id(&self) -> String {
        self.process.id().unwrap().to_string()
    }

    fn inside(&self, command: Cmd) -> Cmd {
        command.through(Cmd::new("nsenter").args(["--net", "--mount", "--target", &self.id()]))
    }

    async fn ip(&self, line: &str) {
        self.inside(Cmd::new("ip").args(line.split(' '))).run().await.unwrap();
    }

    /// A NIC here and one there, both up, with addresses.
    async fn join(&self, there: &Self, here: (&str, &str), other: (&str, &str)) {
        let line = format!(
            "link add {} netns {} type veth peer name {} netns {}",
            here.0,
            self.id(),
            other.0,
            there.id()
        );
        Cmd::new("ip").args(line.split(' ')).run().await.unwrap();
        for (namespace, (nic, address)) in [(self, here), (there, other)] {
            namespace.ip(&format!("address add {address} dev {nic}")).await;
            namespace.ip(&format!("link set {nic} up")).await;
        }
    }

    /// What a name says in here, and its exit code.
    async fn says(&self, vm: &TempDir, line: &str) -> (String, i32) {
        let run = Cmd::new(AGENT)
            .args(["run", "--root"])
            .arg(vm.path())
            .args(line.split(' '));
        said(&self.inside(run).run_to_exit().await.unwrap())
    }

    async fn ping(&self, address: &str) {
        let ping = Cmd::new("ping").args(["-q", "-c", "5", "-i", "0.01", "-W", "5", address]);
        self.inside(ping).run().await.unwrap();
    }

    /// A TCP connection that is refused: one packet there, one back.
    async fn knock(&self, address: &str) {
        let knock = Cmd::new("bash").args(["-c", &format!("exec 3<> /dev/tcp/{address}/81")]);
        assert!(!self.inside(knock).run_to_exit().await.unwrap().status.success());
    }
}

/// Guest, router, world: 10.1.1.0/24 on eth0, 203.0.113.0/24 on the router's public NIC.
async fn routed(public: &str) -> (Namespace, Namespace, Namespace) {
    let (guest, router, world) = (Namespace::new().await, Namespace::new().await, Namespace::new().await);
    router
        .join(&guest, ("eth0", "10.1.1.1/24"), ("eth0", "10.1.1.11/24"))
        .await;
    router
        .join(&world, (public, "203.0.113.31/24"), ("eth0", "203.0.113.1/24"))
        .await;
    guest.ip("route add default via 10.1.1.1").await;
    world.ip("route add 10.1.1.0/24 via 203.0.113.31").await;
    let forward = router.inside(Cmd::new("tee").arg("/proc/sys/net/ipv4/ip_forward").stdin("1"));
    forward.run().await.unwrap();
    (guest, router, world)
}

fn ok(text: &str) -> (String, i32) {
    (text.to_owned(), 0)
}

/// apache/cloudstack VirtualRoutingResource: odd positions are sent, even ones received.
fn as_the_server(text: &str) -> (u64, u64) {
    let (mut sent, mut received) = (0, 0);
    for (position, number) in text.trim_end_matches(':').split(':').enumerate() {
        let number: u64 = number.parse().unwrap();
        if position % 2 == 0 {
            sent += number;
        } else {
            received += number;
        }
    }
    (sent, received)
}

#[tokio::test]
async fn a_routers_public_traffic_is_counted() {
    let (vm, (guest, router, _world)) = (vm(), routed("eth2").await);
    assert_eq!(
        router.says(&vm, "netusage.sh -g").await,
        ok(""),
        "nothing is counted yet"
    );
    assert_eq!(router.says(&vm, "netusage.sh -r").await, ok(""));
    assert_eq!(router.says(&vm, "netusage.sh -c").await, ok(""));
    assert_eq!(router.says(&vm, "netusage.sh -g").await, ok("0:0:0:0:"));

    guest.ping("203.0.113.1").await; // 84 bytes each, with their IP header
    router.ping("203.0.113.1").await; // no TCP: does not count
    router.knock("203.0.113.1").await;
    guest.knock("203.0.113.1").await;
    let (text, code) = router.says(&vm, "netusage.sh -g -l 203.0.113.31").await;
    assert_eq!(code, 0);
    assert_eq!(
        text, "480:460:60:40:",
        "five pings and a connection of the guest, a connection of the router"
    );
    assert_eq!(as_the_server(&text), (540, 500));

    // Neither another start nor another firewall loses what was counted.
    assert_eq!(router.says(&vm, "netusage.sh -c").await, ok(""));
    let firewall = "add table inet sysvm\ndelete table inet sysvm\nadd table inet sysvm\n";
    router
        .inside(Cmd::new("nft").args(["-f", "-"]).stdin(firewall))
        .run()
        .await
        .unwrap();
    assert_eq!(router.says(&vm, "netusage.sh -g").await, ok(&text));
    guest.ping("203.0.113.1").await;
    assert_eq!(router.says(&vm, "netusage.sh -g").await, ok("900:880:60:40:"));

    assert_eq!(router.says(&vm, "netusage.sh -a eth3").await, ok(""));
    assert_eq!(
        router.says(&vm, "netusage.sh -g -l 192.0.2.9").await,
        ok(""),
        "nobody has that address"
    );
    assert_eq!(router.says(&vm, "netusage.sh -r").await, ok(""));
    assert_eq!(router.says(&vm, "netusage.sh -g").await, ok("0:0:0:0:"));
    for _ in 0..2 {
        assert_eq!(router.says(&vm, "netusage.sh -d eth2").await, ok(""));
        assert_eq!(router.says(&vm, "netusage.sh -g").await, ok(""));
    }
    for wrong in ["-x", "-g -l", "-l 1.2.3", "-a eth2;x", "g"] {
        assert_eq!(router.says(&vm, &format!("netusage.sh {wrong}")).await.1, 2, "{wrong}");
    }
}

#[tokio::test]
async fn a_vpc_routers_traffic_is_counted_by_its_network() {
    let (vm, (guest, router, _world)) = (vm(), routed("eth1").await);
    let usage = async |line: &str| {
        router
            .says(&vm, &format!("vpc_netusage.sh -l 203.0.113.31 {line}"))
            .await
    };
    assert_eq!(usage("-g").await, ok(""));
    assert_eq!(usage("-c -v 10.1.0.0/16").await, ok(""));
    guest.ping("203.0.113.1").await;
    router.knock("203.0.113.1").await;
    assert_eq!(usage("-g").await, ok("420:420:60:40:"));
    assert_eq!(usage("-n").await, ok(""));
    assert_eq!(usage("-r").await, ok(""));
    assert_eq!(usage("-g").await, ok("0:0:0:0:"));
    assert_eq!(usage("-d").await, ok(""));
    assert_eq!(usage("-g").await, ok(""));
    assert_eq!(usage("-c -v all").await.1, 2);
    assert_eq!(router.says(&vm, "vpc_netusage.sh -g").await.1, 2);
    assert_eq!(
        router
            .says(&vm, "vpc_netusage.sh -l 192.0.2.9 -c -v 10.1.0.0/16")
            .await
            .1,
        1
    );
}

#[tokio::test]
async fn an_mtu_reaches_the_nic_with_the_address() {
    let (vm, (_guest, router, world)) = (vm(), routed("eth2").await);
    assert_eq!(
        router
            .says(&vm, "update_interface_config.sh 203.0.113.31 24 1400 15")
            .await,
        ok("eth2\n")
    );
    let shown = router
        .inside(Cmd::new("ip").args(["-o", "link", "show", "eth2"]))
        .run()
        .await
        .unwrap();
    assert!(shown.text().contains(" mtu 1400 "), "{}", shown.text());
    let missing = router.says(&vm, "update_interface_config.sh 192.0.2.9 24 1400 0").await;
    assert_eq!(missing, ("\nInterface with IP 192.0.2.9 not found\n".to_owned(), 1));
    assert_eq!(
        router
            .says(&vm, "update_interface_config.sh 203.0.113.31 24 12 0")
            .await
            .1,
        1
    );

    // A NIC that comes later is waited for.
    let (late, ()) = tokio::join!(
        router.says(&vm, "update_interface_config.sh 203.0.113.99 24 1450 15"),
        async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            router.ip("address add 203.0.113.99/24 dev eth0").await;
        }
    );
    assert_eq!(late, ok("eth0\n"));
    drop(world);
}

#[tokio::test]
async fn a_version_waits_for_the_boot_and_counts_what_has_just_arrived() {
    let (vm, here) = (vm(), Namespace::new().await);
    let marker = vm.path().join("var/cache/cloud/boot_up_done");
    let asked = here.says(&vm, "get_template_version.sh null");
    let (answer, ()) = tokio::join!(asked, async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let tgz = vm.path().join("var/cache/cloud/cloud-scripts.tgz");
        crate::patch::archive(&tgz, "late").await;
        fs::copy(&tgz, vm.path().join("tmp/copy")).unwrap();
        write(&marker, "today\n");
    });
    let digest = crate::patch::sha512(&vm.path().join("tmp/copy")).await;
    let line = format!("Cloudstack Release 4.22.0 Mon Oct 13 09:12:44 UTC 2025&{digest}\n");
    assert_eq!(answer, ok(&line));
    // apache/cloudstack GetDomRVersion: two parts, and the third word is the version.
    let parts: Vec<_> = line.trim().split('&').collect();
    assert_eq!(
        (parts.len(), parts[0].split(' ').nth(2), parts[1].len()),
        (2, Some("4.22.0"), 128)
    );

    fs::remove_file(vm.path().join("etc/cloudstack-release")).unwrap();
    assert_eq!(here.says(&vm, "get_template_version.sh").await.1, 1);
}

#[tokio::test]
async fn a_read_only_file_system_is_told() {
    let vm = vm();
    let check = "mount -t tmpfs -o ro none \"$0/root\" && exec \"$1\" run --root \"$0\" filesystem_writable_check.py";
    let check = Cmd::new("unshare")
        .args(["--mount", "sh", "-c", check])
        .arg(vm.path())
        .arg(AGENT);
    let (text, code) = said(&check.run_to_exit().await.unwrap());
    assert!(text.starts_with("Read-only file system"), "{text}");
    assert_eq!(code, 1);
}

#[tokio::test]
async fn haproxy_says_how_busy_its_servers_are() {
    let (vm, here) = (vm(), Namespace::new().await);
    fs::create_dir_all(vm.path().join("run/haproxy")).unwrap();
    let socket = vm.path().join("run/haproxy/admin.sock");
    let pool = "203_0_113_13-80";
    let config = vm.path().join("haproxy.cfg");
    write(
        &config,
        format!(
            "global\n stats socket {}\ndefaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
             listen {pool}\n bind 127.0.0.1:8000\n balance roundrobin\n server a 127.0.0.1:8001 check inter 100ms\n \
             server b 127.0.0.1:8002 check inter 100ms\n server c 127.0.0.1:8003 check inter 100ms\n\
             listen servers\n bind 127.0.0.1:8001\n bind 127.0.0.1:8002\n server hold 127.0.0.1:8004\n\
             listen hold\n bind 127.0.0.1:8004\n mode http\n timeout http-request 60s\n",
            socket.display()
        ),
    );
    let line = "get_haproxy_stats.sh 203.0.113.13 80";
    assert_eq!(here.says(&vm, line).await, ok("0"), "there is no haproxy");
    let haproxy = Cmd::new("/usr/sbin/haproxy").args(["-db", "-f"]).arg(&config);
    let _haproxy = here.inside(haproxy).spawn(vm.path().join("log")).unwrap();
    until("haproxy's socket", || socket.exists()).await;
    // Server c is down, and does not count.
    let down = format!("Server {pool}/c is DOWN");
    until("haproxy has looked", || {
        fs::read_to_string(vm.path().join("log")).unwrap().contains(&down)
    })
    .await;
    // Six connections that stay open, three for each server that is up.
    let held = Cmd::new("bash").args([
        "-c",
        "for n in 3 4 5 6 7 8; do eval \"exec $n<>/dev/tcp/127.0.0.1/8000\"; done; sleep 100",
    ]);
    let _held = here.inside(held).spawn(vm.path().join("held")).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while here.says(&vm, line).await != ok("3") {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{:?}",
            here.says(&vm, line).await
        );
    }
    assert_eq!(here.says(&vm, "get_haproxy_stats.sh 203.0.113.14 80").await, ok("0"));
    assert_eq!(here.says(&vm, "get_haproxy_stats.sh x 80").await.1, 1);
}

/// charon and a connection, which answers but does not call.
async fn charon(here: &Namespace, vm: &TempDir, name: &str, own: &str, other: &str) -> Running {
    for directory in ["/run", "/etc/swanctl"] {
        let mount = Cmd::new("mount").args(["-t", "tmpfs", "none", directory]);
        here.inside(mount).run().await.unwrap();
    }
    let inside = format!("/proc/{}/root", here.id());
    let config = format!(
        "connections {{\n {name} {{\n local_addrs={own}\n remote_addrs={other}\n version=2\n childless=force\n \
         local {{\n auth=psk\n id={own}\n }}\n remote {{\n auth=psk\n id={other}\n }}\n }}\n}}\n\
         secrets {{\n ike-1 {{\n secret=\"test\"\n }}\n}}\n"
    );
    write(Path::new(&format!("{inside}/etc/swanctl/swanctl.conf")), config);
    let charon = here.inside(Cmd::new("/usr/sbin/charon-systemd"));
    let running = charon.spawn(vm.path().join(name)).unwrap();
    until("charon's socket", || {
        Path::new(&format!("{inside}/run/charon.vici")).exists()
    })
    .await;
    here.inside(Cmd::new("swanctl").arg("--load-all")).run().await.unwrap();
    running
}

#[tokio::test]
async fn a_vpn_is_connected_when_charon_says_so() {
    let (vm, here, there) = (vm(), Namespace::new().await, Namespace::new().await);
    here.join(&there, ("eth1", "203.0.113.30/24"), ("eth1", "198.51.100.200/24"))
        .await;
    here.ip("route add 198.51.100.0/24 dev eth1").await;
    there.ip("route add 203.0.113.0/24 dev eth1").await;
    let (_ours, _theirs) = tokio::join!(
        charon(&here, &vm, "vpn-198_51_100_200", "203.0.113.30", "198.51.100.200"),
        charon(&there, &vm, "peer", "198.51.100.200", "203.0.113.30"),
    );
    // As in a VM whose strongswan.service runs.
    let group = vm.path().join("sys/fs/cgroup/system.slice/strongswan.service");
    fs::create_dir_all(&group).unwrap();
    write(&group.join("cgroup.events"), "populated 1\nfrozen 0\n");

    let line = "checkbatchs2svpn.sh 198.51.100.200 198.51.100.201";
    let none = "IPsec SA not found;Site-to-site VPN have not connected";
    let before = format!("198.51.100.200:11:{none}&198.51.100.201:11:{none}&");
    assert_eq!(here.says(&vm, line).await, ok(&before));
    let call = Cmd::new("swanctl").args(["--initiate", "--ike", "vpn-198_51_100_200", "--timeout", "20"]);
    here.inside(call).run().await.unwrap();
    let up = "IPsec SA found;Site-to-site VPN have connected";
    let after = format!("198.51.100.200:0:{up}&198.51.100.201:11:{none}&");
    assert_eq!(here.says(&vm, line).await, ok(&after));
    assert_eq!(
        here.says(&vm, "checks2svpn.sh 198.51.100.200").await,
        ok(&format!("{up}\n"))
    );
    assert_eq!(
        here.says(&vm, "checks2svpn.sh 198.51.100.201").await,
        (format!("{none}\n"), 11)
    );
}

#[tokio::test]
async fn arping_and_traceroute_find_their_way_and_end() {
    let (vm, (guest, _router, _world)) = (vm(), routed("eth2").await);
    // Which NIC is found by the route.
    let (text, code) = guest.says(&vm, "diagnostics.py arping 10.1.1.1 -c 1").await;
    let parts: Vec<_> = text.split("&&").map(str::trim).collect();
    assert_eq!((code, parts.len(), parts[2]), (0, 3, "0"), "{text}");
    assert!(parts[0].contains("from 10.1.1.11 eth0"), "{text}");
    let (text, _) = guest.says(&vm, "diagnostics.py traceroute 203.0.113.1").await;
    let parts: Vec<_> = text.split("&&").map(str::trim).collect();
    assert_eq!((parts.len(), parts[2]), (3, "0"), "{text}");
    assert!(
        parts[0].contains("20 hops max") && parts[0].contains("203.0.113.1"),
        "{text}"
    );
}

#[tokio::test]
async fn router_configuration_says_that_it_is_not_there() {
    let (vm, here) = (vm(), Namespace::new().await);
    for line in [
        "update_config.py ip_associations.json.1",
        "vr_cfg.sh -c /var/cache/cloud/VR-1.cfg",
    ] {
        let (text, code) = here.says(&vm, line).await;
        assert!(
            text.starts_with("error: ") && text.ends_with("nothing was changed\n"),
            "{text}"
        );
        assert_eq!((text.lines().count(), code), (1, 1));
    }
    assert_eq!(here.says(&vm, "no-such-name.sh").await.1, 1);
    assert_eq!(here.says(&vm, "bumpup_priority.sh null").await, ok(""));
    assert!(vm.path().join("tmp/rrouter_bumped").exists());
}
