//! A real sshd with the image's configuration, whose VM is a temporary directory.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::{Cmd, Exited, Running};
use platform::files;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

/// The program under test.
pub(crate) const AGENT: &str = env!("CARGO_BIN_EXE_agent");
const CONFIG: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../image-builder/recipe/overlay/etc/ssh/sshd_config.d/10-sysvm.conf"
);
/// For this machine when others are busy on it.
const LIMIT: Duration = Duration::from_mins(1);

/// The directory of a VM as the image has it, before any boot.
pub(crate) fn vm() -> TempDir {
    let vm = tempfile::tempdir().unwrap();
    for directory in [
        "var/cache/cloud",
        "usr/share/cloud",
        "opt/cloud/bin",
        "etc",
        "root",
        "tmp",
    ] {
        fs::create_dir_all(vm.path().join(directory)).unwrap();
    }
    write(
        &vm.path().join("etc/cloudstack-release"),
        "Cloudstack Release 4.22.0 Mon Oct 13 09:12:44 UTC 2025\n",
    );
    vm
}

pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) {
    let _ = files::replace(path, contents, 0o644).unwrap();
}

/// sshd, its VM and a key that may log in.
pub(crate) struct Sshd {
    pub(crate) vm: TempDir,
    keys: TempDir,
    port: u16,
    _running: Running,
}

impl Sshd {
    pub(crate) async fn start() -> Self {
        let (vm, keys) = (vm(), tempfile::tempdir().unwrap());
        for key in ["host", "client"] {
            let new = Cmd::new("ssh-keygen").args(["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-f"]);
            new.arg(keys.path().join(key)).run().await.unwrap();
        }
        let authorized = keys.path().join("authorized_keys");
        fs::copy(keys.path().join("client.pub"), &authorized).unwrap();
        // sshd drops its rights there.
        fs::create_dir_all("/run/sshd").unwrap();

        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let gate = format!("ForceCommand {AGENT} ssh-gate --root {}", vm.path().display());
        // The port and the keys are the test's, and older sshds know no PerSourcePenalties.
        let image = fs::read_to_string(CONFIG).unwrap();
        assert!(image.contains("\nForceCommand /usr/lib/sysvm/bin/agent ssh-gate\n"));
        let image: Vec<_> = image
            .lines()
            .filter(|line| {
                !["Port ", "HostKey ", "PerSource"]
                    .iter()
                    .any(|word| line.starts_with(word))
            })
            .map(|line| if line.starts_with("ForceCommand ") { &gate } else { line })
            .collect();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nSetEnv HOME={}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPidFile none\n\
             UsePAM no\nSubsystem sftp /usr/lib/openssh/sftp-server\n{}\n",
            // Not the tester's, whose shell may say something at each login.
            vm.path().join("root").display(),
            keys.path().join("host").display(),
            authorized.display(),
            image.join("\n")
        );
        write(&keys.path().join("config"), config);
        let sshd = Cmd::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(keys.path().join("config"));
        let running = sshd.spawn(keys.path().join("log")).unwrap();
        let up = async {
            while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let is_up = timeout(LIMIT, up).await.is_ok();
        assert!(is_up, "{}", fs::read_to_string(keys.path().join("log")).unwrap());
        Self {
            vm,
            keys,
            port,
            _running: running,
        }
    }

    /// A file of the VM.
    pub(crate) fn path(&self, in_vm: &str) -> PathBuf {
        self.vm.path().join(in_vm.trim_start_matches('/'))
    }

    fn options(&self) -> Vec<String> {
        let key = self.keys.path().join("client").display().to_string();
        [
            "-i",
            &key,
            "-q",
            "-F",
            "none",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// `ssh`, with options of its own before the destination.
    pub(crate) fn ssh(&self, options: &[&str]) -> Cmd {
        Cmd::new("ssh")
            .args(self.options())
            .args(["-p", &self.port.to_string()])
            .args(options)
            .arg("root@127.0.0.1")
            .time_limit(LIMIT)
    }

    /// What a command says over ssh, and its exit code.
    pub(crate) async fn says(&self, command: &str) -> (String, i32) {
        said(&self.ssh(&[]).arg(command).run_to_exit().await.unwrap())
    }

    /// `scp`; words that start with `vm:` are paths in the VM's directory.
    pub(crate) async fn scp(&self, words: &[&str]) -> (String, i32) {
        let words = words.iter().map(|word| match word.strip_prefix("vm:") {
            Some(path) => format!("root@127.0.0.1:{}", self.path(path).display()),
            None => (*word).to_owned(),
        });
        let scp = Cmd::new("scp")
            .args(self.options())
            .args(["-P", &self.port.to_string()])
            .args(words)
            .time_limit(LIMIT);
        said(&scp.run_to_exit().await.unwrap())
    }
}

/// Both outputs, as hosts merge them, and the exit code.
pub(crate) fn said(exited: &Exited) -> (String, i32) {
    let text = String::from_utf8_lossy(&exited.stdout).into_owned() + &exited.stderr;
    (text, exited.status.code().unwrap_or(-1))
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, waiting)
        .await
        .unwrap_or_else(|_| panic!("not in {LIMIT:?}: {what}"));
}

/// A file of so many bytes that nothing compresses.
pub(crate) fn noise(path: &Path, length: u64) {
    std::io::copy(
        &mut std::io::Read::take(File::open("/dev/urandom").unwrap(), length),
        &mut File::create(path).unwrap(),
    )
    .unwrap();
}
