//! The program as an operator runs it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use platform::exec::{Cmd, Output, Running};
use tempfile::tempdir;

fn program(data: &Path) -> Cmd {
    Cmd::new(env!("CARGO_BIN_EXE_mgmt-stub"))
        .arg("--data-dir")
        .arg(data.to_str().unwrap())
        .env("SYSVM_LOG", "info")
}

async fn serve(data: &Path, log: &Path) -> Running {
    serve_with(data, log, &[]).await
}

async fn serve_with(data: &Path, log: &Path, arguments: &[&str]) -> Running {
    let running = program(data)
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .args(arguments)
        .spawn(log)
        .unwrap();
    for _ in 0..1000 {
        if std::fs::read_to_string(log)
            .unwrap_or_default()
            .contains("Serving agents")
        {
            return running;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{}", std::fs::read_to_string(log).unwrap());
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test]
async fn hosts_and_certificates_work_beside_a_running_server() {
    let (data, out) = (tempdir().unwrap(), tempdir().unwrap());
    let log = out.path().join("log");
    let server = serve(data.path(), &log).await;
    assert_eq!(
        text(&program(data.path()).arg("hosts").run().await.unwrap()),
        "No agent has connected yet.\n"
    );
    assert_eq!(
        text(&program(data.path()).args(["hosts", "--json"]).run().await.unwrap()),
        "[]\n"
    );

    let issue = [
        "issue-certificate",
        "--name",
        "s-1-VM",
        "--address",
        "10.1.1.20",
        "--out",
    ];
    program(data.path())
        .args(issue)
        .arg(out.path().to_str().unwrap())
        .run()
        .await
        .unwrap();
    let mode = |name: &str| std::fs::metadata(out.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("cloud.key"), mode("cloud.crt"), mode("cloud.ca.crt")),
        (0o600, 0o644, 0o644)
    );
    let file = |name: &str| out.path().join(name).to_str().unwrap().to_owned();
    let verify = [
        "verify".to_owned(),
        "-CAfile".into(),
        file("cloud.ca.crt"),
        file("cloud.crt"),
    ];
    let verified = Cmd::new("openssl").args(verify).run().await.unwrap();
    assert!(text(&verified).ends_with("cloud.crt: OK\n"), "{}", text(&verified));
    server.stop(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_second_server_on_the_same_data_says_what_to_do() {
    let (data, out) = (tempdir().unwrap(), tempdir().unwrap());
    let server = serve(data.path(), &out.path().join("log")).await;
    let error = program(data.path())
        .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .run()
        .await
        .unwrap_err();
    let expected = format!(
        "{} is in use by another mgmt-stub; stop that one first",
        data.path().display()
    );
    assert!(error.to_string().contains(&expected), "{error}");
    server.stop(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn hosts_without_a_server_ever_started_says_so() {
    let data = tempdir().unwrap();
    let error = program(data.path()).arg("hosts").run().await.unwrap_err().to_string();
    assert!(error.contains("mgmt-stub.sqlite3"), "{error}");
}

#[tokio::test]
async fn api_prints_json_and_says_in_words_what_is_refused() {
    let (data, out) = (tempdir().unwrap(), tempdir().unwrap());
    let api = |words: &[&str]| program(data.path()).arg("api").args(words);
    let absent = api(&["listZones"]).run().await.unwrap_err().to_string();
    assert!(absent.contains("cannot reach a server at "), "{absent}");

    let server = serve(data.path(), &out.path().join("log")).await;
    let zones: serde_json::Value = serde_json::from_slice(&api(&["listZones"]).run().await.unwrap().stdout).unwrap();
    assert_eq!(zones["zone"][0]["name"], "zone1");
    let error = api(&["listZones", "page=1"]).run().await.unwrap_err().to_string();
    assert!(
        error.contains("(exit status: 1): error: page needs pagesize, too (errorcode 431)"),
        "{error}"
    );
    let error = api(&["listZones", "page"]).run().await.unwrap_err().to_string();
    assert!(error.contains("write it like name=value"), "{error}");

    let alert = ["generateAlert", "type=14", "name=test", "description=a=b"];
    let done: serde_json::Value = serde_json::from_slice(&api(&alert).run().await.unwrap().stdout).unwrap();
    assert_eq!(done, serde_json::json!({ "success": true }));
    let job = program(data.path())
        .args(["api", "--no-wait"])
        .args(alert)
        .run()
        .await
        .unwrap();
    let job: serde_json::Value = serde_json::from_slice(&job.stdout).unwrap();
    assert!(job["jobid"].is_string(), "{job}");
    server.stop(Duration::from_secs(10)).await;
}

#[tokio::test]
async fn a_new_password_is_printed_and_good_for_the_running_server() {
    let (data, out) = (tempdir().unwrap(), tempdir().unwrap());
    let log = out.path().join("log");
    let server = serve(data.path(), &log).await;
    let first_start = std::fs::read_to_string(&log).unwrap();
    assert!(
        first_start.contains("The administrator has no password yet"),
        "{first_start}"
    );
    let printed = text(&program(data.path()).arg("reset-admin-password").run().await.unwrap());
    let password = printed.trim();
    assert_eq!(password.len(), 16, "{printed}");
    let store = mgmt_stub::store::Store::open_read_only(data.path()).unwrap();
    let admin = store.administrator().await.unwrap().user;
    let is_good = mgmt_stub::password::verify(&password.parse().unwrap(), &admin.password_hash.unwrap());
    assert!(is_good && admin.password_change_required && admin.password_logins_left == Some(1));
    server.stop(Duration::from_secs(10)).await;
    let all = std::fs::read_to_string(&log).unwrap();
    assert!(!all.contains(password), "passwords are in no log");
}

#[tokio::test]
async fn a_simulated_zone_is_up_in_a_moment_and_says_what_it_is() {
    let (data, out) = (tempdir().unwrap(), tempdir().unwrap());
    let arguments = ["--driver", "simulator", "--image-store", "nfs://172.31.3.5/export"];
    let server = serve_with(data.path(), &out.path().join("log"), &arguments).await;
    let list = program(data.path()).args(["api", "listSystemVms"]);
    let vms = async {
        loop {
            let printed = list.clone().run().await.unwrap().stdout;
            let listed: serde_json::Value = serde_json::from_slice(&printed).unwrap();
            let vms = listed["systemvm"].as_array().cloned().unwrap_or_default();
            if vms.len() == 2 && vms.iter().all(|vm| vm["agentstate"] == "Up") {
                return vms;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let vms = tokio::time::timeout(Duration::from_mins(1), vms).await.unwrap();
    assert!(vms.iter().all(|vm| vm["hypervisor"] == "Simulator"), "{vms:?}");
    server.stop(Duration::from_secs(10)).await;
}
