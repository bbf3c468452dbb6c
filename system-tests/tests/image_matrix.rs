//! The image on the hardware that hypervisors give to it, as far as QEMU can play them, in each of its formats.
//!
//! What QEMU cannot play (VMware's own LSI Logic parallel controller, Xen, Hyper-V) is checked by nobody here.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::ffi::OsStr;
use std::iter;
use std::path::Path;

use system_tests::vm::{Bus, Format, Machine, Nic, NicModel, Vm};

const MAC: &str = "02:00:00:00:00:01";

/// Boots it, and sees that the disk and the NIC are what they should be.
async fn boots(vm: Vm, disk_driver: &str, nic: NicModel, min_available_mb: u64) {
    let vm = vm.nic(Nic::unplugged(MAC).model(nic)).boot().await.unwrap();
    vm.up().await.unwrap();

    assert_eq!(
        vm.text(&["cat", "/sys/class/net/eth0/address"]).await.unwrap().trim(),
        MAC
    );
    let driver = vm
        .text(&["readlink", "/sys/class/net/eth0/device/driver"])
        .await
        .unwrap();
    assert_eq!(Path::new(driver.trim()).file_name().unwrap(), nic.driver());

    let root = vm
        .text(&["findmnt", "--noheadings", "--output=MAJ:MIN", "/"])
        .await
        .unwrap();
    let device = vm
        .text(&["readlink", "-f", &format!("/sys/dev/block/{}", root.trim())])
        .await
        .unwrap();
    // The disk's controller is one of the directories above it; most have a link to their driver.
    let above = Path::new(device.trim())
        .ancestors()
        .take_while(|path| *path != Path::new("/sys/devices"));
    let links: Vec<_> = above.map(|path| format!("{}/driver", path.display())).collect();
    let words: Vec<_> = iter::once("readlink").chain(links.iter().map(String::as_str)).collect();
    let found = vm.run(&words).await.unwrap().stdout;
    let drivers: Vec<_> = found.lines().filter_map(|link| Path::new(link).file_name()).collect();
    assert!(drivers.contains(&OsStr::new(disk_driver)), "{device}: {drivers:?}");

    let memory = vm.text(&["cat", "/proc/meminfo"]).await.unwrap();
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = available.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    assert!(
        kib * 1024 / 1_000_000 >= min_available_mb,
        "only {kib} KiB are available"
    );
}

#[tokio::test]
async fn qcow2_boots_from_ide_with_e1000_in_128_mib() {
    boots(
        Vm::new(Format::Qcow2).bus(Bus::Ide).memory_mib(128),
        "ata_piix",
        NicModel::E1000,
        30,
    )
    .await;
}

#[tokio::test]
async fn ova_boots_from_pvscsi_with_vmxnet3_in_256_mib() {
    boots(
        Vm::new(Format::Ova).bus(Bus::PvScsi).memory_mib(256),
        "vmw_pvscsi",
        NicModel::Vmxnet3,
        140,
    )
    .await;
}

#[tokio::test]
async fn vhd_boots_from_ahci_with_rtl8139() {
    boots(
        Vm::new(Format::Vhd).machine(Machine::Q35).bus(Bus::Ide),
        "ahci",
        NicModel::Rtl8139,
        350,
    )
    .await;
}

#[tokio::test]
async fn plain_qcow2_boots_from_lsi_sas_with_e1000e() {
    boots(
        Vm::new(Format::Qcow2Plain).bus(Bus::MptSas1068),
        "mptsas",
        NicModel::E1000e,
        350,
    )
    .await;
}

#[tokio::test]
async fn raw_boots_from_lsi_scsi_with_pcnet() {
    boots(
        Vm::new(Format::Raw).bus(Bus::Lsi53c895a),
        "sym53c8xx",
        NicModel::Pcnet,
        350,
    )
    .await;
}

/// Also on a disk larger than the image.
#[tokio::test]
async fn qcow2_boots_from_virtio_scsi_with_a_larger_disk() {
    boots(
        Vm::new(Format::Qcow2).bus(Bus::VirtioScsi).disk_gib(8),
        "virtio_scsi",
        NicModel::Virtio,
        350,
    )
    .await;
}
