//! VMs of users, from deploying to their end, over a driver that records what it is told. Templates, disks and
//! `qemu-img` are real.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mgmt_stub::api::Api;
use mgmt_stub::api::error::Code;
use mgmt_stub::api::session::{Caller, Proof};
use mgmt_stub::client::ClientError;
use mgmt_stub::download_state::DownloadEvent;
use mgmt_stub::driver::Purpose;
use mgmt_stub::store::id::{AccountId, ZoneId};
use mgmt_stub::store::template::{Progress, Template, TemplateFacts, TemplateKind};
use platform::exec::Cmd;
use serde_json::{Value, json};

use crate::fake_driver::FakeDriver;
use crate::support::Server;

const LIMIT: Duration = Duration::from_secs(30);

struct World {
    server: Server,
    driver: Arc<FakeDriver>,
    template: Template,
}

impl World {
    /// A zone with a template that is ready.
    async fn new() -> Self {
        let driver = Arc::new(FakeDriver::default());
        let shared: Arc<FakeDriver> = Arc::clone(&driver);
        let server = Server::start_with(shared).await;
        let directory = server.data_dir().join("store");
        std::fs::create_dir(&directory).unwrap();
        let store = &server.management.store;
        let image_store = store
            .add_image_store(ZoneId(1), "secondary", "nfs://172.31.3.5/export", None)
            .await
            .unwrap();
        store
            .set_image_store_directory(image_store.id, directory.display().to_string())
            .await
            .unwrap();
        let image = Cmd::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(directory.join("a.qcow2"));
        image.arg("8M").run().await.unwrap();
        let template = Self::template(&server, "Debian 13", "a.qcow2").await;
        Self {
            server,
            driver,
            template,
        }
    }

    async fn template(server: &Server, name: &str, path: &str) -> Template {
        let store = &server.management.store;
        let image_store = store.image_stores(ZoneId(1)).await.unwrap().remove(0);
        let (template, on_stores) = store.create_template(facts(name), vec![image_store.id]).await.unwrap();
        let progress = Progress {
            percent: 100,
            install_path: Some(path.into()),
            ..Progress::default()
        };
        let done = store
            .download_event(on_stores[0].id, DownloadEvent::Done, progress, 1, None)
            .await;
        done.unwrap();
        template
    }

    async fn api(&self, command: &str, parameters: &[(&str, &str)]) -> Value {
        let answer = self.server.api(command, parameters).await;
        answer.unwrap_or_else(|error| panic!("{command} {parameters:?}: {error}"))
    }

    async fn refusal(&self, command: &str, parameters: &[(&str, &str)]) -> String {
        match self.server.api(command, parameters).await {
            Err(ClientError::Refused { text, .. } | ClientError::JobFailed { text, .. }) => text,
            other => panic!("{command} {parameters:?}: {other:?}"),
        }
    }

    /// What `deployVirtualMachine` needs.
    async fn wanted(&self) -> Vec<(String, String)> {
        let zones = self.api("listZones", &[("available", "true")]).await;
        let offerings = self.api("listServiceOfferings", &[("name", "Small Instance")]).await;
        let templates = self.api("listTemplates", &[("templatefilter", "executable")]).await;
        let id = |list: &Value, object: &str| list[object][0]["id"].as_str().unwrap().to_owned();
        vec![
            ("zoneid".into(), id(&zones, "zone")),
            ("serviceofferingid".into(), id(&offerings, "serviceoffering")),
            ("templateid".into(), id(&templates, "template")),
        ]
    }

    async fn deploy(&self, more: &[(&str, &str)]) -> Result<Value, ClientError> {
        let mut parameters = self.wanted().await;
        for (name, value) in more {
            parameters.retain(|(known, _)| known != name);
            parameters.push(((*name).into(), (*value).into()));
        }
        self.server
            .client
            .call_and_wait("deployVirtualMachine", &parameters)
            .await
    }

    async fn deployed(&self, name: &str) -> Value {
        self.deploy(&[("name", name)]).await.unwrap()["virtualmachine"].take()
    }

    async fn vm(&self, id: &str) -> Value {
        let mut all = self
            .api("listVirtualMachines", &[("id", id), ("listall", "true")])
            .await;
        all["virtualmachine"][0].take()
    }

    async fn until(&self, id: &str, state: &str) -> Value {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let vm = self.vm(id).await;
                if vm["state"] == state {
                    return vm;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        waited.await.unwrap()
    }

    fn pool(&self) -> PathBuf {
        self.server.data_dir().join("primary")
    }

    fn files(&self) -> usize {
        std::fs::read_dir(self.pool()).unwrap().count()
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.driver.state().calls)
    }

    /// As a user without rights, over the same API.
    async fn as_user(&self, command: &str, parameters: &[(&str, &str)]) -> Result<Value, (Code, String)> {
        let mut identity = self.server.management.store.administrator().await.unwrap();
        identity.account.id = AccountId(77);
        identity.account.account_type = 0;
        let caller = Caller {
            identity,
            proof: Proof::Signature,
        };
        let api = Api::new(Arc::clone(&self.server.management));
        let answer = api.call_named(&caller, command, parameters).await;
        answer.map_err(|error| (error.code, error.text))
    }
}

fn facts(name: &str) -> TemplateFacts {
    TemplateFacts {
        kind: TemplateKind::Template,
        name: name.into(),
        display_text: name.into(),
        format: "QCOW2".into(),
        hypervisor: "KVM".into(),
        url: "https://example.org/a.qcow2".into(),
        checksum: None,
        arch: "x86_64".into(),
        bits: 64,
        os_type: None,
        template_tag: None,
        details: std::collections::BTreeMap::new(),
        account: AccountId(1),
        zone: ZoneId(1),
        is_public: false,
        is_featured: false,
        is_extractable: false,
        is_bootable: true,
        requires_hvm: true,
        password_enabled: false,
        ssh_key_enabled: false,
        dynamically_scalable: false,
    }
}

#[tokio::test]
async fn an_instance_lives_from_deploying_to_expunging_and_its_disk_with_it() {
    let world = World::new().await;
    let vm = world.deployed("web-1").await;
    let (id, name) = (vm["id"].as_str().unwrap(), vm["instancename"].as_str().unwrap());
    let shown = |field: &str| vm[field].clone();
    let fields = [
        "name",
        "displayname",
        "state",
        "hypervisor",
        "templatename",
        "serviceofferingname",
        "memory",
        "nic",
    ];
    let expected = ["web-1", "web-1", "Running", "KVM", "Debian 13", "Small Instance"];
    assert_eq!(
        fields[..6].iter().map(|field| shown(field)).collect::<Vec<_>>(),
        expected
    );
    assert_eq!((shown("memory"), shown("nic")), (json!(512), json!([])));
    assert_eq!(name, format!("i-1-{}-VM", 1));
    assert_eq!(world.calls(), [format!("start {name}")]);
    {
        let state = world.driver.state();
        let (spec, _) = &state.vms[name];
        let Purpose::User { disk } = &spec.purpose else {
            panic!("{spec:?}")
        };
        assert!(disk.is_file() && disk.starts_with(world.pool()), "{}", disk.display());
        assert_eq!((spec.cpus, spec.memory_mib, spec.nics.len()), (1, 512, 0));
        assert_eq!(spec.vnc_password.expose().len(), 8);
    }
    assert_eq!(world.files(), 2, "the template's copy and the disk");

    let second = world.deployed("web-2").await;
    assert_eq!(world.files(), 3, "the copy is used again");
    let volumes = world
        .api("listVolumes", &[("virtualmachineid", id), ("listall", "true")])
        .await;
    let volume = &volumes["volume"][0];
    assert_eq!(volume["count"], Value::Null);
    assert_eq!(
        (&volume["name"], &volume["state"], &volume["size"]),
        (&json!("ROOT-1"), &json!("Ready"), &json!(8 << 20))
    );
    assert_eq!((&volume["vmname"], &volume["type"]), (&json!("web-1"), &json!("ROOT")));
    let pools = world.api("listStoragePools", &[]).await;
    let pool = &pools["storagepool"][0];
    assert_eq!(
        (&pool["scope"], &pool["type"], &pool["state"]),
        (&json!("HOST"), &json!("Filesystem"), &json!("Up"))
    );
    assert!(pool["disksizetotal"].as_u64() > pool["disksizeused"].as_u64(), "{pool}");
    assert!(pool["disksizeallocated"].as_u64() >= Some(16 << 20), "{pool}");

    let one = [("id", id)];
    world.calls();
    let steps: [(&str, &[(&str, &str)], &str, &str); 6] = [
        ("rebootVirtualMachine", &[], "Running", "reboot"),
        ("stopVirtualMachine", &[], "Stopped", "stop"),
        ("startVirtualMachine", &[], "Running", "start"),
        ("startVirtualMachine", &[], "Running", ""),
        ("stopVirtualMachine", &[("forced", "true")], "Stopped", "power off"),
        ("destroyVirtualMachine", &[], "Destroyed", ""),
    ];
    for (command, more, state, call) in steps {
        let parameters: Vec<_> = one.iter().chain(more).copied().collect();
        let vm = world.api(command, &parameters).await;
        assert_eq!(vm["virtualmachine"]["state"], state, "{command}");
        let expected: Vec<_> = Some(call)
            .filter(|call| !call.is_empty())
            .map(|call| format!("{call} {name}"))
            .into_iter()
            .collect();
        assert_eq!(world.calls(), expected, "{command}");
    }
    assert_eq!(
        world.refusal("startVirtualMachine", &one).await,
        "instance web-1 is Destroyed; this needs one that is Stopped"
    );
    world.api("recoverVirtualMachine", &one).await;
    assert_eq!(world.vm(id).await["state"], "Stopped");
    world
        .api("destroyVirtualMachine", &[("id", id), ("expunge", "true")])
        .await;
    assert_eq!(world.calls(), [format!("destroy {name}")]);
    assert!(
        world
            .refusal("startVirtualMachine", &one)
            .await
            .contains("entity does not exist")
    );
    assert_eq!(world.files(), 2);
    let left = world.api("listVirtualMachines", &[("listall", "true")]).await;
    assert_eq!(
        (&left["count"], &left["virtualmachine"][0]["id"]),
        (&json!(1), &second["id"])
    );

    let events = world
        .api("listEvents", &[("listall", "true"), ("state", "Completed")])
        .await;
    let mut types: Vec<_> = events["event"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    types.sort_unstable();
    types.dedup();
    for wanted in [
        "VM.CREATE",
        "VM.DESTROY",
        "VM.REBOOT",
        "VM.RECOVER",
        "VM.START",
        "VM.STOP",
    ] {
        assert!(types.contains(&wanted), "{wanted}: {types:?}");
    }
}

#[tokio::test]
async fn an_instance_that_ends_by_itself_is_stopped_and_one_that_cannot_be_made_says_why() {
    let world = World::new().await;
    let vm = world.deployed("web-1").await;
    let (id, name) = (vm["id"].as_str().unwrap(), vm["instancename"].as_str().unwrap());
    world.driver.end(name, "exited: signal 9");
    assert_eq!(world.until(id, "Stopped").await["reason"], "exited: signal 9");
    let alerts = world.api("listAlerts", &[("type", "27")]).await;
    assert_eq!(
        alerts["alert"][0]["description"],
        "web-1 is off without having been stopped: exited: signal 9"
    );

    world.driver.state().is_broken = true;
    let error = world.deploy(&[("name", "web-2")]).await.unwrap_err().to_string();
    assert!(
        error.contains("the hypervisor could not start instance web-2"),
        "{error}"
    );
    let failed = world
        .api("listVirtualMachines", &[("state", "Error"), ("listall", "true")])
        .await;
    let failed = &failed["virtualmachine"][0];
    assert!(
        failed["reason"]
            .as_str()
            .unwrap()
            .starts_with("cannot be started: the hypervisor could not"),
        "{failed}"
    );
    let id = failed["id"].as_str().unwrap();
    world
        .api("destroyVirtualMachine", &[("id", id), ("expunge", "true")])
        .await;
    assert!(
        world
            .refusal("startVirtualMachine", &[("id", id)])
            .await
            .contains("entity does not exist")
    );

    // An image that nobody should open: the job says so, and nothing is left.
    let directory = world.server.data_dir().join("store");
    let bad = Cmd::new("qemu-img").args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname"]);
    bad.arg(directory.join("bad.qcow2")).arg("1M").run().await.unwrap();
    let bad = World::template(&world.server, "Bad", "bad.qcow2").await;
    let before = world.files();
    let error = world
        .deploy(&[("name", "web-3"), ("templateid", &bad.uuid.to_string())])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("template Bad cannot be copied to primary storage") && error.contains("it names a backing file"),
        "{error}"
    );
    assert_eq!(world.files(), before);
}

#[tokio::test]
async fn what_is_not_possible_is_refused_before_anything_is_made() {
    let world = World::new().await;
    let nobody = "6d1f2a34-0b8e-4c5d-9e7f-112233445566";
    for (more, words) in [
        (
            ("networkids", nobody),
            "parameter networkids cannot be used: there are no guest networks yet",
        ),
        (("rootdisksize", "20"), "as big as its template"),
        (("userdata", "eA=="), "no virtual router yet"),
        (("keypair", "mine"), "no virtual router yet"),
        (
            ("details[0].cpuOvercommitRatio", "2"),
            "parameter details cannot be used",
        ),
        (("zoneid", nobody), "zoneid"),
        (("templateid", nobody), "templateid"),
        (("serviceofferingid", nobody), "serviceofferingid"),
        (("name", "-web"), "63 letters"),
        (("hypervisor", "VMware"), "is for KVM, not for the hypervisor given"),
        (("account", "somebody"), "belongs to who deploys it"),
    ] {
        let error = world.deploy(&[more]).await.unwrap_err().to_string();
        assert!(error.contains(words), "{more:?}: {error}");
    }
    let store = &world.server.management.store;
    let (waiting, _) = store.create_template(facts("Waiting"), Vec::new()).await.unwrap();
    let foreign = TemplateFacts {
        hypervisor: "VMware".into(),
        ..facts("Foreign")
    };
    let (foreign, _) = store.create_template(foreign, Vec::new()).await.unwrap();
    let iso = TemplateFacts {
        kind: TemplateKind::Iso,
        ..facts("Installer")
    };
    let (iso, _) = store.create_template(iso, Vec::new()).await.unwrap();
    for (template, words) in [
        (waiting, "not ready yet"),
        (foreign, "is for VMware, and this zone has KVM"),
        (iso, "is an ISO"),
    ] {
        let error = world
            .deploy(&[("templateid", &template.uuid.to_string())])
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(world.calls().is_empty());
    assert!(store.instances().await.unwrap().is_empty());

    // Clients send these, and they change nothing that is there.
    let vm = world
        .deploy(&[("keyboard", "None"), ("networkids", ""), ("startvm", "false")])
        .await
        .unwrap();
    let vm = &vm["virtualmachine"];
    assert_eq!(vm["state"], "Stopped");
    assert!(vm["name"].as_str().unwrap().starts_with("VM-"), "{vm}");
    assert_eq!(world.files(), 0, "its disk is made at its first start");
}

#[tokio::test]
async fn users_see_and_steer_their_own_only_and_hear_no_paths() {
    let world = World::new().await;
    let vm = world.deployed("web-1").await;
    let id = vm["id"].as_str().unwrap();
    assert_eq!(
        world.as_user("listVirtualMachines", &[("listall", "true")]).await,
        Ok(json!({}))
    );
    assert_eq!(
        world.as_user("listVolumes", &[("listall", "true")]).await,
        Ok(json!({}))
    );
    for command in [
        "startVirtualMachine",
        "stopVirtualMachine",
        "rebootVirtualMachine",
        "destroyVirtualMachine",
    ] {
        let (code, text) = world.as_user(command, &[("id", id)]).await.unwrap_err();
        assert!(
            code == Code::Parameter && text.contains("entity does not exist"),
            "{command}: {text}"
        );
    }
    let (code, _) = world
        .as_user("createConsoleEndpoint", &[("virtualmachineid", id)])
        .await
        .unwrap_err();
    assert_eq!(code, Code::Parameter);
    for command in ["expungeVirtualMachine", "recoverVirtualMachine"] {
        let (code, text) = world.as_user(command, &[("id", id)]).await.unwrap_err();
        assert!(
            code == Code::Permission && text.contains("allow.user.expunge.recover.vm"),
            "{command}: {text}"
        );
    }
    let (code, text) = world.as_user("listStoragePools", &[]).await.unwrap_err();
    assert_eq!(
        (code, text.as_str()),
        (Code::Permission, "listStoragePools is for administrators")
    );

    // A template that is not public is not his either.
    let template = world.template.uuid.to_string();
    let mut wanted = world.wanted().await;
    wanted[2].1 = template;
    let wanted: Vec<(&str, &str)> = wanted
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let (code, text) = world.as_user("deployVirtualMachine", &wanted).await.unwrap_err();
    assert!(code == Code::Parameter && text.contains("templateid"), "{text}");
}

#[tokio::test]
async fn consoles_find_the_screen_that_the_driver_tells() {
    let world = World::new().await;
    let vm = world.deployed("web-1").await;
    let id = vm["id"].as_str().unwrap();
    assert_eq!((&vm["hasscreen"], &vm["vncport"]), (&json!(true), &json!(5900)));
    let console = |answer: &Value| answer["consoleendpoint"]["details"].as_str().unwrap().to_owned();
    let details = console(&world.api("createConsoleEndpoint", &[("virtualmachineid", id)]).await);
    assert!(
        details.starts_with("no console proxy is connected"),
        "only a proxy lacks: {details}"
    );
    world.api("stopVirtualMachine", &[("id", id)]).await;
    let details = console(&world.api("createConsoleEndpoint", &[("virtualmachineid", id)]).await);
    assert_eq!(
        details,
        "instance web-1 is Stopped: only a running instance has a console"
    );
}

#[tokio::test]
async fn a_server_that_comes_back_finds_instances_as_they_are() {
    let world = World::new().await;
    let (on, off) = (world.deployed("web-1").await, world.deployed("web-2").await);
    let id = |vm: &Value| vm["id"].as_str().unwrap().to_owned();
    let World {
        server,
        driver,
        template,
    } = world;
    driver.end(off["instancename"].as_str().unwrap(), "exited: signal 15");
    // As after a kill in the middle: a file that belongs to nothing, one that is not finished.
    let stray = server
        .data_dir()
        .join("primary")
        .join("6d1f2a34-0b8e-4c5d-9e7f-112233445566");
    let half = server.data_dir().join("primary").join(".part-x-new");
    for path in [&stray, &half] {
        let _ = platform::files::replace(path, "x", 0o600).unwrap();
    }
    let server = server.restart().await;
    let world = World {
        server,
        driver,
        template,
    };
    assert_eq!(world.until(&id(&off), "Stopped").await["reason"], "exited: signal 15");
    assert_eq!(world.vm(&id(&on)).await["state"], "Running");
    assert!(!stray.exists() && !half.exists());
    assert_eq!(world.files(), 3);
    world.api("startVirtualMachine", &[("id", &id(&off))]).await;
    assert_eq!(world.files(), 3, "the disk is the same");
}

#[tokio::test]
async fn what_was_destroyed_long_ago_goes_and_the_template_that_nobody_needs() {
    let world = World::new().await;
    for (name, value) in [("expunge.delay", "0"), ("expunge.interval", "0")] {
        world
            .api("updateConfiguration", &[("name", name), ("value", value)])
            .await;
    }
    let vm = world.deployed("web-1").await;
    let id = vm["id"].as_str().unwrap();
    let store = &world.server.management.store;
    store.remove_template(world.template.id).await.unwrap();
    world.api("destroyVirtualMachine", &[("id", id)]).await;
    let waited = tokio::time::timeout(LIMIT, async {
        while world.files() > 0 {
            world.driver.touch();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap();
    assert!(store.instances().await.unwrap().is_empty());
}

#[tokio::test]
async fn metrics_count_vms_their_starts_and_failures_and_what_they_use() {
    let world = World::new().await;
    let vm = world.deployed("web-1").await;
    let name = vm["instancename"].as_str().unwrap();
    world.driver.state().is_broken = true;
    world.deploy(&[("name", "web-2")]).await.unwrap_err();
    let api = Api::new(Arc::clone(&world.server.management));
    let waited = tokio::time::timeout(LIMIT, async {
        loop {
            let body = http_body_util::BodyExt::collect(api.metrics().await.into_body())
                .await
                .unwrap()
                .to_bytes();
            let text = String::from_utf8(body.to_vec()).unwrap();
            if text.contains("mgmt_vm_memory_bytes") && text.contains(&format!("{{vm=\"{name}\"}}")) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let text = waited.await.unwrap();
    for line in [
        "mgmt_vms{type=\"User\",state=\"Running\"} 1\n".to_owned(),
        "mgmt_vms{type=\"User\",state=\"Error\"} 1\n".to_owned(),
        "mgmt_vms{type=\"ConsoleProxy\",state=\"Running\"} 0\n".to_owned(),
        "mgmt_vm_transitions_total{type=\"User\",from=\"Starting\",to=\"Running\"} 1\n".to_owned(),
        "mgmt_vm_transitions_total{type=\"User\",from=\"Starting\",to=\"Stopped\"} 1\n".to_owned(),
        format!("mgmt_vm_memory_bytes{{vm=\"{name}\"}} {}\n", 64 << 20),
        format!("mgmt_vm_cpu_milliseconds{{vm=\"{name}\"}} 1000\n"),
        format!("mgmt_vm_received_bytes{{vm=\"{name}\"}} 2048\n"),
    ] {
        assert!(text.contains(&line), "{line}{text}");
    }
    let again = world
        .api(
            "listVirtualMachines",
            &[("listall", "true"), ("details", "all"), ("state", "Running")],
        )
        .await;
    assert_eq!(again["virtualmachine"][0]["memorykbs"], 64 << 10);
    let plain = world
        .api(
            "listVirtualMachines",
            &[("listall", "true"), ("details", "min"), ("state", "Running")],
        )
        .await;
    assert_eq!(plain["virtualmachine"][0]["memorykbs"], Value::Null);
}
