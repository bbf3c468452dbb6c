//! System VMs that somebody starts by hand, beside a server without a driver.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use hmac::{Hmac, KeyInit, Mac};
use mgmt_stub::api::Api;
use mgmt_stub::console::NoConsole;
use mgmt_stub::download_state::DownloadState;
use mgmt_stub::host_status::HostStatus;
use mgmt_stub::instance_state::InstanceState;
use mgmt_stub::management::Management;
use mgmt_stub::store::host::Host;
use mgmt_stub::web::WebServer;
use platform::exec::{Cmd, Process};
use platform::files;
use protocol::console_proxy::ConsoleProxyLoadReportCommand;
use protocol::secret::Secret;
use serde_json::Value;
use sha1::Sha1;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::consoles::{creator, instance, open};
use crate::downloads::{reaches, register};
use crate::support::{TestZone, fake_vm, until};

/// A real agent in a process that the server knows nothing of.
struct ByHand {
    directory: TempDir,
    process: Process,
}

impl ByHand {
    fn start(zone: &TestZone, name: &str, boot_args: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let port = zone.port;
        let boot_args = format!(
            "template=domP name={name} host=127.0.0.1 port={port} zone=1 pod=1 eth0ip=0.0.0.0 eth0mask=0.0.0.0 \
             eth1ip=127.0.0.1 eth1mask=255.0.0.0 eth2ip=127.0.0.1 eth2mask=255.0.0.0 {boot_args}"
        );
        let _ = files::replace(path("cmdline"), boot_args, 0o600).unwrap();
        let settings = format!("state_dir = \"{}\"\n", directory.path().display());
        let _ = files::replace(path("settings.toml"), settings, 0o600).unwrap();
        let command = Cmd::new(fake_vm()).arg("--boot-args").arg(path("cmdline"));
        let command = command.arg("--settings").arg(path("settings.toml"));
        let process = command.spawn_detached(path("log")).unwrap().process().clone();
        Self { directory, process }
    }

    fn console_proxy(zone: &TestZone, number: u32, port: u16) -> Self {
        let more =
            format!("type=consoleproxy guid=Proxy.{number} proxy_vm={number} consoleproxy.httpListenPort={port}");
        Self::start(zone, &format!("v-{number}-VM"), &more)
    }

    fn seen(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("seen")).unwrap_or_default()
    }

    async fn end(self) {
        assert!(self.process.stop(std::time::Duration::from_secs(10)).await);
    }
}

async fn up(zone: &TestZone, name: &str) -> Host {
    until(&format!("{name} is Up"), async || {
        let hosts = zone.store.hosts().await.unwrap();
        hosts
            .into_iter()
            .find(|host| host.name == name && host.status == HostStatus::Up)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn consoles_go_to_the_proxy_that_somebody_has_started() {
    let zone = TestZone::start_without_driver(&[("consoleproxy.session.max", "2")]).await;
    let consoles = &zone.zone.consoles;
    let vm = instance(&zone, InstanceState::Running).await;
    let nobody = consoles.create(&vm, &creator(), None).await.unwrap_err();
    assert!(matches!(nobody, NoConsole::NoProxy), "{nobody}");

    let first = ByHand::console_proxy(&zone, 7, 6099);
    let host = up(&zone, "v-7-VM").await;
    assert_eq!(host.proxy_port.map(u16::from), Some(6099));
    // Its host is Up a moment before it may have sessions.
    let endpoint = until("a console goes to it", async || {
        consoles.create(&vm, &creator(), None).await.ok()
    })
    .await;
    assert!(
        endpoint
            .url
            .starts_with("http://127.0.0.1:6099/resource/noVNC/vnc.html?autoconnect=true&show_dot=true&port=6099&"),
        "{}",
        endpoint.url
    );
    assert_eq!(open(&zone, &endpoint.token).await["sourceIP"], "192.0.2.7");
    until("the proxy is told", async || {
        first.seen().contains("ALLOW ").then_some(())
    })
    .await;

    // A proxy on the usual port, as in a system VM. The first one keeps its instance as long as it has room.
    let second = ByHand::console_proxy(&zone, 8, 80);
    up(&zone, "v-8-VM").await;
    assert_eq!(consoles.create(&vm, &creator(), None).await.unwrap().port, 6099);
    let full = ConsoleProxyLoadReportCommand {
        proxy_vm_id: 7,
        load_info: Some(r#"{"connections":[{},{}]}"#.into()),
    };
    consoles.reported(&host, &full);
    let other = mgmt_stub::store::instance::NewInstance {
        name: Some("web-2".into()),
        ..crate::consoles::new_instance(InstanceState::Running)
    };
    let other = zone.store.create_instance(other, None).await.unwrap();
    until("the first proxy is full", async || {
        let host = zone.store.host(host.id).await.unwrap()?;
        (host.active_sessions == 2).then_some(())
    })
    .await;
    let endpoint = consoles.create(&other, &creator(), None).await.unwrap();
    assert_eq!(endpoint.port, 8080);
    assert!(
        endpoint.url.starts_with("http://127.0.0.1/resource/noVNC/vnc.html"),
        "{}",
        endpoint.url
    );
    assert_eq!(zone.store.console_sessions().await.unwrap()[0].proxy, "v-8-VM");

    first.end().await;
    until("one that has ended is not chosen", async || {
        (consoles.create(&vm, &creator(), None).await.unwrap().port == 8080).then_some(())
    })
    .await;
    second.end().await;
    zone.end().await;
}

/// One command over TCP, signed as the administrator.
async fn signed_call(address: SocketAddr, command: &str, parameters: &str) -> Value {
    let query = format!("apikey=key&command={command}&response=json{parameters}");
    let mut pairs: Vec<&str> = query.split('&').collect();
    pairs.sort_unstable();
    let query = pairs.join("&");
    let mut hmac = Hmac::<Sha1>::new_from_slice(b"secret").unwrap();
    hmac.update(query.to_lowercase().as_bytes());
    let signature = BASE64_STANDARD.encode(hmac.finalize().into_bytes());
    let signature = signature.replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    let request = format!(
        "GET /client/api?{query}&signature={signature} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_console_knows_who_asked_for_it_and_the_proxy_whether_to_check() {
    let zone = TestZone::start_without_driver(&[("novnc.console.sourceip.check.enabled", "true")]).await;
    let proxy = ByHand::console_proxy(&zone, 7, 6099);
    up(&zone, "v-7-VM").await;
    assert!(proxy.seen().contains("SOURCE IP CHECK true\n"), "{}", proxy.seen());
    let vm = instance(&zone, InstanceState::Running).await;

    let user = zone.store.administrator().await.unwrap().user;
    let secret = Secret::new("secret".into());
    zone.store.set_user_keys(user.id, "key".into(), secret).await.unwrap();
    let (store, agents) = (zone.store.clone(), zone.agents.clone());
    let management = Management::new(store, agents, zone.configuration.clone(), zone.zone.clone())
        .await
        .unwrap();
    let web = WebServer::bind("127.0.0.1:0".parse().unwrap(), zone.directory.path())
        .await
        .unwrap();
    let address = web.local_addr().unwrap();
    let stop = CancellationToken::new();
    let served = tokio::spawn(web.serve(Api::new(Arc::new(management)), stop.clone()));

    let answer = signed_call(
        address,
        "createConsoleEndpoint",
        &format!("&virtualmachineid={}", vm.uuid),
    )
    .await;
    let token = &answer["createconsoleendpointresponse"]["consoleendpoint"]["websocket"]["token"];
    let token = Secret::new(token.as_str().unwrap_or_else(|| panic!("{answer}")).to_owned());
    assert_eq!(open(&zone, &token).await["sourceIP"], "127.0.0.1");
    let answer = signed_call(address, "listConsoleSessions", "&activeonly=false").await;
    let session = &answer["listconsolesessionsresponse"]["consolesession"][0];
    assert_eq!(session["consoleendpointcreatoraddress"], "127.0.0.1", "{answer}");

    stop.cancel();
    served.await.unwrap();
    proxy.end().await;
    zone.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_go_to_the_ssvm_that_somebody_has_started() {
    let zone = TestZone::start_without_driver(&[]).await;
    let template = register(&zone, "ok").await;
    let more = "type=secstorage guid=s-9-VM resource=org.apache.cloudstack.storage.resource.NfsSecondaryStorageResource \
                role=templateProcessor";
    let ssvm = ByHand::start(&zone, "s-9-VM", more);
    reaches(&zone, &template, DownloadState::Downloaded).await;
    assert!(ssvm.seen().contains("DOWNLOAD "), "{}", ssvm.seen());
    ssvm.end().await;
    zone.end().await;
}
