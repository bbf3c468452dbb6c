//! The system VM image: how large it is, how long it takes to make and to start, and what it leaves of the memory.

mod peer;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use system_tests::vm::{Booted, Format, Vm};

/// The system VM image: sizes of all formats, what is in it, how long `image-builder` takes to make it again, and how it
/// starts in 128, 256 and 512 MiB; beside it what mmdebstrap and qemu-img make of the same packages.
///
/// Needs the image (`cargo xtask image`), QEMU, and a release build of image-builder. The peer needs mmdebstrap,
/// apt-utils, e2fsprogs and qemu-utils, and root.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where `cargo xtask image` has put it.
    #[arg(long, value_name = "DIR", default_value = "target/image")]
    image: PathBuf,
    /// Parts that it is made of again, also from `cargo xtask image`.
    #[arg(long, value_name = "DIR", default_value = "target/image-parts")]
    parts: PathBuf,
    /// Starts in each size of memory; the best is shown.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=20))]
    boots: u32,
    /// Leave mmdebstrap out.
    #[arg(long)]
    no_peer: bool,
}

/// MiB. The smallest that a router gets, an older offering, today's.
const MEMORIES: [u32; 3] = [128, 256, 512];

const LOCK: &str = "image-builder/image.lock";
const BUILD_LIMIT: Duration = Duration::from_mins(10);

pub(crate) fn measure(args: &Args) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(args))
}

async fn run(args: &Args) -> anyhow::Result<String> {
    let mut table = String::new();
    sizes(&args.image, &mut table)?;
    builds(args, &mut table).await?;
    boots(args, &mut table).await?;
    if !args.no_peer {
        let lock = lock_of(&args.parts);
        table += &peer::measure(&lock).await?;
    }
    Ok(table)
}

/// What the image was made of: the committed lock file, or the one that `cargo xtask image` had to make.
fn lock_of(parts: &Path) -> PathBuf {
    let own = parts.join("image.lock");
    if own.is_file() { own } else { LOCK.into() }
}

fn sizes(image: &Path, table: &mut String) -> anyhow::Result<()> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(image).with_context(|| format!("reading {}; run `cargo xtask image`", image.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_file() && !name.starts_with('.') {
            files.insert(name, entry.metadata()?);
        }
    }
    writeln!(table, "{:<40}{:>12}{:>12}", "file", "MB", "MB on disk")?;
    for (name, data) in files {
        writeln!(
            table,
            "{name:<40}{:>12}{:>12}",
            megabytes(data.len()),
            megabytes(data.blocks() * 512)
        )?;
    }
    Ok(())
}

/// With one digit.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes.div_ceil(100_000);
    format!("{}.{}", tenths / 10, tenths % 10)
}

async fn builds(args: &Args, table: &mut String) -> anyhow::Result<()> {
    let builder = std::env::current_exe()?.with_file_name("image-builder");
    ensure!(
        builder.is_file(),
        "{} is not there; run `cargo build --release -p image-builder`",
        builder.display()
    );
    let output = tempfile::tempdir_in("target").context("making a directory in target")?;
    writeln!(table, "\n{:<40}{:>12}", "image-builder build --offline", "s")?;
    for what in ["every format", "every format, the second time"] {
        let build = Cmd::new(&builder)
            .args(["build", "--offline", "--lock"])
            .arg(lock_of(&args.parts))
            .arg("--programs")
            .arg(args.parts.join("programs"))
            .arg("--extra")
            .arg(args.parts.join("extra"))
            .arg("--output")
            .arg(output.path().join("image"))
            .time_limit(BUILD_LIMIT);
        let started = Instant::now();
        build.run().await?;
        writeln!(table, "{what:<40}{:>12.1}", started.elapsed().as_secs_f64())?;
    }
    Ok(())
}

/// One start, in seconds since the kernel began, and KiB.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Boot {
    kernel: f64,
    multi_user: f64,
    available: u64,
}

async fn boots(args: &Args, table: &mut String) -> anyhow::Result<()> {
    writeln!(
        table,
        "\n{:<12}{:>10}{:>14}{:>22}   best of {}",
        "memory MiB", "kernel s", "multi-user s", "MemAvailable MB", args.boots
    )?;
    for memory in MEMORIES {
        let mut best: Option<Boot> = None;
        for _ in 0..args.boots {
            let image = args.image.join("sysvm.qcow2");
            let vm = Vm::of(image, Format::Qcow2).memory_mib(memory).cpus(2).boot().await?;
            let boot = one(&vm).await?;
            tracing::info!(memory, ?boot, "Started");
            if best.is_none_or(|best| boot.multi_user < best.multi_user) {
                best = Some(boot);
            }
        }
        let best = best.context("there is a boot")?;
        writeln!(
            table,
            "{memory:<12}{:>10.1}{:>14.1}{:>22}",
            best.kernel,
            best.multi_user,
            megabytes(best.available * 1024)
        )?;
    }
    Ok(())
}

async fn one(vm: &Booted) -> anyhow::Result<Boot> {
    vm.up().await?;
    let blame = vm.text(&["systemd-analyze", "time"]).await?;
    let memory = vm.read("/proc/meminfo").await?;
    boot_in(&blame, &memory).with_context(|| format!("the VM says {blame:?}"))
}

fn boot_in(time: &str, memory: &str) -> Option<Boot> {
    let kernel = seconds(time.split_once("finished in ")?.1.split_once(" (kernel)")?.0)?;
    let userspace = seconds(
        time.split_once("multi-user.target reached after ")?
            .1
            .split_once(" in userspace")?
            .0,
    )?;
    let available = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(Boot {
        kernel,
        multi_user: kernel + userspace,
        available: available.trim().strip_suffix(" kB")?.parse().ok()?,
    })
}

/// As systemd writes a span: `1min 2.5s`, `950ms`.
fn seconds(span: &str) -> Option<f64> {
    span.split_ascii_whitespace().try_fold(0.0, |sum, part| {
        let digits = part.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &part[digits.len()..] {
            "min" => 60.0,
            "s" => 1.0,
            "ms" => 0.001,
            _ => return None,
        };
        Some(sum + digits.parse::<f64>().ok()? * unit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_says_of_a_boot_is_read() {
        let time = "Startup finished in 4.250s (kernel) + 8.500s (userspace) = 12.750s \n\
                    multi-user.target reached after 8.250s in userspace.\n";
        let memory = "MemTotal:         471828 kB\nMemAvailable:     396000 kB\n";
        let boot = boot_in(time, memory).unwrap();
        let wanted = Boot {
            kernel: 4.25,
            multi_user: 12.5,
            available: 396_000,
        };
        assert_eq!(boot, wanted);
        assert_eq!(boot_in("Bootup is not yet finished", memory), None);
    }

    #[test]
    fn spans_and_sizes_are_written_as_people_write_them() {
        assert_eq!(seconds("1min 2.5s"), Some(62.5));
        assert_eq!(seconds("500ms"), Some(0.5));
        assert_eq!(seconds("2 weeks"), None);
        assert_eq!(megabytes(117_000_001), "117.1");
        assert_eq!(megabytes(0), "0.0");
    }
}
