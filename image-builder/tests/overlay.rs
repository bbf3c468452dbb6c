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

/// Loads the base firewall into a network namespace that ends with it, and answers what nft then lists.
async fn nft() -> String {
    let base = format!("include \"{}\"\n", overlay("etc/nftables.conf").display());
    let nft = Cmd::new("unshare")
        .args(["--map-root-user", "--net", "/usr/sbin/nft", "--interactive"])
        .stdin(base + "list ruleset\n");
    nft.run().await.unwrap().text()
}

#[tokio::test]
async fn the_base_firewall_loads_and_drops_what_it_does_not_name() {
    let listed = nft().await;
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

/// How exposed units of ours may be, in tenths as systemd counts: 0 to 100. Those that need more have a reason in
/// `docs/image.md`.
const OK: u32 = 25;
const EXCEPTIONS: [(&str, u32); 2] = [("cs-preinit", 31), ("cs-user-data", 96)];

#[tokio::test]
async fn units_of_ours_are_sandboxed() {
    let found = fs::read_dir(overlay(UNITS))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let services: Vec<_> = found
        .filter_map(|name| Some(name.strip_suffix(".service")?.to_owned()))
        .collect();
    for (name, _) in EXCEPTIONS {
        assert!(services.iter().any(|found| found == name), "{name} is not there");
    }
    for name in services {
        let exception = EXCEPTIONS.iter().find(|(known, _)| *known == name);
        let limit = exception.map_or(OK, |(_, limit)| *limit);
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
