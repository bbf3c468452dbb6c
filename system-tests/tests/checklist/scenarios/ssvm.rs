//! An SSVM from its power-on to its end, in the middle of a zone: management server, NFS server, resolver.

mod access;
mod patching;
mod service;

pub(crate) use patching::version;

use std::time::{Duration, Instant};

use anyhow::ensure;
use platform::exec::{Cmd, Running};
use system_tests::management::ManagementServer;
use system_tests::nfs::NfsServer;
use system_tests::site::{Example, Site};
use system_tests::vm::{BOOT_LIMIT, Booted, Ssh};

use crate::board::{Lane, Report};
use crate::checks::Check;
use crate::steps::{like, only_open, ping, ready, within};

/// Appliance.md §14, items 1, 4, 7.
const PING_LIMIT: Duration = Duration::from_secs(30);
const SSH_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_mins(1);
/// For the agent to be Up at the management server.
const UP_LIMIT: Duration = Duration::from_mins(2);

const VM: Example = Example::Ssvm;
const NAME: &str = "s-1-VM";
/// Its addresses on other networks than the control network.
const ELSEWHERE: [&str; 3] = ["192.0.2.21", "203.0.113.21", "198.51.100.30"];
const SERVER: &str = "192.0.2.10";
const NFS: &str = "198.51.100.5";

/// A zone with everything that an SSVM asks for.
struct Zone {
    site: Site,
    host: Ssh,
    server: ManagementServer,
    /// How the server is started.
    serve: Vec<String>,
    _nfs: NfsServer,
    _resolver: Running,
}

impl Zone {
    async fn start() -> anyhow::Result<Self> {
        let site = Site::new().await?;
        let nfs = NfsServer::start(&site.net, NFS).await?;
        let serve = ["--image-store", &nfs.url(), "--nfs-version", "4.1"]
            .map(str::to_owned)
            .to_vec();
        let server = ManagementServer::start(&site.net, SERVER, &serve).await?;
        let resolver = Cmd::new("setpriv")
            .args(["--pdeathsig", "KILL", "dnsmasq", "--keep-in-foreground"])
            .args([
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--bind-interfaces",
                "--listen-address=192.0.2.53",
                "--address=/cloudstack.apache.org/203.0.113.80",
                "--pid-file=",
                "--user=root",
            ]);
        let resolver = site.net.command(resolver).spawn("/dev/null")?;
        let host = Ssh::new(&site.net, VM.control()).await?;
        Ok(Self {
            site,
            host,
            server,
            serve,
            _nfs: nfs,
            _resolver: resolver,
        })
    }
}

pub(crate) async fn run(report: Report, mut lane: Lane) -> anyhow::Result<()> {
    let mut zone = Zone::start().await?;
    let (site, host) = (&zone.site.clone(), &zone.host.clone());
    // Another MTU than NICs have anyway, so that it is seen.
    let line = VM.line(host)?.replace(" mtu=1500 ", " mtu=1400 ");
    let power_on = Instant::now();
    let vm = like(VM, site).no_rng().start().await?;
    vm.agent_up(BOOT_LIMIT).await?;
    let answered = power_on.elapsed();
    report.took("power-on to guest-ping", answered);
    report.item(1, &vm, within(answered, PING_LIMIT)).await;

    let written = Instant::now();
    vm.pass_cmdline(&line).await?;
    let opened = site.opens(VM.control(), 3922, BOOT_LIMIT).await;
    let took = written.elapsed();
    // Before anything else is asked of the VM: it counts that it answers at this moment.
    report.item(13, &vm, ping(site, VM.control())).await;
    opened?;
    report.took("line to 3922", took);
    report.item(18, &vm, access::is_patched(host)).await;
    report.item(2, &vm, the_line_is_there(&vm, &line)).await;
    let opens_only_there = async {
        within(took, SSH_LIMIT).await?;
        for address in ELSEWHERE {
            ensure!(!site.is_open(address, 3922)?, "3922 is open at {address}");
        }
        Ok(())
    };
    report.item(4, &vm, opens_only_there).await;
    report.item(5, &vm, access::only_the_key_opens(site, host)).await;
    report.item(12, &vm, has_no_random_numbers(&vm)).await;

    ready(host).await?;
    report.took("line to boot_up_done", written.elapsed());
    zone.server.agent_up(NAME, UP_LIMIT).await?;
    report.took("line to agent Up", written.elapsed());

    access::check(&report, &vm, &zone).await?;
    service::check(&report, &vm, &zone).await?;
    patching::check(&report, &vm, &zone).await?;
    let ports = async {
        let addresses = [[VM.control()].as_slice(), &ELSEWHERE].concat();
        only_open(site, &addresses, &["169.254.14.87 tcp/3922"], &service::SERVICES).await
    };
    report
        .aside(&mut lane, report.check(Check::Ports, Some(&vm), ports))
        .await;

    service::certificate(&report, &vm, &mut zone).await;

    let ends = async {
        vm.shut_down().await?;
        let took = vm.ended(BOOT_LIMIT).await?;
        report.took("guest-shutdown to the end of QEMU", took);
        within(took, END_LIMIT).await
    };
    report.item(7, &vm, ends).await;
    Ok(())
}

async fn the_line_is_there(vm: &Booted, line: &str) -> anyhow::Result<()> {
    let found = vm.read("/var/cache/cloud/cmdline").await?;
    ensure!(found == format!("{line}\n"), "it reads {found:?}");
    let mode = vm.text(&["stat", "--format=%a %U", "/var/cache/cloud/cmdline"]).await?;
    ensure!(mode == "600 root\n", "it has {mode}");
    Ok(())
}

/// Items 1 to 5 happened on this VM, whose networks have neither DHCP nor a way out.
async fn has_no_random_numbers(vm: &Booted) -> anyhow::Result<()> {
    let source = vm.run(&["cat", "/sys/class/misc/hw_random/rng_current"]).await?.stdout;
    ensure!(
        matches!(source.trim(), "" | "none"),
        "there is a source of random numbers: {source}"
    );
    Ok(())
}
