//! The NFS server, asked without mounting anything: that needs a VM.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use hypervisor::network::namespace::Namespace;
use hypervisor::nfs::{Export, NfsError, NfsServer, Versions};
use platform::exec::{Cmd, Process};
use tokio_util::sync::CancellationToken;

use super::net::{Guard, name};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 3, 5);

/// A namespace with that address.
async fn storage() -> Namespace {
    let namespace = Namespace::open_or_create(&name()).await.unwrap();
    let address = "link add storage type bridge\naddress add 172.31.3.5/24 dev storage\nlink set storage up";
    namespace.ip(address).await.unwrap();
    namespace
}

fn server(namespace: &Namespace, directory: &Path, versions: Versions) -> NfsServer {
    let export = Export {
        address: ADDRESS,
        directory: directory.join("secondary"),
        versions,
    };
    NfsServer::new(namespace, export, &directory.join("nfs")).unwrap()
}

fn process(directory: &Path, name: &str) -> Process {
    let text = std::fs::read_to_string(directory.join("nfs").join(name)).unwrap();
    text.parse().unwrap()
}

/// Whether a version of a program answers at a port, without rpcbind's help.
async fn offers(namespace: &Namespace, program: &str, version: &str, port: u16) -> bool {
    let address = format!("{ADDRESS}.{}.{}", port / 256, port % 256);
    let rpcinfo = Cmd::new("rpcinfo").args(["-a", &address, "-T", "tcp", program, version]);
    namespace.command(rpcinfo).run().await.is_ok()
}

#[tokio::test]
async fn it_outlives_whoever_started_it_and_is_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = storage().await;
    let guard = Guard(namespace.clone());
    let first = server(&namespace, directory.path(), Versions::V4);
    assert!(!first.is_alive() && first.answers().await.is_err());
    first.start().await.unwrap();
    assert_eq!(first.url(), "nfs://172.31.3.5/export/secondary");
    first.answers().await.unwrap();
    assert!(offers(&namespace, "100003", "4", 2049).await);
    assert!(!offers(&namespace, "100003", "3", 2049).await);
    let pid = process(directory.path(), "ganesha.process");
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.pid())).unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
    // Bits of capability.h: CAP_SYS_ADMIN is 21, CAP_SYS_MODULE 16, CAP_NET_ADMIN 12, CAP_DAC_READ_SEARCH 2.
    let bounding = u64::from_str_radix(bounding, 16).unwrap();
    assert_eq!(bounding & (1 << 21 | 1 << 16 | 1 << 12 | 1 << 2), 1 << 2, "{status}");
    drop(first);

    let second = server(&namespace, directory.path(), Versions::V4);
    second.start().await.unwrap();
    assert_eq!(process(directory.path(), "ganesha.process"), pid);

    // Killed, and started again by its keeper.
    let stop = CancellationToken::new();
    let keeping = tokio::spawn({
        let (second, stop) = (second.clone(), stop.clone());
        async move { second.keep(stop).await }
    });
    pid.stop(Duration::ZERO).await;
    let mut again = None;
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        again = Some(process(directory.path(), "ganesha.process")).filter(|again| *again != pid);
        if again.is_some() && second.answers().await.is_ok() {
            break;
        }
    }
    let again = again.unwrap();
    stop.cancel();
    keeping.await.unwrap();
    assert!(again.is_alive(), "its keeper leaves it running");

    // And gone with the namespace.
    namespace.remove().await.unwrap();
    assert!(!again.is_alive());
    drop(guard);
}

#[tokio::test]
async fn version_3_comes_with_what_it_needs_and_with_it_goes() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = storage().await;
    let _guard = Guard(namespace.clone());
    let all = server(&namespace, directory.path(), Versions::All);
    all.start().await.unwrap();
    assert!(offers(&namespace, "100003", "3", 2049).await);
    assert!(offers(&namespace, "100005", "3", 20048).await, "mountd");
    assert!(offers(&namespace, "100000", "2", 111).await, "rpcbind");
    let before = process(directory.path(), "ganesha.process");

    // With other settings it is another one.
    let four = server(&namespace, directory.path(), Versions::V4);
    four.start().await.unwrap();
    assert!(!before.is_alive());
    assert!(!offers(&namespace, "100003", "3", 2049).await);
    four.stop().await;
    assert!(!four.is_alive() && namespace.processes().unwrap().is_empty());
}

#[tokio::test]
async fn one_that_cannot_listen_says_why() {
    let directory = tempfile::tempdir().unwrap();
    let namespace = storage().await;
    let _guard = Guard(namespace.clone());
    let export = Export {
        address: Ipv4Addr::new(192, 0, 2, 1),
        directory: directory.path().join("secondary"),
        versions: Versions::V4,
    };
    let server = NfsServer::new(&namespace, export, &directory.path().join("nfs")).unwrap();
    let error = server.start().await.unwrap_err();
    assert!(
        matches!(&error, NfsError::Silent { log, .. } if log.contains("bind")),
        "{error}"
    );
    assert!(namespace.processes().unwrap().is_empty());
}
