//! `get_haproxy_stats.sh`: how busy a load-balancing rule is, for autoscaling (router.md §2.4).

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Reply;
use crate::appliance::root::Root;

/// As the configuration that the server sends says.
const SOCKET: &str = "/run/haproxy/admin.sock";
const LIMIT: Duration = Duration::from_secs(10);
/// Of 10,000 servers.
const MAX_STATS: u64 = 8 << 20;

/// `get_haproxy_stats.sh ADDRESS PORT`: an integer without a line end.
pub(super) async fn answer(root: &Root, args: &[String]) -> Reply {
    let parse = |address: &str, port: &str| Some((address.parse::<IpAddr>().ok()?, port.parse::<u16>().ok()?));
    let Some((address, port)) = args.first().zip(args.get(1)).and_then(|(ip, port)| parse(ip, port)) else {
        return Reply::failed(1, "a public address and a port are needed, such as: 203.0.113.13 80");
    };
    let pool = format!("{}-{port}", address.to_string().replace('.', "_"));
    // Without haproxy there are no sessions.
    let stats = timeout(LIMIT, stats(&root.path(SOCKET))).await.unwrap_or_default();
    Reply::ok(average(&String::from_utf8_lossy(&stats), &pool).to_string())
}

async fn stats(socket: &Path) -> Vec<u8> {
    let Ok(mut haproxy) = UnixStream::connect(socket).await else {
        return Vec::new();
    };
    let mut stats = Vec::new();
    if haproxy.write_all(b"show stat\n").await.is_ok() {
        haproxy.take(MAX_STATS).read_to_end(&mut stats).await.ok();
    }
    stats
}

/// Current sessions of the servers of a pool that are up, on average.
fn average(stats: &str, pool: &str) -> u64 {
    let mut lines = stats.lines();
    let names: Vec<_> = lines
        .next()
        .unwrap_or_default()
        .trim_start_matches("# ")
        .split(',')
        .collect();
    let column = |name| names.iter().position(|found| *found == name);
    let (Some(proxy), Some(server), Some(current), Some(status)) =
        (column("pxname"), column("svname"), column("scur"), column("status"))
    else {
        return 0;
    };
    let sessions: Vec<u64> = lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .filter(|fields| {
            let field = |index: usize| fields.get(index).copied().unwrap_or_default();
            let is_server = !["FRONTEND", "BACKEND"].contains(&field(server));
            field(proxy) == pool && is_server && field(status).starts_with("UP")
        })
        .filter_map(|fields| fields.get(current)?.parse().ok())
        .collect();
    let servers = u64::try_from(sessions.len()).unwrap_or(u64::MAX);
    sessions.iter().sum::<u64>().checked_div(servers).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_servers_that_are_up_count() {
        let stats = "# pxname,svname,qcur,qmax,scur,smax,status\n\
                     203_0_113_13-80,FRONTEND,,,90,90,OPEN\n\
                     203_0_113_13-80,a,0,0,3,9,UP\n\
                     203_0_113_13-80,b,0,0,6,9,UP 1/2\n\
                     203_0_113_13-80,c,0,0,50,9,DOWN\n\
                     203_0_113_14-80,d,0,0,70,9,UP\n\
                     203_0_113_13-80,BACKEND,0,0,59,90,UP\n";
        assert_eq!(average(stats, "203_0_113_13-80"), 4);
        assert_eq!(average(stats, "203_0_113_13-81"), 0);
        assert_eq!(average("", "x"), 0);
    }
}
