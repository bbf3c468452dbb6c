//! A console proxy VM whose management servers come and go.

use std::time::Duration;

use anyhow::ensure;
use system_tests::management::ManagementServer;
use system_tests::site::{Example, Site};
use system_tests::vm::Ssh;

use crate::board::{Lane, Report};
use crate::checks::Check;
use crate::steps::{configure, eventually, only_open, ready, resume, units_are};

const VM: Example = Example::ConsoleProxy;
const NAME: &str = "v-2-VM";
/// Item 25 says ten minutes. After one the pauses of the agent between its tries are as long as they get.
const DOWN: Duration = Duration::from_mins(1);
/// The longest pause, for each of two servers, and some time to connect.
const UP_LIMIT: Duration = Duration::from_mins(4);
const OPEN_LIMIT: Duration = Duration::from_mins(1);

const PUBLIC: &str = "203.0.113.22";
const MANAGEMENT: &str = "192.0.2.22";
/// A public address that is none, on the same bridge.
const PRIVATE: &str = "172.16.7.22";

pub(crate) async fn run(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let site = Site::new().await?;
    let host = Ssh::new(&site.net, VM.control()).await?;
    let line = VM.line(&host)?;
    let vm = resume(VM, &site).await?;
    report.took("line to 3922", configure(&vm, &site, &line, VM.control()).await?);
    ready(&host).await?;

    report.item(26, &vm, units_are(&host, &[("cloud", true)])).await;
    // The second of its list is the only one that is there; then none; then the first.
    let mut server = ManagementServer::start(&site.net, "192.0.2.11", &[]).await?;
    let second = server.agent_up(NAME, UP_LIMIT).await;

    // It serves browsers once the server has told it to.
    let console = async {
        eventually("the listener for browsers", OPEN_LIMIT, async || {
            ensure!(site.is_open(PUBLIC, 8080)?, "8080 is closed at {PUBLIC}");
            Ok(())
        })
        .await?;
        ensure!(!site.is_open(MANAGEMENT, 8080)?, "8080 is open at {MANAGEMENT}");
        let port = host.run("cat /root/vncport").await?;
        ensure!(port.trim() == "8080", "/root/vncport says {port:?}");
        let ran = host.exec("test -e /root/userdata-ran", b"").await?;
        ensure!(ran.status.success(), "the user data has not run");
        Ok(())
    };
    report.item(28, &vm, console).await;
    report.item(27, &vm, public_routes(&host)).await;
    let ports = async {
        let wanted = ["203.0.113.22 tcp/8080", "169.254.201.3 tcp/3922"];
        // Closed or open: 80 and 443 as settings of the console proxy say, 8001 for the load that it reports.
        let maybe = [
            "203.0.113.22 tcp/80",
            "203.0.113.22 tcp/443",
            "169.254.201.3 tcp/8001",
            "192.0.2.22 tcp/8001",
        ];
        only_open(&site, &[VM.control(), MANAGEMENT, PUBLIC], &wanted, &maybe).await
    };
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;

    server.kill();
    report.aside(&mut lane, tokio::time::sleep(DOWN)).await;
    server.start_again("192.0.2.10", &[]).await?;
    let first = server.agent_up(NAME, UP_LIMIT).await;
    let all = async {
        report.took("the second server of the list to agent Up", second?);
        report.took("a server that was away to agent Up", first?);
        units_are(&host, &[("cloud", true)]).await
    };
    report.item(25, &vm, all).await;

    // Another line, while it runs.
    let other = line
        .replace(&format!("eth2ip={PUBLIC}"), &format!("eth2ip={PRIVATE}"))
        .replace("gateway=203.0.113.1", "gateway=172.16.7.1")
        .replace("vncport=8080", "vncport=8443");
    vm.pass_cmdline(&other).await?;
    report.item(27, &vm, private_routes(&host)).await;
    let other_port = async {
        eventually("the other port", OPEN_LIMIT, async || {
            let port = host.run("cat /root/vncport").await?;
            ensure!(port.trim() == "8443", "/root/vncport says {port:?}");
            Ok(())
        })
        .await
    };
    report.item(28, &vm, other_port).await;
    Ok(())
}

async fn public_routes(host: &Ssh) -> anyhow::Result<()> {
    let routes = host.run("ip route").await?;
    for wanted in [
        "default via 203.0.113.1 dev eth2",
        "198.51.100.0/24 via 192.0.2.1 dev eth1",
        "10.0.0.0/8 via 192.0.2.1 dev eth1",
        "172.16.0.0/12 via 192.0.2.1 dev eth1",
        "192.168.0.0/16 via 192.0.2.1 dev eth1",
    ] {
        ensure!(
            routes.lines().any(|line| line.starts_with(wanted)),
            "no route {wanted:?} in\n{routes}"
        );
    }
    Ok(())
}

async fn private_routes(host: &Ssh) -> anyhow::Result<()> {
    eventually("the routes of the other line", OPEN_LIMIT, async || {
        let routes = host.run("ip route").await?;
        let has = |start: &str| routes.lines().any(|line| line.starts_with(start));
        ensure!(has("default via 172.16.7.1 dev eth2"), "no default route: {routes}");
        for unwanted in ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "203.0.113.0/24"] {
            ensure!(!has(unwanted), "there is a route to {unwanted}: {routes}");
        }
        ensure!(
            has("198.51.100.0/24 via 192.0.2.1 dev eth1"),
            "no route of mgmtcidr: {routes}"
        );
        Ok(())
    })
    .await
}
