//! A question to a name server: is it alive, and does it resolve? RFC 1035 §4.1. No library: it is one packet each way, and
//! nothing of the answer is used but its header.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// What stock asks for, and what resolves anywhere with a way to the world.
pub(super) const NAME: &str = "cloudstack.apache.org";
const PORT: u16 = 53;
/// More than an answer to this question has.
const MAX_ANSWER: usize = 4096;
/// Bytes of a header.
const HEADER: usize = 12;

/// What a name server answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// The name has addresses.
    Found,
    /// The server answers, with this response code and no address.
    NotFound(u8),
}

/// Asks for the addresses of [`NAME`]; twice, since packets get lost.
pub(super) async fn ask(server: IpAddr, limit: Duration) -> io::Result<Answer> {
    ask_at(SocketAddr::new(server, PORT), limit).await
}

async fn ask_at(server: SocketAddr, limit: Duration) -> io::Result<Answer> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Only this server's answers arrive, and its refusal (ICMP) becomes an error.
    socket.connect(server).await?;
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let id = u16::from_be_bytes(random);
    for _ in 0..2 {
        socket.send(&question(id)).await?;
        if let Ok(answer) = timeout(limit / 2, answer(&socket, id)).await {
            return answer;
        }
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer within {limit:?}"),
    ))
}

async fn answer(socket: &UdpSocket, id: u16) -> io::Result<Answer> {
    let mut packet = [0; MAX_ANSWER];
    loop {
        let length = socket.recv(&mut packet).await?;
        if let Some(answer) = read(&packet[..length], id) {
            return Ok(answer);
        }
    }
}

fn question(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    // Recursion desired, one question.
    let mut packet = vec![high, low, 0x01, 0x00, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        packet.push(u8::try_from(label.len()).expect("a short label"));
        packet.extend(label.as_bytes());
    }
    packet.extend([0, 0, 1, 0, 1]); // root, type A, class IN
    packet
}

/// The answer to the question with this id; `None` when the packet is something else.
fn read(packet: &[u8], id: u16) -> Option<Answer> {
    let header = packet.get(..HEADER)?;
    let is_answer = header[..2] == id.to_be_bytes() && header[2] & 0x80 != 0;
    let (code, count) = (header[3] & 0x0f, u16::from_be_bytes([header[6], header[7]]));
    is_answer.then_some(match (code, count) {
        (0, 1..) => Answer::Found,
        (code, _) => Answer::NotFound(code),
    })
}

/// A response code in words: RFC 1035 §4.1.1.
pub(super) fn meaning(code: u8) -> &'static str {
    match code {
        0 => "it knows no address of it",
        2 => "it cannot ask others (SERVFAIL)",
        3 => "it says that there is no such name (NXDOMAIN)",
        5 => "it refuses to answer us (REFUSED)",
        _ => "it answers with an error",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    async fn answered(flags: [u8; 2], answers: u8) -> io::Result<Answer> {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap();
        let serve = async {
            let mut packet = [0; 512];
            let (length, peer) = server.recv_from(&mut packet).await.unwrap();
            assert!(packet[..length].ends_with(b"\x0acloudstack\x06apache\x03org\0\0\x01\0\x01"));
            server.send_to(b"noise", peer).await.unwrap();
            let mut wrong = packet[..length].to_vec();
            wrong[0] ^= 0xff; // a forged one, or one to an older question
            wrong[2] = 0x81;
            server.send_to(&wrong, peer).await.unwrap();
            packet[2..4].copy_from_slice(&flags);
            packet[7] = answers;
            server.send_to(&packet[..length], peer).await.unwrap();
        };
        tokio::join!(ask_at(address, Duration::from_secs(5)), serve).0
    }

    #[tokio::test]
    async fn only_the_answer_to_our_question_counts() {
        assert_eq!(answered([0x81, 0x80], 2).await.unwrap(), Answer::Found);
        assert_eq!(answered([0x81, 0x83], 0).await.unwrap(), Answer::NotFound(3));
        assert_eq!(answered([0x81, 0x80], 0).await.unwrap(), Answer::NotFound(0));
    }

    #[tokio::test]
    async fn a_server_that_is_silent_or_absent_is_told_from_one_that_answers() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap();
        let error = ask_at(address, Duration::from_millis(100)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(silent);
        let error = ask_at(address, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    proptest! {
        #[test]
        fn noise_is_no_answer_and_no_panic(packet in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&packet, 0x1234);
        }
    }
}
