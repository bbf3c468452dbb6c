use std::os::unix::fs::MetadataExt;

use platform::exec::{Cmd, ExecError};
use proptest::prelude::*;

use super::*;

fn new_ca() -> (tempfile::TempDir, Ca) {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::open_or_create(dir.path()).unwrap();
    (dir, ca)
}

fn request() -> Request {
    let names = ["s-1-vm.example.org", "s-1-VM"].map(str::to_owned);
    let addresses = ["10.1.1.5", "2001:db8::5"].map(|address| address.parse().unwrap());
    Request::new("s-1-VM".to_owned(), names.to_vec(), addresses.to_vec())
}

fn error_text(dir: &Path) -> String {
    let error = Ca::open_or_create(dir).unwrap_err();
    platform::logging::chain(&error)
        .to_string()
        .replace(dir.to_str().unwrap(), "DIR")
}

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    let _ = files::replace(path, contents, 0o600).unwrap();
}

/// An independent reader. Each word of the line is an argument; it runs where the files are.
struct OpenSsl<'a> {
    dir: &'a Path,
}

impl<'a> OpenSsl<'a> {
    async fn find(dir: &'a Path) -> Option<Self> {
        let found = match Cmd::new("openssl").arg("version").run().await {
            Ok(_) => true,
            Err(ExecError::Start { .. }) if std::env::var_os("REQUIRE_ALL_TESTS").is_none() => false,
            Err(error) => panic!("{error}"),
        };
        if !found {
            println!("SKIPPED: there is no openssl on this machine");
        }
        found.then_some(Self { dir })
    }

    /// Words that name a file begin with `@`.
    async fn try_run(&self, line: &str) -> Result<String, ExecError> {
        let words = line.split_whitespace().map(|word| match word.strip_prefix('@') {
            Some(file) => self.dir.join(file).into_os_string(),
            None => word.into(),
        });
        Ok(Cmd::new("openssl").args(words).run().await?.text())
    }

    async fn run(&self, line: &str) -> String {
        self.try_run(line).await.unwrap().trim().to_owned()
    }

    /// A self-signed CA in `ca.key` and `ca.crt`, as an administrator would make one.
    async fn make_ca(&self, key: &str, more: &str) {
        let line = format!("req -x509 -days 30 -nodes -newkey {key} -keyout @ca.key -out @ca.crt {more}");
        self.run(&line).await;
    }
}

#[tokio::test]
async fn a_new_ca_looks_like_the_stock_one() {
    let (dir, _) = new_ca();
    let Some(openssl) = OpenSsl::find(dir.path()).await else {
        return;
    };
    let shown = openssl
        .run("x509 -in @ca.crt -noout -subject -issuer -ext basicConstraints,keyUsage,subjectAltName")
        .await;
    let wanted = "subject=CN = ca.cloudstack.apache.org\n\
                  issuer=CN = ca.cloudstack.apache.org\n\
                  X509v3 Key Usage: critical\n    Certificate Sign, CRL Sign\n\
                  X509v3 Basic Constraints: critical\n    CA:TRUE";
    assert_eq!(shown.replace("CN=", "CN = "), wanted);
    let all = openssl.run("x509 -in @ca.crt -noout -text").await;
    for part in [
        "Version: 3 (0x2)",
        "ecdsa-with-SHA256",
        "prime256v1",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(all.contains(part), "{part} is not in {all}");
    }
    openssl.run("verify -check_ss_sig -CAfile @ca.crt @ca.crt").await;
    openssl.run("pkey -in @ca.key -check -noout").await;
}

#[test]
fn a_new_ca_began_twelve_hours_ago_and_lasts_thirty_years() {
    let (_dir, ca) = new_ca();
    let (_, certificate) = parse_x509_certificate(ca.certificate()).unwrap();
    let (from, to) = validity(&certificate);
    let age = OffsetDateTime::now_utc() - from;
    assert!(age >= Duration::hours(12) && age < Duration::hours(13), "{age}");
    assert_eq!(to - from, Duration::days(30 * 365) + Duration::hours(12));
    assert_eq!(ca.not_after(), to);
}

#[test]
fn the_key_is_for_its_owner_only_and_never_shown() {
    let (dir, ca) = new_ca();
    assert_eq!(fs::metadata(dir.path().join(KEY)).unwrap().mode() & 0o777, 0o600);
    assert_eq!(format!("{ca:?}"), "Ca(CN=ca.cloudstack.apache.org)");
    let issued = ca.issue(&request()).unwrap();
    assert!(issued.private_key.expose().starts_with("-----BEGIN PRIVATE KEY-----\n"));
    assert!(!format!("{issued:?}").contains("PRIVATE"));
}

#[test]
fn a_ca_is_made_once() {
    let (dir, first) = new_ca();
    let second = Ca::open_or_create(dir.path()).unwrap();
    assert_eq!(first.pem(), second.pem());
}

#[test]
fn a_creation_that_was_interrupted_is_finished_with_the_same_key() {
    let (dir, first) = new_ca();
    fs::remove_file(dir.path().join(CERTIFICATE)).unwrap();
    let second = Ca::open_or_create(dir.path()).unwrap();
    assert_ne!(first.pem(), second.pem());
    assert_eq!(
        first.inner.issuer.key().der_bytes(),
        second.inner.issuer.key().der_bytes()
    );
}

#[test]
fn what_is_wrong_with_the_files_is_said() {
    let (dir, _) = new_ca();
    let (other, _) = new_ca();
    let (certificate, key) = (dir.path().join(CERTIFICATE), dir.path().join(KEY));
    let good = fs::read(&certificate).unwrap();

    write(&certificate, "");
    assert_eq!(
        error_text(dir.path()),
        "cannot use DIR/ca.crt: it holds no certificate in PEM"
    );
    write(
        &certificate,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    assert_eq!(
        error_text(dir.path()),
        "cannot use DIR/ca.crt: it holds a damaged certificate"
    );
    write(&certificate, fs::read(other.path().join(CERTIFICATE)).unwrap());
    let wanted = "cannot use DIR/ca.crt: its first certificate does not belong to the key in ca.key";
    assert_eq!(error_text(dir.path()), wanted);
    write(
        &certificate,
        [good.clone(), fs::read(other.path().join(CERTIFICATE)).unwrap()].concat(),
    );
    // Of the same name, but it did not sign.
    let wanted = "cannot use DIR/ca.crt: each certificate must be followed by the one that signed it";
    assert_eq!(error_text(dir.path()), wanted);

    write(&certificate, good);
    write(
        &key,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let wanted = "cannot use DIR/ca.key: expected one private key in PEM (PKCS#8, PKCS#1 or SEC1) without a pass phrase: \
                  no items found";
    assert_eq!(error_text(dir.path()), wanted);
    fs::remove_file(&key).unwrap();
    let wanted = "DIR/ca.crt is there, but DIR/ca.key is missing; restore it, or remove both to get a new CA";
    assert_eq!(error_text(dir.path()), wanted);
    write(&certificate, vec![b' '; 300_000]);
    assert_eq!(
        error_text(dir.path()),
        "DIR/ca.crt is larger than the 262144 bytes that are allowed"
    );
}

#[tokio::test]
async fn an_administrators_ca_must_be_a_ca_and_in_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let Some(openssl) = OpenSsl::find(dir.path()).await else {
        return;
    };
    let ec = "ec -pkeyopt ec_paramgen_curve:P-256";
    let cases = [
        ("-subj /CN=x -addext basicConstraints=CA:FALSE", "it is not a CA"),
        ("-subj /CN=x -addext keyUsage=cRLSign", "may not sign"),
        ("-subj /DC=example/DC=org/CN=x", "twice"),
    ];
    for (more, part) in cases {
        openssl.make_ca(ec, more).await;
        let text = error_text(dir.path()).replace("its first certificate is not a CA", "it is not a CA");
        assert!(
            text.starts_with("cannot use DIR/ca.crt: ") && text.contains(part),
            "{text}"
        );
    }
    openssl
        .make_ca("ec -pkeyopt ec_paramgen_curve:P-521", "-subj /CN=x")
        .await;
    let wanted = "cannot use DIR/ca.key: expected an RSA key of 2048 to 4096 bits, or an ECDSA key on P-256 or P-384";
    assert_eq!(error_text(dir.path()), wanted);

    let key = KeyPair::generate().unwrap();
    let ca_key = CaKey::from_pem(key.serialize_pem().as_bytes()).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = OffsetDateTime::UNIX_EPOCH + Duration::days(10_000);
    write(&dir.path().join(KEY), key.serialize_pem());
    write(
        &dir.path().join(CERTIFICATE),
        params.self_signed(&ca_key).unwrap().pem(),
    );
    let text = error_text(dir.path());
    let wanted = "DIR/ca.crt is valid from 1975-01-01 0:00:00.0 +00:00:00 to 1997-05-19 0:00:00.0 +00:00:00 only, and now it is ";
    assert!(text.starts_with(wanted), "{text}");
}

#[tokio::test]
async fn openssl_accepts_what_any_kind_of_ca_issues() {
    let kinds = [
        ("", "", "ecdsa-with-SHA256"),
        ("rsa:2048", "", "sha256WithRSAEncryption"),
        (
            "rsa:2048",
            "rsa -in @ca.key -traditional -out @ca.key",
            "sha256WithRSAEncryption",
        ),
        (
            "ec -pkeyopt ec_paramgen_curve:P-256",
            "ec -in @ca.key -out @ca.key",
            "ecdsa-with-SHA256",
        ),
        ("ec -pkeyopt ec_paramgen_curve:P-384", "", "ecdsa-with-SHA384"),
    ];
    for (key, convert, signature) in kinds {
        let dir = tempfile::tempdir().unwrap();
        let Some(openssl) = OpenSsl::find(dir.path()).await else {
            return;
        };
        if !key.is_empty() {
            openssl.make_ca(key, "-subj /C=DE/O=Example/CN=Ours").await;
        }
        if !convert.is_empty() {
            openssl.run(convert).await;
        }
        let ca = Ca::open_or_create(dir.path()).unwrap();
        let issued = ca.issue(&request()).unwrap();
        write(&dir.path().join("leaf.crt"), &issued.signed.certificate);
        write(&dir.path().join("leaf.key"), issued.private_key.expose());

        // Strict about ours only: `openssl req` makes CAs without keyUsage.
        let strict = if key.is_empty() { "-x509_strict" } else { "" };
        let verify = format!("verify {strict} -CAfile @ca.crt -verify_ip 10.1.1.5 @leaf.crt");
        openssl.run(&verify).await;
        openssl
            .run("verify -CAfile @ca.crt -verify_hostname s-1-VM @leaf.crt")
            .await;
        openssl
            .try_run("verify -CAfile @ca.crt -verify_ip 10.1.1.6 @leaf.crt")
            .await
            .unwrap_err();
        let public = openssl.run("x509 -in @leaf.crt -noout -pubkey").await;
        assert_eq!(public, openssl.run("pkey -in @leaf.key -pubout").await);
        let serial = openssl.run("x509 -in @leaf.crt -noout -serial").await;
        assert_eq!(
            serial.strip_prefix("serial=").unwrap().parse(),
            Ok(issued.signed.serial)
        );

        let text = openssl.run("x509 -in @leaf.crt -noout -text").await;
        for part in [
            "Version: 3 (0x2)",
            signature,
            "X509v3 Authority Key Identifier",
            "X509v3 Subject Key Identifier",
            "CA:FALSE",
            "DNS:s-1-vm.example.org, DNS:s-1-VM, IP Address:10.1.1.5, IP Address:2001:DB8:0:0:0:0:0:5",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(!text.contains("Key Usage"), "{text}");
    }
}

#[tokio::test]
async fn a_ca_below_a_root_brings_its_chain() {
    let dir = tempfile::tempdir().unwrap();
    let Some(openssl) = OpenSsl::find(dir.path()).await else {
        return;
    };
    openssl.make_ca("rsa:2048", "-subj /CN=Root").await;
    fs::rename(dir.path().join("ca.crt"), dir.path().join("root.crt")).unwrap();
    fs::rename(dir.path().join("ca.key"), dir.path().join("root.key")).unwrap();
    openssl
        .make_ca(
            "ec -pkeyopt ec_paramgen_curve:P-256",
            "-subj /CN=Below -CA @root.crt -CAkey @root.key",
        )
        .await;
    let read = |name| fs::read_to_string(dir.path().join(name)).unwrap();
    let (own, root) = (read("ca.crt"), read("root.crt"));

    // Remarks, and a key that does not belong there, stay with us.
    let secret = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    write(&dir.path().join("ca.crt"), ["our CA\n", &own, secret, &root].concat());
    let ca = Ca::open_or_create(dir.path()).unwrap();
    let signed = ca.issue(&request()).unwrap().signed;
    assert_eq!(signed.ca, own.clone() + &root);
    write(&dir.path().join("leaf.crt"), &signed.certificate);
    write(&dir.path().join("below.crt"), &own);
    openssl
        .run("verify -CAfile @root.crt -untrusted @below.crt @leaf.crt")
        .await;

    write(&dir.path().join("ca.crt"), [own.clone(), own].concat());
    let wanted = "cannot use DIR/ca.crt: each certificate must be followed by the one that signed it";
    assert_eq!(error_text(dir.path()), wanted);
}

#[test]
fn an_issued_certificate_says_what_was_asked_and_ends_with_its_ca() {
    let (_dir, ca) = new_ca();
    let mut wish = request();
    wish.dns_names.push("s-1-VM".to_owned());
    let signed = ca.issue(&wish).unwrap().signed;
    assert_eq!(signed.subject, "CN=s-1-VM");
    assert_eq!(signed.sans, ["s-1-vm.example.org", "s-1-VM", "10.1.1.5", "2001:db8::5"]);
    assert_eq!(signed.ca, ca.pem());
    assert_eq!(
        signed.not_after - signed.not_before,
        Duration::days(365) + Duration::hours(12)
    );

    wish.validity_days = NonZeroU16::MAX;
    assert_eq!(ca.issue(&wish).unwrap().signed.not_after, ca.not_after());
}

#[test]
fn wishes_that_no_certificate_can_hold_are_refused() {
    let (_dir, ca) = new_ca();
    let text = |wish: &Request| ca.issue(wish).unwrap_err().to_string();
    for name in ["", "a b", "a\n", "ä", &"a".repeat(254)] {
        let wish = Request::new("x".to_owned(), vec![name.to_owned()], Vec::new());
        assert_eq!(text(&wish), format!("{name:?} is not a host name"));
    }
    for name in ["", "a\nb", &"a".repeat(65)] {
        let wish = Request::new(name.to_owned(), Vec::new(), Vec::new());
        let wanted =
            format!("{name:?} cannot be the common name of a certificate; it needs 1 to 64 printable characters");
        assert_eq!(text(&wish), wanted);
    }
    let addresses = (0..101).map(|last| IpAddr::from([10, 0, 0, last])).collect();
    let wish = Request::new("x".to_owned(), Vec::new(), addresses);
    assert_eq!(
        text(&wish),
        "101 names and addresses are too many for one certificate; the limit is 100"
    );
}

#[tokio::test]
async fn a_signing_request_gives_its_key_and_only_an_administrators_its_names() {
    let (dir, ca) = new_ca();
    let Some(openssl) = OpenSsl::find(dir.path()).await else {
        return;
    };
    // As Java's keytool: RSA, and a SubjectKeyIdentifier among the wishes. CA:TRUE is what an attacker would add.
    openssl
        .run(
            "req -new -newkey rsa:2048 -nodes -keyout @agent.key -out @agent.csr -subj /C=DE/CN=evil \
             -addext subjectAltName=DNS:evil.example.org,IP:10.9.9.9,email:a@example.org \
             -addext subjectKeyIdentifier=hash -addext basicConstraints=CA:TRUE -addext keyUsage=keyCertSign",
        )
        .await;
    let csr = fs::read_to_string(dir.path().join("agent.csr")).unwrap();

    let of_agent = ca.sign_csr(&csr, &request(), CsrNames::Ignored).unwrap();
    assert_eq!(of_agent.subject, "CN=s-1-VM");
    assert_eq!(
        of_agent.sans,
        ["s-1-vm.example.org", "s-1-VM", "10.1.1.5", "2001:db8::5"]
    );
    let of_administrator = ca.sign_csr(&csr, &request(), CsrNames::Accepted).unwrap();
    assert_eq!(of_administrator.subject, "CN=evil");
    let wanted = [
        "s-1-vm.example.org",
        "s-1-VM",
        "evil.example.org",
        "10.1.1.5",
        "2001:db8::5",
        "10.9.9.9",
    ];
    assert_eq!(of_administrator.sans, wanted);

    for signed in [of_agent, of_administrator] {
        write(&dir.path().join("agent.crt"), &signed.certificate);
        openssl.run("verify -x509_strict -CAfile @ca.crt @agent.crt").await;
        let public = openssl.run("x509 -in @agent.crt -noout -pubkey").await;
        assert_eq!(public, openssl.run("pkey -in @agent.key -pubout").await);
        let text = openssl.run("x509 -in @agent.crt -noout -text").await;
        assert!(text.contains("CA:FALSE") && !text.contains("Key Usage"), "{text}");
    }
}

#[tokio::test]
async fn keys_that_rustls_would_not_believe_are_not_signed() {
    let (dir, ca) = new_ca();
    let Some(openssl) = OpenSsl::find(dir.path()).await else {
        return;
    };
    for key in ["rsa:1024 -sha1", "ec -pkeyopt ec_paramgen_curve:P-521"] {
        openssl
            .run(&format!(
                "req -new -newkey {key} -nodes -keyout @weak.key -out @weak.csr -subj /CN=x"
            ))
            .await;
        let csr = fs::read_to_string(dir.path().join("weak.csr")).unwrap();
        let error = ca.sign_csr(&csr, &request(), CsrNames::Ignored).unwrap_err();
        assert!(
            matches!(error, IssueError::Csr(BadCsr::Key | BadCsr::Signature)),
            "{error}"
        );
    }
}

fn a_csr() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![
        dns_name("a.example.org").unwrap(),
        SanType::IpAddress([10, 1, 1, 1].into()),
    ];
    params
        .serialize_request(&KeyPair::generate().unwrap())
        .unwrap()
        .der()
        .to_vec()
}

fn csr_pem(der: &[u8]) -> String {
    use base64::prelude::{BASE64_STANDARD, Engine};
    format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        BASE64_STANDARD.encode(der)
    )
}

#[test]
fn requests_that_are_too_long_or_damaged_or_signed_by_somebody_else_are_refused() {
    let problem = |pem: &str| csr::Csr::from_pem(pem).unwrap_err();
    let good = a_csr();
    assert!(csr::Csr::from_pem(&csr_pem(&good)).is_ok());
    assert_eq!(problem(""), BadCsr::Pem);
    assert_eq!(problem(&csr_pem(&[])), BadCsr::Damaged);
    assert_eq!(problem(&csr_pem(&[good.clone(), vec![0]].concat())), BadCsr::Damaged);
    assert_eq!(
        problem(&csr_pem(&vec![0; 20_000])),
        BadCsr::TooLong(csr_pem(&vec![0; 20_000]).len())
    );

    let name = good.windows(13).position(|window| window == b"a.example.org").unwrap();
    let mut changed = good;
    changed[name] = b'b';
    assert_eq!(problem(&csr_pem(&changed)), BadCsr::Signature);
}

proptest! {
    /// Bytes outside of the signature, such as the tag around it all, may change without harm.
    #[test]
    fn a_request_with_a_changed_byte_is_refused_or_says_the_same(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let good = a_csr();
        let mut changed = good.clone();
        changed[at.index(good.len())] = byte;
        if let Ok(read) = csr::Csr::from_pem(&csr_pem(&changed)) {
            prop_assert_eq!(Ok(read), csr::Csr::from_pem(&csr_pem(&good)));
        }
    }

    #[test]
    fn noise_is_no_request_and_no_key(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(csr::Csr::from_pem(&csr_pem(&noise)).is_err());
        prop_assert!(csr::Csr::from_pem(&String::from_utf8_lossy(&noise)).is_err());
        prop_assert!(CaKey::from_pem(&noise).is_err());
    }
}
