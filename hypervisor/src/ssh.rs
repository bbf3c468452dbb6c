//! Into a VM over ssh, as hosts go: root, by key, on port 3922 of its control address (appliance.md §4).
//!
//! It is OpenSSH that connects. One connection carries all commands for a VM, for handshakes take seconds where VMs are
//! emulated; it ends by itself soon after the last one. The key that a VM shows first is the VM's until [`Ssh::forget`].

use std::fs;
use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use platform::exec::{Cmd, ExecError, Exited};
use platform::files::{self, FileError};
use tracing::{info, warn};

use crate::network::namespace::Namespace;

/// CloudStack's port: appliance.md §4.2.
pub const PORT: u16 = 3922;
/// How long the connection stays after its last command, seconds: also when this program was killed.
const PERSIST_S: u32 = 30;
/// For a VM to answer, seconds; it is short of processor time while it boots.
const CONNECT_S: u32 = 30;
/// A VM that is silent for three times this, seconds, is gone.
const ALIVE_S: u32 = 10;
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// What ssh says by its exit code when it is not the command's.
const NO_COMMAND: i32 = 255;
/// Of a path of a UNIX socket (108 with the zero), less what ssh appends while it makes one.
const MAX_SOCKET_PATH: usize = 107 - 17;
const MAX_KEY: u64 = 64 << 10;

/// The key pair by which VMs know us.
#[derive(Clone, Debug)]
pub struct Key {
    path: PathBuf,
    public: String,
}

/// A VM to log in to. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Ssh {
    namespace: Namespace,
    address: Ipv4Addr,
    port: u16,
    key: PathBuf,
    known_hosts: PathBuf,
    /// `None` where its path would be too long: each command connects anew then.
    socket: Option<PathBuf>,
}

/// Why a command in a VM has no result.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// Nobody has logged in, or the connection broke.
    #[error("cannot log in to {address} port {port}: {printed}")]
    Login {
        /// The VM.
        address: Ipv4Addr,
        /// Its port.
        port: u16,
        /// What ssh said.
        printed: String,
    },
    /// ssh itself, or the time is over.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A file of the key, or what is known of the VM.
    #[error(transparent)]
    File(#[from] FileError),
    /// The same.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What is in a file of the key.
    #[error("{0} holds no public key; remove it and the private key beside it to get new ones")]
    BadKey(PathBuf),
    /// ssh takes paths in its options' own syntax.
    #[error("{0} cannot be told to ssh; choose a path of UTF-8 text without double quotes")]
    Path(PathBuf),
}

impl Key {
    /// The key `id_ecdsa` of a directory (made with mode 0700); a new one of the kind that the management server makes
    /// (appliance.md §4.1) when there is none.
    ///
    /// # Errors
    /// The directory cannot be written, or what is there is no key.
    pub async fn open_or_create(directory: &Path) -> Result<Self, SshError> {
        let (path, public_path) = (directory.join("id_ecdsa"), directory.join("id_ecdsa.pub"));
        if !path.exists() {
            create(directory, &path, &public_path).await?;
        }
        let text = files::read_limited(&public_path, MAX_KEY)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let public = text.as_deref().map(str::trim).filter(|text| is_public_key(text));
        match public {
            Some(public) => Ok(Self {
                public: public.to_owned(),
                path,
            }),
            None => Err(SshError::BadKey(public_path)),
        }
    }

    /// The line for `authorized_keys`, without its end.
    pub fn public(&self) -> &str {
        &self.public
    }
}

/// `TYPE BASE64 COMMENT`, on one line.
fn is_public_key(text: &str) -> bool {
    let mut words = text.split(' ');
    let has_type = words
        .next()
        .is_some_and(|word| word.starts_with("ecdsa-") || word.starts_with("ssh-"));
    has_type && words.next().is_some_and(|key| key.starts_with("AAAA")) && !text.contains('\n')
}

async fn create(directory: &Path, path: &Path, public_path: &Path) -> Result<(), SshError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(failed("create", directory))?;
    let (new, new_public) = (directory.join("new"), directory.join("new.pub"));
    remove_file(&new)?;
    Cmd::new("ssh-keygen")
        .args(["-q", "-t", "ecdsa", "-m", "PEM", "-N", "", "-C", "sysvm", "-f"])
        .arg(&new)
        .run()
        .await?;
    // The private key last, and whole: where it is, the public one is, too.
    for (from, to, mode) in [(&new_public, public_path, 0o644), (&new, path, 0o600)] {
        let key = fs::read(from).map_err(failed("read", from))?;
        let _ = files::replace(to, key, mode)?;
        remove_file(from)?;
    }
    info!(path = %path.display(), "Key for VMs made");
    Ok(())
}

impl Ssh {
    /// The VM at an address of the namespace. What is remembered of it is in `directory`, which is there.
    ///
    /// # Errors
    /// A path that ssh cannot be told.
    pub fn new(namespace: &Namespace, address: Ipv4Addr, key: &Key, directory: &Path) -> Result<Self, SshError> {
        for path in [&key.path, directory] {
            option(path)?;
        }
        let socket = directory.join("ssh");
        let fits = socket.as_os_str().len() <= MAX_SOCKET_PATH;
        if !fits {
            warn!(path = %socket.display(), "Path too long for a socket: each command makes its own connection");
        }
        Ok(Self {
            namespace: namespace.clone(),
            address,
            port: PORT,
            key: key.path.clone(),
            known_hosts: directory.join("known_hosts"),
            socket: fits.then_some(socket),
        })
    }

    /// Whether its port takes connections.
    pub async fn is_open(&self, limit: Duration) -> bool {
        self.namespace
            .connect((self.address, self.port).into(), limit)
            .await
            .is_ok()
    }

    /// Has the login shell of root run a command line, which reads `input`; secrets belong there. Any exit is an answer.
    /// It is the one thing that a shell reads here: hosts send text.
    ///
    /// # Errors
    /// Nobody logs in, or the time is over.
    pub async fn exec(&self, command_line: &str, input: &[u8], limit: Duration) -> Result<Exited, SshError> {
        let ssh = self.client("ssh")?.args(["-p", &self.port.to_string(), "--"]);
        let ssh = ssh.arg(self.root_at()).arg(command_line);
        self.run(ssh.stdin(input).time_limit(limit)).await
    }

    /// Copies files into a directory of the VM, with the protocol that CloudStack's hosts speak (appliance.md §4.2).
    ///
    /// # Errors
    /// Nobody logs in, the time is over, or the exit code is not 0.
    pub async fn upload(&self, files: &[&Path], directory: &str, limit: Duration) -> Result<(), SshError> {
        let scp = self
            .client("scp")?
            .args(["-O", "-q", "-P", &self.port.to_string(), "--"]);
        let scp = scp.args(files).arg(format!("{}:{directory}", self.root_at()));
        let scp = self.namespace.command(scp.time_limit(limit));
        scp.run().await?;
        Ok(())
    }

    /// Ends the connection, if there is one.
    pub async fn close(&self) {
        let Some(socket) = self.socket.as_ref().filter(|socket| socket.exists()) else {
            return;
        };
        let exit = self
            .client("ssh")
            .map(|ssh| ssh.args(["-O", "exit", "--"]).arg(self.root_at()));
        if let Ok(exit) = exit {
            // It fails when there is none any more.
            let _ = exit.time_limit(CLOSE_LIMIT).run().await;
        }
        fs::remove_file(socket).ok();
    }

    /// Ends the connection and forgets the key that the VM has shown: it was made anew.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub async fn forget(&self) -> Result<(), SshError> {
        self.close().await;
        remove_file(&self.known_hosts)
    }

    async fn run(&self, cmd: Cmd) -> Result<Exited, SshError> {
        let exited = self.namespace.command(cmd).run_to_exit().await?;
        if exited.status.code() == Some(NO_COMMAND) {
            return Err(SshError::Login {
                address: self.address,
                port: self.port,
                printed: exited.stderr.trim().to_owned(),
            });
        }
        Ok(exited)
    }

    /// Nothing of this machine's user: no configuration, no agent, no other key, no known hosts.
    fn client(&self, program: &str) -> Result<Cmd, SshError> {
        let mut options = vec![
            "BatchMode=yes".to_owned(),
            "CheckHostIP=no".to_owned(),
            format!("ConnectTimeout={CONNECT_S}"),
            "GlobalKnownHostsFile=none".to_owned(),
            "HashKnownHosts=no".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "IdentityAgent=none".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("ServerAliveInterval={ALIVE_S}"),
            "StrictHostKeyChecking=accept-new".to_owned(),
            "UpdateHostKeys=no".to_owned(),
            format!("UserKnownHostsFile={}", option(&self.known_hosts)?),
        ];
        if let Some(socket) = &self.socket {
            options.push("ControlMaster=auto".to_owned());
            options.push(format!("ControlPath={}", option(socket)?));
            options.push(format!("ControlPersist={PERSIST_S}"));
        }
        let client = Cmd::new(program).args(["-F", "none", "-i"]).arg(&self.key);
        Ok(client.args(options.iter().flat_map(|option| ["-o", option.as_str()])))
    }

    fn root_at(&self) -> String {
        format!("root@{}", self.address)
    }
}

/// A path as a value of an option, ssh_config(5): in quotes, and without a token.
fn option(path: &Path) -> Result<String, SshError> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\n']) => Ok(format!("\"{}\"", text.replace('%', "%%"))),
        _ => Err(SshError::Path(path.to_owned())),
    }
}

fn remove_file(path: &Path) -> Result<(), SshError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SshError {
    move |source| SshError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_to_ssh_as_they_are() {
        assert_eq!(option(Path::new("/srv/a b/50%/vm")).unwrap(), "\"/srv/a b/50%%/vm\"");
        assert!(option(Path::new("/srv/\"")).is_err());
    }

    #[test]
    fn a_public_key_is_one_line() {
        assert!(is_public_key("ecdsa-sha2-nistp256 AAAAE2VjZHNh sysvm"));
        for bad in [
            "",
            "AAAA",
            "ssh-ed25519 ",
            "ecdsa-sha2-nistp256 AAAA x\ny",
            "-----BEGIN",
        ] {
            assert!(!is_public_key(bad), "{bad}");
        }
    }
}
