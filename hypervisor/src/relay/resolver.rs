//! A name server for VMs that asks the servers of the host, from the host's network. It passes questions and answers on as
//! they are: RFC 1035 §4.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use platform::files;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{ACCEPT_PAUSE, accept, carry};
use crate::network::namespace::{Namespace, NamespaceError};

/// For one server to answer: resolvers of VMs ask again after five seconds.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Questions that wait for an answer, and connections, at the same time.
const MAX_QUESTIONS: usize = 512;
const MAX_CONNECTIONS: usize = 64;
/// A connection on which nothing comes for so long is ended: RFC 7766 §6.2.3 wants seconds.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a question or an answer by UDP: more than anybody announces by EDNS (RFC 6891 §6.2.5).
const MAX_MESSAGE: usize = 4096;
/// As the C library has it: `MAXNS`.
const MAX_SERVERS: usize = 3;
/// Between two looks at whether the host's servers are others.
const LOOK: Duration = Duration::from_secs(5);
const MAX_RESOLV_CONF: u64 = 64 << 10;

/// Of a message's header.
const HEADER: usize = 12;
/// In the third byte: this is an answer.
const ANSWER: u8 = 0x80;
/// In the third byte: the one who asks wants it looked up elsewhere, too.
const RECURSION_DESIRED: u8 = 0x01;
/// In the fourth byte: it can be looked up elsewhere, and that has failed.
const SERVER_FAILURE: u8 = 0x82;

/// Whom to ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Upstream {
    /// The servers of a file like `/etc/resolv.conf`, as it is at the time.
    File(PathBuf),
    /// These.
    Servers(Vec<SocketAddr>),
}

impl Upstream {
    /// The host's own.
    pub fn host() -> Self {
        Self::File(PathBuf::from("/etc/resolv.conf"))
    }
}

/// A name server in a namespace.
#[derive(Debug)]
pub struct Resolver {
    udp: UdpSocket,
    tcp: TcpListener,
    upstream: Upstream,
}

impl Resolver {
    /// Takes the ports, inside. The questions go out from here.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub fn bind(namespace: &Namespace, address: SocketAddr, upstream: Upstream) -> Result<Self, NamespaceError> {
        Ok(Self {
            udp: namespace.bind_udp(address)?,
            tcp: namespace.listen(address)?,
            upstream,
        })
    }

    /// Works until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let (told, servers) = watch::channel(Vec::new());
        stop.run_until_cancelled(async {
            tokio::join!(
                watch_servers(self.upstream, told),
                answer_datagrams(Arc::new(self.udp), servers.clone()),
                answer_connections(self.tcp, servers),
            )
        })
        .await;
    }
}

async fn watch_servers(upstream: Upstream, told: watch::Sender<Vec<SocketAddr>>) {
    let path = match upstream {
        Upstream::Servers(servers) => return told.send_modify(|all| *all = servers),
        Upstream::File(path) => path,
    };
    let mut seen: Option<Option<SystemTime>> = None;
    loop {
        let changed = fs::metadata(&path).and_then(|file| file.modified()).ok();
        if seen != Some(changed) {
            let servers = match files::read_limited(&path, MAX_RESOLV_CONF) {
                Ok(contents) => servers(&String::from_utf8_lossy(&contents.unwrap_or_default())),
                Err(error) => {
                    warn!(
                        error = platform::logging::chain(&error).to_string(),
                        "Cannot read the host's name servers"
                    );
                    Vec::new()
                }
            };
            info!(?servers, path = %path.display(), "Name servers that VMs' questions go to");
            told.send_replace(servers);
            seen = Some(changed);
        }
        sleep(LOOK).await;
    }
}

/// resolv.conf(5). Without a server it is the machine itself.
fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    let addresses = lines.filter(|rest| rest.starts_with([' ', '\t']));
    let addresses = addresses.filter_map(|rest| rest.split_ascii_whitespace().next()?.parse::<IpAddr>().ok());
    let mut servers: Vec<_> = addresses.take(MAX_SERVERS).map(|ip| SocketAddr::new(ip, 53)).collect();
    if servers.is_empty() {
        servers.push((Ipv4Addr::LOCALHOST, 53).into());
    }
    servers
}

async fn answer_datagrams(socket: Arc<UdpSocket>, servers: watch::Receiver<Vec<SocketAddr>>) {
    let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
    let mut asking = JoinSet::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        while asking.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "Cannot receive a question");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let question = &buffer[..length];
        // Without a place it is lost, as datagrams are: the VM asks again.
        let place = Arc::clone(&places).try_acquire_owned();
        if let (true, Ok(place)) = (is_question(question), place) {
            let (question, socket) = (question.to_vec(), Arc::clone(&socket));
            let servers = servers.borrow().clone();
            asking.spawn(async move {
                let answer = match ask_all(&question, &servers).await {
                    Some(answer) => answer,
                    None => failure(&question),
                };
                if let Err(error) = socket.send_to(&answer, from).await {
                    debug!(%error, %from, "Cannot answer a VM's question");
                }
                drop(place);
            });
        }
    }
}

/// The answer of the first server that has one.
async fn ask_all(question: &[u8], servers: &[SocketAddr]) -> Option<Vec<u8>> {
    for server in servers {
        match timeout(ANSWER_LIMIT, ask(question, *server)).await {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => debug!(%server, %error, "A name server does not answer"),
            Err(_) => debug!(%server, limit = ?ANSWER_LIMIT, "A name server does not answer"),
        }
    }
    None
}

/// From a port of its own: whoever wants to answer in the server's place has to guess it, and the number of the question.
async fn ask(question: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; MAX_MESSAGE];
    loop {
        let length = socket.recv(&mut answer).await?;
        if answers(&answer[..length], question) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn answer_connections(listener: TcpListener, servers: watch::Receiver<Vec<SocketAddr>>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let stream = accept(&listener, &mut connections).await;
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let servers = servers.borrow().clone();
        connections.spawn(async move {
            for server in servers {
                if let Ok(Ok(other)) = timeout(ANSWER_LIMIT, TcpStream::connect(server)).await {
                    carry(stream, other, IDLE_LIMIT).await;
                    break;
                }
            }
            drop(place);
        });
    }
}

fn is_question(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & ANSWER == 0
}

/// Whether it is the answer to this question, by its number. RFC 5452 §9.1 wants the question compared, too, where it is
/// repeated.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    let is_answer = answer.len() >= HEADER && answer[2] & ANSWER != 0 && answer[..2] == question[..2];
    match (asked(answer), asked(question)) {
        (Some(repeated), Some(asked)) => is_answer && repeated.eq_ignore_ascii_case(asked),
        // An answer with an error may leave it out.
        _ => is_answer,
    }
}

/// The first question: a name, a type and a class; `None` when there is none, or not such a one.
fn asked(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? == [0, 0] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = *message.get(at)?;
        // A label of 64 bytes and more is a pointer or nothing: RFC 1035 §4.1.4. No question has one.
        if length >= 64 {
            return None;
        }
        at += usize::from(length) + 1;
        if length == 0 {
            return message.get(HEADER..at + 4);
        }
    }
}

/// No server has answered.
fn failure(question: &[u8]) -> Vec<u8> {
    let flags = ANSWER | question[2] & (0x78 | RECURSION_DESIRED);
    let asked = asked(question);
    let count = [0, u8::from(asked.is_some())];
    let mut answer = vec![question[0], question[1], flags, SERVER_FAILURE];
    answer.extend(count);
    answer.resize(HEADER, 0);
    answer.extend(asked.unwrap_or_default());
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `example.org`, type A, class IN.
    const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

    #[test]
    fn servers_are_those_of_the_file() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # two\n\
                    nameservers 192.0.2.7\nnameserver fe80::1%eth0\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let all: Vec<_> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.2:53"]);
        assert_eq!(servers(""), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_failure_repeats_the_question() {
        let answer = failure(QUESTION);
        assert_eq!(answer[..HEADER], *b"\x12\x34\x81\x82\x00\x01\x00\x00\x00\x00\x00\x00");
        assert_eq!(answer[HEADER..], QUESTION[HEADER..]);
        assert!(answers(&answer, QUESTION));
    }

    #[test]
    fn only_the_answer_to_the_question_is_one() {
        let mut other = failure(QUESTION);
        other[1] = 0x35;
        assert!(!answers(&other, QUESTION), "another number");
        let mut other = failure(QUESTION);
        other[14] = b'q';
        assert!(!answers(&other, QUESTION), "another name");
        assert!(!answers(QUESTION, QUESTION), "a question");
        assert!(is_question(QUESTION) && !is_question(&failure(QUESTION)) && !is_question(&QUESTION[..11]));
    }

    proptest! {
        #[test]
        fn noise_is_no_panic(noise in prop::collection::vec(any::<u8>(), HEADER..80), other: Vec<u8>) {
            asked(&noise);
            answers(&other, &noise);
            let answer = failure(&noise);
            prop_assert!(answer.len() <= noise.len());
            servers(&String::from_utf8_lossy(&other));
        }
    }
}
