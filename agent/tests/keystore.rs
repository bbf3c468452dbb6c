//! Certificates on disk: how they get there, what a crash leaves, and what an agent makes of it.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

#[allow(dead_code, reason = "each test program uses its part")]
mod pki;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use agent::keystore::KeyStore;
use agent::trust::{TrustUnknown, client_config};
use protocol::secret::Secret;

use pki::conf::{AFTER_IMPORT, Conf};
use pki::{Authority, Pair, openssl, put, server, shake_today};

#[tokio::test]
async fn openssl_reads_our_request_issues_the_certificate_and_the_agent_shows_it() {
    let conf = Conf::new();
    let dir = conf.0.path();
    let addresses: Vec<IpAddr> = vec!["10.1.1.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    let request = conf
        .store()
        .setup_keystore(&Secret::new(String::new()), 365, "v-2-VM.example.org", &addresses);
    let Some(shown) = openssl(
        dir,
        "req -in DIR/cloud.csr -noout -verify -subject -text -nameopt RFC2253",
    )
    .await
    else {
        return;
    };
    assert!(
        shown.contains("subject=CN=v-2-VM.example.org,OU=cloudstack,O=cloudstack,C=cloudstack\n"),
        "{shown}"
    );
    assert!(
        shown.contains(" IP Address:10.1.1.7, IP Address:FD00:0:0:0:0:0:0:7\n"),
        "{shown}"
    );
    assert!(shown.contains("prime256v1"), "{shown}");
    assert!(request.unwrap().starts_with("-----BEGIN CERTIFICATE REQUEST-----"));

    let ca = "req -x509 -newkey rsa:2048 -noenc -days 3650 -subj /CN=ca -keyout DIR/ca.key -out DIR/ca.crt";
    let issue = "x509 -req -in DIR/cloud.csr -CA DIR/ca.crt -CAkey DIR/ca.key -set_serial 7 -days 365 \
                 -copy_extensions copyall -out DIR/issued.crt";
    openssl(dir, ca).await.unwrap();
    openssl(dir, issue).await.unwrap();
    let ca = Pair {
        certificate: conf.text("ca.crt"),
        key: conf.text("ca.key"),
    };
    let own = Pair {
        certificate: conf.text("issued.crt"),
        key: String::new(),
    };
    conf.run_import(&conf.arguments("agent", &own.certificate, &ca.certificate, ""))
        .await
        .unwrap();

    assert!(!conf.path("cloud.key.new").exists());
    let identity = conf.store().load().unwrap().unwrap();
    let config = client_config(Some(&identity), TrustUnknown::Refuse).unwrap();
    let (_, seen) = shake_today((*config).clone(), server(&ca, &ca.chain())).unwrap();
    assert_eq!(seen.peer_certificates(), Some(&*own.chain()));
}

#[tokio::test]
async fn keys_in_the_old_formats_of_openssl_are_taken() {
    let conf = Conf::new();
    let dir = conf.0.path();
    for (make, kind) in [
        ("genrsa -traditional -out DIR/new.key 2048", "RSA PRIVATE KEY"),
        (
            "ecparam -name prime256v1 -genkey -noout -out DIR/new.key",
            "EC PRIVATE KEY",
        ),
    ] {
        let Some(_) = openssl(dir, make).await else { return };
        openssl(
            dir,
            "req -x509 -key DIR/new.key -days 2 -subj /CN=self -out DIR/new.crt",
        )
        .await
        .unwrap();
        let own = Pair {
            certificate: conf.text("new.crt"),
            key: conf.text("new.key"),
        };
        assert!(own.key.contains(&format!("-----BEGIN {kind}-----")));
        conf.import(&own, &own); // its own CA
        assert_eq!(conf.own().as_deref(), Some("CN=self"));
    }
}

#[test]
fn an_import_writes_the_key_beside_then_the_ca_then_the_certificate() {
    let ca = Authority::new("ca");
    let own = ca.issue("own");
    let until = |broken: fn(&mut KeyStore)| {
        let conf = Conf::new();
        let mut store = conf.store();
        broken(&mut store);
        let imported = store.setup_certificate(&own.certificate, &Secret::new(own.key.clone()), &ca.pair.certificate);
        imported.unwrap_err();
        conf.names()
    };
    assert_eq!(
        until(|store| lose(&mut store.ca)),
        ["agent.properties", "cloud.key.new"]
    );
    let names = ["agent.properties", "cloud.ca.crt", "cloud.key.new"];
    assert_eq!(until(|store| lose(&mut store.certificate)), names);
}

/// Makes a file one that cannot be written.
fn lose(path: &mut PathBuf) {
    *path = path.with_file_name("missing").join("file");
}

/// Every state that a crash can leave, made by hand in the order that `agent::keystore` documents.
#[test]
fn an_import_cut_short_anywhere_leaves_a_pair_that_works_and_can_be_repeated() {
    let (old_ca, new_ca) = (Authority::new("old CA"), Authority::new("new CA"));
    let (old, new) = (old_ca.issue("old"), new_ca.issue("new"));
    let steps: [(&str, &str, &str); 3] = [
        ("cloud.key.new", &new.key, "CN=old"),
        ("cloud.ca.crt", &new_ca.pair.certificate, "CN=old"),
        ("cloud.crt", &new.certificate, "CN=new"),
    ];
    for done in 0..=steps.len() {
        let after_crash = || {
            let conf = Conf::new();
            conf.import(&old, &old_ca.pair);
            steps[..done]
                .iter()
                .for_each(|(name, contents, _)| put(conf.path(name), contents));
            conf
        };
        let expected = done.checked_sub(1).map_or("CN=old", |last| steps[last].2);

        let conf = after_crash();
        assert_eq!(conf.own().as_deref(), Some(expected));
        conf.import(&new, &new_ca.pair);
        assert_eq!(conf.own().as_deref(), Some("CN=new"));
        assert_eq!(conf.names(), AFTER_IMPORT);

        // A request has to keep what works, too.
        let conf = after_crash();
        conf.request();
        assert_eq!(conf.own().as_deref(), Some(expected));
    }
}

#[test]
fn the_first_import_cut_short_leaves_trust_all_or_a_machine_without_a_certificate() {
    let ca = Authority::new("ca");
    let conf = Conf::new();
    assert!(conf.store().load().unwrap().is_none());
    put(conf.path("cloud.key.new"), &ca.issue("own").key);
    assert!(conf.store().load().unwrap().is_none());
    put(conf.path("cloud.ca.crt"), &ca.pair.certificate);
    assert_eq!(conf.own(), None);
    assert_eq!(conf.store().load().unwrap().unwrap().ca, ca.pair.chain());
}

#[test]
fn the_certificate_of_the_last_request_is_the_one_that_fits() {
    let conf = Conf::new();
    let ca = Authority::new("ca");
    let [first, second] = [(); 2].map(|()| ca.answer(&conf.request()));
    let import = |certificate: &str| {
        let imported = conf
            .store()
            .setup_certificate(certificate, &Secret::default(), &ca.pair.certificate);
        imported.map_err(|error| error.to_string())
    };
    let subject = "C=cloudstack, O=cloudstack, OU=cloudstack, CN=v-2-VM";
    let waiting = conf.path("cloud.key.new");
    let refused = format!(
        "the certificate given ({subject}) does not belong to {}",
        waiting.display()
    );
    assert_eq!(import(&first), Err(refused));
    import(&second).unwrap();
    assert_eq!(conf.text("cloud.crt"), second);
}

#[test]
fn broken_files_are_named() {
    let conf = Conf::new();
    let ca = Authority::new("ca");
    let (own, other) = (ca.issue("own"), ca.issue("other"));
    conf.import(&own, &ca.pair);
    let [crt, ca_crt, key] = ["cloud.crt", "cloud.ca.crt", "cloud.key"].map(|name| conf.path(name));
    let fix = "import the certificate again";
    for (path, contents, reason) in [
        (
            &key,
            &*other.key,
            format!("{} (CN=own) does not belong to {}; {fix}", crt.display(), key.display()),
        ),
        (
            &key,
            "",
            format!(
                "{} holds no private key (-----BEGIN PRIVATE KEY-----); {fix}",
                key.display()
            ),
        ),
        (
            &crt,
            "",
            format!(
                "{} holds no certificate (-----BEGIN CERTIFICATE-----); {fix}",
                crt.display()
            ),
        ),
        (
            &ca_crt,
            "",
            format!(
                "{} holds no certificate (-----BEGIN CERTIFICATE-----); {fix}",
                ca_crt.display()
            ),
        ),
    ] {
        let before = fs::read_to_string(path).unwrap();
        put(path, contents);
        assert_eq!(conf.store().load().map(drop).unwrap_err().to_string(), reason);
        put(path, &before);
    }
    fs::remove_file(&key).unwrap();
    assert_eq!(
        conf.store().load().map(drop).unwrap_err().to_string(),
        format!(
            "there is no private key for {} (CN=own) in {}; import the certificate with its key",
            crt.display(),
            key.display()
        )
    );
}

#[test]
fn importers_and_readers_at_once_see_whole_pairs_only() {
    let conf = Conf::new();
    let ca = Authority::new("ca");
    let pairs = [ca.issue("one"), ca.issue("two")];
    conf.import(&pairs[0], &ca.pair);
    std::thread::scope(|scope| {
        let importers = pairs
            .each_ref()
            .map(|own| scope.spawn(|| (0..20).for_each(|_| drop(conf.import(own, &ca.pair)))));
        while importers.iter().any(|importer| !importer.is_finished()) {
            assert!(conf.own().is_some());
        }
    });
    assert_eq!(conf.names(), AFTER_IMPORT);
}
