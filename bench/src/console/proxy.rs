//! Our proxy without an agent link, and the tokens it opens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::service::{NoAnswer, Service};
use anyhow::{Context, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use console_proxy::auth::{Authorizer, Boxed, Refused};
use console_proxy::config::Config;
use console_proxy::page::Page;
use console_proxy::proxy::{Commanded, Ports, Proxy};
use console_proxy::tls;
use platform::{files, shutdown};
use protocol::command::Command;
use protocol::console_proxy::{
    ConsoleAccessAuthenticationCommand, ConsoleProxyLoadReportCommand, StartConsoleProxyAgentHttpHandlerCommand,
};
use protocol::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, digest};
use serde_json::json;

/// The key of a zone that exists for minutes, on loopback.
const KEY: [u8; 16] = [1; 16];
const IV: [u8; 16] = [2; 16];

/// Ports of the process.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    plain: u16,
    #[arg(long)]
    tls: u16,
}

/// Says yes.
struct Everybody;

impl Authorizer for Everybody {
    fn authorize(&self, _: ConsoleAccessAuthenticationCommand) -> Boxed<'_, Result<(), Refused>> {
        Box::pin(async { Ok(()) })
    }

    fn report(&self, _: ConsoleProxyLoadReportCommand) -> Boxed<'_, Result<(), NoAnswer>> {
        Box::pin(async { Ok(()) })
    }
}

/// Serves consoles until SIGTERM.
#[tokio::main]
pub(crate) async fn serve(args: &Args) -> anyhow::Result<String> {
    let stop = shutdown::signal();
    let files = tempfile::tempdir().context("making a directory")?;
    let at = |name: &str| files.path().join(name);
    std::fs::create_dir_all(at("novnc/core")).context("making a directory")?;
    let _ = files::replace(at("novnc/core/rfb.js"), "", 0o600)?; // no page is asked for
    let _ = files::replace(
        at("cmdline"),
        "type=consoleproxy host=127.0.0.1 guid=Proxy.1 name=v-1-VM",
        0o600,
    )?;
    let settings = format!(
        "state_dir = \"{0}\"\nnovnc = \"{0}/novnc\"\ntls = \"self-signed\"\nlisten.ws = \"127.0.0.1:{1}\"\n\
         listen.wss = \"127.0.0.1:{2}\"\nconsole.trust_ms_session_check = true\nconsole.multi_viewer = \"share\"\n",
        files.path().display(),
        args.plain,
        args.tls
    );
    let _ = files::replace(at("settings.toml"), settings, 0o600)?;
    let config = Config::load(&at("cmdline"), &at("settings.toml"))?;
    let page = Page::load(&config.settings.novnc)?;
    let ports = Ports::reserve(&config)?;
    let proxy = Proxy::new(config, page, ports, Arc::new(Everybody));
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    let keys = json!({ "base64EncodedKeyBytes": encode(&KEY), "base64EncodedIvBytes": encode(&IV) });
    let start = StartConsoleProxyAgentHttpHandlerCommand {
        encryptor_password: Some(Secret::new(keys.to_string())),
        ..StartConsoleProxyAgentHttpHandlerCommand::default()
    };
    let answer = Commanded(Arc::clone(&proxy)).execute(Command::new(start)).await;
    ensure!(answer.is_some_and(|answer| answer.result), "the proxy does not start");
    stop.await;
    proxy.drain().await;
    Ok(String::new())
}

/// A token for a host on this machine.
pub(crate) fn token(port: u16, session: u64) -> anyhow::Result<String> {
    let content = json!({
        "clientHostAddress": "127.0.0.1",
        "clientHostPort": port,
        "clientHostPassword": "",
        "clientTag": "bench",
        "sessionUuid": format!("bench-{session}"),
    });
    let key = UnboundKey::new(&AES_256_GCM, digest(&SHA256, &KEY).as_ref());
    let key = LessSafeKey::new(key.ok().context("a digest has the length of a key")?);
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&session.to_be_bytes());
    let mut sealed = content.to_string().into_bytes();
    let sealing = key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(IV), &mut sealed);
    sealing.ok().context("sealing a token")?;
    Ok(STANDARD.encode([&nonce[..], &sealed].concat()))
}

/// A certificate like ours, for websockify.
pub(crate) fn certificate(directory: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    tls::self_signed(directory, &["127.0.0.1".to_owned()])?;
    Ok((directory.join("browser.crt"), directory.join("browser.key")))
}
