//! Sources with https: whom we trust, and what a user reads when we do not.

use std::sync::Arc;

use protocol::secondary_storage::DownloadStatus;
use protocol::transfer::ImageFormat;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;

use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, template};

pub(crate) struct Authority {
    pub(crate) issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn server(&self, name: &str, until: i32) -> Arc<ServerConfig> {
        let key_pair = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_after = date_time_ymd(until, 1, 1);
        let made = params.signed_by(&key_pair, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key_pair.serialize_der()).into();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .unwrap();
        Arc::new(config)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn https_needs_a_valid_certificate_for_its_name_from_someone_we_trust() {
    platform::crypto::install();
    let (ours, theirs) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let _ = platform::files::replace(&ca, ours.issuer.pem(), 0o644).unwrap();
    let machine = Machine::start_with(&format!("extra_ca_files = [{ca:?}]")).await;

    let body = noise(3 << 20);
    let good = Source::start_tls(ours.server("localhost", 2100)).await;
    good.put(
        "/a.raw",
        File {
            cuts: vec![1 << 20],
            ..File::new(body.clone())
        },
    );
    machine
        .controller
        .set_up(crate::machine::STORE, &["127.0.0.1/32", "::1/128"])
        .await;
    let url = format!("https://localhost:{}/a.raw", good.port);
    let answer = machine.download(&template(&url, ImageFormat::Raw)).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(machine.image(&answer) == body);

    let cases = [
        (ours.server("elsewhere.example", 2100), "not valid for name"),
        (ours.server("localhost", 2001), "expired"),
        (theirs.server("localhost", 2100), "invalid peer certificate"),
    ];
    for (config, why) in cases {
        let source = Source::start_tls(config).await;
        source.put("/a.raw", File::new(body.clone()));
        let url = format!("https://localhost:{}/a.raw", source.port);
        let text = machine.refusal(&template(&url, ImageFormat::Raw)).await;
        assert!(
            text.contains(&url) && text.contains(why) && text.contains("certificate"),
            "{why}: {text}"
        );
        assert!(
            source.asked().is_empty(),
            "nothing is asked before the certificate is checked"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_never_leaves_https_and_takes_no_credentials_along() {
    platform::crypto::install();
    let ours = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let ca = directory.path().join("ca.pem");
    let _ = platform::files::replace(&ca, ours.issuer.pem(), 0o644).unwrap();
    let machine = Machine::start_with(&format!("extra_ca_files = [{ca:?}]")).await;
    machine
        .controller
        .set_up(crate::machine::STORE, &["127.0.0.1/32", "::1/128"])
        .await;

    let plain = Source::start().await;
    plain.put("/a.raw", File::new(noise(100_000)));
    let secure = Source::start_tls(ours.server("localhost", 2100)).await;
    let redirect = |to: String| File {
        status: 302,
        headers: vec![("Location", to)],
        ..File::new("")
    };
    secure.put("/a.raw", redirect(plain.url("/a.raw")));
    let mut command = template(&format!("https://localhost:{}/a.raw", secure.port), ImageFormat::Raw);
    command.follow_redirects = true;
    let text = machine.refusal(&command).await;
    assert!(text.contains("from https to http"), "{text}");

    let first = Source::start().await;
    first.put("/a.raw", redirect("/b.raw".into()));
    first.put("/b.raw", redirect(plain.url("/a.raw")));
    first.put("/loop.raw", redirect("/loop.raw".into()));
    first.put("/metadata.raw", redirect("http://169.254.169.254/latest.raw".into()));
    let mut command = template(&first.url("/a.raw"), ImageFormat::Raw);
    command.follow_redirects = true;
    command.auth = Some(protocol::secondary_storage::PasswordAuth {
        user_name: Some("cloud".into()),
        password: Some(protocol::secret::Secret::new("hush-hush".into())),
    });
    let answer = machine.download(&command).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert!(
        first
            .asked()
            .iter()
            .all(|asked| asked.headers.contains_key("authorization")),
        "{:?}",
        first.asked()
    );
    assert!(
        plain
            .asked()
            .iter()
            .all(|asked| !asked.headers.contains_key("authorization")),
        "{:?}",
        plain.asked()
    );
    assert!(!machine.log().contains("hush-hush"));

    for (path, why) in [
        ("/loop.raw", "more than 5 redirects"),
        ("/metadata.raw", "Illegal host specified in URL."),
    ] {
        let mut command = template(&first.url(path), ImageFormat::Raw);
        command.follow_redirects = true;
        let text = machine.refusal(&command).await;
        assert!(text.contains(why), "{path}: {text}");
    }
}
