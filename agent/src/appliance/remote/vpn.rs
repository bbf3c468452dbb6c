//! `checkbatchs2svpn.sh` and `checks2svpn.sh`: which site-to-site tunnels are up (router.md §2.4, §4.13).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use platform::exec::Cmd;

use super::{Reply, units};
use crate::appliance::root::Root;

/// Servers want the answer within a second, and ask again after thirty.
const LIMIT: Duration = Duration::from_secs(5);
/// As the original: no tunnel.
const DOWN: u8 = 11;
const UP_TEXT: &str = "IPsec SA found;Site-to-site VPN have connected";
const DOWN_TEXT: &str = "IPsec SA not found;Site-to-site VPN have not connected";

/// `checkbatchs2svpn.sh PEER…`: `peer:code:text&` for each, and no line end.
pub(super) async fn check_batch(root: &Root, args: &[String]) -> Reply {
    let up = established(root).await;
    Reply::ok(args.iter().fold(String::new(), |text, peer| {
        let (code, words) = if peer.parse().is_ok_and(|peer| up.contains(&peer)) {
            (0, UP_TEXT)
        } else {
            (DOWN, DOWN_TEXT)
        };
        text + &format!("{peer}:{code}:{words}&")
    }))
}

/// `checks2svpn.sh PEER`.
pub(super) async fn check(root: &Root, args: &[String]) -> Reply {
    let Some(peer) = args.first() else {
        return Reply::failed(1, "the address of a peer is needed");
    };
    let up = established(root).await;
    let is_up = peer.parse().is_ok_and(|peer| up.contains(&peer));
    Reply {
        stdout: format!("{}\n", if is_up { UP_TEXT } else { DOWN_TEXT }).into_bytes(),
        code: if is_up { 0 } else { DOWN },
        ..Reply::default()
    }
}

/// The addresses of all peers with which a site-to-site connection has an IKE SA.
///
/// Not by the whole name, which is `vpn-` and the peer's address in the original: swanctl takes no name with a dot.
async fn established(root: &Root) -> BTreeSet<IpAddr> {
    // Starting swanctl only to hear that there is no charon takes time.
    if !units::has_processes(root, "strongswan.service") {
        return BTreeSet::new();
    }
    let list = Cmd::new("swanctl").args(["--list-sas", "--raw"]).time_limit(LIMIT);
    match list.run().await {
        Ok(output) => read(&output.text()),
        Err(_) => BTreeSet::new(),
    }
}

/// Reads `swanctl --list-sas --raw`: `list-sa event {NAME {uniqueid=1 … state=ESTABLISHED … remote-host=ADDRESS … child-sas {…}}}`.
fn read(raw: &str) -> BTreeSet<IpAddr> {
    let events = raw.split("list-sa event {").skip(1);
    events
        .filter_map(|event| {
            let (name, facts) = event.split_once('{')?;
            // The tunnels inside have states, too.
            let words = facts.split("child-sas").next()?.split_ascii_whitespace();
            let is_up = words.clone().any(|word| word == "state=ESTABLISHED");
            let mut hosts = words.filter_map(|word| word.strip_prefix("remote-host="));
            let is_ours = name.starts_with("vpn-");
            hosts.next()?.parse().ok().filter(|_| is_up && is_ours)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first is of strongSwan 5.9.8, from two charons that the test of the whole command starts.
    const RAW: &str = "list-sa event {vpn-198_51_100_200 {uniqueid=1 version=2 state=ESTABLISHED local-host=203.0.113.30 \
                       local-port=4500 local-id=203.0.113.30 remote-host=198.51.100.200 remote-port=4500 \
                       remote-id=198.51.100.200 initiator=yes initiator-spi=cc4496395ea27426 \
                       responder-spi=1e72561243a0bd6c encr-alg=AES_CBC encr-keysize=128 integ-alg=HMAC_SHA2_256_128 \
                       prf-alg=PRF_HMAC_SHA2_256 dh-group=MODP_3072 established=0 rekey-time=13103 child-sas {}}}\n\
                       list-sa event {vpn-198_51_100_201 {uniqueid=2 version=2 state=CONNECTING \
                       remote-host=198.51.100.201 child-sas {x {state=ESTABLISHED}}}}\n\
                       list-sa event {l2tp {uniqueid=3 version=1 state=ESTABLISHED remote-host=198.51.100.202}}\n\
                       list-sas reply {}\n";

    #[test]
    fn only_established_site_to_site_connections_count() {
        assert_eq!(read(RAW), ["198.51.100.200".parse().unwrap()].into());
        assert_eq!(read("list-sas reply {}\n"), BTreeSet::new());
    }

    /// apache/cloudstack CheckS2SVpnConnectionsAnswer: splits at `&`, then at `:` into three.
    #[tokio::test]
    async fn the_server_reads_a_code_for_each_peer() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        assert_eq!(check_batch(&root, &[]).await, Reply::ok(""));
        let peers = ["198.51.100.200", "198.51.100.201"].map(str::to_owned);
        let answer = check_batch(&root, &peers).await;
        let text = String::from_utf8(answer.stdout).unwrap();
        assert!(!text.contains('\n'));
        let parts: Vec<Vec<_>> = text
            .trim_end_matches('&')
            .split('&')
            .map(|part| part.split(':').collect())
            .collect();
        assert_eq!(
            parts,
            [
                [
                    "198.51.100.200",
                    "11",
                    "IPsec SA not found;Site-to-site VPN have not connected"
                ],
                [
                    "198.51.100.201",
                    "11",
                    "IPsec SA not found;Site-to-site VPN have not connected"
                ],
            ]
        );
        assert_eq!(check(&root, &peers[..1]).await.code, 11);
        assert_eq!(check(&root, &[]).await.code, 1);
    }

    proptest! {
        #[test]
        fn no_output_makes_it_panic(raw: String) {
            let _names = read(&raw);
        }
    }
}
