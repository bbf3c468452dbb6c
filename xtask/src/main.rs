//! `cargo xtask`: everything that CI runs, and the few commands a developer needs besides `cargo` itself.

#![expect(
    clippy::print_stderr,
    reason = "xtask talks to a person, between the lines of cargo, which go there, too"
)]

mod assets;
mod guest;
mod image;
mod lanes;
mod steps;
mod tools;
mod up;

use std::env;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use platform::exec::Cmd;
use platform::{exit, logging};

use crate::steps::Steps;
use crate::tools::Install;

/// Checks and tests of this repository. Each command prints its steps and how long they took.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", after_help = EXAMPLES)]
struct Args {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask up --processes       a zone to look at, on this machine; `cargo xtask down` ends it
  cargo xtask test                 before you push: the same as CI
  cargo xtask image                the system VM image, in target/image
  cargo xtask lint                 while you work: format and clippy
  cargo test -p protocol           the tests of one crate; no xtask needed
  INSTA_UPDATE=always cargo test   accept new golden files, then read the diff

SYSVM_LOG=debug shows every program that is run.";

#[derive(Subcommand)]
enum Task {
    /// Everything: environment, format, clippy, dependencies, all tests with none skipped.
    ///
    /// Missing programs are installed first (apt-get, rustup, cargo install), each with its reason. The checks all run
    /// even if one fails. Needs root or sudo only to install.
    Test {
        #[command(flatten)]
        install: Install,
    },
    /// The format (rustfmt) and the lints (clippy), warnings being errors.
    Lint {
        #[command(flatten)]
        install: Install,
    },
    /// Dependencies: licences, banned crates, sources, as deny.toml says.
    Deny {
        /// Also look for known vulnerabilities and yanked versions: fetches the RustSec database from GitHub.
        #[arg(long)]
        advisories: bool,
        #[command(flatten)]
        install: Install,
    },
    /// What the console page needs and is not ours: noVNC, in target/assets/novnc. Does nothing when it is there.
    Assets {
        #[command(flatten)]
        install: Install,
    },
    /// A small guest from Debian packages, in target/assets/guest. Does nothing when it is there.
    Guest {
        #[command(flatten)]
        install: Install,
    },
    Image(image::Image),
    Up(up::Up),
    Down(up::Down),
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    logging::init();
    match run(args.task).await {
        Ok(code) => code,
        Err(error) => exit::failed(&error),
    }
}

async fn run(task: Task) -> anyhow::Result<ExitCode> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    env::set_current_dir(root).with_context(|| format!("entering {root}"))?;

    let mut steps = Steps::default();
    match task {
        Task::Test { install } => {
            if steps.run("environment", tools::ensure(&tools::ALL, install)).await {
                // Its last minutes are one thread's: they fit beside everything else.
                let programs = tokio::spawn(image::compile_ahead());
                lint(&mut steps).await;
                steps.run("deny", cargo(&DENY)).await;
                // System tests run the programs as built, and cargo does not build those of other crates for them.
                steps.run("build", cargo(&["build", "--workspace"])).await;
                steps.run("assets", async { assets::novnc().await.map(drop) }).await;
                steps
                    .run("guest", async { guest::ensure(install).await.map(drop) })
                    .await;
                steps.run("programs", async { programs.await? }).await;
                let image = image::Image::for_tests(install);
                steps
                    .run("image", async { image::ensure(&image).await.map(drop) })
                    .await;
                steps.run("test", lanes::run()).await;
            }
        }
        Task::Assets { install } => {
            if steps.run("environment", tools::ensure(&[tools::NPM], install)).await {
                steps.run("assets", async { assets::novnc().await.map(drop) }).await;
            }
        }
        Task::Guest { install } => {
            if steps
                .run("environment", tools::ensure(&[tools::QEMU_IMG], install))
                .await
            {
                steps
                    .run("guest", async { guest::ensure(install).await.map(drop) })
                    .await;
            }
        }
        Task::Image(image) => {
            let needed = [tools::CC, tools::LIBC, tools::NPM];
            if steps.run("environment", tools::ensure(&needed, image.install)).await {
                steps
                    .run("image", async { image::ensure(&image).await.map(drop) })
                    .await;
            }
        }
        Task::Up(arguments) => return up::up(arguments).await,
        Task::Down(arguments) => return up::down(arguments).await,
        Task::Lint { install } => {
            if steps
                .run("environment", tools::ensure(&[tools::RUSTFMT, tools::CLIPPY], install))
                .await
            {
                lint(&mut steps).await;
            }
        }
        Task::Deny { advisories, install } => {
            if steps.run("environment", tools::ensure(&[tools::DENY], install)).await {
                steps.run("deny", cargo(&DENY)).await;
                if advisories {
                    steps.run("advisories", cargo(&["deny", "check", "advisories"])).await;
                }
            }
        }
    }
    Ok(steps.finish())
}

const DENY: [&str; 6] = ["deny", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"];

async fn lint(steps: &mut Steps) {
    steps.run("fmt", cargo(&["fmt", "--all", "--check"])).await;
    steps
        .run(
            "clippy",
            cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        )
        .await;
}

async fn cargo(args: &[&str]) -> anyhow::Result<()> {
    must_succeed(&Cmd::new("cargo").args(args)).await
}

/// Runs where a person can watch.
async fn must_succeed(cmd: &Cmd) -> anyhow::Result<()> {
    eprintln!("$ {cmd}");
    let status = cmd.run_inherited().await?;
    ensure!(status.success(), "`{cmd}` failed ({status})");
    Ok(())
}
