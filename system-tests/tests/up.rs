//! `cargo xtask up` and `down`, and the console of the guest that they start, in a real browser.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::Running;
use system_tests::browser::{Browser, ColorScheme};
use system_tests::console::{LIMIT, same_picture, status};
use system_tests::page;
use system_tests::up::{DOWN_LIMIT, UP_LIMIT, UpZone};
use system_tests::wait;

/// The management page of a zone that has one of everything.
async fn views_are_readable(browser: &Browser, zone: &UpZone) {
    let state = zone.state();
    let password = state["password"].as_str().unwrap();
    let page = page::logged_in(browser, zone.http(), password).await.unwrap();
    for view in ["overview", "systemvms", "templates", "instances", "events"] {
        page::open_view(&page, view).await.unwrap();
        for (scheme, width, name) in [
            (ColorScheme::Light, 1280, "light"),
            (ColorScheme::Dark, 360, "dark-narrow"),
        ] {
            page.look(scheme, width, 800).await.unwrap();
            page.full_screenshot(&format!("up-{view}-{name}")).await.unwrap();
            let overflow = "document.documentElement.scrollWidth - innerWidth";
            let overflow = page.evaluate(overflow).await.unwrap();
            assert_eq!(overflow, 0, "{view}, {name}: one has to scroll sideways");
        }
    }
    page.check_clean().unwrap();
    page.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_comes_up_its_guest_is_seen_and_typed_at_and_nothing_is_left() {
    let zone = UpZone::new();
    let printed = zone.up().run().await.unwrap().stderr;
    for part in ["secondary storage VM", "Running, agent Up", "demo", "Ready", "Password"] {
        assert!(printed.contains(part), "{part:?} is not in:\n{printed}");
    }
    let state = zone.state();
    let mode = fs::metadata(zone.path().join("zone.json"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = fs::read_to_string(zone.path().join("guest/vnc-password")).unwrap();
    let seen: Vec<_> = zone
        .processes()
        .into_iter()
        .filter(|(_, line)| line.contains(&secret))
        .collect();
    assert!(seen.is_empty(), "the VNC password is on a command line: {seen:?}");

    let again = zone.up().run().await.unwrap().stderr;
    assert!(again.contains("The zone is up"), "{again}");
    assert_eq!(zone.state(), state, "the second call has started nothing");

    let mut monitor = zone.monitor().await;
    let browser = Browser::start().await.unwrap();
    let url = zone.console_url().await;
    let page = browser.open(&url).await.unwrap();
    page.look(ColorScheme::Light, 1280, 800).await.unwrap();
    status(&page, "Connected").await;
    let address = page.evaluate("location.href").await.unwrap();
    assert!(!address.as_str().unwrap().contains("token"), "{address}");
    assert_eq!(page.evaluate("document.title").await.unwrap(), "Demo guest");
    let idle = same_picture(&page, &mut monitor, None).await;
    page.screenshot("console-light").await.unwrap();

    page.type_text("echo Typed in a browser").await.unwrap();
    page.press("Enter").await.unwrap();
    let typed = same_picture(&page, &mut monitor, Some(&idle)).await;

    page.look(ColorScheme::Dark, 1280, 800).await.unwrap();
    page.click("#paste-open").await.unwrap();
    page.fill("#paste-text", "echo 'Pasted: {[~^@|\\]}' | tr a-z A-Z")
        .await
        .unwrap();
    page.evaluate("document.getElementById('paste-layout').value = 'us'")
        .await
        .unwrap();
    page.screenshot("console-paste").await.unwrap();
    page.click("#paste-send").await.unwrap();
    status(&page, "Typed 37 characters").await;
    page.press("Enter").await.unwrap();
    let pasted = same_picture(&page, &mut monitor, Some(&typed)).await;
    page.screenshot("console-dark").await.unwrap();
    page.click("#keys-open").await.unwrap();
    page.screenshot("console-keys").await.unwrap();
    page.press("Escape").await.unwrap();

    page.click("#view-only").await.unwrap();
    status(&page, "Connected, view only").await;
    page.click("#screen canvas").await.unwrap();
    page.type_text("not for the machine").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(monitor.screen().await.unwrap(), pasted, "view only sends no keys");
    page.click("#view-only").await.unwrap();
    page.check_clean().unwrap();

    views_are_readable(&browser, &zone).await;

    // A link works once.
    let replay = browser.open(&url).await.unwrap();
    replay.look(ColorScheme::Dark, 360, 640).await.unwrap();
    replay.wait_for_text("The console did not open", LIMIT).await.unwrap();
    replay.screenshot("console-refused-narrow").await.unwrap();
    replay.close().await.unwrap();

    // Another viewer takes over, and the machine goes on; then it ends its console itself.
    let other = browser.open(&zone.console_url().await).await.unwrap();
    status(&other, "Connected").await;
    page.wait_for_text("Somebody else opened this console", LIMIT)
        .await
        .unwrap();
    page.screenshot("console-taken-over").await.unwrap();
    other.look(ColorScheme::Light, 360, 640).await.unwrap();
    same_picture(&other, &mut monitor, None).await;
    other.screenshot("console-narrow").await.unwrap();
    other.click("#screen canvas").await.unwrap();
    other.type_text("poweroff").await.unwrap();
    other.press("Enter").await.unwrap();
    other
        .wait_for_text("The machine closed its console", LIMIT)
        .await
        .unwrap();

    zone.down().await;
    assert_eq!(zone.processes(), []);
    assert!(!zone.path().join("zone.json").exists());
    assert!(zone.path().join("store/template").exists(), "the data stay");
    let nothing = zone.down().await.stderr;
    assert!(nothing.starts_with("Nothing is up in "), "{nothing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_up_ends_what_it_started() {
    let zone = UpZone::new();
    let elsewhere = tempfile::tempdir().unwrap();
    let log = elsewhere.path().join("up.log");
    let mut up: Running = zone.up().spawn(&log).unwrap();
    wait::until("the guest runs", UP_LIMIT, async || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        if text.contains("It boots") { Ok(()) } else { Err(text) }
    })
    .await;
    let is_there = |word: &str| zone.processes().iter().any(|(_, line)| line.contains(word));
    assert!(is_there("mgmt-stub") && is_there("qemu"), "{:?}", zone.processes());

    let pid = i32::try_from(up.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGINT).unwrap();
    let ended = tokio::time::timeout(DOWN_LIMIT, up.wait()).await;
    assert!(!ended.unwrap().unwrap().success());
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("Ending what was started"), "{text}");
    assert_eq!(zone.processes(), [], "{text}");
}
