//! The web page, used in a real browser against the real server.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use platform::exec::{Cmd, Running};
use serde_json::Value;
use system_tests::browser::{Browser, ColorScheme, Page};
use system_tests::page::flaws;
use system_tests::programs::built;
use system_tests::wait;
use tempfile::TempDir;

/// For anything that a page does; debug builds on a busy machine are slow.
const LIMIT: Duration = Duration::from_secs(30);
/// What a person types. Not a real one.
const PASSWORD: &str = "correct horse battery";

const VIEWS: [(&str, &str); 5] = [
    ("overview", "Zone"),
    ("systemvms", "System VMs"),
    ("templates", "Templates and ISOs"),
    ("instances", "Instances"),
    ("events", "Events and alerts"),
];

/// A management server without system VMs: the page does not need any.
struct Server {
    directory: TempDir,
    http: SocketAddr,
    agents: SocketAddr,
    running: Option<Running>,
}

impl Server {
    async fn start() -> Self {
        let mut server = Self {
            directory: tempfile::Builder::new().prefix("sysvm-page-").tempdir().unwrap(),
            http: free_port(),
            agents: free_port(),
            running: None,
        };
        server.run().await;
        server
    }

    /// Starts it, again after [`Server::kill`], and waits until it answers.
    async fn run(&mut self) {
        let serve = self
            .program()
            .args([
                "serve",
                "--listen",
                &self.agents.to_string(),
                "--http",
                &self.http.to_string(),
            ])
            .spawn(self.directory.path().join("mgmt-stub.log"))
            .unwrap();
        self.running = Some(serve);
        wait::until("the API", LIMIT, async || self.api("listZones", &[]).await.map(drop)).await;
    }

    /// As a power cut would.
    async fn kill(&mut self) {
        self.running = None;
        let is_free = async || {
            TcpListener::bind(self.http)
                .map(drop)
                .map_err(|error| error.to_string())
        };
        wait::until("the port is free", LIMIT, is_free).await;
    }

    fn program(&self) -> Cmd {
        Cmd::new(built("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
    }

    async fn api(&self, command: &str, parameters: &[&str]) -> Result<Value, String> {
        let call = self.program().args(["api", command]).args(parameters);
        let printed = call.run().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&printed.stdout).map_err(|error| error.to_string())
    }

    async fn one_time_password(&self) -> String {
        let reset = self.program().arg("reset-admin-password").run().await.unwrap();
        reset.text().trim().to_owned()
    }

    fn page(&self) -> String {
        format!("http://{}/client/", self.http)
    }

    /// A tab in which the administrator is logged in.
    async fn logged_in(&self, browser: &Browser) -> Page {
        let password = self.one_time_password().await;
        let page = browser.open(&self.page()).await.unwrap();
        log_in(&page, &password).await;
        choose_password(&page, PASSWORD).await;
        page.wait_for_text("Live", LIMIT).await.unwrap();
        page
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

async fn log_in(page: &Page, password: &str) {
    page.wait_for("document.querySelector('#username') !== null", LIMIT)
        .await
        .unwrap();
    page.fill("#username", "admin").await.unwrap();
    page.fill("#password", password).await.unwrap();
    page.press("Enter").await.unwrap();
}

async fn choose_password(page: &Page, password: &str) {
    page.wait_for_text("Choose a password", LIMIT).await.unwrap();
    page.fill("#chosen", password).await.unwrap();
    page.fill("#repeated", password).await.unwrap();
    page.press("Enter").await.unwrap();
}

async fn open_view(page: &Page, view: &str, heading: &str) {
    page.click(&format!("nav a[href='#/{view}']")).await.unwrap();
    let is_open = format!("document.querySelector('#heading')?.textContent.startsWith('{heading}')");
    page.wait_for(&is_open, LIMIT).await.unwrap();
}

async fn text(page: &Page) -> String {
    let text = page.evaluate("document.body.innerText").await.unwrap();
    text.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_one_time_password_opens_the_page_once_and_has_to_be_replaced() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let one_time = server.one_time_password().await;
    let page = browser.open(&server.page()).await.unwrap();
    let stranger = page
        .evaluate("fetch('live').then((answer) => answer.status)")
        .await
        .unwrap();
    assert_eq!(stranger, 401);

    log_in(&page, "wrong").await;
    page.wait_for_text("Failed to authenticate user admin", LIMIT)
        .await
        .unwrap();
    let focused = page.evaluate("document.activeElement.id").await.unwrap();
    assert_eq!(focused, "password", "one can type the next try at once");
    page.screenshot("login-refused").await.unwrap();

    log_in(&page, &one_time).await;
    page.wait_for_text("Choose a password", LIMIT).await.unwrap();
    page.fill("#chosen", PASSWORD).await.unwrap();
    page.fill("#repeated", "another").await.unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for_text("The two passwords differ", LIMIT).await.unwrap();
    page.screenshot("choose-password").await.unwrap();
    choose_password(&page, PASSWORD).await;
    page.wait_for_text("Live", LIMIT).await.unwrap();
    page.reload().await.unwrap();
    page.wait_for_text("Live", LIMIT).await.unwrap();

    page.click("button[title='Log out']").await.unwrap();
    page.wait_for("document.querySelector('#password') !== null", LIMIT)
        .await
        .unwrap();
    let stored = page.evaluate("Object.keys(localStorage).length").await.unwrap();
    assert_eq!(stored, 0, "nothing of the session stays in the browser");
    log_in(&page, &one_time).await;
    page.wait_for_text("Failed to authenticate user admin", LIMIT)
        .await
        .unwrap();
    log_in(&page, PASSWORD).await;
    page.wait_for_text("Live", LIMIT).await.unwrap();
    page.check_clean().unwrap();
}

#[tokio::test]
async fn every_view_is_readable_dark_and_light_wide_and_narrow() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let page = server.logged_in(&browser).await;
    server
        .api("generateAlert", &["type=19", "name=test", "description=A long name without spaces: /very/long/path/of/a/template/that/does/not/end/anywhere/soon.qcow2"])
        .await
        .unwrap();
    for (view, heading) in VIEWS {
        open_view(&page, view, heading).await;
        for (scheme, width, name) in [
            (ColorScheme::Light, 1280, "light"),
            (ColorScheme::Dark, 1280, "dark"),
            (ColorScheme::Light, 360, "light-narrow"),
            (ColorScheme::Dark, 360, "dark-narrow"),
        ] {
            page.look(scheme, width, 900).await.unwrap();
            page.screenshot(&format!("page-{view}-{name}")).await.unwrap();
            let what = format!("{view}, {name}");
            assert_eq!(flaws(&page).await.unwrap(), Vec::<String>::new(), "{what}");
        }
        page.look(ColorScheme::Light, 1280, 900).await.unwrap();
    }
    page.check_clean().unwrap();
}

#[tokio::test]
async fn what_changes_on_the_server_appears_by_itself() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let page = server.logged_in(&browser).await;
    page.evaluate("globalThis.isSamePage = true").await.unwrap();
    let before = Instant::now();
    server
        .api(
            "generateAlert",
            &["type=19", "name=test", "description=The cellar is under water"],
        )
        .await
        .unwrap();
    page.wait_for_text("The cellar is under water", Duration::from_secs(5))
        .await
        .unwrap();
    println!(
        "A change was on the page {:?} after its command was started",
        before.elapsed()
    );
    assert_eq!(page.evaluate("isSamePage").await.unwrap(), true);
    page.check_clean().unwrap();
}

#[tokio::test]
async fn a_server_that_goes_away_is_awaited_and_the_session_goes_on() {
    let mut server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let page = server.logged_in(&browser).await;
    open_view(&page, "events", "Events and alerts").await;
    page.fill("#filter", "LOGIN").await.unwrap();

    server.kill().await;
    page.wait_for_text("Reconnecting…", LIMIT).await.unwrap();
    page.wait_for_text("The server does not answer", LIMIT).await.unwrap();
    page.screenshot("page-reconnecting").await.unwrap();
    assert!(
        text(&page).await.contains("USER.LOGIN"),
        "what was known stays on the page"
    );

    server.run().await;
    page.wait_for_text("Live", LIMIT).await.unwrap();
    server
        .api("generateAlert", &["type=19", "name=test", "description=Back again"])
        .await
        .unwrap();
    page.wait_for_text("Back again", LIMIT).await.unwrap();
    let typed = page.evaluate("document.querySelector('#filter').value").await.unwrap();
    assert_eq!(typed, "LOGIN", "the user goes on where he was");
    page.check_clean().unwrap();
}

#[tokio::test]
async fn a_session_that_ends_is_asked_for_again_without_losing_the_view() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let page = server.logged_in(&browser).await;
    open_view(&page, "events", "Events and alerts").await;
    page.fill("#filter", "LOGIN").await.unwrap();
    // Resetting the password ends all sessions: the page is told nothing more, and asks.
    page.call("Network.clearBrowserCookies", serde_json::json!({}))
        .await
        .unwrap();
    page.call("Network.enable", serde_json::json!({})).await.unwrap();
    open_view(&page, "templates", "Templates").await;
    page.click("main button.primary").await.unwrap();
    page.wait_for_text("Your session has ended", LIMIT).await.unwrap();
    page.screenshot("page-log-in-again").await.unwrap();
    log_in(&page, PASSWORD).await;
    page.wait_for("document.querySelector('#password') === null", LIMIT)
        .await
        .unwrap();
    page.wait_for_text("Live", LIMIT).await.unwrap();
    page.check_clean().unwrap();
}

#[tokio::test]
async fn logging_out_in_one_tab_ends_what_another_tab_is_shown() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let page = server.logged_in(&browser).await;
    let other = browser.open(&server.page()).await.unwrap();
    other.wait_for_text("Live", LIMIT).await.unwrap();
    other.click("button[title='Log out']").await.unwrap();
    // The event of the logout is the first thing that the other tab must not be told any more.
    page.wait_for_text("Your session has ended", LIMIT).await.unwrap();
    assert!(!text(&page).await.contains("USER.LOGOUT"));
    page.check_clean().unwrap();
}

#[tokio::test]
async fn the_page_works_with_the_keyboard_alone() {
    let server = Server::start().await;
    let password = server.one_time_password().await;
    let browser = Browser::start().await.unwrap();
    let page = browser.open(&server.page()).await.unwrap();
    let focus = "document.activeElement.id || document.activeElement.textContent";
    page.wait_for("document.activeElement.id === 'username'", LIMIT)
        .await
        .unwrap();
    page.type_text("admin").await.unwrap();
    page.press("Tab").await.unwrap();
    page.type_text(&password).await.unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for("document.activeElement.id === 'chosen'", LIMIT)
        .await
        .unwrap();
    page.type_text(PASSWORD).await.unwrap();
    page.press("Tab").await.unwrap();
    page.type_text(PASSWORD).await.unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for_text("Live", LIMIT).await.unwrap();

    page.press("Tab").await.unwrap();
    assert_eq!(page.evaluate(focus).await.unwrap(), "Skip to the content");
    page.press("Enter").await.unwrap();
    assert_eq!(page.evaluate(focus).await.unwrap(), "heading");
    for _ in 0..20 {
        page.press("Shift+Tab").await.unwrap();
        if page.evaluate(focus).await.unwrap() == "Templates" {
            break;
        }
    }
    page.press("Enter").await.unwrap();
    page.wait_for("document.activeElement.textContent === 'Templates and ISOs'", LIMIT)
        .await
        .unwrap();
    page.press("Tab").await.unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for("document.activeElement.id === 'url'", LIMIT)
        .await
        .unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for_text("Give the whole URL of the image", LIMIT)
        .await
        .unwrap();
    page.press("Escape").await.unwrap();
    page.wait_for("document.activeElement.textContent === 'Register by URL'", LIMIT)
        .await
        .unwrap_or_else(|error| panic!("the focus comes back to where it was: {error}"));
    page.check_clean().unwrap();
}
