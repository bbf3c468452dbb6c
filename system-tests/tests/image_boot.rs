//! The system VM image from outside: what a host gives to it and gets from it, whatever type of system VM it will be.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime};

use platform::exec::{Cmd, ExecError};
use system_tests::vm::{BOOT_LIMIT, Booted, Firmware, Format, Machine, Net, Nic, Ssh, Vm};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// After a request to power off: appliance.md §14, item 7.
const END_LIMIT: Duration = Duration::from_mins(1);
/// Of the VM that is reached over a network.
const ADDRESS: &str = "169.254.14.87";
const MAC: &str = "0e:00:a9:fe:0e:57";

/// All that a first boot decides, for two VMs at once: one with BIOS, one with UEFI.
#[tokio::test]
async fn two_vms_boot_alike_with_identities_of_their_own_and_power_off_when_asked() {
    let bios = Vm::new(Format::Qcow2)
        .nic(Nic::unplugged(MAC))
        .port("org.example.channel")
        .oem_string("cloudstack-cmdline:type=an-oem-string")
        .oem_string("a,b")
        .fw_cfg("opt/org.cloudstack/cmdline", "type=fw_cfg")
        .iso("config-2", &[("cmdline", b"type=a-cd\n")])
        .no_rng()
        .watchdog()
        .may_reboot();
    let uefi = Vm::new(Format::Qcow2)
        .machine(Machine::Q35)
        .firmware(Firmware::Ovmf)
        .cpus(2);
    let (bios, uefi) = tokio::try_join!(bios.boot(), uefi.boot()).unwrap();
    tokio::try_join!(bios.up(), uefi.up()).unwrap();

    assert_eq!(
        bios.run(&["test", "-e", "/sys/firmware/efi"]).await.unwrap().code,
        Some(1)
    );
    assert_eq!(
        uefi.run(&["test", "-e", "/sys/firmware/efi"]).await.unwrap().code,
        Some(0)
    );
    for vm in [&bios, &uefi] {
        nobody_has_a_password(vm).await;
        nothing_listens(vm).await;
        the_journal_is_small_and_in_memory(vm).await;
        programs_are_there_and_wait(vm).await;
    }
    each_has_its_own(&bios, &uefi, &["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).await;
    each_has_its_own(&bios, &uefi, &["cat", "/etc/ssh/ssh_host_ecdsa_key.pub"]).await;
    each_has_its_own(&bios, &uefi, &["cat", "/etc/machine-id"]).await;
    boot_arguments_are_found_in_every_place(&bios).await;
    it_is_the_same_after_a_reset(&bios).await;

    listens_to_its_power_button(&bios).await;
    bios.press_power_button().await.unwrap();
    uefi.shut_down().await.unwrap();
    tokio::try_join!(bios.ended(END_LIMIT), uefi.ended(END_LIMIT)).unwrap();
}

/// logind looks for buttons when the guest is up already; what is pressed before is lost, as on any machine.
async fn listens_to_its_power_button(vm: &Booted) {
    let has_seen_it = [
        "journalctl",
        "--boot",
        "--quiet",
        "--unit=systemd-logind",
        "--grep=Power Button",
    ];
    for _ in 0..60 {
        if vm.run(&has_seen_it).await.unwrap().code == Some(0) {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("logind has found no power button after a minute");
}

async fn nobody_has_a_password(vm: &Booted) {
    let shadow = vm.text(&["cat", "/etc/shadow"]).await.unwrap();
    let open: Vec<_> = shadow
        .lines()
        .filter(|line| {
            !line
                .split(':')
                .nth(1)
                .is_some_and(|password| password.starts_with(['!', '*']))
        })
        .collect();
    assert_eq!(open, [""; 0], "these accounts can log in with a password, or none");
    assert!(shadow.starts_with("root:"), "{shadow}");
}

/// Until boot arguments say where.
async fn nothing_listens(vm: &Booted) {
    let all = [
        "ss",
        "--no-header",
        "--listening",
        "--tcp",
        "--udp",
        "--raw",
        "--numeric",
    ];
    assert_eq!(vm.text(&all).await.unwrap(), "");
    let ruleset = vm.text(&["nft", "list", "ruleset"]).await.unwrap();
    assert_eq!(
        ruleset.matches("policy drop").count(),
        2,
        "input and forward are closed: {ruleset}"
    );
}

async fn the_journal_is_small_and_in_memory(vm: &Booted) {
    let said = vm
        .text(&[
            "journalctl",
            "--boot",
            "--quiet",
            "--output=cat",
            "--unit=systemd-journald",
        ])
        .await
        .unwrap();
    assert!(said.contains("Runtime Journal (/run/log/journal/"), "{said}");
    assert!(said.contains("max 8M"), "{said}");
    assert!(!said.contains("System Journal"), "{said}");
}

/// The units of step 4 start them; until then they are there and do not run.
async fn programs_are_there_and_wait(vm: &Booted) {
    for program in ["agent", "ssvm", "console-proxy"] {
        let path = format!("/usr/lib/sysvm/bin/{program}");
        let version = vm.text(&[&path, "--version"]).await.unwrap();
        assert!(version.starts_with(&format!("{program} ")), "{version}");
    }
    for unit in ["cs-ssvm.service", "cs-console-proxy.service"] {
        let enabled = vm.run(&["systemctl", "is-enabled", unit]).await.unwrap();
        assert_eq!(enabled.stdout, "disabled\n", "{unit}: {}", enabled.stderr);
        let active = vm.run(&["systemctl", "is-active", unit]).await.unwrap();
        assert_eq!(active.stdout, "inactive\n", "{unit}");
    }
}

async fn each_has_its_own(one: &Booted, other: &Booted, words: &[&str]) {
    let (one, other) = (one.text(words).await.unwrap(), other.text(words).await.unwrap());
    assert!(!one.trim().is_empty(), "{words:?} prints nothing");
    assert_ne!(one, other, "{words:?}");
}

async fn it_is_the_same_after_a_reset(vm: &Booted) {
    let cmdline = vm.read("/var/cache/cloud/cmdline").await.unwrap();
    let key = vm.text(&["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).await.unwrap();
    vm.text(&["sync"]).await.unwrap();
    vm.reset().await.unwrap();
    vm.agent_up(BOOT_LIMIT).await.unwrap();
    vm.up().await.unwrap();
    assert_eq!(vm.read("/var/cache/cloud/cmdline").await.unwrap(), cmdline);
    assert_eq!(
        vm.text(&["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).await.unwrap(),
        key
    );
}

/// QEMU's real fw_cfg, SMBIOS and CD. All of them make no sense, so that each is tried, and the machine waits for a better one.
async fn boot_arguments_are_found_in_every_place(vm: &Booted) {
    let sources = vm.text(&["agent", "cmdline", "--sources"]).await.unwrap();
    assert_eq!(
        sources,
        "hypervisor: kvm, it has the virtio port org.qemu.guest_agent.0\n\
         /mnt/cmdline: nothing\n\
         the kernel command line: nothing\n\
         fw_cfg opt/org.cloudstack/cmdline: 11 bytes\n\
         fw_cfg opt/cloudstack/cmdline: nothing\n\
         an SMBIOS OEM string: 18 bytes\n\
         a CD: 10 bytes\n"
    );
    let log = ["journalctl", "--boot", "--quiet", "--output=cat", "--unit=cs-preinit"];
    system_tests::wait::until("each place to be tried", END_LIMIT, async || {
        let log = vm.text(&log).await.unwrap();
        let is_told = |name: &str| log.contains(&format!("type=\\\"{name}\\\": expected one of"));
        let has_all = ["fw_cfg", "an-oem-string", "a-cd"].into_iter().all(is_told);
        has_all.then_some(()).ok_or(log)
    })
    .await;

    let port = "/dev/virtio-ports/org.example.channel";
    let mut channel = vm.port("org.example.channel").await.unwrap();
    channel.write_all(b"to the guest\n").await.unwrap();
    assert_eq!(vm.text(&["head", "--lines=1", port]).await.unwrap(), "to the guest\n");
    vm.text(&["dd", "if=/etc/hostname", &format!("of={port}")])
        .await
        .unwrap();
    let mut heard = [0; 6];
    tokio::time::timeout(END_LIMIT, channel.read_exact(&mut heard))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&heard, b"sysvm\n");

    vm.pass_cmdline("template=domP type=cksnode name=r-4-VM").await.unwrap();
    let cmdline = vm
        .text(&["stat", "--format=%a %U %s", "/var/cache/cloud/cmdline"])
        .await
        .unwrap();
    assert_eq!(cmdline, "600 root 39\n");
}

/// A VM on a control network. It has booted before.
async fn on_control_network() -> (Net, Booted) {
    let net = Net::new().await.unwrap();
    net.bridge("control", "169.254.0.1/16").await.unwrap();
    let vm = Vm::new(Format::Qcow2)
        .net(&net)
        .nic(Nic::on("control", MAC))
        .resume()
        .await
        .unwrap();
    vm.pass_cmdline(&format!(
        "type=vpcrouter name=r-4-VM eth0ip={ADDRESS} eth0mask=255.255.0.0"
    ))
    .await
    .unwrap();
    let address = SocketAddr::new(ADDRESS.parse().unwrap(), 3922);
    system_tests::wait::until("port 3922", END_LIMIT, async || {
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
        net.inside(connect)
            .unwrap()
            .map(drop)
            .map_err(|error| error.to_string())
    })
    .await;
    (net, vm)
}

#[tokio::test]
async fn root_logs_in_with_the_key_on_3922_and_in_no_other_way() {
    let (net, vm) = on_control_network().await;
    let host = Ssh::new(&net, ADDRESS).await.unwrap();
    vm.text(&["mkdir", "-p", "-m", "700", "/root/.ssh"]).await.unwrap();
    vm.write("/root/.ssh/authorized_keys", host.public_key().unwrap().as_bytes())
        .await
        .unwrap();

    vm.text(&["chmod", "600", "/root/.ssh/authorized_keys"]).await.unwrap();
    assert_eq!(host.run("whoami").await.unwrap(), "root\n");
    let stranger = Ssh::new(&net, ADDRESS).await.unwrap();
    refused(stranger.run("whoami").await, "Permission denied (publickey).");
    let password = Ssh::new(&net, ADDRESS).await.unwrap().option("PubkeyAuthentication=no");
    refused(password.run("whoami").await, "Permission denied (publickey).");

    // Of an exit code that is not 0, only the end of the output is known.
    refused(host.run("echo x; exit 3").await, "x");
    assert_eq!(
        host.run("echo /etc/host[n]ame \"a  b\"").await.unwrap(),
        "/etc/hostname a  b\n"
    );

    let java = Ssh::new(&net, ADDRESS).await.unwrap();
    let keys = host.public_key().unwrap() + &java.public_key().unwrap();
    vm.write("/root/.ssh/authorized_keys", keys.as_bytes()).await.unwrap();
    let java = java
        .option("Ciphers=aes128-ctr")
        .option("MACs=hmac-sha2-256")
        .option("KexAlgorithms=ecdh-sha2-nistp256");
    assert_eq!(java.run("hostname").await.unwrap(), "r-4-VM\n");

    let directory = tempfile::tempdir().unwrap();
    let (file, back) = (directory.path().join("patch.sh"), directory.path().join("back"));
    let _ = platform::files::replace(&file, "#!/bin/bash\n", 0o755).unwrap();
    for legacy in [true, false] {
        host.upload(&[&file], "/var/cache/cloud/", legacy).await.unwrap();
        assert_eq!(host.run("stat -c %a /var/cache/cloud/patch.sh").await.unwrap(), "755\n");
        host.download("/var/cache/cloud/patch.sh", &back, legacy).await.unwrap();
        assert_eq!(fs::read(&back).unwrap(), b"#!/bin/bash\n");
        host.run("rm /var/cache/cloud/patch.sh").await.unwrap();
    }

    net.run(Cmd::new("ping").args(["-c", "1", "-W", "10", ADDRESS]))
        .await
        .unwrap();
    for port in [22, 80, 443, 8080] {
        let address = SocketAddr::new(ADDRESS.parse().unwrap(), port);
        let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
        assert!(net.inside(connect).unwrap().is_err(), "{address} is open");
    }
}

fn refused(result: Result<String, ExecError>, said: &str) {
    match result {
        Err(ExecError::Failed { printed, .. }) => assert!(printed.ends_with(said), "{printed}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_resumed_vm_has_the_right_time_and_takes_new_nics() {
    let (_net, vm) = on_control_network().await;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let date: u64 = vm.text(&["date", "+%s"]).await.unwrap().trim().parse().unwrap();
    assert!(date.abs_diff(now) < 60, "{date}, but it is {now}");

    vm.plug("a", &Nic::on("control", "02:00:00:00:00:0a")).await.unwrap();
    vm.plug("b", &Nic::on("control", "02:00:00:00:00:0b")).await.unwrap();
    has_nics(
        &vm,
        &[
            ("eth0", MAC),
            ("eth1", "02:00:00:00:00:0a"),
            ("eth2", "02:00:00:00:00:0b"),
        ],
    )
    .await;
    vm.unplug("a").await.unwrap();
    vm.plug("c", &Nic::on("control", "02:00:00:00:00:0c")).await.unwrap();
    has_nics(
        &vm,
        &[
            ("eth0", MAC),
            ("eth1", "02:00:00:00:00:0c"),
            ("eth2", "02:00:00:00:00:0b"),
        ],
    )
    .await;

    let kept = vm.keep_evidence().await;
    let journal = fs::read_to_string(kept.join("journal.txt")).unwrap();
    assert!(journal.contains("systemd[1]: "), "{journal}");
    fs::remove_dir_all(kept).unwrap();
}

async fn has_nics(vm: &Booted, wanted: &[(&str, &str)]) {
    system_tests::wait::until("the NICs", Duration::from_secs(30), async || {
        let mut seen = Vec::new();
        for (name, _) in wanted {
            let address = vm
                .run(&["cat", &format!("/sys/class/net/{name}/address")])
                .await
                .unwrap();
            seen.push(address.stdout.trim().to_owned());
        }
        let is_right = seen.iter().zip(wanted).all(|(seen, (_, mac))| seen == mac);
        if is_right { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}
