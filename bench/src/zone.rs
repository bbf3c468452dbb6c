//! A zone of virtual machines, from `cargo xtask up` to `cargo xtask down`.

mod simulated;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use serde_json::Value;

use self::simulated::Scale;
use crate::process;

/// Brings a zone of virtual machines up, several times, and takes it down: how long until both system VMs are Up, what each
/// step of their starts takes, and the memory of QEMU and of the management server.
///
/// Needs root, and what `cargo xtask up` needs: the image (`cargo xtask image`), and `xtask` and `mgmt-stub` beside this
/// program (`cargo build --release -p xtask -p mgmt-stub`).
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Zones, one after another, each with new data; medians are shown.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// Simulated VMs of the last part: all come Up, every second one dies, all return. 0: leave it out.
    #[arg(long, value_name = "COUNT", default_value_t = 2000, value_parser = clap::value_parser!(u16).range(0..=4000))]
    simulated: u16,
    /// Where their directories are made.
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    dir: PathBuf,
}

/// For one `up`, without KVM.
const UP_LIMIT: Duration = Duration::from_mins(25);
const DOWN_LIMIT: Duration = Duration::from_mins(6);

/// What one zone has come to: figures by their names, in an order.
type Figures = BTreeMap<(u32, String), f64>;

pub(crate) fn measure(args: &Args) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all: BTreeMap<(u32, String), Vec<f64>> = BTreeMap::new();
    // First: memory that other parts have had would be in its figures.
    let scale = match args.simulated {
        0 => None,
        count => Some(many(count)?),
    };
    for round in 1..=args.rounds {
        let figures = runtime.block_on(one(args))?;
        tracing::info!(round, ?figures, "A zone came and went");
        for (name, figure) in figures {
            all.entry(name).or_default().push(figure);
        }
    }
    let mut table = format!("{:<44}{:>10}   medians of {}\n", "", "", args.rounds);
    for ((_, name), mut figures) in all {
        figures.sort_by(f64::total_cmp);
        writeln!(table, "{name:<44}{:>10.1}", figures[figures.len() / 2])?;
    }
    if let Some(scale) = scale {
        let Scale {
            came,
            returned,
            kib_each,
        } = scale;
        let count = args.simulated;
        writeln!(
            table,
            "\n{:<44}{:>10.1}",
            format!("{count} simulated VMs Up, s"),
            came.as_secs_f64()
        )?;
        let name = "every second one died, all Up again, s";
        writeln!(table, "{name:<44}{:>10.1}", returned.as_secs_f64())?;
        writeln!(table, "{:<44}{kib_each:>10.1}", "memory of each, both ends, KiB")?;
    }
    Ok(table)
}

/// All processors, as the server has them.
fn many(count: u16) -> anyhow::Result<Scale> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let scale = runtime.block_on(simulated::measure(count));
    runtime.shutdown_timeout(Duration::from_secs(1));
    scale
}

async fn one(args: &Args) -> anyhow::Result<Figures> {
    let directory = tempfile::Builder::new().prefix("sysvm-bench-").tempdir_in(&args.dir)?;
    let zone = Zone {
        programs: std::env::current_exe()?.with_file_name(""),
        directory: directory.path().to_owned(),
    };
    let measured = zone.measure().await;
    let began = Instant::now();
    let down = zone.xtask("down").time_limit(DOWN_LIMIT).run().await;
    let mut figures = measured?;
    down?;
    figures.insert((4, "down, s".into()), began.elapsed().as_secs_f64());
    Ok(figures)
}

struct Zone {
    programs: PathBuf,
    directory: PathBuf,
}

impl Zone {
    async fn measure(&self) -> anyhow::Result<Figures> {
        let [http, console] = free_ports()?;
        let began = Instant::now();
        let up = self
            .xtask("up")
            .args(["--no-build", "--no-install", "--http", &http.to_string()]);
        up.args(["--console", &console.to_string()])
            .time_limit(UP_LIMIT)
            .run()
            .await?;
        let mut figures = Figures::new();
        figures.insert((0, "up, until all is there, s".into()), began.elapsed().as_secs_f64());

        let list = self.api("listSystemVms").await?;
        let vms = list["systemvm"].as_array().context("no system VMs")?;
        ensure!(vms.len() == 2, "not two system VMs: {list}");
        for vm in vms {
            Self::add(vm, &mut figures)?;
        }
        let state: Value = serde_json::from_slice(&std::fs::read(self.directory.join("zone.json"))?)?;
        let pid = state["server"]["pid"].as_u64().context("no server in zone.json")?;
        let memory = f64::from(process::rss(u32::try_from(pid)?)?) / 1024.0;
        figures.insert((3, "mgmt-stub, MiB".into()), memory);
        Ok(figures)
    }

    /// Of one VM: what its steps took, from the end of one to the end of the next, and its memory.
    fn add(vm: &Value, figures: &mut Figures) -> anyhow::Result<()> {
        let kind = match vm["systemvmtype"].as_str() {
            Some("consoleproxy") => "CPVM",
            _ => "SSVM",
        };
        let steps = vm["bootprogress"].as_array().context("no steps of a start")?;
        let own = steps
            .iter()
            .filter(|step| !step["name"].as_str().unwrap_or_default().starts_with("boot: "));
        let mut before = None;
        for (place, step) in (10..).zip(own) {
            let (name, at) = (step["name"].as_str(), step["at"].as_f64());
            let (name, at) = name.zip(at).context("a step without name and time")?;
            if let Some(before) = before {
                figures.insert((place, format!("{kind}: {name}, s")), (at - before) / 1000.0);
            }
            before = Some(at);
        }
        let kib = vm["memorykbs"].as_f64().context("no memory of a VM")?;
        figures.insert((2, format!("{kind}: QEMU, MiB")), kib / 1024.0);
        Ok(())
    }

    fn xtask(&self, word: &str) -> Cmd {
        Cmd::new(self.programs.join("xtask"))
            .arg(word)
            .arg("--dir")
            .arg(&self.directory)
    }

    async fn api(&self, command: &str) -> anyhow::Result<Value> {
        let call = Cmd::new(self.programs.join("mgmt-stub"))
            .arg("--data-dir")
            .arg(self.directory.join("data"));
        let printed = call.args(["api", command]).run().await?;
        Ok(serde_json::from_slice(&printed.stdout)?)
    }
}

/// Both at once, so that they differ.
fn free_ports() -> anyhow::Result<[SocketAddr; 2]> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (first, second) = (listen()?, listen()?);
    Ok([first.local_addr()?, second.local_addr()?])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_step_takes_from_the_end_of_the_one_before_to_its_own() {
        let step = |name: &str, at: u64| json!({"name": name, "outcome": "done", "at": at});
        let vm = json!({
            "systemvmtype": "consoleproxy", "memorykbs": 2048,
            "bootprogress": [step("qemu", 1000), step("boot: line", 1500), step("guest agent", 3500), step("ssh", 4000)],
        });
        let mut figures = Figures::new();
        Zone::add(&vm, &mut figures).unwrap();
        let shown: Vec<_> = figures
            .iter()
            .map(|((_, name), figure)| (name.as_str(), *figure))
            .collect();
        assert_eq!(
            shown,
            [
                ("CPVM: QEMU, MiB", 2.0),
                ("CPVM: guest agent, s", 2.5),
                ("CPVM: ssh, s", 0.5)
            ]
        );
    }
}
