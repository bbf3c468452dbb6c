//! `diagnostics.py`: ping and its like, for an administrator who asks through the management server (§8.2).

use std::net::Ipv4Addr;
use std::time::Duration;

use platform::exec::{Cmd, ExecError};
use platform::logging::chain;

use super::{Reply, nics};

/// The server waits a minute.
const LIMIT: Duration = Duration::from_secs(55);
/// As a shell says that a program cannot be started, and as timeout(1) says that it took too long.
const CANNOT_START: i32 = 127;
const TOO_LONG: i32 = 124;

/// `diagnostics.py TOOL ADDRESS [OPTION…]`: what the tool printed on both outputs, and its exit code, `&&` between them.
pub(super) async fn answer(args: &[String]) -> Reply {
    let words: Vec<_> = args.iter().flat_map(|arg| arg.split_ascii_whitespace()).collect();
    let Some(tool) = command(&words, nics::towards) else {
        return Reply::default(); // as the original
    };
    let (stdout, stderr, code) = match tool.time_limit(LIMIT).run_to_exit().await {
        Ok(exited) => (
            String::from_utf8_lossy(&exited.stdout).into_owned(),
            exited.stderr,
            exited.status.code().unwrap_or(-1),
        ),
        Err(ExecError::TimedOut { printed, .. }) => {
            (printed, format!("stopped after {} seconds", LIMIT.as_secs()), TOO_LONG)
        }
        Err(error) => (String::new(), chain(&error).to_string(), CANNOT_START),
    };
    Reply::ok(text(&stdout, &stderr, code))
}

/// The server splits at `&&` and wants three parts, whatever the tool has printed.
fn text(stdout: &str, stderr: &str, code: i32) -> String {
    let part = |text: &str| text.trim().replace("&&", "& &");
    format!("{}&&\n{}&&\n{code}\n", part(stdout), part(stderr))
}

/// The tool with what the original adds, so that it ends; `None` for other tools.
fn command(words: &[&str], device: impl Fn(Ipv4Addr) -> Option<String>) -> Option<Cmd> {
    let (tool, options) = words.split_first()?;
    let has = |letter: &str| options.iter().any(|word| word.starts_with(letter));
    let mut command = Cmd::new(tool).args(options);
    match *tool {
        "ping" | "ping6" | "arping" if !has("-c") => command = command.args(["-c", "4"]),
        "traceroute" | "traceroute6" if !has("-m") => command = command.args(["-m", "20"]),
        "ping" | "ping6" | "arping" | "traceroute" | "traceroute6" => {}
        _ => return None,
    }
    if *tool == "arping" && !has("-I") {
        // Where there are several NICs, arping wants to be told.
        let target = options.iter().find_map(|word| word.parse().ok());
        if let Some(device) = target.and_then(device) {
            command = command.args(["-I", &device]);
        }
    }
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_get_what_makes_them_end() {
        let shown = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            command(&words, |_| Some("eth0".to_owned())).map(|command| command.to_string())
        };
        for (line, wanted) in [
            ("ping 192.0.2.1", "ping 192.0.2.1 -c 4"),
            ("ping 192.0.2.1 -c 2 -s 100", "ping 192.0.2.1 -c 2 -s 100"),
            ("ping6 ::1", "ping6 ::1 -c 4"),
            ("arping 192.0.2.1", "arping 192.0.2.1 -c 4 -I eth0"),
            ("arping -I eth2 -c 1 192.0.2.1", "arping -I eth2 -c 1 192.0.2.1"),
            ("traceroute 192.0.2.1", "traceroute 192.0.2.1 -m 20"),
            ("traceroute6 ::1 -m 3", "traceroute6 ::1 -m 3"),
        ] {
            assert_eq!(shown(line).as_deref(), Some(wanted));
        }
        for line in ["", "reboot", "bash -c id", "/bin/ping 192.0.2.1"] {
            assert_eq!(shown(line), None, "{line}");
        }
    }

    /// apache/cloudstack DiagnosticsAnswer: `split("&&")`, three parts; the third is the exit code.
    #[tokio::test]
    async fn the_server_finds_three_parts() {
        let ask = |line: &str| vec![line.to_owned()];
        for (line, is_good) in [("ping -c 1 127.0.0.1", true), ("ping no-such-host.invalid", false)] {
            let answer = answer(&ask(line)).await;
            assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
            let text = String::from_utf8(answer.stdout).unwrap();
            let parts: Vec<_> = text.split("&&").map(str::trim).collect();
            assert_eq!(parts.len(), 3, "{text}");
            assert_eq!(parts[2].parse::<i32>().unwrap() == 0, is_good, "{text}");
            assert_eq!(parts[0].contains("1 received"), is_good, "{text}");
            assert_eq!(parts[1].is_empty(), is_good, "{text}");
        }
        assert_eq!(answer(&ask("reboot")).await, Reply::default());
        assert_eq!(text("a && b\n", "", 1), "a & & b&&\n&&\n1\n");
    }
}
