//! Commands and files over ssh, with the real sshd in the place of a VM's.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use hypervisor::network::namespace::Namespace;
use hypervisor::ssh::{Key, Ssh, SshError};
use platform::exec::{Cmd, ExecError, Running};
use platform::files;
use tempfile::TempDir;

use super::net::{Guard, name, soon};

const LIMIT: Duration = Duration::from_mins(1);

/// A "VM" at 127.0.0.1 of a namespace.
struct Vm {
    directory: TempDir,
    namespace: Namespace,
    _guard: Guard,
    key: Key,
}

impl Vm {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let namespace = Namespace::open_or_create(&name()).await.unwrap();
        let key = Key::open_or_create(&directory.path().join("keys")).await.unwrap();
        let vm = Self {
            _guard: Guard(namespace.clone()),
            directory,
            namespace,
            key,
        };
        let _ = files::replace(vm.path("authorized_keys"), format!("{}\n", vm.key.public()), 0o600).unwrap();
        vm.make_host_key().await;
        fs::create_dir_all("/run/sshd").unwrap(); // where sshd locks itself in
        vm
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn make_host_key(&self) {
        let key = self.path("host_key");
        fs::remove_file(&key).ok();
        let make = Cmd::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        make.arg(&key).run().await.unwrap();
    }

    async fn sshd(&self) -> Running {
        let sshd = Cmd::new("/usr/sbin/sshd").args(["-D", "-e", "-f", "/dev/null", "-p", "3922", "-h"]);
        let keys = format!("AuthorizedKeysFile={}", self.path("authorized_keys").display());
        let sshd = sshd
            .arg(self.path("host_key"))
            .args(["-o", &keys, "-o", "StrictModes=no"]);
        let sshd = sshd.args([
            "-o",
            "UsePAM=no",
            "-o",
            "PermitRootLogin=prohibit-password",
            "-o",
            "PidFile=none",
        ]);
        let running = self.namespace.command(sshd).spawn(self.path("sshd.log")).unwrap();
        let ssh = self.ssh();
        for _ in 0..100 {
            if ssh.is_open(LIMIT).await {
                return running;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        unreachable!("{}", fs::read_to_string(self.path("sshd.log")).unwrap());
    }

    fn ssh(&self) -> Ssh {
        Ssh::new(&self.namespace, Ipv4Addr::LOCALHOST, &self.key, self.directory.path()).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("sshd.log")).unwrap()
    }
}

#[tokio::test]
async fn commands_and_files_go_over_one_connection() {
    let vm = Vm::new().await;
    let ssh = vm.ssh();
    assert!(!ssh.is_open(LIMIT).await);
    let nobody = ssh.exec("true", b"", LIMIT).await.unwrap_err();
    assert!(matches!(nobody, SshError::Login { .. }), "{nobody:?}");
    assert!(nobody.to_string().contains("Connection refused"), "{nobody}");

    let sshd = vm.sshd().await;
    let said = ssh
        .exec("cat; echo \"$((6 * 7))\" >&2; exit 3", b"a secret", LIMIT)
        .await
        .unwrap();
    assert_eq!(
        (said.stdout.as_slice(), said.stderr.as_str(), said.status.code()),
        (&b"a secret"[..], "42\n", Some(3))
    );
    let file = vm.path("agent.zip");
    let contents = vec![7; 100_000];
    let _ = files::replace(&file, &contents, 0o640).unwrap();
    fs::create_dir(vm.path("to")).unwrap();
    ssh.upload(&[&file], vm.path("to").to_str().unwrap(), LIMIT)
        .await
        .unwrap();
    assert_eq!(fs::read(vm.path("to/agent.zip")).unwrap(), contents);
    let missing = ssh.upload(&[&file], "/no/such/directory/", LIMIT).await.unwrap_err();
    assert!(missing.to_string().contains("/no/such/directory"), "{missing}");

    // sshd names each login.
    assert_eq!(
        vm.log().matches("Accepted publickey for root").count(),
        1,
        "{}",
        vm.log()
    );
    ssh.close().await;
    assert!(
        soon(|| fs::read_dir(vm.directory.path())
            .unwrap()
            .all(|entry| entry.unwrap().file_name() != "ssh"))
        .await
    );
    // sshd has a process for each connection: none is left but the one that listens.
    assert!(soon(|| vm.namespace.processes().unwrap().len() == 1).await);
    drop(sshd);
}

#[tokio::test]
async fn a_command_that_does_not_end_is_stopped_in_time() {
    let vm = Vm::new().await;
    let _sshd = vm.sshd().await;
    let error = vm
        .ssh()
        .exec("echo started; sleep 600", b"", Duration::from_secs(3))
        .await
        .unwrap_err();
    assert!(matches!(error, SshError::Exec(ExecError::TimedOut { .. })), "{error:?}");
    vm.ssh().close().await;
}

#[tokio::test]
async fn another_host_key_is_only_fine_for_a_vm_that_was_made_anew() {
    let vm = Vm::new().await;
    let ssh = vm.ssh();
    let sshd = vm.sshd().await;
    assert!(ssh.exec("true", b"", LIMIT).await.unwrap().status.success());
    ssh.close().await;
    drop(sshd);
    vm.make_host_key().await;
    let _sshd = vm.sshd().await;
    let error = ssh.exec("true", b"", LIMIT).await.unwrap_err();
    assert!(error.to_string().contains("HOST IDENTIFICATION HAS CHANGED"), "{error}");
    ssh.forget().await.unwrap();
    assert!(ssh.exec("true", b"", LIMIT).await.unwrap().status.success());
    ssh.close().await;
}

#[tokio::test]
async fn a_key_is_made_once_and_nobody_else_reads_it() {
    let directory = tempfile::tempdir().unwrap();
    let keys = directory.path().join("ssh");
    let key = Key::open_or_create(&keys).await.unwrap();
    assert!(key.public().starts_with("ecdsa-sha2-nistp256 AAAA"), "{}", key.public());
    assert_eq!(Key::open_or_create(&keys).await.unwrap().public(), key.public());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&keys), mode(&keys.join("id_ecdsa"))), (0o700, 0o600));
    assert!(
        fs::read_to_string(keys.join("id_ecdsa"))
            .unwrap()
            .starts_with("-----BEGIN EC PRIVATE KEY-----")
    );
    let mut names: Vec<_> = fs::read_dir(&keys)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["id_ecdsa", "id_ecdsa.pub"]);

    let _ = files::replace(keys.join("id_ecdsa.pub"), "", 0o644).unwrap();
    let error = Key::open_or_create(&keys).await.unwrap_err();
    assert!(matches!(error, SshError::BadKey(_)), "{error:?}");
}
