//! What a download survives.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; what is printed is read when one fails"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::Cmd;
use sha2::{Digest, Sha512};
use system_tests::source::{Content, Source, checksum};
use system_tests::wait;
use system_tests::zone::Zone;

const MIB: u64 = 1 << 20;

/// For a download of 1 GiB by a debug build on two busy cores.
const DOWNLOAD_LIMIT: Duration = Duration::from_mins(5);

fn sha512(path: &Path) -> String {
    let mut file = File::open(path).unwrap();
    let mut digest = Sha512::new();
    let mut block = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut block).unwrap();
        if length == 0 {
            return checksum(digest);
        }
        digest.update(&block[..length]);
    }
}

async fn percent_reaches(zone: &Zone, template: &str, wanted: u64) {
    wait::until("the download goes on", DOWNLOAD_LIMIT, async || {
        let percent = zone.percent(template).await?;
        if percent >= wanted {
            Ok(())
        } else {
            Err(format!("{percent} %"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ssvm_that_is_killed_in_the_middle_of_a_gibibyte_resumes() {
    let zone = Zone::start().await;
    let source = Source::start().await;
    let content = Content::Noise { size: 1024 * MIB };
    let url = source.put("big.raw", content.clone());
    source.set_pace(60 * MIB);
    let template = zone
        .register("big", "RAW", &url, &[("checksum", &content.checksum())])
        .await;
    percent_reaches(&zone, &template, 30).await;

    let ssvm = zone.system_vm_up("secondarystoragevm").await;
    zone.kill_system_vm(&ssvm);
    source.set_pace(0);

    let ready = zone.template_ready(&template, DOWNLOAD_LIMIT).await;
    assert_eq!(ready["physicalsize"], 1024 * MIB);
    assert_eq!(sha512(&zone.stored(&ready)), content.checksum());
    assert!(
        source.sent() < 1024 * MIB + 400 * MIB,
        "it started over: {} MiB were sent for 1024",
        source.sent() / MIB
    );
    let alerts = zone.list("listAlerts", "alert", &[]).await.unwrap().to_string();
    assert!(alerts.contains(&ssvm), "no alert names {ssvm}: {alerts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_management_server_that_is_killed_finds_the_download_finished() {
    let mut zone = Zone::start().await;
    let source = Source::start().await;
    let content = Content::Noise { size: 256 * MIB };
    let url = source.put("half.raw", content.clone());
    source.set_pace(40 * MIB);
    let template = zone.register("half", "RAW", &url, &[]).await;
    percent_reaches(&zone, &template, 20).await;
    let before = zone.system_vm_up("secondarystoragevm").await;

    zone.kill_server().await;
    wait::until("the download ends without the server", DOWNLOAD_LIMIT, async || {
        if source.sent() >= 256 * MIB {
            Ok(())
        } else {
            Err(format!("{} bytes", source.sent()))
        }
    })
    .await;
    zone.start_server().await;

    let ready = zone.template_ready(&template, DOWNLOAD_LIMIT).await;
    assert_eq!(sha512(&zone.stored(&ready)), content.checksum());
    assert_eq!(source.requests(), 1, "it was downloaded once");
    assert_eq!(zone.system_vm_up("secondarystoragevm").await, before, "no second SSVM");
}

/// A directory seen through FUSE whose server can be stopped: whoever touches it then hangs.
struct StallingStore {
    behind: tempfile::TempDir,
    mounted: tempfile::TempDir,
}

impl StallingStore {
    async fn mount() -> Self {
        let behind = tempfile::tempdir().unwrap();
        let mounted = tempfile::tempdir().unwrap();
        let mount = Cmd::new("bindfs")
            .arg("--no-allow-other")
            .arg(behind.path())
            .arg(mounted.path());
        mount.run().await.expect("bindfs mounts");
        Self { behind, mounted }
    }

    /// bindfs has become a daemon; it is found by the directory it serves.
    fn signal(&self, signal: Signal) {
        let served = self.behind.path().to_str().unwrap().to_owned();
        let mut signalled = 0;
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.starts_with("bindfs") && line.contains(&served) {
                kill(Pid::from_raw(pid), signal).unwrap();
                signalled += 1;
            }
        }
        assert_eq!(signalled, 1, "one bindfs serves {served}");
    }
}

impl Drop for StallingStore {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
        let _ = nix::mount::umount2(self.mounted.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_hangs_for_a_minute_stops_neither_the_agent_nor_the_download() {
    let store = StallingStore::mount().await;
    let zone = Zone::start_with_store(Some(store.mounted.path())).await;
    zone.system_vms_up().await;
    let source = Source::start().await;
    let content = Content::Noise { size: 128 * MIB };
    let url = source.put("slow.raw", content.clone());
    source.set_pace(10 * MIB);
    let template = zone.register("slow", "RAW", &url, &[]).await;
    percent_reaches(&zone, &template, 20).await;

    store.signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    while stopped.elapsed() < Duration::from_mins(1) {
        let asked = Instant::now();
        let hosts = zone
            .list("listHosts", "host", &[("type", "SecondaryStorageVM")])
            .await
            .unwrap();
        assert_eq!(hosts[0]["state"], "Up", "after {:?}: {hosts}", stopped.elapsed());
        zone.template(&template).await.expect("the API answers");
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "the API took {:?}",
            asked.elapsed()
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    store.signal(Signal::SIGCONT);

    let ready = zone.template_ready(&template, DOWNLOAD_LIMIT).await;
    assert_eq!(sha512(&zone.stored(&ready)), content.checksum());
}

/// Waits until nothing more will happen to a template that cannot be had; answers its status text.
async fn failed(zone: &Zone, template: &str) -> String {
    wait::until("the download fails for good", DOWNLOAD_LIMIT, async || {
        let seen = zone.template(template).await?;
        assert_ne!(seen["isready"], true, "{seen}");
        let state = &seen["downloaddetails"][0]["downloadState"];
        match seen["status"].as_str() {
            Some(status) if state == "DOWNLOAD_ERROR" => Ok(status.to_owned()),
            _ => Err(seen.to_string()),
        }
    })
    .await
}

async fn qcow2(directory: &Path, name: &str, options: &[&str]) -> Bytes {
    let path = directory.join(name);
    let create = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).args(options);
    create
        .arg(&path)
        .arg("16M")
        .run()
        .await
        .expect("qemu-img makes an image");
    fs::read(path).unwrap().into()
}

/// Begins as it should, then unpacks to a GiB of ones.
fn bomb(start: &[u8]) -> Vec<u8> {
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(start).unwrap();
    let ones = vec![1; 1 << 20];
    for _ in 0..1024 {
        bomb.write_all(&ones).unwrap();
    }
    bomb.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_cannot_become_a_template_says_why_and_leaves_nothing() {
    let zone = Zone::start().await;
    let source = Source::start().await;
    let made = tempfile::tempdir().unwrap();
    let good = qcow2(made.path(), "good.qcow2", &[]).await;
    let base = made.path().join("good.qcow2");
    let backing = qcow2(
        made.path(),
        "backing.qcow2",
        &["-F", "qcow2", "-b", base.to_str().unwrap()],
    )
    .await;
    let data_file = format!("data_file={}", made.path().join("data.raw").display());
    let external = qcow2(made.path(), "external.qcow2", &["-o", &data_file]).await;
    let bomb = bomb(&good);
    let html = "<!DOCTYPE html><html><body>Please log in</body></html>".repeat(50);
    let wrong = format!("{{SHA-256}}{}", "0".repeat(64));

    let cases: Vec<(&str, String, Option<&str>, &[&str])> = vec![
        ("404", source.url("missing.qcow2"), None, &["404"]),
        (
            "checksum",
            source.put("good.qcow2", Content::Bytes(good.clone())),
            Some(&wrong),
            &["checksum", "didn't match the given value"],
        ),
        (
            "truncated",
            source.put(
                "truncated.qcow2",
                Content::Truncated {
                    announced: 4 * MIB,
                    sent: good.clone(),
                },
            ),
            None,
            &["truncated.qcow2"],
        ),
        (
            "bomb",
            source.put("bomb.qcow2.gz", Content::Bytes(bomb.into())),
            None,
            &["decompression bomb"],
        ),
        (
            "backing",
            source.put("backing.qcow2", Content::Bytes(backing)),
            None,
            &["backing file"],
        ),
        (
            "external",
            source.put("external.qcow2", Content::Bytes(external)),
            None,
            &["its data is in another file"],
        ),
        (
            "html",
            source.put("page.qcow2", Content::Bytes(html.into())),
            None,
            &["HTML"],
        ),
        (
            "name",
            "http://no-such-host.invalid/x.qcow2".into(),
            None,
            &["no-such-host.invalid"],
        ),
        (
            "tls",
            source.url("good.qcow2").replace("http:", "https:"),
            None,
            &["no secure connection"],
        ),
    ];
    let mut registered = Vec::new();
    for (name, url, checksum, words) in &cases {
        let more: Vec<_> = checksum.iter().map(|checksum| ("checksum", *checksum)).collect();
        registered.push((zone.register(name, "QCOW2", url, &more).await, name, url, words));
    }
    for (template, name, url, words) in registered {
        let status = failed(&zone, &template).await;
        println!("{name}: {status}");
        for word in *words {
            assert!(status.contains(word), "{name}: {word:?} is not in {status:?}");
        }
        assert!(status.contains(url.as_str()), "{name}: the URL is not in {status:?}");
    }
    // What may be temporary is tried again: until the last attempt is over something may be there.
    wait::until("nothing is left on the store", DOWNLOAD_LIMIT, async || {
        let left = walk(zone.store());
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    })
    .await;
}

fn walk(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path.display().to_string()]
            }
        })
        .collect()
}

/// A store of its own size, in memory.
struct SmallStore(tempfile::TempDir);

impl SmallStore {
    fn mount(size: &str) -> Self {
        let store = Self(tempfile::tempdir().unwrap());
        let options = format!("size={size}");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(
            Some("tmpfs"),
            store.0.path(),
            Some("tmpfs"),
            flags,
            Some(options.as_str()),
        )
        .expect("a tmpfs can be mounted");
        store
    }
}

impl Drop for SmallStore {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_says_so_and_a_smaller_template_still_fits() {
    // An SSVM keeps 1 GiB of each store free (`reserve_bytes`), so there is room for 176 MiB.
    let store = SmallStore::mount("1200m");
    let zone = Zone::start_with_store(Some(store.0.path())).await;
    zone.system_vms_up().await;
    let source = Source::start().await;
    let url = source.put("huge.raw", Content::Noise { size: 512 * MIB });
    let template = zone.register("huge", "RAW", &url, &[]).await;
    let status = failed(&zone, &template).await;
    println!("{status}");
    assert!(
        status.contains(&url) && status.to_lowercase().contains("space"),
        "{status}"
    );
    let small = Content::Noise { size: 32 * MIB };
    let url = source.put("small.raw", small.clone());
    let template = zone.register("small", "RAW", &url, &[]).await;
    let ready = zone.template_ready(&template, DOWNLOAD_LIMIT).await;
    assert_eq!(sha512(&zone.stored(&ready)), small.checksum());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_throttled_source_shows_percent_that_only_rises() {
    let zone = Zone::start().await;
    let source = Source::start().await;
    let url = source.put("paced.raw", Content::Noise { size: 40 * MIB });
    source.set_pace(2 * MIB);
    let template = zone.register("paced", "RAW", &url, &[]).await;
    let mut seen: Vec<u64> = Vec::new();
    wait::until("the download ends", DOWNLOAD_LIMIT, async || {
        let percent = zone.percent(&template).await?;
        if seen.last() != Some(&percent) {
            seen.push(percent);
        }
        let is_ready = zone.template(&template).await?["isready"] == true;
        if is_ready { Ok(()) } else { Err(format!("{percent} %")) }
    })
    .await;
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.len() >= 5, "the percentages in between are seen, too: {seen:?}");
}
