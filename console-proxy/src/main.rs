//! Console proxy: shows the screens of VMs in a browser.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use agent::agent::{Agent, Ended};
use anyhow::Context;
use clap::Parser;
use console_proxy::config::{BadConfig, Config};
use console_proxy::page::Page;
use console_proxy::proxy::{Commanded, Ports, Proxy};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use platform::notify::Notifier;
use platform::{crypto, exit, logging, shutdown};
use tracing::info;

/// Shows the screens of VMs in a browser: takes orders from a CloudStack management server, serves the console page, and
/// passes WebSocket traffic to the VNC servers of hypervisors.
///
/// Nothing listens before the management server says so. SIGTERM ends all sessions with a goodbye.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    /// File with the boot arguments: one line of key=value words, written by the management server.
    #[arg(long = "boot-args", value_name = "FILE", default_value = "/var/cache/cloud/cmdline")]
    cmdline: PathBuf,
    /// Settings of this machine's operator (TOML); the default may be missing.
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Read everything, say what is wrong, and end. Exit status 78: something is.
    #[arg(long)]
    check: bool,
}

const DEFAULT_SETTINGS: &str = "/etc/sysvm/console-proxy.toml";

const EXAMPLES: &str = "\
Examples:
  console-proxy --check                                as in a system VM; is everything right?
  console-proxy --boot-args cmdline --settings p.toml  as an ordinary process

Settings for an ordinary process, with page and consoles on one port:
  state_dir = \"/var/lib/console-proxy\"
  novnc = \"/usr/share/novnc\"
  [listen]
  http = \"127.0.0.1:6080\"
  cmd = \"127.0.0.1:6081\"

docs/console-proxy.md explains every setting. SYSVM_LOG=debug shows more.";

#[tokio::main]
async fn main() -> ExitCode {
    let args = Cli::parse();
    logging::init();
    crypto::install();

    let (config, page) = match load(&args) {
        Ok(loaded) => loaded,
        Err(error) => return exit::bad_config(&error),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        ?config,
        files = page.len(),
        "Configuration is good"
    );
    if args.check {
        return ExitCode::SUCCESS;
    }
    match run(config, page).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::failed(&error),
    }
}

fn load(args: &Cli) -> Result<(Config, Page), BadConfig> {
    let settings = match &args.settings {
        Some(named) if !named.exists() => return Err(BadConfig::NoSettings(named.clone())),
        Some(named) => named.clone(),
        None => DEFAULT_SETTINGS.into(),
    };
    let config = Config::load(&args.cmdline, &settings)?;
    let page = Page::load(&config.settings.novnc)?;
    Ok((config, page))
}

async fn run(config: Config, page: Page) -> anyhow::Result<()> {
    let asked_to_stop = shutdown::signal();
    // Each session takes two, and the usual soft limit ends at 500 sessions.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    let state_dir = &config.settings.state_dir;
    std::fs::create_dir_all(state_dir).with_context(|| format!("making the directory {}", state_dir.display()))?;
    let ports = Ports::reserve(&config)?;

    let mut proxy = None;
    let agent = Agent::new(config.agent.clone(), |server| {
        let made = Proxy::new(config, page, ports, Arc::new(server));
        proxy = Some(Arc::clone(&made));
        Commanded(made)
    })?;
    let proxy = proxy.context("the agent has made its service")?;
    let systemd = Arc::new(Notifier::from_env());
    // A task of the runtime that serves: when none of its threads can run it, systemd hears nothing any more.
    let alive = Arc::clone(&systemd);
    tokio::spawn(async move { alive.prove_life().await });
    systemd.ready();
    let stop = async {
        asked_to_stop.await;
        systemd.stopping();
        proxy.drain().await;
    };
    if agent.run(stop).await? == Ended::ByServer {
        info!("The management server has ended this proxy");
        proxy.drain().await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
