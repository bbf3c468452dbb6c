//! Telling systemd how a service is (`sd_notify(3)`): ready, alive, stopping, and one line for people.
//!
//! Without systemd, or in a unit that is not `Type=notify`, there is nobody to tell, and every call does nothing.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

/// Characters of a status line: it is for `systemctl status` and a screen.
const MAX_STATUS: usize = 400;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Takes the socket and the watchdog's time from the environment that systemd gives to a service.
    pub fn from_env() -> Self {
        let [socket, usec, pid] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"].map(env::var_os);
        Self::new(socket.as_deref(), usec.as_deref(), pid.as_deref())
    }

    fn new(socket: Option<&OsStr>, watchdog_usec: Option<&OsStr>, watchdog_pid: Option<&OsStr>) -> Self {
        let socket = socket.and_then(|path| match connect(path) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(error = error.to_string(), socket = %path.display(), "Cannot tell systemd how this service is");
                None
            }
        });
        // The variables are inherited: what is meant for another process is not for this one.
        let is_ours = number(watchdog_pid).is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number(watchdog_usec).filter(|usec| is_ours && *usec > 0);
        Self {
            socket,
            watchdog: watchdog.map(Duration::from_micros),
        }
    }

    /// All resources are taken and the service serves: units that are ordered after it may start.
    pub fn ready(&self) {
        self.tell("READY=1");
    }

    /// One line for people, in `systemctl status`. No secrets.
    pub fn status(&self, text: &str) {
        let line: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .take(MAX_STATUS)
            .collect();
        self.tell(&format!("STATUS={line}"));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Says that the service lives. Only code whose working proves that may call this.
    pub fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// How often to call [`Notifier::alive`]: a third of the time after which systemd ends the service; `None` when
    /// nobody waits for it.
    pub fn beat(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|limit| limit / 3)
    }

    /// Calls [`Notifier::alive`] for ever, as a task of the runtime that awaits it: a runtime whose threads are all stuck
    /// falls silent, and systemd starts the service again. Await it beside the service's work, not on a thread of its own.
    pub async fn prove_life(&self) {
        let Some(beat) = self.beat() else {
            return std::future::pending().await;
        };
        let mut beats = interval(beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            beats.tick().await;
            self.alive();
        }
    }

    fn tell(&self, message: &str) {
        let Some(socket) = &self.socket else { return };
        match socket.send(message.as_bytes()) {
            Ok(_) => debug!(message, "Told systemd"),
            // A full queue means that systemd is busy; the next beat comes soon.
            Err(error) => warn!(
                error = error.to_string(),
                message, "Cannot tell systemd how this service is"
            ),
        }
    }
}

/// A path, or a name in the abstract name space, which is written with `@`.
fn connect(socket: &OsStr) -> io::Result<UnixDatagram> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(socket)?,
        _ => return Err(io::Error::other("NOTIFY_SOCKET is neither a path nor an abstract name")),
    };
    let datagrams = UnixDatagram::unbound()?;
    datagrams.set_nonblocking(true)?;
    datagrams.connect_addr(&address)?;
    Ok(datagrams)
}

fn number(value: Option<&OsStr>) -> Option<u64> {
    value?.to_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::time::timeout;

    use super::*;

    fn told(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 1024];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }

    fn manager(path: &Path) -> UnixDatagram {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        socket
    }

    #[tokio::test]
    async fn systemd_is_told_in_its_own_words() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = manager(&path);
        let notifier = Notifier::new(Some(path.as_os_str()), None, None);
        notifier.ready();
        assert_eq!(told(&manager), "READY=1");
        notifier.status(&format!("one line\nonly {}", "x".repeat(1000)));
        let line = told(&manager);
        assert!(line.starts_with("STATUS=one line only xxx"), "{line}");
        assert_eq!(line.len(), "STATUS=".len() + MAX_STATUS);
        notifier.stopping();
        assert_eq!(told(&manager), "STOPPING=1");
        assert_eq!(notifier.beat(), None);
    }

    #[tokio::test]
    async fn an_abstract_name_is_a_socket_too() {
        let name = format!("sysvm-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        Notifier::new(Some(OsStr::new(&format!("@{name}"))), None, None).ready();
        assert_eq!(told(&manager), "READY=1");
    }

    #[tokio::test]
    async fn life_is_proven_often_enough_and_only_when_somebody_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = manager(&path);
        let new = |pid: u32| {
            let pid = pid.to_string();
            Notifier::new(
                Some(path.as_os_str()),
                Some(OsStr::new("90000")),
                Some(OsStr::new(&pid)),
            )
        };
        let ours = new(std::process::id());
        assert_eq!(ours.beat(), Some(Duration::from_millis(30)));
        timeout(Duration::from_millis(200), ours.prove_life())
            .await
            .unwrap_err();
        assert_eq!(
            (told(&manager), told(&manager)),
            ("WATCHDOG=1".into(), "WATCHDOG=1".into())
        );
        // The variables of a parent are not ours.
        assert_eq!(new(1).beat(), None);
    }

    #[tokio::test]
    async fn without_systemd_nothing_happens() {
        for socket in [None, Some("relative"), Some("/no/such/socket")] {
            let alone = Notifier::new(socket.map(OsStr::new), Some(OsStr::new("90000")), None);
            alone.ready();
            assert_eq!(alone.beat(), None);
        }
    }
}
