//! Archives through the whole program: made by `zip` and `tar`, unpacked on the way or in the store.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::Cmd;
use protocol::secondary_storage::{DownloadAnswer, DownloadCommand, DownloadRequest, DownloadStatus};
use protocol::transfer::ImageFormat;
use tempfile::TempDir;

use crate::fake_source::{File, Source};
use crate::images::{Images, noise, sha512};
use crate::machine::{Machine, template};

/// Runs a program in a directory.
async fn run(directory: &Path, program: &str, args: &[&str]) {
    let command = Cmd::new("env").arg("-C").arg(directory).arg(program).args(args);
    command.run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zipped_image_is_unpacked_and_what_is_no_single_image_is_refused() {
    let images = Images::new();
    let source = Source::start().await;
    let machine = Machine::start().await;
    let good = images.qcow2_with_data(2).await;
    let directory = images.path("");
    run(&directory, "zip", &["-q", "known.zip", "data.qcow2"]).await;
    run(&directory, "zip", &["-q", "two.zip", "data.qcow2", "data.raw"]).await;
    run(&directory, "zip", &["-q", "-P", "secret", "locked.zip", "data.qcow2"]).await;
    let streamed = Cmd::new("zip").args(["-q", "-", "-"]).stdin(good.clone());
    let streamed = streamed.run().await.unwrap().stdout;
    let read = |name: &str| std::fs::read(images.path(name)).unwrap();
    for (path, packed) in [
        ("/known.qcow2.zip", read("known.zip")),
        ("/streamed.qcow2.zip", streamed),
    ] {
        // Cut in the middle: the unpacking goes on over two connections.
        let cut = File {
            cuts: vec![packed.len() / 2],
            ..File::new(packed.clone())
        };
        source.put(path, cut);
        let answer = machine.download(&template(&source.url(path), ImageFormat::Qcow2)).await;
        assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
        assert!(machine.image(&answer) == good, "{path}");
        let file = images.path("packed");
        let _ = platform::files::replace(&file, packed, 0o600).unwrap();
        assert_eq!(answer.check_sum, Some(sha512(&file).await), "of what came");
    }
    let cases = [
        ("two.zip", "it has more than one file in it"),
        ("locked.zip", "it is encrypted; publish it without a password"),
    ];
    for (name, why) in cases {
        let path = format!("/{name}.qcow2.zip");
        source.put(&path, File::new(read(name)));
        let text = machine.refusal(&template(&source.url(&path), ImageFormat::Qcow2)).await;
        assert!(
            text.contains("Failed to install: the zip file cannot be used") && text.contains(why),
            "{text}"
        );
    }
}

/// OVAs of the descriptor of the vectors, with real disks.
struct Ovas(TempDir);

const MEMBERS: [&str; 4] = ["demo.ovf", "demo-disk1.vmdk", "demo-disk2.vmdk", "tools.iso"];

impl Ovas {
    async fn new() -> Self {
        let ovas = Self(tempfile::tempdir().unwrap());
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/ovf/sample.ovf");
        std::fs::copy(sample, ovas.at("demo.ovf")).unwrap();
        std::fs::File::create(ovas.at("disk.raw"))
            .unwrap()
            .set_len(10 << 20)
            .unwrap();
        std::io::Write::write_all(
            &mut std::fs::File::options().write(true).open(ovas.at("disk.raw")).unwrap(),
            &noise(8 << 20),
        )
        .unwrap();
        let optimized = ["-O", "vmdk", "-o", "subformat=streamOptimized"];
        let convert = [
            &["convert", "-f", "raw"],
            &optimized[..],
            &["disk.raw", "demo-disk1.vmdk"],
        ]
        .concat();
        run(ovas.0.path(), "qemu-img", &convert).await;
        let create = ["create", "-q", "-f", "vmdk", "-o", "subformat=streamOptimized"];
        run(
            ovas.0.path(),
            "qemu-img",
            &[&create[..], &["demo-disk2.vmdk", "2G"]].concat(),
        )
        .await;
        run(ovas.0.path(), "genisoimage", &["-quiet", "-o", "tools.iso", "demo.ovf"]).await;
        ovas
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    async fn pack(&self, members: &[&str]) -> Vec<u8> {
        run(self.0.path(), "tar", &[&["-cf", "packed"], members].concat()).await;
        std::fs::read(self.at("packed")).unwrap()
    }
}

/// The archive, its members and its properties are there, readable for hosts, and nothing else.
fn assert_installed(machine: &Machine, command: &DownloadCommand, answer: &DownloadAnswer, ovas: &Ovas) {
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert_eq!(answer.template_size, 2_157_969_408, "the sum of the disks");
    let information = answer.ovf_information_to.as_ref().expect("what the OVA says of itself");
    assert_eq!(information.disks.as_ref().unwrap().len(), 3, "two disks and an ISO");
    let mut expected: Vec<_> = MEMBERS.map(str::to_owned).into();
    let archive = machine.path(answer);
    expected.push(archive.file_name().unwrap().to_str().unwrap().to_owned());
    expected.push("template.properties".to_owned());
    expected.sort();
    assert_eq!(machine.files(command), expected);
    for name in expected {
        let path = archive.with_file_name(&name);
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o666,
            "{name}"
        );
        if MEMBERS.contains(&name.as_str()) {
            assert!(
                std::fs::read(&path).unwrap() == std::fs::read(ovas.at(&name)).unwrap(),
                "{name}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ova_is_unpacked_told_about_and_replaced_whole() {
    let ovas = Ovas::new().await;
    let source = Source::start().await;
    let machine = Machine::start().await;
    source.put("/a.ova", File::new(ovas.pack(&MEMBERS).await));
    let command = template(&source.url("/a.ova"), ImageFormat::Ova);
    let answer = machine.download(&command).await;
    assert_installed(&machine, &command, &answer, &ovas);
    // Again, over what is there.
    let answer = machine.download(&command).await;
    assert_installed(&machine, &command, &answer, &ovas);
    let purged = machine.progress(&command, &answer, DownloadRequest::Purge).await;
    assert_eq!(purged.ovf_information_to, answer.ovf_information_to);

    let incomplete = ovas.pack(&MEMBERS[..2]).await;
    source.put("/b.ova", File::new(incomplete));
    let text = machine
        .refusal(&template(&source.url("/b.ova"), ImageFormat::Ova))
        .await;
    assert!(text.contains("does not exists demo-disk2.vmdk"), "{text}");

    source.put("/a.raw", File::new(noise(1 << 20)));
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let answer = machine.download(&command).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert_eq!(machine.files(&command).len(), 2, "{:?}", machine.tree());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_ova_leaves_nothing() {
    let ovas = Ovas::new().await;
    let source = Source::start().await;
    let machine = Machine::start().await;
    let _ = platform::files::replace(
        ovas.at("demo.mf"),
        format!("SHA1(demo.ovf)= {}\n", "0".repeat(40)),
        0o600,
    )
    .unwrap();
    let packed = ovas.pack(&[&MEMBERS[..], &["demo.mf"]].concat()).await;
    source.put("/a.ova", File::new(packed));
    let text = machine
        .refusal(&template(&source.url("/a.ova"), ImageFormat::Ova))
        .await;
    assert!(text.contains("its manifest says"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_unpacks_an_ova_ends_right() {
    let ovas = Ovas::new().await;
    let source = Source::start().await;
    let mut machine = Machine::start().await;
    source.put("/a.ova", File::new(ovas.pack(&MEMBERS).await));
    let command = template(&source.url("/a.ova"), ImageFormat::Ova);
    for wait in [60, 120, 180, 240, 300] {
        let (asking, asked) = (machine.controller.clone(), command.clone());
        let asking = tokio::spawn(async move { asking.download(asked).await });
        tokio::time::sleep(Duration::from_millis(wait)).await;
        machine.kill().await;
        asking.abort();
        machine.run().await;
        let answer = machine.download(&command).await;
        assert_installed(&machine, &command, &answer, &ovas);
    }
}
