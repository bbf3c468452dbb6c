//! Disks, with the real `qemu-img`.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};

use hypervisor::disk::{DiskError, inspect, inspect_overlay, overlay};
use hypervisor::machine::Format;
use platform::exec::Cmd;
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;

struct Store(TempDir);

impl Store {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// By `qemu-img create`.
    async fn create(&self, name: &str, words: &[&str]) -> PathBuf {
        let path = self.path(name);
        let create = Cmd::new("qemu-img")
            .args(["create", "-q"])
            .args(words)
            .arg(&path)
            .arg("4M");
        create.run().await.unwrap();
        path
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn an_overlay_is_on_its_image_and_not_smaller() {
    let store = Store::new();
    let image = store.create("image.qcow2", &["-f", "qcow2"]).await;
    let disk = store.path("disk.qcow2");
    overlay(&image, &disk, None).await.unwrap();
    let (found, base) = inspect_overlay(&disk).await.unwrap();
    assert_eq!((found.format, found.virtual_size), (Format::Qcow2, 4 * MIB));
    assert_eq!(base, Some(fs::canonicalize(&image).unwrap()));

    overlay(&image, &disk, Some(8 * MIB)).await.unwrap();
    assert_eq!(inspect_overlay(&disk).await.unwrap().0.virtual_size, 8 * MIB);
    let error = overlay(&image, &disk, Some(MIB)).await.unwrap_err();
    assert!(matches!(error, DiskError::TooSmall { wanted: MIB, .. }), "{error}");
    assert_eq!(inspect_overlay(&disk).await.unwrap().0.virtual_size, 8 * MIB);

    let raw = store.create("image.raw", &["-f", "raw"]).await;
    overlay(&raw, &disk, None).await.unwrap();
    let (found, base) = inspect_overlay(&disk).await.unwrap();
    assert_eq!(
        (found.virtual_size, base),
        (4 * MIB, Some(fs::canonicalize(&raw).unwrap()))
    );
    assert_eq!(names(store.0.path()), ["disk.qcow2", "image.qcow2", "image.raw"]);
}

#[tokio::test]
async fn an_image_that_takes_data_from_another_file_is_refused() {
    let store = Store::new();
    let secret = store.create("secret.raw", &["-f", "raw"]).await;
    let secret = secret.to_str().unwrap();
    let backed = store
        .create("backed.qcow2", &["-f", "qcow2", "-F", "raw", "-b", secret])
        .await;
    let outside = format!("data_file={}", store.path("data.raw").display());
    let split = store.create("split.qcow2", &["-f", "qcow2", "-o", &outside]).await;
    for image in [&backed, &split] {
        let error = inspect(image).await.unwrap_err();
        assert!(matches!(error, DiskError::NotWhole { .. }), "{error}");
        let error = overlay(image, &store.path("disk.qcow2"), None).await.unwrap_err();
        assert!(matches!(error, DiskError::NotWhole { .. }), "{error}");
    }
    // An overlay of ours has a backing file, but no data file.
    inspect_overlay(&backed).await.unwrap();
    assert!(inspect_overlay(&split).await.is_err());
    assert!(!store.path("disk.qcow2").exists());
}

#[tokio::test]
async fn what_is_no_disk_is_named() {
    let store = Store::new();
    let vmdk = store.create("image.vmdk", &["-f", "vmdk"]).await;
    let error = inspect(&vmdk).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} is a vmdk image; convert it to qcow2", vmdk.display())
    );
    let empty = store.path("empty");
    fs::File::create(&empty).unwrap();
    assert!(matches!(
        inspect(&empty).await.unwrap_err(),
        DiskError::Size { size: 0, .. }
    ));
    assert!(matches!(
        inspect(&store.path("missing")).await.unwrap_err(),
        DiskError::Io { .. }
    ));
    assert!(matches!(
        inspect(store.0.path()).await.unwrap_err(),
        DiskError::Io { .. }
    ));
}
