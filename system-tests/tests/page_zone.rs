//! The web page over a whole zone: what its system VMs do is seen and steered in a real browser.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use platform::exec::Cmd;
use serde_json::{Value, json};
use system_tests::browser::{Browser, ColorScheme, Page};
use system_tests::page;
use system_tests::source::{Content, Source};
use system_tests::zone::Zone;

const LIMIT: Duration = Duration::from_secs(30);
/// For a download of some MiB, and for a system VM to come back.
const WORK_LIMIT: Duration = Duration::from_mins(2);
async fn logged_in(zone: &Zone, browser: &Browser) -> Page {
    let password = zone.one_time_password().await;
    page::logged_in(browser, zone.http, &password).await.unwrap()
}

async fn open_view(page: &Page, view: &str) {
    page::open_view(page, view).await.unwrap();
}

/// Fills the form as a person does.
async fn register(page: &Page, url: &str, name: &str, format: &str) {
    page.click("main .heading button.primary").await.unwrap();
    page.wait_for("document.activeElement.id === 'url'", LIMIT)
        .await
        .unwrap();
    page.wait_for(
        "document.querySelector('#hypervisor, #ostypeid option + option') !== null",
        LIMIT,
    )
    .await
    .unwrap();
    page.fill("#url", url).await.unwrap();
    page.fill("#name", name).await.unwrap();
    let chosen = format!("document.querySelector('#format').value === '{format}'");
    page.wait_for(&chosen, LIMIT)
        .await
        .unwrap_or_else(|error| panic!("the format is guessed from the URL: {error}"));
    page.press("Enter").await.unwrap();
    page.wait_for("document.querySelector('dialog') === null", LIMIT)
        .await
        .unwrap();
}

/// An expression: the card of this name.
fn card(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('.card')].find((card) => card.querySelector('h2')?.textContent === '{name}')"
    )
}

async fn shows(page: &Page, name: &str, text: &str, limit: Duration) {
    let condition = format!("{}?.innerText.includes({})", card(name), json!(text));
    page.wait_for(&condition, limit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_registered_watched_and_deleted_and_a_bad_one_says_why() {
    const MIB: u64 = 1 << 20;

    let zone = Zone::start().await;
    let source = Source::start().await;
    let browser = Browser::start().await.unwrap();
    let page = logged_in(&zone, &browser).await;
    open_view(&page, "templates").await;

    source.set_pace(2 * MIB);
    let url = source.put("disk.raw", Content::Noise { size: 24 * MIB });
    register(&page, &url, "from the page", "RAW").await;
    let progress = format!("{}?.querySelector('progress')", card("from the page"));
    page.wait_for(&format!("{progress}?.value > 0"), WORK_LIMIT)
        .await
        .unwrap();
    shows(&page, "from the page", "MiB/s", WORK_LIMIT).await;
    page.screenshot("zone-downloading").await.unwrap();
    let mut seen = Vec::new();
    let started = Instant::now();
    loop {
        let value = page.evaluate(&format!("{progress}?.value ?? null")).await.unwrap();
        let Some(percent) = value.as_f64() else { break };
        if seen.last() != Some(&percent) {
            seen.push(percent);
        }
        assert!(started.elapsed() < WORK_LIMIT, "{seen:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(seen.is_sorted(), "the bar goes one way: {seen:?}");
    assert!(seen.len() >= 3, "the bar moves: {seen:?}");
    shows(&page, "from the page", "Ready", WORK_LIMIT).await;
    shows(&page, "from the page", "24.0 MiB", LIMIT).await;

    let missing = source.url("missing.qcow2");
    register(&page, &missing, "missing", "QCOW2").await;
    shows(&page, "missing", "404", WORK_LIMIT).await;
    shows(&page, "missing", &missing, LIMIT).await;
    page.look(ColorScheme::Dark, 1280, 800).await.unwrap();
    page.screenshot("zone-templates").await.unwrap();

    page.click("button[aria-label$='elete from the page']").await.unwrap();
    page.wait_for("document.querySelector('dialog[open]') !== null", LIMIT)
        .await
        .unwrap();
    page.click("dialog button[value=yes]").await.unwrap();
    page.wait_for(&format!("{} === undefined", card("from the page")), WORK_LIMIT)
        .await
        .unwrap();
    page.check_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_system_vm_that_dies_says_why_and_one_is_rebooted_from_the_page() {
    let zone = Zone::start().await;
    let browser = Browser::start().await.unwrap();
    let page = logged_in(&zone, &browser).await;
    open_view(&page, "systemvms").await;
    let proxy = zone.system_vm_up("consoleproxy").await;
    shows(&page, &proxy, "Up", LIMIT).await;
    page.wait_for("document.querySelector('.reason-box') === null", WORK_LIMIT)
        .await
        .unwrap();
    page.screenshot("zone-systemvms").await.unwrap();

    // Closely: what it uses, and the end of its log.
    page.evaluate(&format!("{}.querySelector('h2 a').click()", card(&proxy)))
        .await
        .unwrap();
    let has_charts = "document.querySelectorAll('.chart path.line').length >= 2";
    page.wait_for(has_charts, LIMIT).await.unwrap();
    page.wait_for("document.querySelector('.log-end')?.textContent.length > 10", LIMIT)
        .await
        .unwrap();
    let heading = page.evaluate("document.activeElement.textContent").await.unwrap();
    assert_eq!(heading, json!(proxy), "the focus is on the heading");
    page.full_screenshot("zone-systemvm").await.unwrap();
    assert_eq!(page::flaws(&page).await.unwrap(), Vec::<String>::new());
    page.click("main a.back").await.unwrap();
    page.wait_for("document.querySelector('.cards') !== null", LIMIT)
        .await
        .unwrap();

    // The page is asked from inside how soon it shows a reason: it may be gone when we look.
    let watch = format!(
        "new Promise((resolve) => {{
            const look = () => {{
                const reason = {}?.querySelector('.reason-box')?.textContent;
                if (reason) resolve({{ reason, at: Date.now() }}); else setTimeout(look, 20);
            }};
            look();
        }})",
        card(&proxy)
    );
    page.evaluate(&format!(
        "globalThis.reasonSeen = {watch}; globalThis.killedAt = Date.now(); 0"
    ))
    .await
    .unwrap();
    zone.kill_system_vm(&proxy);
    let seen: Value = page
        .evaluate("reasonSeen.then(({ reason, at }) => ({ reason, after: at - killedAt }))")
        .await
        .unwrap();
    println!("The page shows {} after {} ms", seen["reason"], seen["after"]);
    assert!(seen["after"].as_i64().is_some_and(|after| after < 2_500), "{seen}");
    shows(&page, &proxy, "Up", WORK_LIMIT).await;
    open_view(&page, "overview").await;
    page.wait_for_text(&format!("{proxy} ended by itself: exited: signal 9"), LIMIT)
        .await
        .unwrap();
    page.screenshot("zone-overview").await.unwrap();
    open_view(&page, "systemvms").await;

    let storage = zone.system_vm_up("secondarystoragevm").await;
    page.click(&format!("button[aria-label='Reboot {storage}']"))
        .await
        .unwrap();
    page.wait_for("document.querySelector('dialog[open]') !== null", LIMIT)
        .await
        .unwrap();
    page.press("Escape").await.unwrap();
    page.wait_for("document.querySelector('dialog') === null", LIMIT)
        .await
        .unwrap();
    let focused = page.evaluate("document.activeElement.ariaLabel").await.unwrap();
    assert_eq!(focused, json!(format!("Reboot {storage}")), "no was an answer");
    page.press("Enter").await.unwrap();
    page.wait_for("document.querySelector('dialog[open]') !== null", LIMIT)
        .await
        .unwrap();
    page.click("dialog button[value=yes]").await.unwrap();
    page.wait_for_text(&format!("{storage} has been rebooted"), WORK_LIMIT)
        .await
        .unwrap();
    shows(&page, &storage, "Up", WORK_LIMIT).await;
    page.check_clean().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_of_a_machine_opens_in_a_tab_of_its_own() {
    let zone = Zone::start().await;
    let screens = tempfile::tempdir().unwrap();
    let port = free_vnc_port();
    // No disk and no kernel: the firmware has something to show.
    let _machine = Cmd::new("qemu-system-x86_64")
        .args([
            "-machine",
            "pc,accel=tcg",
            "-m",
            "64",
            "-nodefaults",
            "-vga",
            "std",
            "-display",
        ])
        .arg(format!("vnc=127.0.0.1:{}", port - VNC_BASE))
        .spawn(screens.path().join("qemu.log"))
        .unwrap();
    let (zone_id, port) = (zone.id().await, port.to_string());
    let parameters = [
        ("zoneid", zone_id.as_str()),
        ("name", "firmware"),
        ("displayname", "Firmware only"),
        ("vncaddress", "127.0.0.1"),
        ("vncport", &port),
    ];
    zone.api("registerExternalVirtualMachine", &parameters).await.unwrap();

    let browser = Browser::start().await.unwrap();
    let page = logged_in(&zone, &browser).await;
    open_view(&page, "instances").await;
    page.wait_for_text("Firmware only", LIMIT).await.unwrap();
    page.click("button[aria-label='Console of Firmware only']")
        .await
        .unwrap();
    let console = browser.opened("/resource/noVNC/vnc.html").await.unwrap();
    console
        .wait_for("document.querySelector('canvas')?.width >= 640", LIMIT)
        .await
        .unwrap();
    console.screenshot("zone-console").await.unwrap();
    assert_eq!(
        console.evaluate("opener").await.unwrap(),
        json!(null),
        "it cannot reach the page"
    );
    console.check_clean().unwrap();
    page.wait_for_text("opens in a new tab", LIMIT).await.unwrap();
    page.check_clean().unwrap();
}

/// QEMU takes numbers of displays.
const VNC_BASE: u16 = 5900;

fn free_vnc_port() -> u16 {
    let is_free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (VNC_BASE + 100..VNC_BASE + 1000).find(is_free).unwrap()
}
