use std::fs;

use super::*;

fn root(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::new(directory.path());
    for (path, contents) in files {
        let path = root.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = files::replace(path, contents, 0o600).unwrap();
    }
    (directory, root)
}

const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/cloudstack/cmdline/raw";
const OEM: &str = "/sys/firmware/dmi/entries/11-0/raw";

#[tokio::test]
async fn the_first_channel_of_the_order_wins() {
    let mounted: (&str, &[u8]) = ("/mnt/cmdline", b"type=router name=mounted");
    let kernel: (&str, &[u8]) = ("/proc/cmdline", b"root=LABEL=root type=router name=kernel\n");
    let fw_cfg: (&str, &[u8]) = (FW_CFG, b"type=router name=firmware");
    let oem: (&str, &[u8]) = (OEM, b"\x0b\x05\0\0\x01cmdline:type=router name=oem\0\0");
    let all = [oem, fw_cfg, kernel, mounted];
    let wanted = [
        Channel::Smbios,
        Channel::FwCfg("opt/cloudstack/cmdline".to_owned()),
        Channel::Kernel,
        Channel::File("/mnt/cmdline".into()),
    ];
    for (count, channel) in (1..).zip(wanted) {
        let (_directory, root) = root(&all[..count]);
        let found = first(&root, Hypervisor::Kvm, None, |_| false).await;
        assert_eq!(found.line.unwrap().channel, channel);
        assert!(found.problems.is_empty(), "{:?}", found.problems);
    }
}

#[tokio::test]
async fn a_file_that_was_named_is_the_only_source() {
    let (_directory, root) = root(&[("/mnt/cmdline", b"type=router"), ("/line", b"type=dhcpsrvr")]);
    let found = first(&root, Hypervisor::Kvm, Some(&root.path("line")), |_| false).await;
    assert_eq!(found.line.unwrap().text, b"type=dhcpsrvr");

    let missing = root.path("missing");
    let found = first(&root, Hypervisor::Kvm, Some(&missing), |_| false).await;
    assert!(found.line.is_none());
    let problems: Vec<_> = found.problems.iter().map(ToString::to_string).collect();
    let wanted = format!(
        "{} does not exist; give the file with the boot arguments",
        missing.display()
    );
    assert_eq!(problems, [wanted]);
}

#[tokio::test]
async fn a_channel_that_cannot_be_read_is_told_and_the_next_is_tried() {
    let long = vec![b'x'; 300 * 1024];
    let (_directory, root) = root(&[(OEM, b"\x0b\x09"), ("/mnt/cmdline", &long), (FW_CFG, b" \n")]);
    let found = first(&root, Hypervisor::Kvm, None, |_| false).await;
    assert!(found.line.is_none());
    assert_eq!(found.problems.len(), 2, "{:?}", found.problems);
}

#[tokio::test]
async fn a_line_that_makes_no_sense_does_not_hide_the_next_channels() {
    let (_directory, root) = root(&[("/mnt/cmdline", b"type=rooter"), (FW_CFG, b"type=router")]);
    let found = first(&root, Hypervisor::Kvm, None, |line| line == b"type=rooter").await;
    assert_eq!(found.line.unwrap().text, b"type=router");
}

#[tokio::test]
async fn a_pair_of_hyper_v_counts_only_there() {
    let mut pool = b"cloudstack-vm-userdata".to_vec();
    pool.resize(512, 0);
    pool.extend(b"type=router name=r-4-VM");
    pool.resize(2560, 0);
    let (_directory, root) = root(&[("/var/lib/hyperv/.kvp_pool_0", &pool)]);
    assert!(first(&root, Hypervisor::Kvm, None, |_| false).await.line.is_none());
    let line = first(&root, Hypervisor::HyperV, None, |_| false).await.line.unwrap();
    assert_eq!(
        (line.text.as_slice(), line.channel),
        (&b"type=router name=r-4-VM"[..], Channel::KeyValuePair)
    );
}

#[test]
fn a_line_does_not_show_its_secrets() {
    let line = Line {
        text: b"vmpassword=hush".to_vec(),
        channel: Channel::Xenstore,
    };
    assert_eq!(format!("{line:?}"), "Line(15 bytes from xenstore)");
}
