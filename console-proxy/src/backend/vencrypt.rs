//! VeNCrypt (§7.3): RFB's way into TLS. KVM hosts that the management server has secured ask for it, and for a
//! certificate of ours.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use agent::keystore::KeyStore;
use protocol::secret::Secret;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{Policy, VncTlsVerify, tls};
use crate::browser::Stream;
use crate::rfb::Version;
use crate::rfb::handshake::{self, HandshakeError};

const X509_NONE: u32 = 260;
const X509_VNC: u32 = 261;

/// Goes on after security type 19 was chosen; ends where ClientInit comes next.
pub(super) async fn open(
    mut stream: Box<dyn Stream>,
    version: Version,
    password: &Secret<String>,
    policy: &Policy,
) -> Result<Box<dyn Stream>, HandshakeError> {
    let offered = [stream.read_u8().await?, stream.read_u8().await?];
    if offered < [0, 2] {
        stream.write_all(&[0, 0]).await?;
        let text = format!(
            "it speaks VeNCrypt {}.{}, and only 0.2 is supported",
            offered[0], offered[1]
        );
        return Err(HandshakeError::Tls(text));
    }
    stream.write_all(&[0, 2]).await?;
    if stream.read_u8().await? != 0 {
        return Err(HandshakeError::Tls("it does not agree on VeNCrypt 0.2".into()));
    }
    let mut offered = Vec::new();
    for _ in 0..stream.read_u8().await? {
        offered.push(stream.read_u32().await?);
    }
    let Some(chosen) = [X509_VNC, X509_NONE]
        .into_iter()
        .find(|wanted| offered.contains(wanted))
    else {
        let text = format!(
            "it offers the VeNCrypt types {offered:?}; supported are 261 (X509Vnc) and 260 (X509None), so give the host \
             certificates (vnc_tls_x509_cert_dir in libvirt's qemu.conf)"
        );
        return Err(HandshakeError::Tls(text));
    };
    stream.write_u32(chosen).await?;
    if stream.read_u8().await? != 1 {
        return Err(HandshakeError::Tls(
            "it refuses the VeNCrypt type that it has offered".into(),
        ));
    }
    let mut stream = encrypt(stream, policy).await?;
    let inside = if chosen == X509_VNC {
        handshake::vnc_auth(&mut stream, version, password).await
    } else {
        handshake::security_result(&mut stream, version).await
    };
    match inside {
        // With TLS 1.3 the client's handshake is over before the server has looked at its certificate.
        Err(HandshakeError::Io(error)) => Err(HandshakeError::Tls(format!(
            "it closed the connection after the TLS handshake, most likely because it did not accept our certificate \
             ({error})"
        ))),
        inside => inside.map(|()| stream),
    }
}

async fn encrypt(stream: Box<dyn Stream>, policy: &Policy) -> Result<Box<dyn Stream>, HandshakeError> {
    let keystore = KeyStore::in_directory(&policy.directory);
    let identity = tokio::task::spawn_blocking(move || keystore.load()).await;
    let failed = |error: &dyn std::error::Error| HandshakeError::Tls(platform::logging::chain(error).to_string());
    let identity = identity
        .map_err(|error| failed(&error))?
        .map_err(|error| failed(&error))?;
    let believed = match policy.verify {
        VncTlsVerify::Off => None,
        VncTlsVerify::Ca if identity.is_some() => identity.as_ref(),
        VncTlsVerify::Ca => {
            let text = "no CA certificate has come from the management server yet; console.vnc_tls_verify = \"off\" \
                        believes any host";
            return Err(HandshakeError::Tls(text.into()));
        }
    };
    let config = tls::client_config(believed, identity.as_ref()).map_err(|error| failed(&error))?;
    // No name is checked, and an address is sent to nobody (RFC 6066 §3).
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let connected = TlsConnector::from(Arc::new(config)).connect(nobody, stream).await;
    Ok(Box::new(connected.map_err(|error| failed(&error))?))
}
