//! Secondary storage over NFS: a real server, and the image's `ssvm` as its client.

use platform::exec::Cmd;
use system_tests::nfs::NfsServer;
use system_tests::vm::Net;

#[tokio::test]
async fn a_server_answers_after_its_start_and_after_a_restart_and_two_networks_have_one_each() {
    let nets = [Net::new().await.unwrap(), Net::new().await.unwrap()];
    let mut servers = Vec::new();
    for net in &nets {
        net.bridge("storage", "10.77.0.10/24").await.unwrap();
        servers.push(NfsServer::start(net, "10.77.0.10").await.unwrap());
    }
    let mountd = Cmd::new("rpcinfo").args(["-T", "tcp", "10.77.0.10", "100005", "3"]);
    for (net, server) in nets.iter().zip(&servers) {
        assert_eq!(server.url(), "nfs://10.77.0.10/export/secondary");
        net.run(mountd.clone()).await.unwrap();
        server.kill().await.unwrap();
        net.run(mountd.clone()).await.unwrap_err();
        server.start_again().await.unwrap();
        server.stop().await.unwrap();
        net.run(mountd.clone()).await.unwrap_err();
        server.replace_store().await.unwrap();
        net.run(mountd.clone()).await.unwrap();
        assert!(server.directory().is_dir());
    }
}
