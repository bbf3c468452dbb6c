//! `image-builder diff`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use image_builder::diff;
use image_builder::lock::Lock;
use image_builder::view::View;
use platform::exit;

use super::{blocking, print, read_lock};

const EXAMPLES: &str = "\
Examples:
  image-builder diff old.qcow2 new.ova         packages, files, units, kernel modules, command line
  image-builder diff old/sysvm.tar new.qcow2   what both have is compared
  image-builder diff old/image.lock image.lock which packages an update brings
  image-builder diff --json a.vhd b.vhd

Exit status: 0 they are the same, 1 they are different, 2 trouble.";

/// Exit status of diff(1).
const DIFFERENT: u8 = 1;
const TROUBLE: u8 = 2;

/// Say what changed between two images, or between two lock files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Diff {
    /// The old image (any format), sysvm.tar or image.lock
    old: PathBuf,
    /// The new one; images may be of another format
    new: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

enum Subject {
    Image(Box<View>),
    Lock(Lock),
}

pub(crate) async fn run(args: &Diff) -> ExitCode {
    match compare(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(DIFFERENT),
        Err(error) => {
            // Its own status would mean that they are different.
            let _ = exit::failed(&error);
            ExitCode::from(TROUBLE)
        }
    }
}

async fn compare(args: &Diff) -> anyhow::Result<bool> {
    let (old, new) = (args.old.clone(), args.new.clone());
    let (old, new) = tokio::join!(blocking(move || open(&old)), blocking(move || open(&new)));
    let diff = match (old??, new??) {
        (Subject::Image(old), Subject::Image(new)) => {
            diff::Diff::of_images(&old, &new).context("comparing the packages of the images")?
        }
        (Subject::Lock(old), Subject::Lock(new)) => diff::Diff::of_locks(&old, &new),
        _ => bail!("a lock file can only be compared with another lock file"),
    };
    if args.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&diff)?))?;
    } else {
        print(&diff)?;
    }
    Ok(diff.is_empty())
}

fn open(path: &Path) -> anyhow::Result<Subject> {
    if is_text(path).with_context(|| format!("cannot read {}", path.display()))? {
        Ok(Subject::Lock(read_lock(path)?))
    } else {
        Ok(Subject::Image(Box::new(View::open(path)?)))
    }
}

/// Lock files begin with letters, images with bytes that are none (or with `conectix`, `QFI\xfb`, `KDMV\x03`, zeros).
fn is_text(path: &Path) -> std::io::Result<bool> {
    let mut start = Vec::new();
    File::open(path)?.take(512).read_to_end(&mut start)?;
    let is_printable = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    Ok(!start.is_empty() && start.iter().all(is_printable))
}
