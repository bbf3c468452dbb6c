//! What boot arguments make of a machine: golden files for the lines of a stock server (appliance.md §2.4, in
//! `protocol/tests/boot`), and for those of `plans/`, which show what else there is.
#![expect(
    clippy::unwrap_used,
    reason = "clippy takes the helpers of tests for production code"
)]

use std::fmt::Write as _;
use std::path::Path;

use agent::appliance::hypervisor::Hypervisor;
use agent::appliance::plan::Plan;
use agent::appliance::plan::current::{Current, CurrentLink};
use insta::internals::SettingsBindDropGuard;
use platform::exec::{Cmd, ExecError};
use protocol::boot::{BootArgs, SystemVm};

fn beside_the_lines() -> SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("plans");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind_to_scope()
}

/// Lines are named after the hypervisor when it is not KVM.
fn hypervisor(line: &Path) -> Hypervisor {
    let name = line.file_stem().unwrap().to_str().unwrap();
    let is_named = |hypervisor: &Hypervisor| name.split('-').any(|word| word == hypervisor.name());
    Hypervisor::ALL.into_iter().find(is_named).unwrap_or(Hypervisor::Kvm)
}

fn plan(line: &Path) -> Plan {
    let args = BootArgs::parse(std::fs::read(line).unwrap()).unwrap();
    Plan::of(&SystemVm::parse(&args).unwrap(), hypervisor(line))
}

/// The program, as a process that may do nothing to the machine.
fn agent_boot(line: &Path) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let boot = Cmd::new(env!("CARGO_BIN_EXE_agent"))
        .args([
            "boot",
            "--plan",
            "--hypervisor",
            hypervisor(line).name(),
            "--cmdline-file",
        ])
        .arg(line)
        .through(Cmd::new("setpriv").args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]));
    runtime.block_on(boot.run()).unwrap().text()
}

/// What is sent to the programs that carry a plan out on a machine with all NICs and nothing else.
fn scripts(plan: &Plan) -> String {
    let link = |link: &agent::appliance::plan::Link| CurrentLink {
        name: link.name.to_string(),
        mac: None,
        is_up: false,
        mtu: 1500,
        ipv4: Vec::new(),
        ipv6: Vec::new(),
    };
    let fresh = Current {
        links: plan.links.iter().map(link).collect(),
        ..Current::default()
    };
    let mut text = String::new();
    writeln!(text, "## nft -f -\n{}", plan.firewall.render()).unwrap();
    writeln!(text, "## ip -force -batch -\n{}", plan.ip_batch(&fresh)).unwrap();
    match &plan.sshd {
        Some(sshd) => writeln!(text, "## sshd\n{}", sshd.sshd_config()).unwrap(),
        None => writeln!(text, "## no sshd").unwrap(),
    }
    text
}

#[test]
fn lines_of_a_stock_server_become_their_golden_plans_without_privileges() {
    let _settings = beside_the_lines();
    insta::glob!(
        "../../protocol/tests/boot",
        "*.cmdline",
        |line| insta::assert_snapshot!("plan", agent_boot(line))
    );
}

#[test]
fn lines_of_a_stock_server_become_their_golden_scripts() {
    let _settings = beside_the_lines();
    insta::glob!(
        "../../protocol/tests/boot",
        "*.cmdline",
        |line| insta::assert_snapshot!("scripts", scripts(&plan(line)))
    );
}

#[test]
fn lines_with_everything_else_become_their_golden_plans_without_privileges() {
    let _settings = beside_the_lines();
    insta::glob!("plans/*.cmdline", |line| insta::assert_snapshot!(
        "plan",
        agent_boot(line)
    ));
}

#[test]
fn lines_with_everything_else_become_their_golden_scripts() {
    let _settings = beside_the_lines();
    insta::glob!("plans/*.cmdline", |line| insta::assert_snapshot!(
        "scripts",
        scripts(&plan(line))
    ));
}

#[test]
fn no_secret_is_in_a_plan_that_is_shown() {
    let line =
        "type=consoleproxy host=ms1 guid=Proxy.2 vmpassword=hush userdata=aHVzaA== eth0ip=169.254.1.2 eth0mask=16";
    let plan = Plan::of(
        &SystemVm::parse(&BootArgs::parse(line).unwrap()).unwrap(),
        Hypervisor::Kvm,
    );
    assert_eq!(plan.root_password.as_ref().unwrap().expose(), "hush");
    assert_eq!(plan.user_data.as_ref().unwrap().expose(), b"hush");
    let shown = serde_json::to_value(&plan).unwrap();
    assert_eq!(
        (&shown["root_password"], &shown["user_data"]),
        (&"***".into(), &"***".into())
    );
    assert!(!format!("{plan:?} {shown}").contains("hush"));
}

#[tokio::test]
async fn a_line_that_makes_no_sense_ends_with_78_and_all_that_is_wrong() {
    let boot = Cmd::new(env!("CARGO_BIN_EXE_agent")).args(["boot", "--plan", "--cmdline-file", "-"]);
    let error = boot
        .stdin("type=router eth0ip=300.1.1.1 eth1mask=255.0.255.0 eth1ip=10.0.0.1 unknown=1")
        .run()
        .await;
    let Err(ExecError::Failed { status, printed, .. }) = error else {
        unreachable!("it must fail")
    };
    assert_eq!(status.code(), Some(78));
    assert_eq!(
        printed,
        "error: in -: 3 boot argument(s) need fixing\n  eth0ip=\"300.1.1.1\": expected an IPv4 address\n  \
         eth0mask: missing, expected a netmask such as 255.255.255.0 or 24\n  \
         eth1mask=\"255.0.255.0\": expected a netmask such as 255.255.255.0 or 24"
    );
}

#[tokio::test]
async fn a_line_through_xenserver_is_read_with_percent_signs_as_spaces() {
    let boot = |hypervisor| {
        let boot = Cmd::new(env!("CARGO_BIN_EXE_agent")).args(["boot", "--plan", "--hypervisor", hypervisor]);
        boot.args(["--cmdline-file", "-"])
            .stdin("%type=elbvm%name=l-1-VM%eth1ip=169.254.1.1%eth1mask=255.255.0.0")
    };
    let output = boot("xen").run().await.unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&plan["hostname"], &plan["links"][0]["ipv4"]),
        (&"l-1-VM".into(), &"169.254.1.1/16".into())
    );
    assert!(boot("kvm").run().await.is_err());
}

fn plan_of(line: &str) -> Plan {
    Plan::of(
        &SystemVm::parse(&BootArgs::parse(line).unwrap()).unwrap(),
        Hypervisor::Kvm,
    )
}

/// appliance.md §14, item 6.
#[test]
fn spellings_of_a_line_that_mean_the_same_become_the_same_plan() {
    let plain = "type=router name=r-4-VM authorized_key=c3NoLWVkMjU1MTkgQUFBQQ== dns1=192.0.2.53 eth0ip=10.1.1.1 \
                 eth0mask=255.255.255.0 eth1ip=169.254.3.7 eth1mask=255.255.0.0 gateway=10.1.1.254";
    let wanted = plan_of(plain);
    assert_eq!(wanted.authorized_keys.as_deref(), Some("ssh-ed25519 AAAA\n"));
    for (why, other) in [
        ("no padding", plain.replace("==", "")),
        (
            "the key with its newline",
            plain.replace("c3NoLWVkMjU1MTkgQUFBQQ==", "c3NoLWVkMjU1MTkgQUFBQQo="),
        ),
        ("spaces", format!("   {}  \n", plain.replace(' ', "  "))),
        (
            "null",
            format!("{plain} dns2=null privateMtu=null publicMtu=null internaldns1=null"),
        ),
        ("nothing", format!("{plain} dns2= eth0ip6= domain=")),
        (
            "the last one wins",
            format!("dns1=198.51.100.1 eth1ip=169.254.9.9 authorized_key=eA== {plain}"),
        ),
        ("unknown keys", format!("{plain} nonsense=1 eth0=up password=hush word")),
        ("a dotted mask or a length", plain.replace("255.255.0.0", "16")),
    ] {
        assert_eq!(plan_of(&other), wanted, "{why}: {other}");
    }
    let without_address = plan_of(&format!("{plain} eth2ip=0.0.0.0 eth2mask=0.0.0.0"));
    let eth2 = &without_address.links[2];
    assert_eq!((eth2.up, eth2.ipv4), (false, None));
    assert_eq!(
        without_address.routes[0].link.as_str(),
        "eth0",
        "the gateway is a neighbour of eth0"
    );
}

#[test]
fn a_vm_that_has_become_a_vpc_router_needs_nothing_more_from_the_images_ip() {
    // What `Current::question` printed in a VM of the image (iproute2 of Debian 13) that had been an SSVM before.
    let printed = include_bytes!("plans/redundant-vpc-router.in-the-image.json");
    let current = Current::read(printed).unwrap();
    assert_eq!((current.links.len(), current.rules.len()), (4, 2));
    let line = Path::new(env!("CARGO_MANIFEST_DIR")).join("../protocol/tests/boot/redundant-vpc-router.cmdline");
    assert_eq!(plan(&line).ip_batch(&current), "");
}
