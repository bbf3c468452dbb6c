//! How the page shows VMs in states that pass quickly: with sample objects in the place of what the live stream brings.
//! Everything else is real: server, session, stream of the VM, browser.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use platform::exec::{Cmd, Running};
use serde_json::{Value, json};
use system_tests::browser::{Browser, ColorScheme, Page};
use system_tests::page::{self, flaws};
use system_tests::programs::built;
use system_tests::wait;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(30);

struct Server {
    directory: TempDir,
    http: SocketAddr,
    _running: Running,
}

impl Server {
    async fn start() -> Self {
        let free_port = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            listener.local_addr().unwrap()
        };
        let directory = tempfile::Builder::new().prefix("sysvm-page-").tempdir().unwrap();
        let (http, agents) = (free_port(), free_port());
        let serve = ["serve", "--listen", &agents.to_string(), "--http", &http.to_string()];
        let running = program(&directory)
            .args(serve)
            .spawn(directory.path().join("log"))
            .unwrap();
        let server = Self {
            directory,
            http,
            _running: running,
        };
        wait::until("the API", LIMIT, async || server.api(&["listZones"]).await.map(drop)).await;
        server
    }

    async fn api(&self, words: &[&str]) -> Result<Value, String> {
        let call = program(&self.directory).arg("api").args(words);
        let printed = call.run().await.map_err(|error| error.to_string())?;
        serde_json::from_slice(&printed.stdout).map_err(|error| error.to_string())
    }

    async fn logged_in(&self, browser: &Browser) -> Page {
        let reset = program(&self.directory)
            .arg("reset-admin-password")
            .run()
            .await
            .unwrap();
        page::logged_in(browser, self.http, reset.text().trim()).await.unwrap()
    }

    /// The id of something that the VM's stream knows.
    async fn instance(&self) -> String {
        let words = [
            "registerExternalVirtualMachine",
            "name=sample",
            "vncaddress=127.0.0.1",
            "vncport=5900",
        ];
        let made = self.api(&words).await.unwrap();
        made["virtualmachine"]["id"].as_str().unwrap().to_owned()
    }
}

fn program(directory: &TempDir) -> Cmd {
    Cmd::new(built("mgmt-stub"))
        .arg("--data-dir")
        .arg(directory.path().join("data"))
}

/// Puts sample objects where the live stream puts its topics.
async fn show(page: &Page, topics: &Value) {
    let code = format!(
        "import('/client/state.js').then(({{ state, changed }}) => {{ Object.assign(state, {topics}); changed(); return 0; }})"
    );
    page.evaluate(&code).await.unwrap();
}

async fn look_everywhere(page: &Page, name: &str) {
    for (scheme, width, look) in [
        (ColorScheme::Light, 1280, "light"),
        (ColorScheme::Dark, 1280, "dark"),
        (ColorScheme::Light, 360, "light-narrow"),
        (ColorScheme::Dark, 360, "dark-narrow"),
    ] {
        page.look(scheme, width, 900).await.unwrap();
        page.full_screenshot(&format!("vms-{name}-{look}")).await.unwrap();
        assert_eq!(flaws(page).await.unwrap(), Vec::<String>::new(), "{name}, {look}");
    }
    page.look(ColorScheme::Light, 1280, 900).await.unwrap();
}

/// An SSVM that cannot mount its store.
fn starting(id: &str) -> Value {
    let names = [
        "qemu",
        "guest agent",
        "boot arguments",
        "ssh",
        "certificate",
        "addresses",
        "clock",
        "stores",
    ];
    let steps: Vec<Value> = names
        .iter()
        .zip([0, 41, 1, 19, 3, 2, 1, 30])
        .scan(1_795_305_600_000_i64, |at, (name, seconds)| {
            *at += seconds * 1000;
            let is_last = *name == "stores";
            let (outcome, detail) = if is_last {
                ("failed", "mount.nfs4: connection timed out")
            } else {
                ("done", "")
            };
            Some(json!({ "name": name, "outcome": outcome, "at": *at, "detail": detail }))
        })
        .collect();
    json!({
        "id": id, "name": "s-1-VM", "systemvmtype": "secondarystoragevm", "state": "Running",
        "reason": "it runs, but it cannot mount nfs://172.31.3.5/export/secondary: the server does not answer",
        "whattodo": "wait: after 300 s of this it is started again; else do what the problem names",
        "bootprogress": steps, "hypervisor": "KVM", "memory": 512, "cpunumber": 1, "zonename": "zone1",
        "created": "2026-11-22T00:00:00+0000", "since": "2026-11-22T00:01:00+0000", "hasscreen": true,
        "bootproblem": "it cannot mount nfs://172.31.3.5/export/secondary", "publicip": "172.31.2.17", "privateip": "172.31.1.11", "linklocalip": "169.254.3.7", "storageip": "172.31.3.12",
    })
}

#[tokio::test]
async fn a_system_vm_that_does_not_come_up_is_shown_step_by_step() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let id = server.instance().await; // before the page's first look: what changes later replaces the samples
    let page = server.logged_in(&browser).await;
    show(&page, &json!({ "systemvms": [starting(&id)] })).await;
    page::open_view(&page, "systemvms").await.unwrap();
    page.wait_for_text("What to do:", LIMIT).await.unwrap();
    page.wait_for_text(
        "step 8 of 8 so far · stores failed: mount.nfs4: connection timed out",
        LIMIT,
    )
    .await
    .unwrap();
    look_everywhere(&page, "starting").await;

    page.click("main h2 a").await.unwrap();
    page.wait_for("document.querySelectorAll('.steps li').length === 8", LIMIT)
        .await
        .unwrap();
    assert_eq!(
        page.evaluate("document.querySelector('.steps').open").await.unwrap(),
        true,
        "it is not over"
    );
    let samples = "Array.from({ length: 150 }, (_, i) => [Date.now() - (149 - i) * 2000, 2000 + 1800 * Math.sin(i / 9) + (i % 7) * 300, 3e8 + i * 1e6, 2e5 * (1 + Math.sin(i / 5)), 4e4])";
    let watched = format!(
        "import('/client/state.js').then(({{ state, changed }}) => {{ state.watched.samples = {samples}; state.watched.log = '[   12.3] Mounting nfs…\\n'.repeat(12); changed(); return 0; }})"
    );
    page.evaluate(&watched).await.unwrap();
    page.wait_for("document.querySelectorAll('.chart path.line').length === 4", LIMIT)
        .await
        .unwrap();
    look_everywhere(&page, "detail").await;

    // Its end: the view says so instead of being empty.
    show(&page, &json!({ "systemvms": [] })).await;
    page.wait_for_text("It does not exist any more", LIMIT).await.unwrap();
    page.check_clean().unwrap();
}

#[tokio::test]
async fn instances_show_their_states_and_one_is_deployed_by_a_form() {
    let server = Server::start().await;
    let browser = Browser::start().await.unwrap();
    let id = server.instance().await; // before the page's first look: what changes later replaces the samples
    let page = server.logged_in(&browser).await;
    let vm = |number: u32, state: &str, reason: &str| {
        json!({
            "id": format!("{}{number}", &id[..35]), "name": format!("web-{number}"), "displayname": format!("web-{number}"),
            "state": state, "reason": reason, "hypervisor": "KVM", "serviceofferingid": "x",
            "serviceofferingname": "Small Instance", "templatename": "Debian 13", "zonename": "zone1", "cpunumber": 1,
            "memory": 512, "created": "2026-11-22T00:00:00+0000", "hasscreen": state == "Running",
        })
    };
    let topics = json!({
        "virtualmachines": [
            vm(1, "Running", "running"),
            vm(2, "Starting", "copying template Debian 13 to primary storage: 42 %"),
            vm(3, "Stopped", "stopped"),
            vm(4, "Stopped", "exited: signal 9"),
            vm(5, "Error", "cannot be started: template Debian 13 cannot be copied to primary storage: the storage pool has 1000 bytes left"),
            vm(6, "Destroyed", "destroyed"),
        ],
        "storagepools": [{ "id": "p", "name": "primary", "state": "Up", "disksizetotal": 50_000_000_000_u64, "disksizeused": 20_000_000_000_u64 }],
        "templates": [{ "id": id, "name": "Debian 13", "isready": true, "zoneid": id }],
    });
    show(&page, &topics).await;
    page::open_view(&page, "instances").await.unwrap();
    page.wait_for_text("Copying template Debian 13 to primary storage: 42 %", LIMIT)
        .await
        .unwrap();
    let shown = page.evaluate("[...document.querySelectorAll('tbody tr')].map((row) => [...row.querySelectorAll('button')].map((button) => button.innerText).join(' '))").await.unwrap();
    let expected = [
        "Console Reboot Stop Destroy",
        "",
        "Start Destroy",
        "Start Destroy",
        "Destroy",
        "Recover Expunge",
    ];
    assert_eq!(shown, json!(expected));
    look_everywhere(&page, "instances").await;

    page.click("main .heading button.primary").await.unwrap();
    page.wait_for("document.activeElement.id === 'name'", LIMIT)
        .await
        .unwrap();
    page.wait_for("document.querySelector('#serviceofferingid option') !== null", LIMIT)
        .await
        .unwrap();
    page.screenshot("vms-deploy").await.unwrap();
    page.fill("#name", "-no").await.unwrap();
    page.press("Enter").await.unwrap();
    page.wait_for_text("Give it a name of letters, digits and hyphens", LIMIT)
        .await
        .unwrap();
    page.fill("#name", "web-7").await.unwrap();
    page.press("Enter").await.unwrap();
    // This server has no hypervisor, and its words are in the form.
    page.wait_for_text("this zone has no hypervisor for instances", LIMIT)
        .await
        .unwrap();
    page.press("Escape").await.unwrap();
    page.wait_for("document.querySelector('dialog') === null", LIMIT)
        .await
        .unwrap();
}
