//! The program as the boot and an operator run it.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use platform::exec::{Cmd, ExecError};

fn agent() -> Cmd {
    Cmd::new(env!("CARGO_BIN_EXE_agent"))
}

fn boot(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../protocol/tests/boot")
        .join(file);
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_good_line_is_shown_without_its_secrets() {
    let shown = agent()
        .args(["cmdline".to_owned(), boot("console-proxy.cmdline")])
        .run()
        .await
        .unwrap();
    let text = shown.text();
    assert!(text.contains("proxy_vm: 2,"), "{text}");
    let password = text
        .lines()
        .skip_while(|line| !line.contains("keystore_password"))
        .nth(1);
    assert_eq!(password.unwrap().trim(), "***,", "{text}");
}

#[tokio::test]
async fn a_wrong_line_exits_with_78_and_all_its_problems() {
    let error = agent()
        .arg("cmdline")
        .arg("-")
        .stdin("type=secstorage host=10.0.0.1 eth0ip=300.1.1.1 vncport=x");
    let ExecError::Failed { status, .. } = error.run().await.unwrap_err() else {
        unreachable!("it must fail")
    };
    assert_eq!(status.code(), Some(78));
    let text = agent()
        .args(["cmdline", "-"])
        .stdin("type=secstorage host=10.0.0.1 eth0ip=300.1.1.1 workers=many")
        .run()
        .await
        .unwrap_err()
        .to_string();
    for expected in [
        "4 boot argument(s) need fixing",
        "eth0ip=\"300.1.1.1\": expected an IPv4 address",
        "eth0mask: missing",
        "guid: missing, expected the agent's identity, such as s-1-VM",
        "workers=\"many\": expected a number of threads from 1 to 65535",
    ] {
        assert!(text.contains(expected), "{text}");
    }
}

#[tokio::test]
async fn keystore_setup_prints_a_request_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let args = ["agent.properties", "cloud.jks"].map(file).into_iter();
    let args = args.chain(["passphrase".to_owned(), "365".into(), file("cloud.csr")]);
    let printed = agent().arg("keystore-setup").args(args).run().await.unwrap();
    let text = printed.text();
    assert!(text.starts_with("-----BEGIN CERTIFICATE REQUEST-----\n"), "{text}");
    assert!(text.trim_end().ends_with("-----END CERTIFICATE REQUEST-----"), "{text}");
    assert_eq!(std::fs::read_to_string(file("cloud.csr")).unwrap(), text);
}
