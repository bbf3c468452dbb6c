//! `agent patch-watch` with the files that hosts upload.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use platform::exec::{Cmd, Running};
use tempfile::TempDir;

use crate::sshd::{AGENT, noise, until, vm, write};

/// An archive as a stock management server sends it, only worse: it would replace the ways into the VM.
pub(crate) async fn archive(path: &Path, word: &str) {
    let tree = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("opt/cloud/bin/patched.sh", "#!/bin/bash\nexit 1\n"),
        ("opt/cloud/bin/keystore-setup", word),
        ("etc/ssh/sshd_config", "Port 22\n"),
        ("var/cache/cloud/cmdline", "hostile"),
    ] {
        let path = tree.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(&path, text);
    }
    noise(&tree.path().join("root-noise"), 200_000);
    let tar = Cmd::new("tar").arg("-C").arg(tree.path()).arg("-czf").arg(path);
    tar.args(["--transform", "s,^root-noise,../../etc/escaped,", "."])
        .run()
        .await
        .unwrap();
}

/// By a program that is not ours.
pub(crate) async fn sha512(path: &Path) -> String {
    let sum = Cmd::new("sha512sum").arg(path).run().await.unwrap().text();
    sum.split(' ').next().unwrap().to_owned()
}

/// The daemon, with its log beside the VM.
pub(crate) struct Watching {
    _running: Running,
    log: TempDir,
}

impl Watching {
    pub(crate) fn start(vm: &Path) -> Self {
        let log = tempfile::tempdir().unwrap();
        let daemon = Cmd::new(AGENT).args(["patch-watch", "--root"]).arg(vm);
        Self {
            _running: daemon.spawn(log.path().join("log")).unwrap(),
            log,
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log.path().join("log")).unwrap()
    }

    pub(crate) async fn is_watching(&self) {
        until("it watches", || self.log().contains("Watching for uploads")).await;
    }
}

fn uploads(vm: &TempDir) -> std::path::PathBuf {
    vm.path().join("var/cache/cloud")
}

fn signature(vm: &TempDir) -> String {
    fs::read_to_string(uploads(vm).join("cloud-scripts-signature")).unwrap_or_default()
}

fn has_taken(vm: &TempDir, digest: &str) -> bool {
    signature(vm) == format!("{digest}\n") && !uploads(vm).join("cloud-scripts.tgz").exists()
}

#[tokio::test]
async fn uploads_become_a_signature_and_change_nothing_else() {
    let (vm, host) = (vm(), tempfile::tempdir().unwrap());
    let tgz = host.path().join("tgz");
    archive(&tgz, "one").await;
    let digest = sha512(&tgz).await;
    let daemon = Watching::start(vm.path());
    daemon.is_watching().await;
    until("a signature before any upload", || signature(&vm).len() == 129).await;

    noise(&uploads(&vm).join("agent.zip"), 1_000_000);
    fs::copy(&tgz, uploads(&vm).join("cloud-scripts.tgz")).unwrap();
    write(&uploads(&vm).join("patch-sysvms.sh"), "#!/bin/bash\nexit 1\n");
    until("the scripts are taken", || has_taken(&vm, &digest)).await;
    until("all uploads are gone", || {
        fs::read_dir(uploads(&vm)).unwrap().count() == 1
    })
    .await;

    assert_eq!(
        sha512(&vm.path().join("usr/share/cloud/cloud-scripts.tgz")).await,
        digest
    );
    assert_eq!(fs::read_dir(vm.path().join("usr/share/cloud")).unwrap().count(), 1);
    let names: Vec<_> = fs::read_dir(vm.path().join("etc"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["cloudstack-release"], "something was unpacked");
    for entry in fs::read_dir(vm.path().join("opt/cloud/bin")).unwrap() {
        assert_eq!(
            fs::read_link(entry.unwrap().path()).unwrap(),
            Path::new("/usr/lib/sysvm/current/agent")
        );
    }
}

#[tokio::test]
async fn half_an_upload_waits_for_its_other_half() {
    let (vm, host) = (vm(), tempfile::tempdir().unwrap());
    let tgz = host.path().join("tgz");
    archive(&tgz, "two").await;
    let (digest, whole) = (sha512(&tgz).await, fs::read(&tgz).unwrap());
    let upload = uploads(&vm).join("cloud-scripts.tgz");
    let daemon = Watching::start(vm.path());
    daemon.is_watching().await;
    until("a first signature", || !signature(&vm).is_empty()).await;
    let before = signature(&vm);
    let mut seen = 0;
    // Cut in the header, in the data, and in the checksum at the end; then something that is no gzip at all.
    let cuts = [
        &whole[..5],
        &whole[..whole.len() / 2],
        &whole[..whole.len() - 1],
        b"no gzip at all".as_slice(),
    ];
    for part in cuts {
        fs::File::create(&upload).unwrap(); // as scp: the file is there before its bytes are
        std::io::Write::write_all(&mut fs::OpenOptions::new().write(true).open(&upload).unwrap(), part).unwrap();
        seen += 1;
        until("it says so", || {
            daemon.log().matches("are not complete").count() >= seen
        })
        .await;
        seen = daemon.log().matches("are not complete").count();
        assert_eq!((signature(&vm), upload.exists()), (before.clone(), true));
    }
    fs::copy(&tgz, &upload).unwrap();
    until("it is taken", || has_taken(&vm, &digest)).await;
}

#[tokio::test]
async fn what_came_before_the_daemon_is_taken_and_stock_scripts_in_place_of_our_names_go() {
    let (vm, host) = (vm(), tempfile::tempdir().unwrap());
    let tgz = host.path().join("tgz");
    archive(&tgz, "three").await;
    for name in ["cloud-scripts.tgz", "agent.zip", "patch-sysvms.sh"] {
        fs::copy(&tgz, uploads(&vm).join(name)).unwrap();
    }
    write(&vm.path().join("opt/cloud/bin/patched.sh"), "#!/bin/bash\nexit 1\n");
    // What a power cut left of a copy.
    noise(&vm.path().join("usr/share/cloud/.new-abc"), 1000);
    let _daemon = Watching::start(vm.path());
    let digest = sha512(&tgz).await;
    until("it is taken", || has_taken(&vm, &digest)).await;
    until("all uploads are gone", || {
        fs::read_dir(uploads(&vm)).unwrap().count() == 1
    })
    .await;
    assert_eq!(
        fs::read_link(vm.path().join("opt/cloud/bin/patched.sh")).unwrap(),
        Path::new("/usr/lib/sysvm/current/agent")
    );
    assert_eq!(fs::read_dir(vm.path().join("usr/share/cloud")).unwrap().count(), 1);
}

#[tokio::test]
async fn links_and_bombs_are_left_alone() {
    let vm = vm();
    let secret = vm.path().join("etc/secret");
    write(&secret, "secret");
    let upload = uploads(&vm).join("cloud-scripts.tgz");
    symlink(&secret, &upload).unwrap();
    let daemon = Watching::start(vm.path());
    until("it refuses the link", || {
        daemon.log().contains("Cannot deal with an upload")
    })
    .await;
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    fs::remove_file(&upload).unwrap();

    // 300 MiB of zeros in 300 kB.
    let zeros = Cmd::new("sh")
        .args(["-c", "head -c 314572800 /dev/zero | gzip > \"$0\""])
        .arg(&upload);
    zeros.run().await.unwrap();
    until("it refuses the bomb", || {
        daemon.log().contains("an archive of scripts has")
    })
    .await;
    assert!(!vm.path().join("usr/share/cloud/cloud-scripts.tgz").exists());
}

/// The daemon is killed again and again while it works: whatever moment that is, the next one finishes.
#[tokio::test]
async fn a_kill_at_any_moment_is_made_good() {
    let (vm, host) = (vm(), tempfile::tempdir().unwrap());
    for round in 0..12_u64 {
        let tgz = host.path().join("tgz");
        archive(&tgz, &round.to_string()).await;
        fs::copy(&tgz, uploads(&vm).join("cloud-scripts.tgz")).unwrap();
        let killed = Watching::start(vm.path());
        tokio::time::sleep(std::time::Duration::from_millis(3 * round)).await;
        drop(killed);
        let found = signature(&vm);
        assert!(found.is_empty() || found.len() == 129, "{found:?}");
        let _daemon = Watching::start(vm.path());
        let digest = sha512(&tgz).await;
        until("the next one takes it", || has_taken(&vm, &digest)).await;
        assert_eq!(fs::read_dir(vm.path().join("usr/share/cloud")).unwrap().count(), 1);
    }
}
