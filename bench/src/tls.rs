//! What TLS costs the server for each agent, measured in this process: established server ends, kept in memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::BytesMut;
use protocol::channel::{Channel, Event};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ServerConfig};

use crate::process;

/// Enough that the pages of the allocator do not matter.
pub(crate) const CONNECTIONS: u32 = 2000;

/// Made before counting: the first ones fill what all share.
const WARM_UP: u32 = 100;

/// For one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Memory of the server's end.
    pub(crate) kib: f64,
    /// Processor time of the server's end for the handshake.
    pub(crate) handshake: Duration,
}

/// Must come before anything else fills this process's memory: what was freed once is used again and not seen.
pub(crate) fn measure(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> anyhow::Result<Cost> {
    let this = std::process::id();
    for _ in 0..WARM_UP {
        establish(server, client)?;
    }
    let before = process::rss(this)?;
    let ends: Vec<(Channel, Duration)> = (0..CONNECTIONS)
        .map(|_| establish(server, client))
        .collect::<anyhow::Result<_>>()?;
    let grown = process::rss(this)?.saturating_sub(before);
    Ok(Cost {
        kib: f64::from(grown) / f64::from(CONNECTIONS),
        handshake: ends.iter().map(|(_, handshake)| *handshake).sum::<Duration>() / CONNECTIONS,
    })
}

/// A server's end that has shaken hands and been used once in each direction, and the time it took for the handshake.
fn establish(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> anyhow::Result<(Channel, Duration)> {
    let name = ServerName::try_from("127.0.0.1").context("an IP address is a server's name")?;
    let mut client = Channel::client(Arc::clone(client), name)?;
    let mut server = Channel::server(Arc::clone(server))?;
    let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
    let mut handshake = Duration::ZERO;
    client.flush(&mut to_server);
    while !(client.is_established() && server.is_established()) {
        let mut input = BytesMut::from(&std::mem::take(&mut to_server)[..]);
        let started = Instant::now();
        server.receive(&mut input, &mut to_client)?;
        handshake += started.elapsed();
        let mut input = BytesMut::from(&std::mem::take(&mut to_client)[..]);
        client.receive(&mut input, &mut to_server)?;
    }
    exchange(&mut client, &mut server)?;
    exchange(&mut server, &mut client)?;
    Ok((server, handshake))
}

fn exchange(from: &mut Channel, to: &mut Channel) -> anyhow::Result<()> {
    let message = [b' '; 400]; // about a ping
    let mut wire = Vec::new();
    from.send(&message, &mut wire)?;
    match to.receive(&mut BytesMut::from(&wire[..]), &mut Vec::new())? {
        Some(Event::Message(_)) => Ok(()),
        other => bail!("a message did not arrive: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use agent::trust::{TrustUnknown, client_config};
    use mgmt_stub::ca::{Ca, Presented};
    use mgmt_stub::client_auth::{Expired, Strictness, verifier};

    use super::*;

    #[test]
    fn both_ends_agree_and_the_handshake_takes_time() {
        platform::crypto::install();
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let verifier = verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
        let server = ca.server_config(Presented::CaCertificate, verifier).unwrap();
        let client = client_config(None, TrustUnknown::Accept).unwrap();
        let (end, handshake) = establish(&server, &client).unwrap();
        assert!(end.is_established() && !handshake.is_zero());
    }
}
