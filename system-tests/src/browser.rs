//! A real browser: Debian's headless Chromium, driven over the DevTools protocol as a person would use it.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use std::time::Duration;
//! use system_tests::browser::{Browser, ColorScheme};
//!
//! let browser = Browser::start().await?;
//! let page = browser.open("http://127.0.0.1:8080/client/").await?;
//! page.wait_for("document.querySelector('#username') !== null", Duration::from_secs(10)).await?;
//! page.click("#username").await?;
//! page.type_text("admin").await?;
//! page.press("Tab").await?;
//! page.look(ColorScheme::Dark, 360, 740).await?;
//! page.screenshot("login-dark-narrow").await?; // target/screenshots/login-dark-narrow.png
//! page.check_clean()?; // no error on the console, none uncaught, nothing blocked by the page's own policy
//! # Ok(())
//! # }
//! ```
//! Everything has a time limit. Dropping the [`Browser`] kills Chromium with all its processes.

use std::fmt::{self, Display, Formatter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use platform::exec::{Cmd, Running};
use platform::files;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::programs::target_dir;
use devtools::Devtools;

mod devtools;
mod keys;

/// Of Debian's package `chromium`.
const PROGRAM: &str = "chromium";
/// A cold start of Chromium takes 2 s alone on the machine, and tests are never alone.
const START_LIMIT: Duration = Duration::from_mins(1);
/// For a page to load, and for a tab to show up.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at something that Chromium does not announce.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Into it Chromium writes its port and its own address.
const PORT_FILE: &str = "DevToolsActivePort";
const PORT_FILE_LIMIT: u64 = 4096;

/// A running Chromium with a fresh profile. Dropping it ends it.
pub struct Browser {
    /// `None` only while dropping.
    running: Option<Running>,
    profile: TempDir,
    devtools: Devtools,
    /// Of the DevTools server, such as `127.0.0.1:40123`.
    address: String,
}

/// One tab.
pub struct Page {
    devtools: Devtools,
    /// What the DevTools protocol calls it.
    target: String,
}

/// The user's wish that pages see as `prefers-color-scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColorScheme {
    /// Dark text on a light ground.
    Light,
    /// Light text on a dark ground.
    Dark,
}

/// Something the page's author should see, from the browser's console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Who noticed.
    pub origin: Origin,
    /// What the browser says, with the address it is about.
    pub text: String,
}

/// Who noticed a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `console.error` or `console.assert` in a script.
    Console,
    /// Nobody caught it.
    Exception,
    /// A request that failed, or was answered with a status of 400 or more.
    Network,
    /// The browser itself: a violation of the content security policy, mixed content, a broken style sheet.
    Browser,
}

impl Browser {
    /// Starts Chromium.
    ///
    /// # Errors
    /// It is not installed, or does not come up; then the end of what it printed is in the error.
    pub async fn start() -> anyhow::Result<Self> {
        let profile = tempfile::Builder::new().prefix("sysvm-chromium-").tempdir()?;
        let log = profile.path().join("chromium.log");
        let running = command(profile.path()).spawn(&log)?;
        let (address, path) = match find_port(profile.path()).await {
            Ok(found) => found,
            Err(error) => {
                let printed = files::read_limited(&log, 1 << 20).ok().flatten().unwrap_or_default();
                let printed = String::from_utf8_lossy(&printed);
                return Err(error.context(format!("{PROGRAM} did not come up; it printed: {}", printed.trim())));
            }
        };
        let devtools = Devtools::connect(&address, &path).await?;
        Ok(Self {
            running: Some(running),
            profile,
            devtools,
            address,
        })
    }

    /// Opens an address in a new tab and waits until it has loaded.
    ///
    /// # Errors
    /// The address cannot be reached.
    pub async fn open(&self, url: &str) -> anyhow::Result<Page> {
        let created = self
            .devtools
            .call("Target.createTarget", json!({ "url": "about:blank" }))
            .await?;
        let target = created["targetId"].as_str().context("a tab has an id")?;
        let page = self.attach(target).await?;
        page.go(url).await?;
        Ok(page)
    }

    /// The tab that the page itself opened (a link with `target=_blank`, `window.open`), once its address holds `part`.
    ///
    /// # Errors
    /// No such tab opens in time.
    pub async fn opened(&self, part: &str) -> anyhow::Result<Page> {
        let deadline = Instant::now() + LOAD_LIMIT;
        loop {
            let targets = self.devtools.call("Target.getTargets", json!({})).await?;
            let targets = targets["targetInfos"].as_array().cloned().unwrap_or_default();
            let found = targets.iter().find(|target| {
                target["type"] == "page"
                    && target["attached"] == false
                    && target["url"].as_str().is_some_and(|url| url.contains(part))
            });
            if let Some(id) = found.and_then(|target| target["targetId"].as_str()) {
                let page = self.attach(id).await?;
                page.wait_for("document.readyState === 'complete'", LOAD_LIMIT).await?;
                return Ok(page);
            }
            if Instant::now() > deadline {
                let urls: Vec<_> = targets.iter().filter_map(|target| target["url"].as_str()).collect();
                bail!("no new tab with {part:?} in its address after {LOAD_LIMIT:?}; there are {urls:?}");
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Where Chromium keeps what it writes; gone when the browser is dropped.
    pub fn profile(&self) -> &Path {
        self.profile.path()
    }

    async fn attach(&self, target: &str) -> anyhow::Result<Page> {
        let devtools = Devtools::connect(&self.address, &format!("/devtools/page/{target}")).await?;
        for domain in ["Runtime.enable", "Log.enable", "Page.enable"] {
            devtools.call(domain, json!({})).await?;
        }
        Ok(Page {
            devtools,
            target: target.to_owned(),
        })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.running.take());
        // Its processes are being killed and may still write: a folder that was empty a moment ago is not.
        for _ in 0..100 {
            if std::fs::remove_dir_all(self.profile.path()).is_ok() || !self.profile.path().exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Page {
    /// Goes to an address in this tab and waits until it has loaded.
    ///
    /// # Errors
    /// The address cannot be reached, or does not finish loading.
    pub async fn go(&self, url: &str) -> anyhow::Result<()> {
        let went = self.devtools.call("Page.navigate", json!({ "url": url })).await?;
        if let Some(error) = went["errorText"].as_str() {
            bail!("cannot open {url}: {error}");
        }
        self.wait_for("document.readyState === 'complete'", LOAD_LIMIT).await
    }

    /// Loads the page again, as F5 does, and waits until it has loaded.
    ///
    /// # Errors
    /// It does not finish loading.
    pub async fn reload(&self) -> anyhow::Result<()> {
        self.evaluate("globalThis.isBeforeReload = true").await?;
        self.devtools.call("Page.reload", json!({})).await?;
        self.wait_for(
            "globalThis.isBeforeReload === undefined && document.readyState === 'complete'",
            LOAD_LIMIT,
        )
        .await
    }

    /// The value of a JavaScript expression; a promise is waited for. What JSON cannot hold is null.
    ///
    /// # Errors
    /// It throws.
    pub async fn evaluate(&self, expression: &str) -> anyhow::Result<Value> {
        let parameters = json!({
            "expression": expression,
            "awaitPromise": true,
            "returnByValue": true,
            "userGesture": true,
        });
        let mut answer = self.devtools.call("Runtime.evaluate", parameters).await?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            bail!("`{expression}` throws {}", devtools::thrown(thrown));
        }
        Ok(answer["result"]["value"].take())
    }

    /// Waits until a JavaScript expression is truthy. It may throw meanwhile, for example while the page is loading.
    ///
    /// # Errors
    /// It is not within `limit`; the error has the page's visible text.
    pub async fn wait_for(&self, condition: &str, limit: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + limit;
        let expression = format!("Boolean({condition})");
        loop {
            let last = match self.evaluate(&expression).await {
                Ok(Value::Bool(true)) => return Ok(()),
                Ok(_) => "false".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > deadline {
                let seen = self.evaluate("document.body.innerText").await.unwrap_or_default();
                let seen = seen.as_str().unwrap_or_default().to_owned();
                let problems = self.problems();
                bail!(
                    "after {limit:?} `{condition}` is still not true ({last}); the page shows:\n{seen}\n{problems:?}"
                );
            }
            sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until the page shows this text somewhere.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub async fn wait_for_text(&self, text: &str, limit: Duration) -> anyhow::Result<()> {
        self.wait_for(&format!("document.body.innerText.includes({})", json!(text)), limit)
            .await
    }

    /// Clicks, with the mouse, the middle of what `selector` (CSS) finds first, scrolled into view.
    ///
    /// # Errors
    /// There is nothing, it is not visible, or something else lies over it: a person could not click it either.
    pub async fn click(&self, selector: &str) -> anyhow::Result<()> {
        let quoted = json!(selector);
        let find = format!(
            "(() => {{
                const element = document.querySelector({quoted});
                if (!element) return {{ problem: 'there is no such element' }};
                element.scrollIntoView({{ block: 'center', inline: 'center', behavior: 'instant' }});
                const box = element.getBoundingClientRect();
                if (box.width === 0 || box.height === 0) return {{ problem: 'it is not visible' }};
                const x = box.x + box.width / 2, y = box.y + box.height / 2;
                const hit = document.elementFromPoint(x, y);
                const isHit = hit !== null && (element.contains(hit) || hit.contains(element) || hit.closest('label')?.control === element);
                if (!isHit) return {{ problem: 'covered by ' + (hit ? hit.outerHTML.slice(0, 200) : 'nothing') }};
                return {{ x, y }};
            }})()"
        );
        let found = self.evaluate(&find).await?;
        ensure!(
            found.get("problem").is_none(),
            "cannot click {selector}: {}",
            found["problem"].as_str().unwrap_or_default()
        );
        self.click_at(
            found["x"].as_f64().unwrap_or_default(),
            found["y"].as_f64().unwrap_or_default(),
        )
        .await
    }

    /// Clicks, with the mouse, a point in CSS pixels from the top left of the window.
    ///
    /// # Errors
    /// Chromium is gone.
    pub async fn click_at(&self, x: f64, y: f64) -> anyhow::Result<()> {
        for (kind, buttons) in [("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({ "type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1 });
            self.devtools.call("Input.dispatchMouseEvent", event).await?;
        }
        Ok(())
    }

    /// Types text into what has the focus, key by key on a US keyboard, with Shift where a person needs it.
    ///
    /// # Errors
    /// A character is not on a US keyboard.
    pub async fn type_text(&self, text: &str) -> anyhow::Result<()> {
        for character in text.chars() {
            let stroke =
                keys::of_char(character).with_context(|| format!("no key of a US keyboard types {character:?}"))?;
            self.strike(&stroke).await?;
        }
        Ok(())
    }

    /// Presses and releases a key by its name as in `KeyboardEvent.key` (`Enter`, `Escape`, `ArrowDown`, `F5`, `a`), with
    /// modifiers before it: `Shift+Tab`, `Control+Alt+Delete`.
    ///
    /// # Errors
    /// There is no such key.
    pub async fn press(&self, keys: &str) -> anyhow::Result<()> {
        let stroke = keys::named(keys).with_context(|| format!("{keys:?} is not a key"))?;
        self.strike(&stroke).await
    }

    async fn strike(&self, stroke: &keys::Stroke) -> anyhow::Result<()> {
        for event in stroke.events() {
            self.devtools.call("Input.dispatchKeyEvent", event).await?;
        }
        Ok(())
    }

    /// Empties the input that `selector` finds and types `text` into it.
    ///
    /// # Errors
    /// It cannot be clicked, or the text not be typed.
    pub async fn fill(&self, selector: &str, text: &str) -> anyhow::Result<()> {
        self.click(selector).await?;
        self.press("Control+a").await?;
        self.press("Delete").await?;
        self.type_text(text).await
    }

    /// Sets what the page sees of its user's screen: colour scheme, width and height in CSS pixels.
    ///
    /// # Errors
    /// Chromium is gone.
    pub async fn look(&self, scheme: ColorScheme, width: u32, height: u32) -> anyhow::Result<()> {
        let scheme = match scheme {
            ColorScheme::Light => "light",
            ColorScheme::Dark => "dark",
        };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.devtools.call("Emulation.setEmulatedMedia", features).await?;
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools
            .call("Emulation.setDeviceMetricsOverride", metrics)
            .await?;
        Ok(())
    }

    /// Writes what is in the window to `target/screenshots/NAME.png`, for people to look at, and returns the PNG.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn screenshot(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        self.capture(name, json!({ "format": "png" })).await
    }

    /// Like [`Page::screenshot`], but of the whole page, also what one has to scroll to.
    ///
    /// # Errors
    /// The file cannot be written.
    pub async fn full_screenshot(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let whole = json!({ "format": "png", "captureBeyondViewport": true, "clip": self.whole_page().await? });
        self.capture(name, whole).await
    }

    async fn whole_page(&self) -> anyhow::Result<Value> {
        let metrics = self.devtools.call("Page.getLayoutMetrics", json!({})).await?;
        let size = &metrics["cssContentSize"];
        Ok(json!({ "x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1 }))
    }

    async fn capture(&self, name: &str, parameters: Value) -> anyhow::Result<Vec<u8>> {
        let shot = self.devtools.call("Page.captureScreenshot", parameters).await?;
        let png = STANDARD.decode(shot["data"].as_str().unwrap_or_default())?;
        let path: PathBuf = screenshots()?.join(format!("{name}.png"));
        let _ = files::replace(&path, &png, 0o644)?;
        Ok(png)
    }

    /// Any other call of the DevTools protocol.
    ///
    /// # Errors
    /// Chromium refuses it, or does not answer in time.
    pub async fn call(&self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.devtools.call(method, parameters).await
    }

    /// What went wrong in this page so far.
    pub fn problems(&self) -> Vec<Problem> {
        self.devtools.problems()
    }

    /// Fails if anything went wrong in this page so far, except for requests: a page has to live with those that fail.
    ///
    /// # Errors
    /// All problems but [`Origin::Network`].
    pub fn check_clean(&self) -> anyhow::Result<()> {
        let mut problems = self.problems();
        problems.retain(|problem| problem.origin != Origin::Network);
        let list: Vec<_> = problems.iter().map(Problem::to_string).collect();
        ensure!(list.is_empty(), "the browser complains:\n{}", list.join("\n"));
        Ok(())
    }

    /// Closes the tab.
    ///
    /// # Errors
    /// Chromium is gone.
    pub async fn close(self) -> anyhow::Result<()> {
        let target = json!({ "targetId": self.target });
        self.devtools.call("Target.closeTarget", target).await.map(drop)
    }
}

impl Display for Problem {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.origin, self.text)
    }
}

/// No sandbox: Chromium's does not run as root, as CI does. Nothing that talks to the world on its own account.
fn command(profile: &Path) -> Cmd {
    const FLAGS: [&str; 15] = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-breakpad",
        "--disable-sync",
        "--no-first-run",
        "--no-default-browser-check",
        "--no-proxy-server",
        "--hide-scrollbars",
        "--window-size=1280,800",
        "--remote-debugging-port=0",
    ];
    let mut data_dir = std::ffi::OsString::from("--user-data-dir=");
    data_dir.push(profile);
    Cmd::new(PROGRAM)
        .args(FLAGS)
        .arg(data_dir)
        .arg("about:blank")
        .env("HOME", profile)
        .env("TMPDIR", profile)
        .env("LANG", "C.UTF-8")
}

/// For people to look at; ignored by git.
fn screenshots() -> anyhow::Result<PathBuf> {
    let directory = target_dir().join("screenshots");
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// The address of the DevTools server, and the path of the browser in it.
async fn find_port(profile: &Path) -> anyhow::Result<(String, String)> {
    let file = profile.join(PORT_FILE);
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Ok(Some(bytes)) = files::read_limited(&file, PORT_FILE_LIMIT) {
            let text = String::from_utf8_lossy(&bytes);
            // It is written in two lines; the second one ends without a line feed.
            if let Some((port, path)) = text.split_once('\n')
                && path.len() > "/devtools/browser/".len()
            {
                return Ok((format!("127.0.0.1:{}", port.trim()), path.trim().to_owned()));
            }
        }
        ensure!(
            Instant::now() < deadline,
            "it did not write {} within {START_LIMIT:?}",
            file.display()
        );
        sleep(LOOK_INTERVAL).await;
    }
}
