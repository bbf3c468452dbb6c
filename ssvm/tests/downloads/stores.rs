//! Stores that are full or do not answer: real file systems, made for the test. Needs root, as the program's own VM has.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use platform::exec::Cmd;
use protocol::answer::AnswerBody;
use protocol::secondary_storage::{DownloadRequest, DownloadStatus, GetStorageStatsCommand, ListTemplateCommand};
use protocol::session::CheckHealthCommand;
use protocol::transfer::ImageFormat;

use crate::fake_controller::nfs;
use crate::fake_source::{Announced, File, Source};
use crate::images::noise;
use crate::machine::{Machine, STORE, template};

/// Unmounted at the end, whatever happens.
pub(crate) struct Mounted(pub(crate) PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn tmpfs(at: &Path, size: &str) -> Mounted {
    std::fs::create_dir(at).unwrap();
    let options = format!("size={size}");
    mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .expect("root may mount");
    Mounted(at.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_is_told_before_or_in_the_middle_and_left_clean() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let _mounted = tmpfs(&store, "8m");
    let machine = Machine::start_in(directory, store.clone(), "").await;
    let source = Source::start().await;
    source.put("/known.raw", File::new(noise(16 << 20)));
    source.put(
        "/unknown.raw",
        File {
            length: Announced::Chunked,
            ..File::new(noise(16 << 20))
        },
    );
    for path in ["/known.raw", "/unknown.raw"] {
        let text = machine.refusal(&template(&source.url(path), ImageFormat::Raw)).await;
        let expected = format!(
            "No space left on secondary storage {STORE} for {}; delete",
            source.url(path)
        );
        assert!(text.starts_with(&expected), "{text}");
        assert!(!machine.log().contains("Transfer interrupted"), "{}", machine.log());
    }
    source.put("/small.raw", File::new(noise(1 << 20)));
    let answer = machine
        .download(&template(&source.url("/small.raw"), ImageFormat::Raw))
        .await;
    assert_eq!(
        answer.download_status,
        Some(DownloadStatus::Downloaded),
        "room is free again: {answer:?}"
    );
}

/// A file system in a file, which `fsfreeze` stops: every write waits, in a way that no signal ends.
pub(crate) struct Freezable {
    pub(crate) mounted: Mounted,
}

impl Freezable {
    pub(crate) async fn new(directory: &Path) -> Self {
        let (image, at) = (directory.join("image"), directory.join("store"));
        std::fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        Cmd::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&image)
            .run()
            .await
            .unwrap();
        Cmd::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&at)
            .run()
            .await
            .unwrap();
        Self { mounted: Mounted(at) }
    }

    pub(crate) async fn freeze(&self, option: &str) {
        Cmd::new("fsfreeze")
            .arg(option)
            .arg(&self.mounted.0)
            .run()
            .await
            .unwrap();
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        // A frozen file system cannot be unmounted; outside of a runtime this is the plain way.
        let at = self.mounted.0.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _ = runtime.block_on(Cmd::new("fsfreeze").arg("-u").arg(at).run());
        })
        .join()
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_stops_no_answer_and_the_download_goes_on_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Freezable::new(directory.path()).await;
    let store = disk.mounted.0.clone();
    let machine = Machine::start_in(directory, store, "").await;
    let source = Source::start().await;
    let body = noise(24 << 20);
    source.put(
        "/a.raw",
        File {
            rate: Some(6 << 20),
            ..File::new(body.clone())
        },
    );
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let mut answer = machine.controller.download(command.clone()).await;
    assert_eq!(
        answer.download_status,
        Some(DownloadStatus::DownloadInProgress),
        "{answer:?}"
    );
    disk.freeze("-f").await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(8) {
        let asked = Instant::now();
        answer = machine.progress(&command, &answer, DownloadRequest::GetStatus).await;
        assert_eq!(
            answer.download_status,
            Some(DownloadStatus::DownloadInProgress),
            "{answer:?}"
        );
        assert!(machine.controller.ask(CheckHealthCommand {}).await.result);
        assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let asked = Instant::now();
    let stats = GetStorageStatsCommand {
        store: Some(nfs(STORE)),
        ..GetStorageStatsCommand::default()
    };
    let stats = machine.controller.ask(stats).await;
    assert!(
        asked.elapsed() < Duration::from_secs(6),
        "{:?} {stats:?}",
        asked.elapsed()
    );
    disk.freeze("-u").await;
    let answer = machine.ended(&command, answer).await;
    assert_eq!(
        answer.download_status,
        Some(DownloadStatus::Downloaded),
        "{answer:?}\n{}",
        machine.log()
    );
    assert!(machine.image(&answer) == body, "never a wrong file");
    drop(machine);
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_the_store_is_listed_measured_and_deleted() {
    let machine = Machine::start().await;
    let source = Source::start().await;
    let body = noise(1 << 20);
    source.put("/a.raw", File::new(body.clone()));
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let answer = machine.download(&command).await;
    let list = || ListTemplateCommand {
        store: Some(nfs(STORE)),
        ..ListTemplateCommand::default()
    };
    let listed = match machine.controller.ask(list()).await.body {
        AnswerBody::ListTemplate(list) => list.template_infos.unwrap(),
        other => panic!("{other:?}"),
    };
    let found = &listed["207-2-demo"];
    assert_eq!(found.install_path, answer.install_path);
    assert_eq!((found.id, found.size, found.physical_size), (207, 1 << 20, 1 << 20));
    assert!(found.is_public && !found.is_corrupted);

    let checksum = protocol::secondary_storage::ComputeChecksumCommand {
        store: Some(nfs(STORE)),
        template_path: answer.install_path.clone(),
        algorithm: Some("SHA-512".into()),
        ..Default::default()
    };
    let checksum = machine.controller.ask(checksum).await;
    assert_eq!(checksum.details, answer.check_sum);

    let browse = protocol::secondary_storage::ListDataStoreObjectsCommand {
        store: Some(nfs(STORE)),
        path: Some("/template/tmpl/2/207".into()),
        page_size: 1,
        start_index: 1,
        ..Default::default()
    };
    match machine.controller.ask(browse).await.body {
        AnswerBody::ListDataStoreObjects(page) => {
            assert_eq!((page.path_exists, page.count), (true, 2));
            assert_eq!(page.names.unwrap(), ["template.properties"]);
            assert_eq!(page.paths.unwrap(), ["/template/tmpl/2/207/template.properties"]);
        }
        other => panic!("{other:?}"),
    }

    let template = protocol::transfer::TemplateObjectTO {
        path: answer.install_path.clone(),
        id: 207,
        image_data_store: Some(nfs(STORE)),
        ..Default::default()
    };
    let delete = protocol::secondary_storage::DeleteCommand {
        data: Some(protocol::transfer::DataTO::Template(Box::new(template))),
        delete_chain: false,
    };
    let deleted = machine.controller.ask(delete).await;
    assert!(deleted.result, "{deleted:?}");
    assert!(!machine.store.join("template/tmpl/2/207").exists());
    match machine.controller.ask(list()).await.body {
        AnswerBody::ListTemplate(list) => assert!(list.template_infos.unwrap().is_empty()),
        other => panic!("{other:?}"),
    }
}
