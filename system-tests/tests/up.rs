//! `cargo xtask up` and `down`, and the console of the guest that they start, in a real browser.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use platform::exec::{Cmd, Output, Running};
use serde_json::{Value, json};
use system_tests::browser::{Browser, ColorScheme, Page};
use system_tests::programs::built;
use system_tests::qmp::{Monitor, Screen};
use system_tests::wait;
use tempfile::TempDir;

/// For `up`, in debug builds on two busy cores.
const UP_LIMIT: Duration = Duration::from_mins(4);
const DOWN_LIMIT: Duration = Duration::from_mins(1);
/// For anything on the page or in the guest.
const LIMIT: Duration = Duration::from_mins(1);
/// A guest that has nothing to do changes nothing for so long.
const QUIET: Duration = Duration::from_secs(1);

/// A zone in a directory and on ports of its own. Dropping it ends what is left of it.
struct Zone {
    directory: TempDir,
    ports: [SocketAddr; 3],
}

impl Zone {
    fn new() -> Self {
        // All at once, so that they differ.
        let listeners = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        Self {
            directory: tempfile::Builder::new().prefix("sysvm-up-").tempdir().unwrap(),
            ports: listeners.map(|listener| listener.local_addr().unwrap()),
        }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn up(&self) -> Cmd {
        let [http, console, agents] = self.ports.map(|port| port.to_string());
        Cmd::new(built("xtask"))
            .args(["up", "--processes", "--profile", "dev", "--no-build", "--no-install"])
            .args(["--http", &http, "--console", &console, "--agents", &agents])
            .arg("--dir")
            .arg(self.path())
            .time_limit(UP_LIMIT)
    }

    async fn down(&self) -> Output {
        let down = Cmd::new(built("xtask")).args(["down", "--dir"]).arg(self.path());
        down.time_limit(DOWN_LIMIT).run().await.unwrap()
    }

    /// What `up` has written for us.
    fn state(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path().join("zone.json")).unwrap()).unwrap()
    }

    async fn api(&self, command: &str, parameters: &[&str]) -> Value {
        let call = Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.path().join("data"))
            .args(["api", command])
            .args(parameters);
        serde_json::from_slice(&call.run().await.unwrap().stdout).unwrap()
    }

    async fn console_url(&self) -> String {
        let state = self.state();
        let id = format!("virtualmachineid={}", state["guest"]["id"].as_str().unwrap());
        let endpoint = self.api("createConsoleEndpoint", &[&id]).await;
        endpoint["consoleendpoint"]["url"].as_str().unwrap().to_owned()
    }

    /// Command lines of all processes that have to do with this zone.
    fn processes(&self) -> Vec<(i32, String)> {
        let directory = self.path().to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let lines = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        });
        lines.filter(|(_, line)| line.contains(directory)).collect()
    }
}

impl Drop for Zone {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What noVNC has drawn, as [`Screen`] has it.
const CANVAS: &str = "(async () => {
    const canvas = document.querySelector('#screen canvas');
    const {width, height} = canvas;
    const rgba = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const rgb = new Uint8Array(width * height * 3);
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
        rgb[to++] = rgba[from]; rgb[to++] = rgba[from + 1]; rgb[to++] = rgba[from + 2];
    }
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', rgb));
    return {width, height, digest: Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('')};
})()";

async fn canvas(page: &Page) -> Value {
    page.evaluate(CANVAS).await.unwrap()
}

/// Waits until the machine shows something else than `before` and is quiet, and the browser shows the same. (The
/// firmware's cursor blinks; the guest's shell has none.)
async fn same_picture(page: &Page, monitor: &mut Monitor, before: Option<&Screen>) -> Screen {
    let mut last = None;
    wait::until("the canvas is the machine's screen", LIMIT, async || {
        let screen = monitor.screen().await.unwrap();
        let is_quiet = last.replace(screen.clone()).as_ref() == Some(&screen);
        if before == Some(&screen) || !is_quiet {
            tokio::time::sleep(QUIET).await;
            return Err("the screen has not changed, or still does".into());
        }
        let wanted = json!({"width": screen.width, "height": screen.height, "digest": screen.digest});
        let found = canvas(page).await;
        if found == wanted {
            Ok(screen)
        } else {
            Err(format!("{found} instead of {wanted}"))
        }
    })
    .await
}

async fn status(page: &Page, words: &str) {
    let condition = format!("document.getElementById('status').textContent === {}", json!(words));
    page.wait_for(&condition, LIMIT).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zone_comes_up_its_guest_is_seen_and_typed_at_and_nothing_is_left() {
    let zone = Zone::new();
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

    let mut monitor = Monitor::connect(Path::new(state["guest"]["qmp"].as_str().unwrap()))
        .await
        .unwrap();
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
    let zone = Zone::new();
    let log = zone.path().join("up.log");
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
