//! From the host's loopback to VMs, and from VMs to the host's name servers: here the real dnsmasq.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use hypervisor::network::namespace::Namespace;
use hypervisor::relay::{Forward, Resolver, Upstream};
use platform::exec::{Cmd, Running};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::net::{Guard, name};

const LIMIT: Duration = Duration::from_secs(10);
const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

async fn namespace() -> (Namespace, Guard) {
    let namespace = Namespace::open_or_create(&name()).await.unwrap();
    (namespace.clone(), Guard(namespace))
}

/// What somebody says who is asked by TCP; nothing when the connection ends.
async fn hears(address: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"hello").await.ok();
    stream.shutdown().await.ok();
    let mut said = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut said)).await;
    read.expect("it is not left hanging").ok();
    said
}

/// Says a word and what it has heard.
async fn serve(listener: TcpListener, word: &'static str) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).await.unwrap();
        stream.write_all(word.as_bytes()).await.unwrap();
        stream.write_all(&heard).await.unwrap();
    }
}

#[tokio::test]
async fn a_port_of_the_host_leads_to_whoever_is_the_target_now() {
    let (namespace, _guard) = namespace().await;
    let [one, two] = ["one ", "two "].map(|word| {
        let listener = namespace.listen(ANYWHERE).unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, word));
        address
    });
    let (target, watched) = watch::channel(None);
    let forward = Forward::bind(ANYWHERE, &namespace, watched).await.unwrap();
    let address = forward.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(forward.serve(stop.clone()));

    assert_eq!(hears(address).await, b"", "there is no target yet");
    target.send_replace(Some(one));
    assert_eq!(hears(address).await, b"one hello");
    target.send_replace(Some(two));
    assert_eq!(hears(address).await, b"two hello");
    // The same address on the host is somebody else.
    target.send_replace(Some(address));
    let started = Instant::now();
    assert_eq!(hears(address).await, b"", "nobody is there, inside");
    assert!(started.elapsed() < Duration::from_secs(2));
    stop.cancel();
    serving.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

/// `example.org`, type A, class IN.
const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03org\x00\x00\x01\x00\x01";

/// On the host, and knows one name.
async fn dnsmasq(directory: &std::path::Path) -> (Running, SocketAddr) {
    let port = UdpSocket::bind(ANYWHERE).unwrap().local_addr().unwrap().port();
    let dnsmasq = Cmd::new("/usr/sbin/dnsmasq").args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv"]);
    let dnsmasq = dnsmasq.args([
        "--no-hosts",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        "--pid-file=",
    ]);
    let dnsmasq = dnsmasq.args([format!("--port={port}"), "--address=/example.org/192.0.2.7".to_owned()]);
    let running = dnsmasq.spawn(directory.join("dnsmasq.log")).unwrap();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    for _ in 0..100 {
        if TcpStream::connect(address).await.is_ok() {
            return (running, address);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    unreachable!("{}", fs::read_to_string(directory.join("dnsmasq.log")).unwrap());
}

/// The answer to a VM, by UDP.
fn ask(namespace: &Namespace, server: SocketAddr) -> Vec<u8> {
    let answered = namespace.inside(|| {
        let socket = UdpSocket::bind(ANYWHERE)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send_to(QUESTION, server)?;
        let mut answer = vec![0; 512];
        let length = socket.recv(&mut answer)?;
        answer.truncate(length);
        std::io::Result::Ok(answer)
    });
    answered.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_ask_the_hosts_name_servers() {
    let directory = tempfile::tempdir().unwrap();
    let (_dnsmasq, server) = dnsmasq(directory.path()).await;
    let silent = UdpSocket::bind(ANYWHERE).unwrap();
    let (namespace, _guard) = namespace().await;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 5353));
    let upstream = Upstream::Servers(vec![silent.local_addr().unwrap(), server]);
    let resolver = Resolver::bind(&namespace, listen, upstream).unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(resolver.serve(stop.clone()));

    let answer = ask(&namespace, listen);
    assert_eq!(answer[..2], QUESTION[..2]);
    assert_eq!(answer[3] & 0x0f, 0);
    assert!(answer.ends_with(&[192, 0, 2, 7]), "{answer:?}");
    // The same by TCP.
    let mut stream = namespace.connect(listen, LIMIT).await.unwrap();
    let length = u16::try_from(QUESTION.len()).unwrap();
    stream.write_u16(length).await.unwrap();
    stream.write_all(QUESTION).await.unwrap();
    let mut answer = vec![0; stream.read_u16().await.unwrap().into()];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.ends_with(&[192, 0, 2, 7]), "{answer:?}");
    drop(stream);
    stop.cancel();
    serving.await.unwrap();

    // Nobody answers: the VM is told.
    let upstream = Upstream::Servers(vec![silent.local_addr().unwrap()]);
    let resolver = Resolver::bind(&namespace, listen, upstream).unwrap();
    tokio::spawn(resolver.serve(CancellationToken::new()));
    assert_eq!(ask(&namespace, listen)[3] & 0x0f, 2, "SERVFAIL");
}
