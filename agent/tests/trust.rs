//! Handshakes with management servers we should believe, and with some we should not.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

#[allow(dead_code, reason = "each test program uses its part")]
mod pki;

use std::fmt::Debug;
use std::path::Path;

use agent::keystore::{Identity, KeyStore};
use agent::trust::{TrustUnknown, client_config, refusal};
use platform::files;
use protocol::secret::Secret;
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion};

use pki::{Authority, Pair, authority_params, date, openssl, params, put, server, server_with_key, shake, shake_today};

const CA: &str = "ca.cloudstack.apache.org";

fn trusting(ca: &str) -> Identity {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path().join("cloud.ca.crt"), ca);
    let mut identity = KeyStore::in_directory(&dir).load().unwrap().unwrap();
    identity.ca_file = "conf/cloud.ca.crt".into();
    identity
}

fn pinned(ca: &str) -> ClientConfig {
    ClientConfig::clone(&client_config(Some(&trusting(ca)), TrustUnknown::Refuse).unwrap())
}

/// Why we do not believe a server that shows this.
fn reason(ca: &str, shown: &Pair) -> String {
    let error = shake(&pinned(ca), server(shown, &[])).map(drop).unwrap_err();
    let reason = refusal(&error).unwrap().to_string();
    // Whoever only prints the error shows the reason, too.
    assert_eq!(
        error.to_string(),
        format!("invalid peer certificate: Other(OtherError({reason}))")
    );
    reason
}

#[test]
fn the_ca_itself_is_believed_and_only_over_tls_1_2() {
    let ca = Authority::new(CA);
    let (client, _) = shake(&pinned(&ca.pair.certificate), server(&ca.pair, &[])).unwrap();
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_2));
    assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
}

#[tokio::test]
async fn an_rsa_4096_ca_as_cloudstack_makes_it_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let command = "req -x509 -newkey rsa:4096 -noenc -sha256 -days 10950 -subj /CN=ca.cloudstack.apache.org \
                   -addext keyUsage=critical,keyCertSign,cRLSign -keyout DIR/ca.key -out DIR/ca.crt";
    let Some(_) = openssl(dir.path(), command).await else {
        return;
    };
    let text = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let ca = Pair {
        certificate: text("ca.crt"),
        key: text("ca.key"),
    };
    // openssl dates it from today: this one handshake goes by the real clock.
    shake_today(pinned(&ca.certificate), server(&ca, &[])).unwrap();
}

#[test]
fn a_certificate_issued_by_the_ca_is_believed_with_or_without_a_link_between() {
    let ca = Authority::new(CA);
    shake(&pinned(&ca.pair.certificate), server(&ca.issue("mgmt"), &[])).unwrap();

    let between = ca.intermediate("between");
    let mut leaf = between.issue("mgmt");
    leaf.certificate += &between.pair.certificate;
    shake(&pinned(&ca.pair.certificate), server(&leaf, &[])).unwrap();
    // The other way round: the server shows its intermediate CA, and we know the root.
    shake(&pinned(&ca.pair.certificate), server(&between.pair, &[])).unwrap();
}

#[test]
fn one_of_several_trusted_cas_is_enough() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let both = old.pair.certificate.clone() + &new.pair.certificate;
    shake(&pinned(&both), server(&new.issue("mgmt"), &[])).unwrap();
}

#[test]
fn a_certificate_that_is_listed_itself_is_believed_whoever_issued_it() {
    let listed = Authority::new("unknown").issue("mgmt");
    shake(&pinned(&listed.certificate), server(&listed, &[])).unwrap();
}

#[test]
fn a_certificate_for_other_uses_is_no_servers() {
    let ca = Authority::new(CA);
    let mut params = params("v-2-VM");
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let reason = reason(&ca.pair.certificate, &ca.issue_params(&params));
    let ours = "certificate of 10.1.1.2 was issued by CN=ca.cloudstack.apache.org and does not lead to a CA \
                certificate in conf/cloud.ca.crt: RequiredEkuNotFound";
    assert!(reason.starts_with(ours), "{reason}");
}

#[test]
fn another_ca_is_refused_and_named() {
    let (ours, other) = (Authority::new(CA), Authority::new("other"));
    let issuer = "CN=other, which is not one of the 1 trusted CA certificate(s) in conf/cloud.ca.crt";
    for shown in [other.issue("mgmt"), other.pair] {
        assert_eq!(
            reason(&ours.pair.certificate, &shown),
            format!("certificate of 10.1.1.2 was issued by {issuer}")
        );
    }
}

#[test]
fn another_ca_of_the_same_name_is_refused_and_the_likely_cause_is_said() {
    let (ours, other) = (Authority::new(CA), Authority::new(CA));
    for shown in [other.issue("mgmt"), other.pair] {
        assert_eq!(
            reason(&ours.pair.certificate, &shown),
            "certificate of 10.1.1.2 names CN=ca.cloudstack.apache.org as its issuer, but the CA certificate of that \
             name in conf/cloud.ca.crt has another key; was the management server's CA made anew?"
        );
    }
}

#[test]
fn a_leaf_cannot_issue() {
    let ca = Authority::new(CA);
    let mut leaf = params("leaf");
    leaf.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let leaf = ca.issue_params(&leaf);
    let key = rcgen::KeyPair::from_pem(&leaf.key).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&leaf.certificate, key).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let forged = params("mgmt").signed_by(&key, &issuer).unwrap().pem() + &leaf.certificate;
    let forged = Pair {
        certificate: forged,
        key: key.serialize_pem(),
    };
    assert_eq!(
        reason(&ca.pair.certificate, &forged),
        "certificate of 10.1.1.2 was issued by CN=leaf and does not lead to a CA certificate in conf/cloud.ca.crt: \
         EndEntityUsedAsCa"
    );
}

#[test]
fn a_certificate_out_of_its_time_is_refused_with_both_dates() {
    let mut expired = authority_params(CA);
    expired.not_after = date("2026-01-02T03:04:05Z");
    let expired = Authority::from_params(expired).pair;
    assert_eq!(
        reason(&expired.certificate, &expired),
        "certificate of 10.1.1.2 expired on 2026-01-02T03:04:05Z (this machine's clock says 2026-07-01T12:00:00Z)"
    );

    let ca = Authority::new(CA);
    let mut early = params("mgmt");
    early.not_before = date("2026-08-01T00:00:00Z");
    assert_eq!(
        reason(&ca.pair.certificate, &ca.issue_params(&early)),
        "certificate of 10.1.1.2 is not valid before 2026-08-01T00:00:00Z, and this machine's clock says \
         2026-07-01T12:00:00Z; is the clock right?"
    );
}

#[test]
fn names_in_a_certificate_cannot_forge_log_lines() {
    let other = Authority::new("evil\nINFO all is well");
    let reason = reason(&Authority::new(CA).pair.certificate, &other.pair);
    assert!(
        reason.contains("was issued by CN=evil?INFO all is well, which"),
        "{reason}"
    );
}

#[test]
fn before_a_ca_is_known_anyone_is_believed_or_no_connection_is_made() {
    let config = client_config(None, TrustUnknown::Accept).unwrap();
    shake(&config, server(&Authority::new("anyone").pair, &[])).unwrap();

    let error = client_config(None, TrustUnknown::Refuse).unwrap_err();
    let text = "no CA certificate has been imported yet, and talking to an unknown management server is switched off";
    assert_eq!(error.to_string(), text);
}

#[test]
fn even_when_anyone_is_believed_the_server_must_have_the_key() {
    let (one, other) = (Authority::new("one").pair, Authority::new("other").pair);
    let config = client_config(None, TrustUnknown::Accept).unwrap();
    let error = shake(&config, server_with_key(&one, &other.key, &[]))
        .map(drop)
        .unwrap_err();
    assert_eq!(error.to_string(), "invalid peer certificate: BadSignature");
}

#[test]
fn our_certificate_is_shown_to_a_server_that_asks() {
    let ca = Authority::new(CA);
    let own = ca.issue("v-2-VM");
    let dir = tempfile::tempdir().unwrap();
    let store = KeyStore::in_directory(&dir);
    store
        .setup_certificate(&own.certificate, &Secret::new(own.key.clone()), &ca.pair.certificate)
        .unwrap();
    let identity = store.load().unwrap().unwrap();

    let config = client_config(Some(&identity), TrustUnknown::Refuse).unwrap();
    let (_, seen) = shake(&config, server(&ca.pair, &ca.pair.chain())).unwrap();
    assert_eq!(seen.peer_certificates(), Some(&*own.chain()));

    let (_, seen) = shake(&pinned(&ca.pair.certificate), server(&ca.pair, &ca.pair.chain())).unwrap();
    assert_eq!(seen.peer_certificates(), None);
    assert_shows_no_key(&identity, &store.key);
    assert_shows_no_key(&config, &store.key);
}

fn assert_shows_no_key(value: &impl Debug, key: &Path) {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    let pem = files::read_limited(key, 10_000).unwrap().unwrap();
    let der = PrivateKeyDer::from_pem_slice(&pem).unwrap();
    let shown = format!("{value:?}");
    // The secret number is in the middle of the PKCS#8 structure. Look for a part of it in the spellings of Debug.
    let secret = &der.secret_der()[36..44];
    let (decimal, hex) = (format!("{secret:?}"), format!("{secret:02x?}"));
    for spelled in [&decimal, &hex, &hex.replace(", ", "")] {
        assert!(!shown.contains(spelled.trim_matches(['[', ']'])), "{shown}");
    }
}
