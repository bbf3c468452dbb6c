//! What the program runs in: names with several addresses, an ordinary user, whoever looks at its metrics.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use protocol::secondary_storage::DownloadStatus;
use protocol::transfer::ImageFormat;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fake_source::{File, Source};
use crate::images::noise;
use crate::machine::{Machine, STORE, template};

/// Runs a test in a thread whose programs, too, see these lines as `/etc/hosts`.
fn with_hosts(lines: &str, test: impl Future<Output = ()> + Send) {
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join("hosts");
    let _ = platform::files::replace(&hosts, lines, 0o644).unwrap();
    let in_namespace = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("tests need root for a mount name space");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some(&hosts), "/etc/hosts", none, MsFlags::MS_BIND, none).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(test);
    };
    std::thread::scope(|scope| scope.spawn(in_namespace).join().unwrap());
}

#[test]
fn every_address_of_a_name_is_judged_and_one_that_answers_is_enough() {
    let hosts = "127.0.0.1 localhost good.test two.test mixed.test inside.test\n127.0.0.3 two.test\n\
                 10.9.8.7 mixed.test\n169.254.169.254 inside.test\n";
    with_hosts(hosts, async {
        let machine = Machine::start().await;
        machine
            .controller
            .set_up(STORE, &["127.0.0.1/32", "127.0.0.3/32"])
            .await;
        let source = Source::start().await;
        source.put("/a.raw", File::new(noise(1 << 20)));
        let command = |host: &str| template(&format!("http://{host}:{}/a.raw", source.port), ImageFormat::Raw);
        for host in ["good.test", "two.test"] {
            let answer = machine.download(&command(host)).await;
            assert_eq!(
                answer.download_status,
                Some(DownloadStatus::Downloaded),
                "{host}: {answer:?}"
            );
        }
        let asked = source.asked().len();
        for (host, why) in [
            ("mixed.test", "a private address"),
            ("inside.test", "a link-local address"),
        ] {
            let text = machine.refusal(&command(host)).await;
            assert!(
                text.starts_with("Illegal host specified in URL.") && text.contains(host) && text.contains(why),
                "{text}"
            );
        }
        assert_eq!(
            source.asked().len(),
            asked,
            "a good address beside a bad one is not asked"
        );
    });
}

/// What owns nothing on any machine.
const NOBODY: u32 = 65534;

fn give_away(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_needs_no_rights() {
    let directory = tempfile::tempdir().unwrap();
    let (program, store) = (directory.path().join("ssvm"), directory.path().join("store"));
    std::fs::copy(env!("CARGO_BIN_EXE_ssvm"), &program).unwrap(); // which nobody may be unable to reach
    std::fs::create_dir(&store).unwrap();
    for path in [directory.path(), &program, &store] {
        give_away(path);
    }
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    let rights = [
        "--clear-groups",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--",
    ];
    let mut command = vec!["setpriv".to_owned()];
    command.extend(user);
    command.extend(rights.map(str::to_owned));
    command.push(program.to_str().unwrap().to_owned());
    let machine = Machine::start_as(directory, store, "", command).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let of = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert!(of("Uid:").split('\t').all(|uid| uid == NOBODY.to_string()), "{status}");
    assert_eq!(of("CapEff:"), "0000000000000000");

    let source = Source::start().await;
    source.put("/a.raw", File::new(noise(1 << 20)));
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let answer = machine.download(&command).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert_eq!(std::fs::metadata(machine.path(&answer)).unwrap().uid(), NOBODY);
    let text = machine
        .refusal(&template(&source.url("/missing.raw"), ImageFormat::Raw))
        .await;
    assert!(text.contains("404"), "{text}");
}

/// Status, type and text of a page.
async fn get(port: u16, path: &str) -> (String, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
    (
        head.lines().next().unwrap().to_owned(),
        kind.unwrap_or_default().to_owned(),
        text.to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_happened() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let machine = Machine::start_with(&format!("metrics_listen = \"127.0.0.1:{port}\"\nresume_attempts = 1")).await;
    let source = Source::start().await;
    let cut = File {
        cuts: vec![400_000],
        ..File::new(noise(1 << 20))
    };
    source.put("/a.raw", cut);
    source.put("/b.qcow2", File::new(noise(500_000)));
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let answer = machine.download(&command).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    machine
        .refusal(&template(&source.url("/b.qcow2"), ImageFormat::Qcow2))
        .await;

    let (status, kind, text) = get(port, "/metrics").await;
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(text.ends_with("# EOF\n"), "{text}");
    let values: BTreeMap<_, _> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap())
        .collect();
    let expected = [
        ("ssvm_received_bytes_total", "1548576"),
        ("ssvm_retries_total", "1"),
        ("ssvm_stalls_total", "0"),
        ("ssvm_verify_failures_total", "1"),
        ("ssvm_downloads_finished_total", "1"),
        ("ssvm_downloads_failed_total", "1"),
        ("ssvm_jobs{state=\"waiting\"}", "0"),
        ("ssvm_jobs{state=\"transferring\"}", "0"),
        ("ssvm_jobs{state=\"installing\"}", "0"),
        ("ssvm_jobs{state=\"done\"}", "0"),
        ("ssvm_jobs{state=\"failed\"}", "1"),
        ("ssvm_jobs{state=\"aborted\"}", "0"),
    ];
    for (name, value) in expected {
        assert_eq!(values.get(name), Some(&value), "{name} in\n{text}");
    }
    let free: u64 = values[format!("ssvm_store_free_bytes{{store=\"{STORE}\"}}").as_str()]
        .parse()
        .unwrap();
    assert!(free > 0);
    assert_eq!(values.len(), expected.len() + 1, "{text}");
    assert_eq!(get(port, "/").await.0, "HTTP/1.1 404 Not Found");
}
