//! `agent setup` in a VM: what runs on each type, the disk, user data, and that a changed line makes another VM of it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::time::Duration;

use system_tests::vm::{Booted, Format, Net, Nic, Vm};
use system_tests::wait::until;

/// Bridge, its address, MAC, in the order of `eth0`, `eth1`, `eth2`.
const NICS: [(&str, &str, &str); 3] = [
    ("first", "169.254.0.1/16", "0e:00:a9:fe:0e:57"),
    ("second", "192.0.2.10/24", "02:00:4c:9f:00:05"),
    ("third", "203.0.113.1/24", "02:00:4c:9f:00:06"),
];
/// What the set-up leaves behind (`agent::appliance::setup`).
const LAST_LINE: &str = "/run/sysvm/set-up-line";
const READY: &str = "/var/cache/cloud/boot_up_done";
/// For a service to start, under emulation.
const LIMIT: Duration = Duration::from_secs(90);
/// For a set-up; with user data.
const SETUP_LIMIT: Duration = Duration::from_mins(3);

/// Of appliance.md §2.4: SSVM, CPVM with user data, router, DHCP server, internal load balancer; without keys, which are not
/// the matter here. What must run, by CloudStack's names, and what must not.
struct Example {
    line: &'static str,
    active: &'static [&'static str],
    inactive: &'static [&'static str],
}

const EXAMPLES: [Example; 5] = [
    Example {
        line: "template=domP type=secstorage host=192.0.2.10 port=8250 name=s-1-VM zone=1 pod=1 guid=s-1-VM workers=5 \
               resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource instance=SecStorage sslcopy=false \
               role=templateProcessor mtu=1500 eth2ip=203.0.113.21 eth2mask=255.255.255.0 gateway=203.0.113.1 \
               public.network.device=eth2 eth0ip=169.254.14.87 eth0mask=255.255.0.0 eth1ip=192.0.2.21 \
               eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 private.network.device=eth1 \
               internaldns1=192.0.2.53 dns1=198.51.100.53 dns2=198.51.100.54 nfsVersion=4.1 \
               keystore_password=WmszdlE4bllwMkxyVDZ4Vw== useHttpsToUpload=true",
        active: &["cloud", "cs-ssvm", "chrony"],
        inactive: &["dnsmasq", "haproxy", "cs-console-proxy"],
    },
    Example {
        line: "template=domP type=consoleproxy host=192.0.2.10,192.0.2.11 port=8250 name=v-2-VM zone=1 pod=1 guid=Proxy.2 \
               proxy_vm=2 disable_rp_filter=true ntpserverlist=192.0.2.123,192.0.2.124 eth2ip=203.0.113.22 \
               eth2mask=255.255.255.0 gateway=203.0.113.1 eth0ip=169.254.14.87 eth0mask=255.255.0.0 eth1ip=192.0.2.22 \
               eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24,198.51.100.0/24 localgw=192.0.2.1 internaldns1=192.0.2.53 \
               dns1=198.51.100.53 vncport=8080 keystore_password=WmszdlE4bllwMkxyVDZ4Vw== \
               userdata=H4sIAAAAAAACA1NOzskvTdFNzs9Ly0znKirNS85NseJSUNBViC7JL03O0FHQL8rPL9EvLU4tSkksSdQtSsyL5QIAJwn6/DYAAAA=",
        active: &["cloud", "cs-console-proxy", "chrony"],
        inactive: &["dnsmasq", "haproxy", "cs-ssvm"],
    },
    Example {
        line: "template=domP name=r-4-VM eth2ip=203.0.113.31 eth2mask=255.255.255.0 gateway=203.0.113.1 publicMtu=1500 \
               eth0ip=10.1.1.1 eth0mask=255.255.255.0 privateMtu=1500 domain=cs2cloud.internal cidrsize=24 \
               dhcprange=10.1.1.1 eth1ip=169.254.14.87 eth1mask=255.255.0.0 type=router  dns1=198.51.100.53 \
               dns2=198.51.100.54 logrotatefrequency=*:00:00",
        active: &["dnsmasq", "haproxy"],
        inactive: &["cloud", "cs-ssvm", "cs-console-proxy", "chrony"],
    },
    Example {
        line: "template=domP name=r-6-VM eth0ip=203.0.113.40 eth0mask=255.255.255.0 gateway=203.0.113.1 privateMtu=null \
               domain=cs1.internal cidrsize=24 dhcprange=203.0.113.1 eth1ip=169.254.14.87 eth1mask=255.255.0.0 type=dhcpsrvr \
               dns1=198.51.100.53 logrotatefrequency=*:00:00",
        active: &["dnsmasq"],
        inactive: &["cloud", "haproxy", "chrony"],
    },
    Example {
        line: "template=domP name=b-9-VM eth0ip=10.10.1.250 eth0mask=255.255.255.0 gateway=10.10.1.1 dns1=10.10.1.1 \
               eth1ip=169.254.14.87 eth1mask=255.255.0.0 domain=cs3.internal type=ilbvm",
        active: &["haproxy"],
        inactive: &["cloud", "dnsmasq", "chrony"],
    },
];

async fn state(vm: &Booted, unit: &str) -> String {
    let said = vm.run(&["systemctl", "is-active", unit]).await.unwrap().stdout;
    said.trim().to_owned()
}

/// Waits until a unit is so; nothing that is started waits for its service.
async fn becomes(vm: &Booted, unit: &str, wanted: &str) {
    until(unit, LIMIT, async || {
        let found = state(vm, unit).await;
        if found == wanted { Ok(()) } else { Err(found) }
    })
    .await;
}

/// Gives the line as a host does, and waits until the machine has become what it says.
async fn set_up(vm: &Booted, line: &str) {
    vm.pass_cmdline(line).await.unwrap();
    until(line, SETUP_LIMIT, async || {
        // The line is written down when the services are started, and the mark of the set-up before is gone by then.
        let last = vm.run(&["cat", LAST_LINE]).await.unwrap().stdout;
        let is_ready = vm.run(&["test", "-e", READY]).await.unwrap().code == Some(0);
        if last.trim() == line.trim() && is_ready {
            return Ok(());
        }
        Err(vm
            .run(&["cat", "/run/sysvm/boot.json", "/run/sysvm/setup.json"])
            .await
            .unwrap()
            .stdout)
    })
    .await;
}

async fn root_size_mib(vm: &Booted) -> u64 {
    let said = vm.text(&["df", "--output=size", "--block-size=1M", "/"]).await.unwrap();
    said.lines().last().unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_vm_becomes_what_each_line_says_with_its_disk_its_services_and_its_user_data() {
    let net = Net::new().await.unwrap();
    let mut vm = Vm::new(Format::Qcow2).disk_gib(8).net(&net);
    for (bridge, address, mac) in NICS {
        net.bridge(bridge, address).await.unwrap();
        vm = vm.nic(Nic::on(bridge, mac));
    }
    let vm = vm.boot().await.unwrap();
    vm.up().await.unwrap();
    for Example { line, active, inactive } in EXAMPLES {
        set_up(&vm, line).await;
        assert_ne!(vm.read(READY).await.unwrap(), "");
        for unit in active {
            becomes(&vm, unit, "active").await;
        }
        for unit in inactive {
            becomes(&vm, unit, "inactive").await;
        }
        let failed = vm
            .text(&["systemctl", "list-units", "--failed", "--no-legend", "--plain"])
            .await
            .unwrap();
        assert_eq!(failed, "", "{line}");
        if line.contains("type=consoleproxy") {
            console_proxy(&vm).await;
        }
        if line.contains("type=router") {
            router(&vm).await;
        }
    }
    let size = root_size_mib(&vm).await;
    assert!(size > 7500, "the root file system has {size} MiB of a disk of 8 GiB");

    // Again, with the same line: whoever runs goes on.
    let pid = |unit: &'static str| {
        let vm = &vm;
        async move {
            vm.text(&["systemctl", "show", "--property=MainPID", "--value", unit])
                .await
                .unwrap()
        }
    };
    let before = pid("haproxy").await;
    vm.text(&["systemctl", "restart", "cs-setup"]).await.unwrap();
    assert_eq!(pid("haproxy").await, before);
    assert_eq!(vm.text(&["systemctl", "is-system-running"]).await.unwrap(), "running\n");
}

async fn console_proxy(vm: &Booted) {
    assert_eq!(vm.read("/root/vncport").await.unwrap(), "8080\n");
    // Its user data ran, and does not run again.
    vm.text(&["rm", "/root/userdata-ran"]).await.unwrap();
    vm.text(&["systemctl", "restart", "cs-setup"]).await.unwrap();
    assert_ne!(
        vm.run(&["test", "-e", "/root/userdata-ran"]).await.unwrap().code,
        Some(0)
    );
    let properties = vm
        .read("/usr/local/cloud/systemvm/conf/agent.properties")
        .await
        .unwrap();
    assert!(properties.contains("\nguid=Proxy.2\n"), "{properties}");
    assert!(!properties.contains("keystore_password"), "{properties}");
    let lists = vm.read("/var/cache/cloud/enabled_svcs").await.unwrap();
    assert!(lists.contains("cs-console-proxy"), "{lists}");
    // systemd hears from the program that it is ready and alive.
    let said = vm
        .text(&[
            "systemctl",
            "show",
            "--property=Type,WatchdogUSec,NRestarts",
            "cs-console-proxy",
        ])
        .await
        .unwrap();
    for line in ["Type=notify", "WatchdogUSec=2min", "NRestarts=0"] {
        assert!(said.lines().any(|found| found == line), "{said}");
    }
}

async fn router(vm: &Booted) {
    // What health checks look at (§8.3).
    for (file, program) in [
        ("/var/run/dnsmasq/dnsmasq.pid", "dnsmasq"),
        ("/var/run/haproxy.pid", "haproxy"),
    ] {
        let pid = vm.read(file).await.unwrap();
        let name = vm.read(&format!("/proc/{}/comm", pid.trim())).await.unwrap();
        assert_eq!(name.trim(), program, "{file}");
    }
    let most = vm
        .text(&["sysctl", "--values", "net.netfilter.nf_conntrack_max"])
        .await
        .unwrap();
    assert_ne!(most.trim(), "1000000");
    assert!(most.trim().parse::<u64>().unwrap() >= 65_536, "{most}");
}
