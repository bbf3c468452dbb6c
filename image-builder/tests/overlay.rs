//! The files of our own that are in the image, judged by the programs that read them: nft and systemd.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use platform::exec::Cmd;

const UNITS: &str = "etc/systemd/system";

fn overlay(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("recipe/overlay").join(path)
}

fn read(path: &str) -> String {
    let path = overlay(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Loads the base firewall into a network namespace that ends with it, runs more commands of nft, each by itself, and
/// answers what is printed.
async fn nft(commands: &[&str]) -> String {
    let base = format!("include \"{}\"\n", overlay("etc/nftables.conf").display());
    let nft = Cmd::new("unshare")
        .args(["--map-root-user", "--net", "/usr/sbin/nft", "--interactive"])
        .stdin(base + &commands.join("\n") + "\n");
    nft.run().await.unwrap().text()
}

/// What the unit gives to nft, as lines of a rules file.
fn nft_commands<'a>(unit: &'a str, when: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.strip_prefix(when));
    lines
        .filter_map(|line| line.trim_start_matches(['+', '-']).strip_prefix("/usr/sbin/nft "))
        .collect()
}

#[tokio::test]
async fn the_base_firewall_loads_and_drops_what_it_does_not_name() {
    let listed = nft(&["list ruleset"]).await;
    let rules: Vec<_> = listed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let wanted = [
        "table inet sysvm {",
        "set services {",
        "type ifname . inet_service",
        "}",
        "chain input {",
        "type filter hook input priority filter; policy drop;",
        "iif \"lo\" accept",
        "ct state vmap { invalid : drop, established : accept, related : accept }",
        "icmp type timestamp-request drop",
        "meta l4proto { icmp, ipv6-icmp } accept",
        "tcp dport 3922 accept",
        "iifname . tcp dport @services accept",
        "}",
        "chain forward {",
        "type filter hook forward priority filter; policy drop;",
        "}",
        "}",
    ];
    assert_eq!(rules, wanted);
}

#[tokio::test]
async fn the_console_proxys_unit_opens_its_ports_and_closes_them_again() {
    let unit = read(&format!("{UNITS}/cs-console-proxy.service"));
    let (open, close) = (
        nft_commands(&unit, "ExecStartPre="),
        nft_commands(&unit, "ExecStopPost="),
    );
    assert_eq!((open.len(), close.len()), (1, 1));
    let (open, close) = (open[0], close[0]);
    let list = "list set inet sysvm services";

    let opened = nft(&[open, open, list]).await;
    for element in [
        "\"eth2\" . 443",
        "\"eth2\" . 8443",
        "\"eth2\" . 80",
        "\"eth2\" . 8080",
        "\"eth0\" . 8001",
        "\"eth1\" . 8001",
    ] {
        assert!(opened.contains(element), "{element} is missing: {opened}");
    }
    let closed = nft(&[open, close, list]).await;
    assert!(!closed.contains("elements"), "{closed}");
}

/// How exposed a unit is, as systemd counts: 0 to 10. What is beyond a limit has a reason in `docs/image.md`.
#[tokio::test]
async fn units_of_ours_are_sandboxed() {
    let limits = [
        ("cs-console-proxy", 20),
        ("cs-host-key@", 15),
        ("cs-patchd", 11),
        ("cs-ssvm", 33),
    ];
    let found = fs::read_dir(overlay(UNITS))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut services: Vec<_> = found
        .filter_map(|name| Some(name.strip_suffix(".service")?.to_owned()))
        .collect();
    services.sort();
    assert_eq!(services, limits.map(|(name, _)| name));
    for (name, limit) in limits {
        let judged = Cmd::new("systemd-analyze")
            .args(["security", "--no-pager", "--offline=true"])
            .arg(format!("--threshold={limit}"))
            .arg(overlay(&format!("{UNITS}/{name}.service")))
            .run()
            .await;
        if let Err(error) = judged {
            panic!("{name} is more exposed than {limit} tenths: {error}");
        }
    }
}

#[test]
fn ssh_keeps_the_algorithms_that_cloudstacks_client_knows() {
    let config = read("etc/ssh/sshd_config.d/10-sysvm.conf");
    let words: Vec<_> = config
        .lines()
        .filter_map(|line| line.split_ascii_whitespace().next())
        .collect();
    for chosen in [
        "Ciphers",
        "MACs",
        "KexAlgorithms",
        "HostKeyAlgorithms",
        "PubkeyAcceptedAlgorithms",
    ] {
        assert!(!words.contains(&chosen), "{chosen} is set");
    }
    for needed in [
        "Port 3922",
        "PasswordAuthentication no",
        "AuthenticationMethods publickey",
        "PerSourcePenalties no",
    ] {
        assert!(config.lines().any(|line| line == needed), "{needed} is missing");
    }
}
