//! `update_interface_config.sh`: another MTU for the NIC that has an address (§8.2).

use std::net::IpAddr;
use std::time::Duration;

use platform::exec::Cmd;
use platform::logging::chain;
use tokio::time::{Instant, sleep};

use super::{Reply, nics};

/// IPv4 needs 68 (RFC 791); virtio allows 65535.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
const MAX_WAIT: Duration = Duration::from_mins(2);
const LOOK: Duration = Duration::from_millis(200);

/// `update_interface_config.sh ADDRESS PREFIX MTU TIMEOUT`: the NIC's name, or that there is none.
pub(super) async fn set_mtu(args: &[String]) -> Reply {
    let parse = || {
        let address = args.first()?.parse::<IpAddr>().ok()?;
        let mtu = args.get(2)?.parse().ok().filter(|mtu| MTU.contains(mtu))?;
        let wait = args.get(3).map_or(Some(0), |wait| wait.parse().ok())?;
        Some((address, mtu, Duration::from_secs(wait).min(MAX_WAIT)))
    };
    let Some((address, mtu, wait)) = parse() else {
        return Reply::failed(
            1,
            "wanted: ADDRESS PREFIX MTU [SECONDS], such as: 203.0.113.31 24 1450 15",
        );
    };
    let deadline = Instant::now() + wait;
    let nic = loop {
        match nics::with_address(address) {
            Some(nic) => break nic,
            None if Instant::now() < deadline => sleep(LOOK).await,
            None => {
                return Reply {
                    stdout: format!("\nInterface with IP {address} not found\n").into_bytes(),
                    stderr: String::new(),
                    code: 1,
                };
            }
        }
    };
    let set = Cmd::new("ip").args(["link", "set", "dev", &nic, "mtu", &mtu.to_string()]);
    match set.run().await {
        Ok(_) => Reply::ok(format!("{nic}\n")),
        Err(error) => Reply::failed(1, chain(&error).to_string()),
    }
}
