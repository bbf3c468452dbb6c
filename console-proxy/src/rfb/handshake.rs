//! The host's side of the handshake (§7.2): version, security, and the screen's description.

use std::io;

use des::Des;
use des::cipher::{BlockCipherEncrypt, KeyInit};
use protocol::secret::Secret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{VERSION_LEN, Version};

/// Longest reason that a host may give.
const MAX_REASON: u32 = 4 << 10;

/// Longest name of a desktop.
const MAX_NAME: u32 = 64 << 10;

/// Width, height, pixel format.
const SCREEN_LEN: usize = 2 /* width */ + 2 /* height */ + 16 /* pixel format */;

/// Why the host's screen cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// Something else listens there.
    #[error("the host does not speak VNC: it began with {0:?}")]
    NotRfb(String),
    /// It said no before any password.
    #[error("the host refuses the connection: {0}")]
    Refused(String),
    /// It said no to the password.
    #[error("the host refuses the password: {0}")]
    WrongPassword(String),
    /// Nothing that we speak.
    #[error("the host offers only the security types {0:?}; supported are 1 (None), 2 (VncAuth) and 19 (VeNCrypt)")]
    NoCommonType(Vec<u8>),
    /// Longer than anybody means it.
    #[error("the host announces a {what} of {length} bytes; at most {limit} are accepted")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// As announced.
        length: u32,
        /// What we take.
        limit: u32,
    },
    /// The operator wants encryption, and the host has none.
    #[error("the host offers no TLS, which console.vnc_tls = \"require\" asks for")]
    NoTls,
    /// VeNCrypt did not come to a TLS connection.
    #[error("the host's TLS cannot be used: {0}")]
    Tls(String),
    /// The connection broke.
    #[error("the connection to the host broke during the handshake")]
    Io(#[from] io::Error),
}

/// The security types that we speak, the best last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Security {
    /// 1
    None,
    /// 2: a password by DES challenge.
    VncAuth,
    /// 19: TLS, then perhaps a password.
    VeNCrypt,
}

impl Security {
    const fn of(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::None),
            2 => Some(Self::VncAuth),
            19 => Some(Self::VeNCrypt),
            _ => None,
        }
    }

    const fn byte(self) -> u8 {
        match self {
            Self::None => 1,
            Self::VncAuth => 2,
            Self::VeNCrypt => 19,
        }
    }
}

/// Agrees on a version and on a security type.
///
/// # Errors
/// The host does not speak VNC, refuses us, or has no type that is `allowed`.
pub async fn choose_security<S: AsyncRead + AsyncWrite + Unpin>(
    host: &mut S,
    highest: Version,
    allowed: impl Fn(Security) -> bool,
) -> Result<(Version, Security), HandshakeError> {
    let mut line = [0; VERSION_LEN];
    host.read_exact(&mut line).await?;
    let offered = Version::offered(line).ok_or_else(|| HandshakeError::NotRfb(printable(&line)))?;
    let version = offered.min(highest);
    host.write_all(version.line()).await?;
    if version == Version::V3 {
        let decided = host.read_u32().await?;
        if decided == 0 {
            return Err(HandshakeError::Refused(reason(host).await?));
        }
        let byte = u8::try_from(decided).unwrap_or(u8::MAX);
        let security = Security::of(byte).filter(|security| *security != Security::VeNCrypt && allowed(*security));
        return Ok((version, security.ok_or(HandshakeError::NoCommonType(vec![byte]))?));
    }
    let count = host.read_u8().await?;
    if count == 0 {
        return Err(HandshakeError::Refused(reason(host).await?));
    }
    let mut types = vec![0; usize::from(count)];
    host.read_exact(&mut types).await?;
    let best = types
        .iter()
        .filter_map(|byte| Security::of(*byte))
        .filter(|security| allowed(*security))
        .max();
    let security = best.ok_or(HandshakeError::NoCommonType(types))?;
    host.write_all(&[security.byte()]).await?;
    Ok((version, security))
}

/// Shows the password, and reads what the host thinks of it.
///
/// # Errors
/// The host refuses it, or the connection broke.
pub async fn vnc_auth<S: AsyncRead + AsyncWrite + Unpin>(
    host: &mut S,
    version: Version,
    password: &Secret<String>,
) -> Result<(), HandshakeError> {
    let mut challenge = [0; 16];
    host.read_exact(&mut challenge).await?;
    host.write_all(&answer(password, challenge)).await?;
    security_result(host, version).await
}

/// Reads the host's verdict.
///
/// # Errors
/// It is no.
pub async fn security_result<S: AsyncRead + Unpin>(host: &mut S, version: Version) -> Result<(), HandshakeError> {
    if host.read_u32().await? == 0 {
        return Ok(());
    }
    let reason = match version {
        Version::V8 => reason(host).await?,
        Version::V3 | Version::V7 => "no reason given".to_owned(),
    };
    Err(HandshakeError::WrongPassword(reason))
}

/// Begins the session, and reads what the screen is like.
///
/// # Errors
/// The connection broke, or the name is endless.
pub async fn begin<S: AsyncRead + AsyncWrite + Unpin>(host: &mut S, shared: u8) -> Result<ServerInit, HandshakeError> {
    host.write_all(&[shared]).await?;
    let mut screen = [0; SCREEN_LEN];
    host.read_exact(&mut screen).await?;
    let length = host.read_u32().await?;
    let name = bounded(host, "desktop name", length, MAX_NAME).await?;
    Ok(ServerInit { screen, name })
}

/// The message ServerInit (RFC 6143 §7.3.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInit {
    screen: [u8; SCREEN_LEN],
    /// Name of the desktop.
    pub name: Vec<u8>,
}

impl ServerInit {
    /// As it is sent, under another name.
    pub fn renamed(&self, name: &str) -> Vec<u8> {
        let length = u32::try_from(name.len()).expect("names of tokens are short");
        [&self.screen[..], &length.to_be_bytes(), name.as_bytes()].concat()
    }

    /// Pixels.
    pub fn size(&self) -> (u16, u16) {
        let [a, b, c, d, ..] = self.screen;
        (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
    }
}

/// The answer of VncAuth (§7.2): the challenge under DES, whose key is the first eight characters of the password with
/// the bits of each turned around. Only a peer's protocol makes us use DES.
pub fn answer(password: &Secret<String>, mut challenge: [u8; 16]) -> [u8; 16] {
    let mut key = [0; 8];
    for (byte, letter) in key.iter_mut().zip(password.expose().bytes()) {
        *byte = letter.reverse_bits();
    }
    let des = Des::new(&key.into());
    for half in challenge.as_chunks_mut::<8>().0 {
        let mut block = (*half).into();
        des.encrypt_block(&mut block);
        half.copy_from_slice(&block);
    }
    challenge
}

async fn reason<S: AsyncRead + Unpin>(host: &mut S) -> Result<String, HandshakeError> {
    let length = host.read_u32().await?;
    Ok(printable(&bounded(host, "reason", length, MAX_REASON).await?))
}

async fn bounded<S: AsyncRead + Unpin>(
    host: &mut S,
    what: &'static str,
    length: u32,
    limit: u32,
) -> Result<Vec<u8>, HandshakeError> {
    if length > limit {
        return Err(HandshakeError::TooLong { what, length, limit });
    }
    let mut bytes = vec![0; usize::try_from(length).expect("the limit fits")];
    host.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// Text of a host for our log: QEMU ends it with a NUL, and others may put anything into it.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches(['\0', '\n', '\r'])
        .chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;
    use tokio::io::DuplexStream;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    #[test]
    fn passwords_are_answered_as_recorded() {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/vncauth.json")).unwrap();
        for case in vectors["cases"].as_array().unwrap() {
            let challenge = bytes(case["challenge_hex"].as_str().unwrap()).try_into().unwrap();
            let password = Secret::new(case["password"].as_str().unwrap().to_owned());
            let wanted = bytes(case["response_hex"].as_str().unwrap());
            assert_eq!(answer(&password, challenge).as_slice(), wanted, "{password:?}");
        }
    }

    async fn log_in(host: &mut DuplexStream, highest: Version) -> Result<ServerInit, HandshakeError> {
        let password = Secret::new("secret".to_owned());
        let (version, security) = choose_security(host, highest, |security| security != Security::VeNCrypt).await?;
        match (security, version) {
            (Security::VncAuth, _) => vnc_auth(host, version, &password).await?,
            (Security::None, Version::V8) => security_result(host, version).await?,
            _ => {}
        }
        begin(host, 1).await
    }

    /// Plays a recorded host; checks what we send against the recording.
    async fn replay(name: &str, highest: Version) -> Result<ServerInit, HandshakeError> {
        let vectors: Value = serde_json::from_str(include_str!("../../tests/vectors/rfb_transcripts.json")).unwrap();
        let steps = vectors["transcripts"][name].as_array().unwrap().clone();
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        let play = async move {
            for step in steps {
                let Some(hex) = step["hex"].as_str() else { continue };
                let wanted = bytes(hex);
                if step["dir"] == "server" {
                    far.write_all(&wanted).await.unwrap();
                } else {
                    let mut got = vec![0; wanted.len()];
                    far.read_exact(&mut got).await.unwrap();
                    let is_answer = step["note"] == "response" && wanted.len() == 16;
                    assert!(got == wanted || is_answer && got.len() == 16, "{step}: {got:x?}");
                }
            }
        };
        tokio::join!(log_in(&mut near, highest), play).0
    }

    #[tokio::test]
    async fn recorded_hosts_let_us_in() {
        for (name, highest) in [
            ("qemu-none-3.8", Version::V8),
            ("qemu-none-3.7", Version::V7),
            ("qemu-none-3.3", Version::V3),
            ("qemu-vncauth-3.8", Version::V8),
            ("qemu-vncauth-3.3", Version::V3),
        ] {
            let init = replay(name, highest).await.expect(name);
            assert_eq!(
                (init.size(), init.name.as_slice()),
                ((640, 480), b"QEMU".as_slice()),
                "{name}"
            );
            assert!(init.renamed("web-01 ").ends_with(b"\0\0\0\x07web-01 "));
        }
    }

    #[tokio::test]
    async fn a_recorded_refusal_comes_with_its_reason() {
        let error = replay("qemu-vncauth-wrong-password-3.8", Version::V8)
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the host refuses the password: Authentication failed"
        );
    }

    async fn said(host: &[u8]) -> HandshakeError {
        let (mut near, mut far) = tokio::io::duplex(1 << 16);
        far.write_all(host).await.unwrap();
        far.shutdown().await.unwrap();
        log_in(&mut near, Version::V8).await.unwrap_err()
    }

    #[tokio::test]
    async fn hosts_that_cannot_be_used_are_told_apart() {
        assert!(matches!(
            said(b"HTTP/1.1 400 Bad Request").await,
            HandshakeError::NotRfb(_)
        ));
        let refused = said(b"RFB 003.008\n\0\0\0\0\x04busy").await;
        assert_eq!(refused.to_string(), "the host refuses the connection: busy");
        assert!(
            matches!(said(b"RFB 003.008\n\x02\x05\x1e").await, HandshakeError::NoCommonType(types) if types == [5, 30])
        );
        assert!(matches!(
            said(b"RFB 003.008\n\0\xff\xff\xff\xff").await,
            HandshakeError::TooLong { what: "reason", .. }
        ));
        let endless = [b"RFB 003.008\n\x01\x01\0\0\0\0".as_slice(), &[0; 20], &[0xff; 4]].concat();
        assert!(matches!(
            said(&endless).await,
            HandshakeError::TooLong {
                what: "desktop name",
                ..
            }
        ));
        assert!(matches!(said(b"RFB 003.0").await, HandshakeError::Io(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_a_host_says_ends_without_a_panic(
            begin in prop::sample::select(vec![b"".as_slice(), b"RFB 003.008\n", b"RFB 003.003\n", b"RFB 003.007\n\x01\x02"]),
            noise in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (mut near, mut far) = tokio::io::duplex(1 << 16);
                far.write_all(&[begin, &noise].concat()).await.unwrap();
                far.shutdown().await.unwrap();
                let _ = log_in(&mut near, Version::V8).await;
            });
        }
    }
}
