//! What can be known by the first MiB of an image is not told after the last.

use std::time::{Duration, Instant};

use protocol::transfer::ImageFormat;

use crate::fake_source::{File, Source};
use crate::images::{Images, noise};
use crate::machine::{Machine, template};

/// The source is silent for two minutes, and nobody waits for it.
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_image_is_refused_when_its_start_is_here() {
    let images = Images::new();
    let source = Source::start().await;
    let machine = Machine::start().await;
    let page = b"<html><body>Sign in to go on</body></html>\n".repeat(80_000);
    images.create("base.qcow2", "qcow2", "1M", &[]).await;
    let backed = ["-b", "base.qcow2", "-F", "qcow2"];
    let mut backed = images.create("child.qcow2", "qcow2", "1M", &backed).await;
    backed.resize(3 << 20, 7);
    let qcow2 = images.qcow2_with_data(4).await;
    let page_and_noise = [page.clone(), noise(8 << 20)].concat();
    let web_page = "Found  : a web page (HTML or XML), not an image; give the address of the file itself";
    let cases = [
        ("/page.qcow2", ImageFormat::Qcow2, page.clone(), web_page),
        ("/page.raw", ImageFormat::Raw, page.clone(), web_page),
        ("/page.iso", ImageFormat::Iso, page, web_page),
        (
            "/other.raw",
            ImageFormat::Raw,
            qcow2.clone(),
            "Found  : a QCOW2 disk image",
        ),
        (
            "/noise.qcow2",
            ImageFormat::Qcow2,
            noise(4 << 20),
            "Found  : data of no known image format (raw?)",
        ),
        ("/backed.qcow2", ImageFormat::Qcow2, backed, "it has a backing file"),
        (
            "/hidden.qcow2",
            ImageFormat::Qcow2,
            images.through("gzip", &qcow2).await,
            "Found  : gzip compressed data",
        ),
        (
            "/page.qcow2.gz",
            ImageFormat::Qcow2,
            images.through("gzip", &page_and_noise).await,
            web_page,
        ),
        (
            "/page.qcow2.xz",
            ImageFormat::Qcow2,
            images.through("xz", &page_and_noise).await,
            web_page,
        ),
    ];
    for (path, format, body, expected) in cases {
        let stops = File {
            stall_after: Some(2 << 20),
            ..File::new(body)
        };
        source.put(path, stops);
        let started = Instant::now();
        let text = machine.refusal(&template(&source.url(path), format)).await;
        assert!(started.elapsed() < LIMIT, "{path}: {:?}", started.elapsed());
        assert!(text.contains(expected) && text.contains(path), "{path}: {text}");
    }
}
