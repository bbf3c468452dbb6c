//! `image-builder lock`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use image_builder::apt::{self, Wanted};
use image_builder::mirror::{Mirrors, Source};
use platform::files::{self, Change};
use tracing::info;

use super::{LockFile, RecipeDir, print};

const EXAMPLES: &str = "\
Examples:
  image-builder lock                  take what Debian has today, and say what is new
  image-builder lock --check          only say it; exit status 1 if there is anything
  image-builder lock --recipe my-vm --lock my-vm/image.lock
                                      for an image of your own";

/// Find out which packages the recipe needs, and write their versions and digests into the lock file.
///
/// Asks apt in a directory of its own: neither this machine's packages nor its apt settings count, except for how to
/// download. The lists of packages must be signed by Debian. The file is the same whichever mirror answers, and everything
/// that is built with it is, too. Prints one line for each package that is added, updated or removed.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Lock {
    #[command(flatten)]
    file: LockFile,
    #[command(flatten)]
    recipe: RecipeDir,
    #[command(flatten)]
    source: Source,
    /// The keys that the lists of packages must be signed with.
    #[arg(long, value_name = "FILE", default_value = apt::KEYRING)]
    keyring: PathBuf,
    /// Write nothing; exit status 1 when there are newer packages than in the lock file.
    #[arg(long)]
    check: bool,
}

pub(crate) async fn run(args: &Lock) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        !args.source.offline,
        "what Debian has today cannot be known with --offline"
    );
    let recipe = args.recipe.read().context("reading the recipe")?;
    let old = args.file.read_if_there()?;
    if args.check && old.is_none() {
        args.file.read()?; // says that it is missing
    }
    let mirrors = Mirrors::of(&args.source).await?;
    let wanted = Wanted {
        suite: &recipe.suite,
        image: &recipe.packages.image,
        tools: &recipe.packages.tools,
    };
    let new = apt::resolve(wanted, &mirrors, &args.keyring).await?;

    let changes = old.as_ref().map(|old| old.changes(&new));
    if let Some(changes) = &changes {
        print(changes)?;
    }
    let changed = changes.map(|changes| changes.len());
    if args.check {
        let is_current = changed == Some(0);
        info!(changed, is_current, "Lock file compared with what Debian has today");
        return Ok(if is_current {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    let text = new.render().context("writing the lock file")?;
    let path = &args.file.path;
    let written = files::replace(path, text, 0o644)? == Change::Changed;
    let (packages, tools) = (new.packages.len(), new.tools.len());
    info!(path = %path.display(), packages, tools, changed, written, "Lock file is up to date");
    Ok(ExitCode::SUCCESS)
}
