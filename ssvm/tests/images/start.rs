use super::*;
use ImageFormat::{Iso, Ova, Qcow2, Raw, Vhd, Vhdx, Vmdk};

/// What is said when the first MiB is there.
fn start_refused(path: &Path, format: ImageFormat) -> Option<String> {
    let file = File::open(path).unwrap();
    let refusal = judge_start(&file, 1 << 20, format, &Limits::default()).err();
    refusal.map(|refusal| refusal.to_string())
}

#[test]
fn another_format_is_seen_by_its_start() {
    let shop = Workshop::new();
    let page = shop.at("page");
    let text = "<!DOCTYPE html>\n<html>".to_owned() + &"<p>Sign in</p>\n".repeat(100_000);
    platform::files::replace(&page, text, 0o600).map(drop).unwrap();
    let qcow2 = shop.convert("qcow2", "");
    File::options()
        .write(true)
        .open(&qcow2)
        .unwrap()
        .set_len(2 << 20)
        .unwrap();
    for format in [Qcow2, Vhd, Vhdx, Vmdk, Iso, Ova, Raw] {
        let told = start_refused(&page, format).unwrap();
        assert!(told.starts_with("found a web page (HTML or XML)"), "{format:?}: {told}");
        if format != Qcow2 {
            assert_eq!(
                start_refused(&qcow2, format).as_deref(),
                Some("found a QCOW2 disk image")
            );
        }
    }
    assert_eq!(start_refused(&qcow2, Qcow2), None);
    judged(&page, Raw).unwrap_err();
    judged(&qcow2, Qcow2).unwrap();
}

#[test]
fn an_image_that_names_another_file_is_seen_by_its_start() {
    let shop = Workshop::new();
    let path = shop.at("a.qcow2");
    let name = path.to_str().unwrap();
    let backing = ["-u", "-b", "/etc/passwd", "-F", "raw", "-o", "cluster_size=2M"];
    run(
        "qemu-img",
        &[&["create", "-q", "-f", "qcow2"], &backing[..], &[name, "1M"]].concat(),
    );
    let told = start_refused(&path, Qcow2).unwrap();
    assert!(told.contains("it has a backing file"), "{told}");
    // The header extensions may be longer than what is here: that is no reason to refuse them.
    patch(&path, 8, &[0; 12]);
    assert!(
        start_refused(&path, Qcow2)
            .unwrap()
            .contains("names the format of a backing file")
    );

    let path = shop.convert("vmdk", "");
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|part| part == b"SPARSE \"").unwrap();
    patch(&path, u64::try_from(at).unwrap() + 8, b"/");
    let told = start_refused(&path, Vmdk).unwrap();
    assert!(told.contains("an extent that is not allowed"), "{told}");
}

#[test]
fn what_only_the_rest_can_tell_is_waited_for() {
    let shop = Workshop::new();
    let fixed = shop.convert("vpc", "subformat=fixed");
    assert_eq!(start_refused(&fixed, Vhd), None, "its mark is at its end");
    let disk = shop.convert("raw", "");
    patch(&disk, 510, &[0x55, 0xaa]);
    assert_eq!(start_refused(&disk, Iso), None, "its partitions end where it does");
    assert_eq!(start_refused(&disk, Raw), None);
    let qcow2 = shop.create("qcow2", "cluster_size=2M", "1G");
    File::options()
        .write(true)
        .open(&qcow2)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert_eq!(start_refused(&qcow2, Qcow2), None, "its first cluster is larger");
    judged(&qcow2, Qcow2).unwrap_err();
}
