//! `image-builder verify`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use image_builder::build::{self, Artefact, Options};
use image_builder::manifest::Manifest;
use image_builder::mirror::Source;
use image_builder::verify::{self, Mismatch};
use tracing::info;

use super::{CacheDir, LockFile, RecipeDir, blocking, print};

const EXAMPLES: &str = "\
Examples:
  image-builder verify image/ --programs DIR     build again and compare every byte
  image-builder verify image/ --checksums-only   are all files as SHA256SUMS and manifest.json say?

On a mismatch it says which file differs inside of the image, or which part of the disk. The rebuild is made below
TMPDIR and needs some 2 GB there. --checksums-only finds damage, not forgery: for that, see check-signature.
Exit status 1: something is not as it should be.";

/// Check that the files of a build are the bytes that recipe, lock file and programs make
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Verify {
    /// A directory that `build` filled
    directory: PathBuf,
    /// Only compare with the digests in it, without building
    #[arg(long)]
    checksums_only: bool,
    #[command(flatten)]
    lock: LockFile,
    #[command(flatten)]
    recipe: RecipeDir,
    #[command(flatten)]
    cache: CacheDir,
    #[command(flatten)]
    source: Source,
    /// The directory with our programs, as for `build`
    #[arg(long, value_name = "DIR", required_unless_present = "checksums_only")]
    programs: Option<PathBuf>,
    /// The directory with other files for the image, as for `build`
    #[arg(long, value_name = "DIR")]
    extra: Option<PathBuf>,
}

pub(crate) async fn run(args: &Verify) -> anyhow::Result<()> {
    let directory = args.directory.clone();
    let given = Manifest::load(&directory)?;
    let at = directory.clone();
    let damaged = blocking(move || verify::checksums(&at)).await??;
    let Some(programs) = args.programs.clone().filter(|_| !args.checksums_only) else {
        return report(&damaged);
    };
    if !damaged.is_empty() {
        info!(files = damaged.len(), "Digests are wrong; building again to see where");
    }
    let (recipe, lock) = (args.recipe.read()?, args.lock.read()?);
    let now = Manifest::new(&lock, &lock.render()?, recipe.digest.clone(), recipe.epoch);
    let others = verify::other_inputs(&given, &now);
    if !others.is_empty() {
        bail!(
            "{} was built with another {}; verify with those that it was built with",
            directory.display(),
            others.join(", ")
        );
    }
    let work = tempfile::tempdir().context("making a directory for the rebuild; TMPDIR says where")?;
    let made = Artefact::ALL
        .into_iter()
        .filter(|artefact| given.artefacts.contains_key(&artefact.file_name()));
    let options = Options {
        recipe,
        lock,
        cache: args.cache.open()?,
        source: args.source.clone(),
        programs,
        extra: args.extra.clone(),
        output: work.path().to_owned(),
        artefacts: made.collect::<BTreeSet<_>>(),
    };
    build::build(options).await?;
    let rebuilt = work.path().to_owned();
    report(&blocking(move || verify::compare(&directory, &rebuilt)).await??)
}

/// Says what is wrong, loudly.
fn report(mismatches: &[Mismatch]) -> anyhow::Result<()> {
    let mut text = String::new();
    for mismatch in mismatches {
        write!(text, "\nNOT THE SAME: {mismatch}")?;
    }
    match mismatches.len() {
        0 => print("all files are as they should be\n"),
        1 => bail!("1 file is not as it should be{text}"),
        many => bail!("{many} files are not as they should be{text}"),
    }
}
