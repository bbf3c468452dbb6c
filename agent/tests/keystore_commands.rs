//! `keystore-setup` and `keystore-cert-import`, with the arguments that the management server passes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

#[allow(dead_code, reason = "each test program uses its part")]
mod pki;

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use agent::keystore::{Import, Machine, keystore_cert_import, keystore_setup};
use agent::properties::Properties;
use platform::exec::Cmd;
use proptest::prelude::*;
use rcgen::CertificateSigningRequestParams;

use pki::conf::{AFTER_IMPORT, Conf, mode};
use pki::{Authority, put};

#[tokio::test]
async fn the_ten_arguments_become_files_an_identity_and_a_list_of_commands() {
    let conf = Conf::new();
    let ca = Authority::new("ca.cloudstack.apache.org");
    let own = ca.issue("v-2-VM");
    fs::set_permissions(conf.path("agent.properties"), fs::Permissions::from_mode(0o600)).unwrap();

    let arguments = conf.arguments("ssh", &own.certificate, &ca.pair.certificate, &own.key);
    let imported = conf.run_import(&arguments).await.unwrap();

    let restart = Cmd::new("systemctl")
        .args(["restart", "cloud"])
        .time_limit(Duration::from_mins(3));
    let done = |commands| Import::Done {
        subject: "CN=v-2-VM".to_owned(),
        not_after: "2026-12-31T23:59:59Z".to_owned(),
        commands,
    };
    assert_eq!(imported, done(vec![Cmd::new("update-ca-certificates"), restart]));
    assert_eq!(
        conf.names(),
        ["agent.properties", "cloud.ca.crt", "cloud.crt", "cloud.key", "system"]
    );
    assert_eq!(conf.text("cloud.crt"), own.certificate);
    assert_eq!(conf.text("cloud.ca.crt"), ca.pair.certificate);
    assert_eq!(conf.text("system/cloudstack/ca.crt"), ca.pair.certificate);
    assert_eq!(conf.text("cloud.key"), own.key);
    assert_eq!(
        conf.text("agent.properties"),
        "# ours\nhost=10.1.1.2\nkeystore.passphrase=pass16\n"
    );
    let modes = ["agent.properties", "cloud.crt", "cloud.ca.crt", "cloud.key"].map(|name| mode(&conf.path(name)));
    assert_eq!(modes, [0o600, 0o644, 0o644, 0o600]);
    assert_eq!(conf.own().as_deref(), Some("CN=v-2-VM"));

    // The agent's own mode touches no service, and the pass phrase of the first time stays.
    let mut arguments = conf.arguments("agent", &own.certificate, &ca.pair.certificate, &own.key);
    arguments[1] = "other".to_owned();
    let imported = conf.run_import(&arguments).await.unwrap();
    assert_eq!(imported, done(vec![Cmd::new("update-ca-certificates")]));
    assert_eq!(
        conf.text("agent.properties"),
        "# ours\nhost=10.1.1.2\nkeystore.passphrase=pass16\n"
    );
}

#[tokio::test]
async fn missing_arguments_mean_the_files_that_are_there() {
    let conf = Conf::new();
    let ca = Authority::new("ca");
    let (first, second) = (ca.issue("first"), ca.issue("second"));

    // As the original: no certificate anywhere is a success that does nothing.
    let nothing = conf
        .run_import(&conf.arguments("ssh", "", &ca.pair.certificate, ""))
        .await
        .unwrap();
    assert_eq!(
        nothing,
        Import::Skipped {
            missing: conf.path("cloud.crt")
        }
    );
    let nothing = conf
        .run_import(&conf.arguments("ssh", &first.certificate, " ", &first.key))
        .await
        .unwrap();
    assert_eq!(
        nothing,
        Import::Skipped {
            missing: conf.path("cloud.ca.crt")
        }
    );
    assert_eq!(conf.names(), ["agent.properties"]);

    conf.import(&first, &ca.pair);
    conf.run_import(&conf.arguments("ssh", &second.certificate, "", &second.key))
        .await
        .unwrap();
    assert_eq!(conf.own().as_deref(), Some("CN=second"));
    conf.run_import(&conf.arguments("ssh", "", "", "")).await.unwrap();
    assert_eq!(conf.own().as_deref(), Some("CN=second"));
}

#[tokio::test]
async fn what_does_not_fit_together_is_refused_and_the_old_files_stay() {
    let conf = Conf::new();
    let (ca, other) = (Authority::new("ca"), Authority::new("other"));
    let (own, new) = (ca.issue("own"), ca.issue("new"));
    conf.import(&own, &ca.pair);
    let ca = &ca.pair.certificate;
    let no_ca = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
    let half_a_key = new.key.split("-----END").next().unwrap();
    let foreign_key = format!("belong to {}", conf.path("cloud.key").display());

    for (certificate, ca, key, reason) in [
        (
            &*new.certificate,
            &**ca,
            &*own.key,
            "the certificate given (CN=new) does not belong to the private key given",
        ),
        (
            &new.certificate,
            ca,
            "",
            &format!("the certificate given (CN=new) does not {foreign_key}"),
        ),
        (
            &new.certificate,
            &other.pair.certificate,
            &new.key,
            "the certificate given (CN=new) was issued by CN=ca, which is none of the certificates in the CA \
             certificate given",
        ),
        (
            "nonsense",
            ca,
            &new.key,
            "the certificate given holds no certificate (-----BEGIN CERTIFICATE-----)",
        ),
        (
            &new.certificate,
            no_ca,
            &new.key,
            "certificate 1 of the CA certificate given cannot be read as X.509",
        ),
        (
            &new.certificate,
            ca,
            half_a_key,
            "the private key given is damaged: its BEGIN or END line is incomplete; was it cut off, or were its line \
             ends lost?",
        ),
    ] {
        let error = conf.run_import(&conf.arguments("ssh", certificate, ca, key)).await;
        assert_eq!(error.unwrap_err(), reason);
        assert_eq!(conf.own().as_deref(), Some("CN=own"));
        assert_eq!(conf.names(), AFTER_IMPORT);
    }
}

#[tokio::test]
async fn wrong_arguments_are_answered_with_the_usage_and_not_repeated() {
    let import = "usage: keystore-cert-import <properties> <password> <keystore> <ssh|agent> <certificate file> \
                  <certificate> <CA file> <CA certificates> <key file> <key>";
    let setup = "usage: keystore-setup <properties> <keystore> <password> <validity days> <csr file>";
    let words = |words: &str| words.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let error = |result: Result<Import, _>| Result::unwrap_err(result);
    let conf = Conf::new();
    assert_eq!(
        error(conf.run_import(&words("a secret")).await),
        format!("10 arguments are needed, 2 were given\n{import}")
    );
    assert_eq!(
        error(conf.run_import(&words("1 2 3 SSH 5 6 7 8 9 10")).await),
        format!("the fourth argument is neither ssh nor agent\n{import}")
    );
    let machine = Machine {
        fqdn: "v-2-VM".to_owned(),
        addresses: Vec::new(),
    };
    for (arguments, reason) in [
        ("1 2 3 4", "5 arguments are needed, 4 were given"),
        ("1 2 3 ten 5", "<validity days> is not a whole number"),
    ] {
        let error = keystore_setup(&words(arguments), &machine).unwrap_err();
        assert_eq!(error.to_string(), format!("{reason}\n{setup}"));
    }
}

#[tokio::test]
async fn a_machine_that_is_not_set_up_is_told_from_one_that_is_not_ready() {
    let conf = Conf::new();
    fs::remove_file(conf.path("agent.properties")).unwrap();
    let arguments = conf.arguments("ssh", "", "", "");
    assert_eq!(
        conf.run_import(&arguments).await.unwrap_err(),
        format!(
            "{} does not exist, so this machine was not set up as a system VM yet",
            arguments[0]
        )
    );

    let mut arguments = arguments;
    arguments[0] = conf.path("later/agent.properties").to_str().unwrap().to_owned();
    assert_eq!(
        conf.run_import(&arguments).await.unwrap_err(),
        format!(
            "{} did not appear within 0ns; is this a system VM?",
            conf.path("later").display()
        )
    );
}

#[tokio::test]
async fn an_import_waits_for_the_directory_and_then_for_the_properties() {
    let conf = Conf::new();
    let mut arguments = conf.arguments("ssh", "", "", "");
    let later = conf.path("later");
    arguments[0] = later.join("agent.properties").to_str().unwrap().to_owned();
    let import = tokio::spawn(async move { keystore_cert_import(&arguments, None, Duration::from_mins(1)).await });
    let must_wait = async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!import.is_finished());
    };
    must_wait().await;
    fs::create_dir(&later).unwrap();
    must_wait().await;

    put(later.join("agent.properties"), "");
    let imported = import.await.unwrap().unwrap();
    assert_eq!(
        imported,
        Import::Skipped {
            missing: conf.path("cloud.crt")
        }
    );
}

#[test]
fn a_request_names_the_machine_and_leaves_the_pair_in_use_alone() {
    let conf = Conf::new();
    let ca = Authority::new("ca");
    conf.import(&ca.issue("own"), &ca.pair);
    let (key, certificate) = (conf.text("cloud.key"), conf.text("cloud.crt"));

    let path = |name| conf.path(name).to_str().unwrap().to_owned();
    let arguments = [
        path("agent.properties"),
        path("cloud.jks"),
        "p w".into(),
        "365".into(),
        path("cloud.csr"),
    ];
    let addresses = ["127.0.0.1", "169.254.3.7", "10.1.1.7", "::1", "fe80::1", "fd00::7"];
    let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let machine = Machine {
        fqdn: "v-2-VM.example.org".to_owned(),
        addresses,
    };
    let request = keystore_setup(&arguments, &machine).unwrap();

    assert_eq!(conf.text("cloud.csr"), request);
    assert_eq!((conf.text("cloud.key"), conf.text("cloud.crt")), (key, certificate));
    assert_eq!(conf.own().as_deref(), Some("CN=own"));
    assert_eq!(mode(&conf.path("cloud.key.new")), 0o600);
    let properties = Properties::load(conf.path("agent.properties")).unwrap();
    assert_eq!(properties.get("keystore.passphrase"), Some("p w"));

    let read = CertificateSigningRequestParams::from_pem(&request).unwrap().params;
    let names = ["10.1.1.7", "fd00::7"].map(|address| rcgen::SanType::IpAddress(address.parse().unwrap()));
    assert_eq!(read.subject_alt_names, names);
}

#[tokio::test]
async fn this_machine_has_a_name_and_only_reachable_addresses() {
    let machine = Machine::inspect().await.unwrap();
    assert!(!machine.fqdn.is_empty());
    assert!(
        !machine.addresses.iter().any(IpAddr::is_loopback),
        "{:?}",
        machine.addresses
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))] // each writes to disk
    #[test]
    fn arbitrary_arguments_do_not_panic(texts in prop::collection::vec(any::<String>(), 10), mode in "ssh|agent") {
        let conf = Conf::new();
        // Places are ours, so that nothing is written elsewhere.
        let mut arguments = conf.arguments(&mode, &texts[0], &texts[1], &texts[2]);
        arguments[1].clone_from(&texts[3]);
        let request = conf.path("cloud.csr").display().to_string();
        let setup = [&arguments[0], &arguments[2], &texts[3], &texts[4], &request].map(Clone::clone);
        let machine = Machine { fqdn: texts[5].clone(), addresses: Vec::new() };

        keystore_setup(&setup, &machine).ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(keystore_cert_import(&arguments, None, Duration::ZERO)).ok();
        for count in 0..texts.len() {
            runtime.block_on(keystore_cert_import(&texts[..count], None, Duration::ZERO)).unwrap_err();
        }
    }
}
