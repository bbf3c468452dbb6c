//! What sources, networks and users do to a download.

use std::time::{Duration, Instant};

use protocol::secondary_storage::{DownloadRequest, DownloadStatus};
use protocol::transfer::ImageFormat;

use crate::fake_source::{Announced, File, Source};
use crate::images::{Images, noise};
use crate::machine::{Machine, template};

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_download_shows_a_percent_that_only_grows() {
    let source = Source::start().await;
    let file = File {
        rate: Some(1 << 20),
        ..File::new(noise(5 << 20))
    };
    source.put("/a.raw", file);
    let machine = Machine::start().await;
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let started = Instant::now();
    let mut answer = machine.controller.download(command.clone()).await;
    assert!(
        (2.9..3.9).contains(&started.elapsed().as_secs_f64()),
        "answered after 3 s"
    );
    assert_eq!(answer.template_physical_size, 0, "of the first answer");
    assert_eq!(answer.install_path.as_deref(), Some("template/tmpl/2/207"));
    let mut seen = vec![answer.download_pct];
    while answer.download_status == Some(DownloadStatus::DownloadInProgress) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        answer = machine.progress(&command, &answer, DownloadRequest::GetStatus).await;
        seen.push(answer.download_pct);
    }
    assert!(seen.is_sorted() && seen[0] > 30 && seen[0] < 80, "{seen:?}");
    assert_eq!(seen.last(), Some(&100));
    assert_eq!(machine.image(&answer), noise(5 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_again_and_again_goes_on_where_it_was() {
    let source = Source::start().await;
    let body = noise(8 << 20);
    let file = File {
        cuts: vec![3_145_728, 1_000_000, 2_000_001],
        ..File::new(body.clone())
    };
    source.put("/a.raw", file);
    let machine = Machine::start().await;
    let answer = machine
        .download(&template(&source.url("/a.raw"), ImageFormat::Raw))
        .await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    assert_eq!(machine.image(&answer), body);
    let asked = source.asked();
    assert_eq!(asked.len(), 4);
    assert_eq!(asked[1].headers["range"], "bytes=3145728-");
    assert_eq!(asked[1].headers["if-range"], "\"v1\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_meanwhile_is_fetched_from_the_start() {
    let source = Source::start().await;
    let file = File {
        rate: Some(2 << 20),
        cuts: vec![2 << 20],
        ..File::new(noise(4 << 20))
    };
    source.put("/a.raw", file.clone());
    let machine = Machine::start().await;
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let asking = machine.controller.download(command.clone());
    let changing = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let other: Vec<u8> = noise(4 << 20).into_iter().rev().collect();
        source.put(
            "/a.raw",
            File {
                etag: Some("\"v2\""),
                cuts: Vec::new(),
                ..File::new(other)
            },
        );
    };
    let (first, ()) = tokio::join!(asking, changing);
    let answer = machine.ended(&command, first).await;
    assert_eq!(answer.download_status, Some(DownloadStatus::Downloaded), "{answer:?}");
    let expected: Vec<u8> = noise(4 << 20).into_iter().rev().collect();
    assert!(machine.image(&answer) == expected, "a mixture of two files");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_names_the_url_and_what_to_do() {
    let images = Images::new();
    let source = Source::start().await;
    let machine = Machine::start_with("resume_attempts = 1\nidle_timeout_s = 2").await;
    let port = source.port;
    let html = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n".to_vec();
    source.put("/page.qcow2", File::new(html));
    source.put(
        "/cut.qcow2",
        File {
            cuts: vec![100_000; 9],
            ranges: false,
            ..File::new(images.qcow2().await)
        },
    );
    let wrong = File {
        length: Announced::Wrong(300_000),
        ..File::new(images.qcow2().await)
    };
    source.put("/short.qcow2", wrong);
    let closed = {
        std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port()
    };
    let cases = [
        (
            format!("http://127.0.0.1:{port}/missing.qcow2"),
            "HTTP Server returned 404",
            "check the URL",
        ),
        (
            format!("http://127.0.0.1:{port}/page.qcow2"),
            "Template content is unsupported",
            "HTML",
        ),
        (format!("http://127.0.0.1:{port}/cut.qcow2"), "broke", "try again"),
        (format!("http://127.0.0.1:{port}/short.qcow2"), "broke", "try again"),
        (
            format!("http://127.0.0.1:{closed}/a.qcow2"),
            "cannot connect",
            "check that it runs",
        ),
        (
            "http://nohost.invalid/a.qcow2".into(),
            "Unable to resolve nohost.invalid.",
            "DNS",
        ),
        (
            "http://169.254.169.254/a.qcow2".into(),
            "Illegal host specified in URL.",
            "link-local",
        ),
        (
            "http://0.0.0.0/a.qcow2".into(),
            "Illegal host specified in URL.",
            "no server",
        ),
        (
            "http://224.0.0.1/a.qcow2".into(),
            "Illegal host specified in URL.",
            "no server",
        ),
        (
            "http://127.0.0.2/a.qcow2".into(),
            "Illegal host specified in URL.",
            "itself",
        ),
        (
            "http://[::ffff:127.0.0.2]/a.qcow2".into(),
            "Illegal host specified in URL.",
            "itself",
        ),
        (
            "http://2130706434/a.qcow2".into(),
            "Illegal host specified in URL.",
            "127.0.0.2",
        ),
        (format!("https://127.0.0.1:{port}/a.qcow2"), "broke", "TLS handshake"),
    ];
    for (url, cause, more) in cases {
        let text = machine.refusal(&template(&url, ImageFormat::Qcow2)).await;
        let host = match url.split('/').nth(2).unwrap() {
            "2130706434" => "127.0.0.2", // shown as what it is
            "[::ffff:127.0.0.2]" => "[::ffff:7f00:2]",
            host => host,
        };
        assert!(
            text.contains(cause) && text.contains(more) && text.contains(host),
            "{url}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn compressed_sources_are_unpacked_on_the_way_and_bombs_are_stopped() {
    let images = Images::new();
    let source = Source::start().await;
    let machine = Machine::start().await;
    let good = images.qcow2_with_data(2).await;
    for (program, suffix) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz")] {
        let packed = images.through(program, &good).await;
        let path = format!("/{suffix}/a.qcow2.{suffix}");
        // Cut in the middle: the unpacking goes on over two connections.
        source.put(
            &path,
            File {
                cuts: vec![packed.len() / 2],
                ..File::new(packed.clone())
            },
        );
        let answer = machine
            .download(&template(&source.url(&path), ImageFormat::Qcow2))
            .await;
        assert_eq!(
            answer.download_status,
            Some(DownloadStatus::Downloaded),
            "{suffix}: {answer:?}"
        );
        assert!(machine.image(&answer) == good, "{suffix}");
        assert_eq!(answer.template_physical_size, i64::try_from(good.len()).unwrap());
        let packed_file = images.path("packed");
        let _ = platform::files::replace(&packed_file, packed, 0o600).unwrap();
        assert_eq!(
            answer.check_sum,
            Some(crate::images::sha512(&packed_file).await),
            "of what came"
        );
    }
    let bomb = images.through("gzip", &vec![0; 300 << 20]).await;
    source.put("/bomb.raw.gz", File::new(bomb));
    let mut command = template(&source.url("/bomb.raw.gz"), ImageFormat::Raw);
    command.max_download_size_in_bytes = Some(100 << 20);
    let text = machine.refusal(&command).await;
    assert!(
        text.contains("more than the 104857600 bytes") && text.contains("/bomb.raw.gz"),
        "{text}"
    );

    let gzip = images.through("gzip", &good).await;
    source.put("/hidden.qcow2", File::new(gzip));
    let text = machine
        .refusal(&template(&source.url("/hidden.qcow2"), ImageFormat::Qcow2))
        .await;
    assert!(
        text.contains("Template content is unsupported") && text.contains("gzip"),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bandwidth_is_limited_for_each_download_and_for_all_together() {
    let source = Source::start().await;
    source.put("/a.raw", File::new(noise(3 << 20)));
    let machine = Machine::start_with("rate_per_job = 1048576\nrate_total = 1572864").await;
    let started = Instant::now();
    let mut other = template(&source.url("/a.raw"), ImageFormat::Raw);
    other.install_path = Some("template/tmpl/2/208".into());
    let command = template(&source.url("/a.raw"), ImageFormat::Raw);
    let (one, two) = tokio::join!(machine.download(&command), machine.download(&other));
    assert_eq!(one.download_status, Some(DownloadStatus::Downloaded), "{one:?}");
    assert_eq!(two.download_status, Some(DownloadStatus::Downloaded), "{two:?}");
    let seconds = started.elapsed().as_secs_f64();
    assert!(seconds > 3.5, "6 MiB at 1.5 MiB/s in {seconds} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_wait_for_a_place_and_can_be_asked_for_twice_stopped_and_restarted() {
    let source = Source::start().await;
    source.put(
        "/slow.raw",
        File {
            rate: Some(100_000),
            ..File::new(noise(4 << 20))
        },
    );
    source.put("/a.raw", File::new(noise(1 << 20)));
    let machine = Machine::start_with("active_jobs = 1").await;
    let slow = template(&source.url("/slow.raw"), ImageFormat::Raw);
    let mut next = template(&source.url("/a.raw"), ImageFormat::Raw);
    next.install_path = Some("template/tmpl/2/208".into());
    let later = async {
        tokio::time::sleep(Duration::from_millis(500)).await; // behind the slow one
        machine.controller.download(next.clone()).await
    };
    let (running, waiting) = tokio::join!(machine.controller.download(slow.clone()), later);
    assert_eq!(waiting.download_status, Some(DownloadStatus::DownloadInProgress));
    assert_eq!(
        (waiting.download_pct, waiting.error_string.as_deref()),
        (0, Some("Waiting for other downloads to finish"))
    );
    let again = machine.controller.download(slow.clone()).await;
    assert_eq!(again.job_id, running.job_id, "one job for one wish");

    let stopped = machine.progress(&slow, &running, DownloadRequest::Abort).await;
    assert_eq!(
        stopped.download_status,
        Some(DownloadStatus::NotDownloaded),
        "{stopped:?}"
    );
    assert!(machine.files(&slow).iter().all(|name| !name.starts_with("dnld")));
    let finished = machine.ended(&next, waiting).await;
    assert_eq!(
        finished.download_status,
        Some(DownloadStatus::Downloaded),
        "the place is free: {finished:?}"
    );

    source.put("/slow.raw", File::new(noise(4 << 20)));
    let restarted = machine.progress(&slow, &running, DownloadRequest::Restart).await;
    assert_eq!(restarted.job_id, running.job_id);
    let finished = machine.ended(&slow, restarted).await;
    assert_eq!(
        finished.download_status,
        Some(DownloadStatus::Downloaded),
        "{finished:?}"
    );
    assert!(machine.image(&finished) == noise(4 << 20));
}
