//! `agent boot` in a VM, as a KVM host meets it: boot arguments through the guest agent, then ssh. The whole checklist of
//! appliance.md §14 is elsewhere; this is the way in.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use platform::exec::Cmd;
use system_tests::vm::{Booted, Format, Net, Nic, Ssh, Vm};
use system_tests::wait;

/// From the line to an open port, on a machine with other work. (How long it takes on an idle one, the checklist measures.)
const OPEN_LIMIT: Duration = Duration::from_mins(2);
/// For what happens by itself, under emulation.
const LIMIT: Duration = Duration::from_mins(1);

/// Example (1) of §2.4, with another control address and key.
fn secstorage(control: &str, key: &str) -> String {
    format!(
        " template=domP type=secstorage host=192.0.2.10 port=8250 name=s-1-VM zone=1 pod=1 guid=s-1-VM workers=5 \
         authorized_key={key} resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource \
         instance=SecStorage sslcopy=false role=templateProcessor mtu=1400 eth2ip=203.0.113.21 eth2mask=255.255.255.0 \
         gateway=203.0.113.1 public.network.device=eth2 eth0ip={control} eth0mask=255.255.0.0 eth1ip=192.0.2.21 \
         eth1mask=255.255.255.0 mgmtcidr=192.0.2.0/24 localgw=192.0.2.1 private.network.device=eth1 eth3ip=198.51.100.30 \
         eth3mask=255.255.255.0 storageip=198.51.100.30 storagenetmask=255.255.255.0 storagegateway=198.51.100.1 \
         internaldns1=192.0.2.53 dns1=198.51.100.53 dns2=198.51.100.54 nfsVersion=4.1 \
         keystore_password=WmszdlE4bllwMkxyVDZ4Vw== useHttpsToUpload=true secondaryStorageServerAddress=198.51.100.5"
    )
}

fn is_open(net: &Net, address: &str) -> bool {
    let address = SocketAddr::new(address.parse().unwrap(), 3922);
    net.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)))
        .unwrap()
        .is_ok()
}

async fn opens(net: &Net, address: &str, limit: Duration) {
    wait::until("port 3922", limit, async || {
        is_open(net, address)
            .then_some(())
            .ok_or_else(|| format!("{address} is closed"))
    })
    .await;
}

async fn vm() -> (Net, Booted) {
    let net = Net::new().await.unwrap();
    let networks = [
        ("control", "169.254.0.1/16", "0e:00:a9:fe:0e:57"),
        ("management", "192.0.2.10/24", "02:00:4c:9f:00:05"),
        ("public", "203.0.113.1/24", "02:00:4c:9f:00:06"),
        ("storage", "198.51.100.1/24", "02:00:4c:9f:00:07"),
    ];
    let mut vm = Vm::new(Format::Qcow2).net(&net).may_reboot();
    for (bridge, address, mac) in networks {
        net.bridge(bridge, address).await.unwrap();
        vm = vm.nic(Nic::on(bridge, mac));
    }
    (net, vm.boot().await.unwrap())
}

#[tokio::test]
async fn a_vm_becomes_what_the_host_writes_and_something_else_when_that_changes() {
    let (net, vm) = vm().await;
    let host = Ssh::new(&net, "169.254.14.87").await.unwrap();
    let key = BASE64_STANDARD.encode(host.public_key().unwrap());
    let listening = ["ss", "--no-header", "--listening", "--tcp", "--numeric"];
    assert_eq!(
        vm.text(&listening).await.unwrap(),
        "",
        "nothing listens before the line"
    );

    vm.pass_cmdline(&secstorage("169.254.14.87", &key)).await.unwrap();
    opens(&net, "169.254.14.87", OPEN_LIMIT).await;
    for other in ["192.0.2.21", "203.0.113.21", "198.51.100.30"] {
        assert!(!is_open(&net, other), "{other} is open, too");
    }
    assert_eq!(host.run("hostname").await.unwrap(), "s-1-VM\n");
    let addresses = host.run("ip -brief -4 address show up").await.unwrap();
    let addresses: Vec<_> = addresses
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    let address = |name: &str| {
        addresses
            .iter()
            .find(|words| words[0] == name)
            .map(|words| words[2..].to_vec())
    };
    assert_eq!(address("eth0").unwrap(), ["169.254.14.87/16"]);
    assert_eq!(address("eth1").unwrap(), ["192.0.2.21/24"]);
    assert_eq!(address("eth2").unwrap(), ["203.0.113.21/24"]);
    assert_eq!(address("eth3").unwrap(), ["198.51.100.30/24"]);
    assert_eq!(host.run("cat /sys/class/net/eth3/mtu").await.unwrap(), "1400\n");
    let default = host.run("ip route show default").await.unwrap();
    assert_eq!(default.trim(), "default via 203.0.113.1 dev eth2 proto static");
    let resolv = host.run("grep -c nameserver /etc/resolv.conf").await.unwrap();
    assert_eq!(resolv, "3\n");
    assert_eq!(
        host.run(
            "stat --format='%a %U' /var/cache/cloud/cmdline /var/cache/cloud/cmd_line.json /root/.ssh/authorized_keys"
        )
        .await
        .unwrap(),
        "600 root\n600 root\n600 root\n"
    );
    net.run(Cmd::new("ping").args(["-c", "1", "-W", "10", "169.254.14.87"]))
        .await
        .unwrap();
    let log = host.run("cat /var/log/cloud.log").await.unwrap();
    assert!(
        log.contains(" boot: ssh done: sshd listens on 169.254.14.87:3922\n"),
        "{log}"
    );
    assert!(!log.contains("WmszdlE4bllwMkxyVDZ4Vw"), "{log}");

    // A line that makes no sense changes nothing, and says all that is wrong.
    vm.pass_cmdline(&secstorage("169.254.14.870", &key).replace("eth1ip=", "eth1ip=x"))
        .await
        .unwrap();
    wait::until("the complaint", LIMIT, async || {
        let progress = vm.read("/run/sysvm/boot.json").await.unwrap();
        let has_both = progress.contains("169.254.14.870") && progress.contains("eth1ip=\\\"x192.0.2.21");
        has_both.then_some(()).ok_or(progress)
    })
    .await;
    assert_eq!(host.run("hostname").await.unwrap(), "s-1-VM\n");

    // Another control address: only that one answers.
    vm.pass_cmdline(&secstorage("169.254.14.88", &key)).await.unwrap();
    opens(&net, "169.254.14.88", OPEN_LIMIT).await;
    wait::until("the old address to go", LIMIT, async || {
        (!is_open(&net, "169.254.14.87"))
            .then_some(())
            .ok_or_else(|| "it answers".to_owned())
    })
    .await;

    // A reboot without a line: the last one counts.
    vm.reset().await.unwrap();
    opens(&net, "169.254.14.88", Duration::from_mins(2)).await;
    vm.agent_up(LIMIT).await.unwrap();
    assert_eq!(
        vm.text(&["systemctl", "--failed", "--no-legend", "--plain"])
            .await
            .unwrap(),
        ""
    );
}
