use std::fs;

use platform::exec::Cmd;
use platform::files;
use protocol::boot::BootArgs;

use super::*;

/// Those of appliance.md §2.4 that have such services, and one with everything.
const ROUTER: &str = "name=r-4-VM eth2ip=203.0.113.31 eth2mask=255.255.255.0 gateway=203.0.113.1 publicMtu=1500 eth0ip=10.1.1.1 \
                      eth0mask=255.255.255.0 privateMtu=1500 domain=cs2cloud.internal cidrsize=24 dhcprange=10.1.1.1 \
                      eth1ip=169.254.3.7 eth1mask=255.255.0.0 type=router  dns1=198.51.100.53 dns2=198.51.100.54";
const VPC: &str = "vpccidr=10.10.0.0/16 domain=cs3.internal dns1=198.51.100.53 name=r-12-VM eth0ip=169.254.88.19 \
                   eth0mask=255.255.0.0 type=vpcrouter";
const DHCP: &str = "name=r-6-VM eth0ip=203.0.113.40 eth0mask=255.255.255.0 gateway=203.0.113.1 privateMtu=null \
                    domain=cs1.internal cidrsize=24 dhcprange=203.0.113.1 eth1ip=169.254.9.9 eth1mask=255.255.0.0 \
                    type=dhcpsrvr dns1=198.51.100.53";
const SEARCH: &str = "type=router eth0ip=10.1.1.1 eth0mask=255.255.255.0 eth2ip=203.0.113.31 eth2mask=24 cidrsize=24 \
                      dnssearchorder=corp.example,lab.example useextdns=true ntpserverlist=192.0.2.123,time.example";
const REDUNDANT: &str = "type=router eth0ip=10.1.1.21 eth0mask=255.255.255.0 eth2ip=203.0.113.31 eth2mask=24 cidrsize=24 \
                         redundant_router=1 guestgw=10.1.1.1 guestcidrsize=24 dhcprange=10.1.1.1";
const BALANCER: &str = "name=b-9-VM eth0ip=10.10.1.250 eth0mask=255.255.255.0 type=ilbvm";
const STORAGE: &str = "type=secstorage host=192.0.2.10 guid=s-1-VM";
const ALL: [&str; 7] = [ROUTER, VPC, DHCP, SEARCH, REDUNDANT, BALANCER, STORAGE];

fn files_of(line: &str, clock: Option<&str>) -> Files {
    let vm = SystemVm::parse(&BootArgs::parse(line).unwrap()).unwrap();
    files(&vm, clock.map(Path::new))
}

/// The lines that are not comments.
fn network(line: &str) -> Vec<String> {
    let text = files_of(line, None)[DNSMASQ_NETWORK].clone();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

#[test]
fn a_router_answers_its_guests_and_knows_nobody_yet() {
    assert_eq!(
        network(ROUTER),
        [
            "interface=eth0",
            "domain=cs2cloud.internal",
            "local=/cs2cloud.internal/",
            "dhcp-range=set:eth0,10.1.1.1,static,255.255.255.0",
            "dhcp-option=tag:eth0,option:router,10.1.1.1",
            "dhcp-option=tag:eth0,option:dns-server,10.1.1.1,198.51.100.53,198.51.100.54",
            "dhcp-option=tag:eth0,option:domain-name,cs2cloud.internal",
            "dhcp-option=tag:eth0,option:mtu,1500",
        ]
    );
    assert!(network(REDUNDANT).contains(&"dhcp-option=tag:eth0,option:router,10.1.1.1".to_owned()));
}

#[test]
fn a_dhcp_server_names_the_networks_own_gateway() {
    assert_eq!(
        network(DHCP),
        [
            "interface=eth0",
            "domain=cs1.internal",
            "local=/cs1.internal/",
            "dhcp-range=set:eth0,203.0.113.1,static,255.255.255.0",
            "dhcp-option=tag:eth0,option:router,203.0.113.1",
            "dhcp-option=tag:eth0,option:dns-server,203.0.113.40,198.51.100.53",
            "dhcp-option=tag:eth0,option:domain-name,cs1.internal",
        ]
    );
}

#[test]
fn external_resolvers_and_search_domains_are_handed_out_as_asked() {
    let lines = network(SEARCH);
    for line in [
        "port=0",
        "dhcp-option=tag:eth0,option:dns-server",
        "dhcp-option=tag:eth0,option:domain-name,corp.example lab.example",
        "dhcp-option-force=tag:eth0,option:domain-search,corp.example,lab.example",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}: {lines:?}");
    }
}

#[test]
fn a_vpc_router_answers_nobody_before_a_tier_is_there() {
    assert_eq!(network(VPC), ["port=0", "domain=cs3.internal", "local=/cs3.internal/"]);
    let without_address = network("type=router eth0ip=0.0.0.0");
    assert_eq!(without_address, ["port=0"]);
}

#[test]
fn each_type_has_the_files_of_its_services() {
    let names = |line| files_of(line, None).into_keys().collect::<Vec<_>>();
    assert_eq!(names(ROUTER), [CHRONY, DNSMASQ, DNSMASQ_NETWORK, HAPROXY]);
    assert_eq!(names(DHCP), [CHRONY, DNSMASQ, DNSMASQ_NETWORK]);
    assert_eq!(names(BALANCER), [CHRONY, HAPROXY]);
    assert_eq!(names(STORAGE), [CHRONY]);
}

#[test]
fn time_comes_from_whom_the_administrator_named_and_from_the_host() {
    let sources = |line, clock| {
        let text = files_of(line, clock)[CHRONY].clone();
        let words = ["server ", "pool ", "refclock "];
        let found = text
            .lines()
            .filter(|line| words.iter().any(|word| line.starts_with(word)));
        found.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(sources(STORAGE, None), ["pool 2.debian.pool.ntp.org iburst"]);
    let clock = "refclock PHC /dev/ptp0 poll 3 dpoll 0 stratum 2";
    assert_eq!(sources(STORAGE, Some("/dev/ptp0")), [clock]);
    assert_eq!(
        sources(SEARCH, Some("/dev/ptp0")),
        ["server 192.0.2.123 iburst", "server time.example iburst", clock]
    );
}

#[tokio::test]
async fn the_programs_themselves_find_nothing_wrong() {
    for line in ALL {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            let _ = files::replace(&path, text, 0o644).unwrap();
            path
        };
        let files = files_of(line, Some("/dev/ptp0"));
        if let (Some(base), Some(network)) = (files.get(DNSMASQ), files.get(DNSMASQ_NETWORK)) {
            fs::create_dir(directory.path().join("d")).unwrap();
            put("d/cloud.conf", network);
            let base = base.replace("/etc/dnsmasq.d/", &format!("{}/d/", directory.path().display()));
            let config = put("dnsmasq.conf", &base);
            let judged = Cmd::new("dnsmasq")
                .arg("--test")
                .arg("-C")
                .arg(config)
                .run()
                .await
                .unwrap();
            assert_eq!(judged.stderr.trim(), "dnsmasq: syntax check OK.", "{line}");
        }
        if let Some(text) = files.get(HAPROXY) {
            let config = put("haproxy.cfg", text);
            Cmd::new("haproxy").args(["-c", "-f"]).arg(config).run().await.unwrap();
        }
        let config = put("chrony.conf", &files[CHRONY]);
        Cmd::new("chronyd").args(["-p", "-f"]).arg(config).run().await.unwrap();
    }
}
