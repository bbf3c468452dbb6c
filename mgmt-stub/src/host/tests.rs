use std::fs::File;
use std::os::unix::fs::{MetadataExt, symlink};

use platform::exec::Cmd;
use platform::files;
use protocol::answer::AnswerBody;
use protocol::transfer::{DataStoreRole, NfsTO, PrimaryDataStoreTO, TemplateObjectTO};
use tempfile::TempDir;

use super::*;

const URL: &str = "nfs://172.31.3.5/secondary";

struct Place {
    directory: TempDir,
    host: Host,
    mounts: Mounts,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = directory.path().join("store");
        fs::create_dir(&store).unwrap();
        let host = Host::open(directory.path().join("primary")).unwrap();
        Self {
            host,
            mounts: Mounts::from([(URL.to_owned(), store)]),
            directory,
        }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.directory.path().join("store").join(name)
    }

    /// Copies a file of the store to the pool under a new name.
    async fn fetch(&self, path: &str, format: ImageFormat) -> (Uuid, Answer, u8) {
        let name = Uuid::new_v4();
        let source = TemplateObjectTO {
            path: Some(path.into()),
            format: Some(format),
            image_data_store: Some(DataStoreTO::Nfs(NfsTO {
                url: Some(URL.into()),
                role: Some(DataStoreRole::Image),
                ..NfsTO::default()
            })),
            ..TemplateObjectTO::default()
        };
        let copy = CopyCommand {
            src_to: Some(DataTO::Template(Box::new(source))),
            dest_to: Some(DataTO::Template(Box::new(on_pool(name)))),
            ..CopyCommand::default()
        };
        let (sender, receiver) = watch::channel(0);
        let answer = self.host.carry_out(&Command::new(copy), &self.mounts, &sender).await;
        let percent = *receiver.borrow();
        (name, answer, percent)
    }

    fn left(&self) -> Vec<String> {
        let pool = fs::read_dir(self.directory.path().join("primary")).unwrap();
        pool.map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

fn on_pool(name: Uuid) -> TemplateObjectTO {
    TemplateObjectTO {
        path: Some(name.to_string()),
        image_data_store: Some(DataStoreTO::Primary(Box::default())),
        ..TemplateObjectTO::default()
    }
}

async fn qemu_img(arguments: &[&str], path: &Path, size: &str) {
    let command = Cmd::new("qemu-img").args(arguments).arg(path).arg(size);
    command.run().await.unwrap();
}

async fn info(path: &Path) -> serde_json::Value {
    let command = Cmd::new("qemu-img").args(["info", "--output=json"]).arg(path);
    serde_json::from_slice(&command.run().await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn a_template_becomes_a_file_of_the_pool_and_disks_are_overlays_on_it() {
    let place = Place::new();
    qemu_img(&["create", "-q", "-f", "qcow2"], &place.store("a.qcow2"), "64M").await;
    let (base, answer, percent) = place.fetch("a.qcow2", ImageFormat::Qcow2).await;
    assert!((50..100).contains(&percent), "the first half was told: {percent}");
    let AnswerBody::CopyCmd(CopyCmdAnswer {
        new_data: Some(DataTO::Template(made)),
    }) = &answer.body
    else {
        panic!("{answer:?}");
    };
    assert_eq!((made.size, made.format), (Some(64 << 20), Some(ImageFormat::Qcow2)));
    assert_eq!(made.path, Some(base.to_string()));

    let volume = Uuid::new_v4();
    let target = VolumeObjectTO {
        path: Some(volume.to_string()),
        data_store: Some(DataStoreTO::Primary(Box::<PrimaryDataStoreTO>::default())),
        ..VolumeObjectTO::default()
    };
    let copy = CopyCommand {
        src_to: Some(DataTO::Template(Box::new(on_pool(base)))),
        dest_to: Some(DataTO::Volume(Box::new(target.clone()))),
        ..CopyCommand::default()
    };
    let (progress, _) = watch::channel(0);
    let answer = place
        .host
        .carry_out(&Command::new(copy), &place.mounts, &progress)
        .await;
    assert!(answer.result, "{answer:?}");
    let found = info(&place.host.path(volume)).await;
    assert_eq!(found["virtual-size"], 64 << 20);
    assert_eq!(found["backing-filename"], place.host.path(base).display().to_string());
    assert_eq!(found["backing-filename-format"], "qcow2");
    assert_eq!(fs::metadata(place.host.path(volume)).unwrap().mode() & 0o777, 0o600);

    let delete = DeleteCommand {
        data: Some(DataTO::Volume(Box::new(target))),
        delete_chain: false,
    };
    let delete = Command::new(delete);
    for time in ["once", "again"] {
        let answer = place.host.carry_out(&delete, &place.mounts, &progress).await;
        assert!(answer.result, "{time}: {answer:?}");
    }
    assert_eq!(place.left(), [base.to_string()]);
}

#[tokio::test]
async fn a_raw_image_stays_sparse() {
    let place = Place::new();
    let file = File::create(place.store("b.raw")).unwrap();
    file.set_len(1 << 30).unwrap();
    let (base, answer, _) = place.fetch("b.raw", ImageFormat::Raw).await;
    assert!(answer.result, "{answer:?}");
    let found = info(&place.host.path(base)).await;
    assert_eq!(found["virtual-size"], 1 << 30);
    assert_eq!(found["format"], "qcow2");
    assert!(fs::metadata(place.host.path(base)).unwrap().blocks() * 512 < 4 << 20);
    assert_eq!(place.left(), [base.to_string()]);
}

#[tokio::test]
async fn an_image_that_names_another_file_is_refused_and_leaves_nothing() {
    let place = Place::new();
    let secret = place.directory.path().join("secret");
    let _ = files::replace(&secret, vec![b's'; 1 << 20], 0o600).unwrap();
    let backing = [
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        secret.to_str().unwrap(),
    ];
    qemu_img(&backing, &place.store("backing.qcow2"), "1M").await;
    let data_file = format!("data_file={}", place.store("data").display());
    qemu_img(
        &["create", "-q", "-f", "qcow2", "-o", &data_file],
        &place.store("data.qcow2"),
        "1M",
    )
    .await;
    let _ = files::replace(place.store("text.qcow2"), "hello", 0o600).unwrap();

    for (name, why) in [
        ("backing.qcow2", "it names a backing file"),
        ("data.qcow2", "its data is in another file"),
        ("text.qcow2", "it is not a QCOW2 image"),
    ] {
        let (_, answer, _) = place.fetch(name, ImageFormat::Qcow2).await;
        let details = answer.details.unwrap();
        assert!(!answer.result && details.contains(why), "{name}: {details}");
        assert!(!details.contains(place.directory.path().to_str().unwrap()), "{details}");
    }
    let (_, answer, _) = place.fetch("backing.qcow2", ImageFormat::Vmdk).await;
    let text = "an image of format VMDK cannot be started here; register it as QCOW2 or RAW";
    assert_eq!(answer.details.as_deref(), Some(text));
    assert!(place.left().is_empty(), "{:?}", place.left());
}

#[tokio::test]
async fn nothing_outside_of_the_store_is_read() {
    let place = Place::new();
    let secret = place.directory.path().join("secret");
    let _ = files::replace(&secret, vec![b's'; 4096], 0o600).unwrap();
    symlink(&secret, place.store("link.raw")).unwrap();
    symlink(place.directory.path(), place.store("up")).unwrap();
    nix::unistd::mkfifo(&place.store("pipe.raw"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(place.store("directory")).unwrap();
    let absolute = secret.display().to_string();
    for path in [
        "link.raw",
        "up/secret",
        "../secret",
        &absolute,
        "pipe.raw",
        "directory",
        "missing",
        "",
    ] {
        let (_, answer, _) = place.fetch(path, ImageFormat::Raw).await;
        assert!(!answer.result, "{path}");
        let details = answer.details.unwrap();
        assert!(details.starts_with("there is no usable file"), "{path}: {details}");
    }
    assert!(place.left().is_empty());
}

#[tokio::test]
async fn names_in_the_pool_are_uuids_and_what_a_killed_server_left_is_removed() {
    let place = Place::new();
    let template = TemplateObjectTO {
        path: Some("../store/a".into()),
        ..TemplateObjectTO::default()
    };
    let delete = DeleteCommand {
        data: Some(DataTO::Template(Box::new(template))),
        delete_chain: false,
    };
    let (progress, _) = watch::channel(0);
    let answer = place
        .host
        .carry_out(&Command::new(delete), &place.mounts, &progress)
        .await;
    assert_eq!(
        answer.details.as_deref(),
        Some("\"../store/a\" is not a name in the storage pool")
    );

    let pool = place.directory.path().join("primary");
    let kept = Uuid::new_v4().to_string();
    for name in [".part-1-new", &kept, "notes.txt"] {
        let _ = files::replace(pool.join(name), "x", 0o600).unwrap();
    }
    let host = Host::open(pool).unwrap();
    assert_eq!(host.files().unwrap(), [kept.parse::<Uuid>().unwrap()]);
    let mut left = place.left();
    left.sort();
    let mut expected = [kept, "notes.txt".to_owned()];
    expected.sort();
    assert_eq!(left, expected);
    let found = host.capacity().unwrap();
    assert!(
        found.used < found.total && found.available <= found.total - found.used,
        "{found:?}"
    );
}
