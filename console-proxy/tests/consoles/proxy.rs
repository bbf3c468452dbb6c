//! A proxy in this process, with ports of its own and a management server that a test controls.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent::service::Service;
use console_proxy::config::Config;
use console_proxy::page::Page;
use console_proxy::proxy::{Commanded, Ports, Proxy, Shows};
use protocol::answer::Answer;
use protocol::command::{Command, CommandBody};
use protocol::console_proxy::{AllowConsoleAccessCommand, StartConsoleProxyAgentHttpHandlerCommand};
use protocol::secret::Secret;
use tempfile::TempDir;

use crate::fake_ms::FakeMs;
use crate::token::ENCRYPTOR;

/// More than anything here takes, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

pub(crate) const BOOT: &str = include_str!("../../../protocol/tests/boot/console-proxy.cmdline");

pub(crate) struct Running {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) ms: FakeMs,
    commanded: Commanded,
    addresses: Vec<(Shows, SocketAddr)>,
    pub(crate) files: TempDir,
}

pub(crate) fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let _ = platform::files::replace(path, text, 0o600).unwrap();
}

/// As much of noVNC as a page needs to be complete.
pub(crate) fn fake_novnc(directory: &Path) {
    write(&directory.join("core/rfb.js"), "export default class RFB {}");
    write(&directory.join("vendor/pako/lib/zlib/inflate.js"), "export {}");
    write(&directory.join("LICENSE.txt"), "MPL-2.0");
}

impl Running {
    /// Settings come behind `listen.http` and the directories.
    pub(crate) fn new(settings: &str) -> Self {
        Self::with_listeners("http = \"127.0.0.1:0\"\ncmd = \"127.0.0.1:0\"", settings)
    }

    pub(crate) fn with_listeners(listen: &str, settings: &str) -> Self {
        platform::crypto::install();
        let files = tempfile::tempdir().unwrap();
        let at = |name: &str| files.path().join(name);
        fake_novnc(&at("novnc"));
        std::fs::create_dir(at("state")).unwrap();
        write(&at("cmdline"), BOOT);
        let directory = files.path().display();
        let directories = format!("state_dir = \"{directory}/state\"\nnovnc = \"{directory}/novnc\"\n");
        write(
            &at("settings.toml"),
            &format!("{directories}{settings}\n[listen]\n{listen}\n"),
        );
        let config = Config::load(&at("cmdline"), &at("settings.toml")).unwrap();
        let page = Page::load(&config.settings.novnc).unwrap();
        let ports = Ports::reserve(&config).unwrap();
        let addresses = ports.addresses();
        let ms = FakeMs::default();
        let proxy = Proxy::new(config, page, ports, Arc::new(ms.clone()));
        Self {
            commanded: Commanded(Arc::clone(&proxy)),
            proxy,
            ms,
            addresses,
            files,
        }
    }

    /// One that has been told to serve.
    pub(crate) async fn serving(settings: &str) -> Self {
        let running = Self::new(settings);
        running.start().await;
        running
    }

    pub(crate) async fn execute(&self, command: impl Into<CommandBody>) -> Answer {
        self.commanded.execute(Command::new(command)).await.unwrap()
    }

    pub(crate) async fn start(&self) {
        let answer = self.execute(start()).await;
        assert!(answer.result, "{answer:?}");
    }

    pub(crate) async fn allow(&self, session: &str) {
        let session_uuid = Some(session.to_owned());
        assert!(self.execute(AllowConsoleAccessCommand { session_uuid }).await.result);
    }

    pub(crate) fn address(&self, wanted: Shows) -> SocketAddr {
        self.address_of(|shows| shows == wanted)
    }

    pub(crate) fn address_of(&self, wanted: impl Fn(Shows) -> bool) -> SocketAddr {
        self.addresses.iter().find(|(shows, _)| wanted(*shows)).unwrap().1
    }

    pub(crate) fn site(&self) -> SocketAddr {
        self.address(Shows::Site)
    }
}

pub(crate) fn start() -> StartConsoleProxyAgentHttpHandlerCommand {
    StartConsoleProxyAgentHttpHandlerCommand {
        encryptor_password: Some(Secret::new(ENCRYPTOR.into())),
        ..StartConsoleProxyAgentHttpHandlerCommand::default()
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, wait)
        .await
        .unwrap_or_else(|_| panic!("never: {what}"));
}
