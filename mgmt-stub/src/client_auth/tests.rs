use std::io::Cursor;

use proptest::prelude::*;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
    SupportedProtocolVersion,
};

use super::*;
use crate::ca::{Presented, Request};

fn new_ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(dir.path()).unwrap();
    (dir, ca)
}

fn leaf() -> Presented {
    Presented::Leaf {
        names: vec!["management".to_owned()],
        addresses: vec!["10.1.1.2".parse().unwrap()],
    }
}

fn good(ca: &Ca) -> CertifiedKey {
    let request = Request::new(
        "s-1-VM".to_owned(),
        vec!["s-1-VM".to_owned()],
        vec!["10.1.1.5".parse().unwrap()],
    );
    let issued = ca.issue(&request).unwrap();
    let certificate = CertificateDer::from_pem_slice(issued.signed.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(issued.private_key.expose().as_bytes()).unwrap();
    CertifiedKey::new(vec![certificate], ring::sign::any_supported_type(&key).unwrap())
}

/// Signed with the key in `dir`, but for a time in days from now.
fn dated(dir: &std::path::Path, from: i64, to: i64) -> CertifiedKey {
    let read = |name| std::fs::read_to_string(dir.join(name)).unwrap();
    let ca_key = KeyPair::from_pem(&read("ca.key")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&read("ca.crt"), ca_key).unwrap();
    let now = OffsetDateTime::now_utc();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.serial_number = Some(vec![0xab, 0xcd].into());
    params.is_ca = IsCa::ExplicitNoCa;
    (params.not_before, params.not_after) = (now + Duration::days(from), now + Duration::days(to));
    pair(params.signed_by(&key, &issuer).unwrap(), &key)
}

fn self_signed() -> CertifiedKey {
    let key = KeyPair::generate().unwrap();
    pair(CertificateParams::default().self_signed(&key).unwrap(), &key)
}

fn pair(certificate: rcgen::Certificate, key: &KeyPair) -> CertifiedKey {
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    CertifiedKey::new(vec![certificate.into()], ring::sign::any_supported_type(&key).unwrap())
}

/// Looks at the server's certificate only when asked for it afterwards, like a Java agent without a key store.
#[derive(Debug)]
struct TrustAll(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Presents its certificate without asking whether the server wants such a one, or whether the key belongs to it.
#[derive(Debug)]
struct Always(Option<Arc<CertifiedKey>>);

impl rustls::client::ResolvesClientCert for Always {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

fn client(version: &'static SupportedProtocolVersion, certificate: Option<CertifiedKey>) -> Arc<ClientConfig> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll(provider)))
        .with_client_cert_resolver(Arc::new(Always(certificate.map(Arc::new))));
    Arc::new(config)
}

/// Both ends of a handshake, in memory. The server's error is what its log would say.
fn shake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Result<(ServerConnection, ClientConnection), String> {
    let mut server = ServerConnection::new(server).unwrap();
    let mut client = ClientConnection::new(client, "management".try_into().unwrap()).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        server.read_tls(&mut Cursor::new(&bytes)).unwrap();
        server.process_new_packets().map_err(|error| explain(&error))?;
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        client.read_tls(&mut Cursor::new(&bytes)).unwrap();
        client
            .process_new_packets()
            .map_err(|error| format!("client: {error}"))?;
    }
    Ok((server, client))
}

/// What the server says to an agent with this certificate: its subject, nothing, or why not.
fn meet(ca: &Ca, settings: (Strictness, Expired), certificate: Option<CertifiedKey>) -> Result<Option<String>, String> {
    let auth = verifier(ca, settings.0, settings.1).unwrap();
    let server = ca.server_config(leaf(), auth).unwrap();
    let (server, _client) = shake(server, client(&TLS12, certificate))?;
    let presented = server
        .peer_certificates()
        .map(|chain| PresentedCertificate::parse(&chain[0]).unwrap().subject);
    Ok(presented)
}

const LENIENT: (Strictness, Expired) = (Strictness::Optional, Expired::Accepted);
const STRICT: (Strictness, Expired) = (Strictness::Required, Expired::Refused);

#[test]
fn an_agent_without_a_certificate_comes_in_unless_the_server_is_strict() {
    let (_dir, ca) = new_ca();
    assert_eq!(meet(&ca, LENIENT, None), Ok(None));
    assert_eq!(
        meet(&ca, STRICT, None),
        Err("the client has no certificate, and ca.plugin.root.auth.strictness is true".to_owned())
    );
}

#[test]
fn an_agent_with_our_certificate_always_comes_in() {
    let (_dir, ca) = new_ca();
    for settings in [LENIENT, STRICT] {
        assert_eq!(meet(&ca, settings, Some(good(&ca))), Ok(Some("CN=s-1-VM".to_owned())));
    }
}

#[test]
fn a_certificate_of_somebody_else_is_refused_even_if_none_is_needed() {
    let (_dir, ca) = new_ca();
    let (_other_dir, other) = new_ca(); // of the same name
    for settings in [LENIENT, STRICT] {
        for stranger in [good(&other), self_signed()] {
            let presented = PresentedCertificate::parse(&stranger.cert[0]).unwrap();
            let wanted = format!(
                "the client certificate of {:?} (serial {}) is refused: it was not issued by this \
                 management server's CA",
                presented.subject, presented.serial
            );
            assert_eq!(meet(&ca, settings, Some(stranger)), Err(wanted));
        }
    }
}

#[test]
fn an_expired_certificate_is_accepted_or_refused_as_the_setting_says() {
    let (dir, ca) = new_ca();
    let subject = "CN=rcgen self signed cert".to_owned();
    for strictness in [Strictness::Optional, Strictness::Required] {
        let accepted = meet(&ca, (strictness, Expired::Accepted), Some(dated(dir.path(), -20, -10)));
        assert_eq!(accepted, Ok(Some(subject.clone())));
        let expired = dated(dir.path(), -20, -10);
        let ended = PresentedCertificate::parse(&expired.cert[0]).unwrap().not_after;
        let wanted = format!(
            "the client certificate of {subject:?} (serial abcd) is refused: it ended at {ended}, \
             and ca.plugin.root.allow.expired.cert is false"
        );
        assert_eq!(meet(&ca, (strictness, Expired::Refused), Some(expired)), Err(wanted));
    }
}

#[test]
fn accepting_expired_certificates_accepts_nothing_else() {
    let (dir, ca) = new_ca();
    let (other_dir, _other) = new_ca();
    let early = meet(&ca, LENIENT, Some(dated(dir.path(), 10, 20))).unwrap_err();
    assert!(early.contains("(serial abcd) is refused: it begins at "), "{early}");
    let stranger = meet(&ca, LENIENT, Some(dated(other_dir.path(), -20, -10))).unwrap_err();
    assert!(
        stranger.ends_with("it was not issued by this management server's CA"),
        "{stranger}"
    );
}

#[test]
fn a_stolen_certificate_is_useless_without_its_key() {
    let (_dir, ca) = new_ca();
    let stolen = CertifiedKey::new(good(&ca).cert, self_signed().key);
    assert_eq!(
        meet(&ca, LENIENT, Some(stolen)),
        Err("the client does not have the key of the certificate it presents".to_owned())
    );
}

#[test]
fn the_server_shows_a_leaf_that_leads_to_its_ca_or_the_ca_itself() {
    let (_dir, ca) = new_ca();
    let auth = || verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
    let (_, client_end) = shake(ca.server_config(leaf(), auth()).unwrap(), client(&TLS12, None)).unwrap();
    let chain = client_end.peer_certificates().unwrap();
    assert_eq!(chain[1..], [ca.certificate().clone()]);
    let shown = PresentedCertificate::parse(&chain[0]).unwrap();
    assert_eq!(
        (shown.names[0].as_str(), shown.addresses[0]),
        ("management", IpAddr::from([10, 1, 1, 2]))
    );

    let config = ca.server_config(Presented::CaCertificate, auth()).unwrap();
    let (_, client_end) = shake(config, client(&TLS12, Some(good(&ca)))).unwrap();
    assert_eq!(
        client_end.peer_certificates().unwrap(),
        std::slice::from_ref(ca.certificate())
    );

    // A client that verifies as the web does, names included, is content with the leaf.
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let strict = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    shake(ca.server_config(leaf(), auth()).unwrap(), Arc::new(strict)).unwrap();
}

#[test]
fn the_server_speaks_tls_1_2_only_and_resumes_nothing() {
    let (_dir, ca) = new_ca();
    let auth = verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
    let server = ca.server_config(leaf(), auth).unwrap();
    let client_config = client(&TLS12, None);
    for _ in 0..2 {
        let (server, _client) = shake(server.clone(), client_config.clone()).unwrap();
        assert_eq!(server.protocol_version(), Some(ProtocolVersion::TLSv1_2));
        assert_eq!(server.handshake_kind(), Some(HandshakeKind::Full));
    }
    assert!(shake(server, client(&TLS13, None)).is_err());
}

#[test]
fn an_administrators_rsa_ca_serves_and_is_believed() {
    // 2048 bits, made with `openssl req -x509`; the key signs nothing outside of this test.
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let line = "req -x509 -days 30 -nodes -newkey rsa:2048 -subj /O=Example/CN=Ours -keyout ca.key -out ca.crt";
    let words = line.split(' ').map(|word| match word {
        "ca.key" | "ca.crt" => dir.path().join(word).into_os_string(),
        _ => word.into(),
    });
    match runtime.block_on(platform::exec::Cmd::new("openssl").args(words).run()) {
        Ok(_) => {}
        Err(platform::exec::ExecError::Start { .. }) if std::env::var_os("REQUIRE_ALL_TESTS").is_none() => {
            println!("SKIPPED: there is no openssl on this machine");
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let ca = Ca::open_or_create(dir.path()).unwrap();
    assert_eq!(meet(&ca, STRICT, Some(good(&ca))), Ok(Some("CN=s-1-VM".to_owned())));
    let auth = verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
    let config = ca.server_config(Presented::CaCertificate, auth).unwrap();
    shake(config, client(&TLS12, None)).unwrap();
}

#[test]
fn only_our_ca_is_named_as_wanted() {
    let (_dir, ca) = new_ca();
    let auth = verifier(&ca, Strictness::Optional, Expired::Accepted).unwrap();
    let (_, certificate) = parse_x509_certificate(ca.certificate()).unwrap();
    let hints: Vec<_> = auth
        .root_hint_subjects()
        .iter()
        .map(DistinguishedName::as_ref)
        .collect();
    assert_eq!(hints, [certificate.subject().as_raw()]);
}

#[test]
fn a_strict_server_wants_the_right_address_and_a_certificate_that_is_not_revoked() {
    let (_dir, ca) = new_ca();
    let certificate = PresentedCertificate::parse(&good(&ca).cert[0]).unwrap();
    let check = |peer: &str, revoked, strictness| {
        let checked = check_peer(&certificate, peer.parse().unwrap(), revoked, strictness);
        checked.map_err(|error| error.to_string())
    };
    assert_eq!(check("10.1.1.5", false, Strictness::Required), Ok(()));
    assert_eq!(check("::ffff:10.1.1.5", false, Strictness::Required), Ok(()));
    let serial = &certificate.serial;
    let wanted = format!("the client certificate of \"CN=s-1-VM\" (serial {serial}) is revoked");
    assert_eq!(check("10.1.1.5", true, Strictness::Required), Err(wanted));
    let wanted = "the client certificate of \"CN=s-1-VM\" is for [10.1.1.5], but the connection comes from 10.1.1.6; is \
                  there NAT between them?";
    assert_eq!(check("10.1.1.6", false, Strictness::Required), Err(wanted.to_owned()));
    assert_eq!(check("10.1.1.6", true, Strictness::Optional), Ok(()));
}

#[test]
fn a_certificate_is_due_for_renewal_fifteen_days_before_its_end() {
    let (_dir, ca) = new_ca();
    let certificate = PresentedCertificate::parse(&good(&ca).cert[0]).unwrap();
    let (period, end) = (Duration::days(15), certificate.not_after);
    assert!(!certificate.expires_within(period, end - Duration::days(16)));
    assert!(!certificate.expires_within(period, end - Duration::days(15)));
    assert!(certificate.expires_within(period, end - Duration::days(14)));
    assert!(certificate.expires_within(period, end + Duration::days(14)));
}

fn certificate_with_names() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.subject_alt_names = vec![
        SanType::IpAddress([10, 1, 1, 5].into()),
        SanType::DnsName("x".try_into().unwrap()),
    ];
    params.self_signed(&key).unwrap().der().to_vec()
}

proptest! {
    #[test]
    fn damaged_certificates_are_refused_or_read_but_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut der = certificate_with_names();
        for (at, byte) in damage {
            let at = at.index(der.len());
            der[at] = byte;
        }
        if let Ok(read) = PresentedCertificate::parse(&der) {
            prop_assert!(read.subject.chars().count() <= MAX_SUBJECT_LEN);
        }
        prop_assert_eq!(PresentedCertificate::parse(&der[..cut.index(der.len())]), Err(BadCertificate));
        prop_assert_eq!(PresentedCertificate::parse(&noise), Err(BadCertificate));
    }
}
