use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use image_builder::verify::{self, Mismatch};

use super::{blocking, print};

const EXAMPLES: &str = "\
Examples:
  image-builder verify out/ --checksums-only     are all files as SHA256SUMS and manifest.json say?

That finds damage, not forgery: for that, see check-signature. Exit status 1: something is not as it should be.";

/// Check that the files of a build are the bytes that they should be
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Verify {
    /// A directory that `build` filled
    directory: PathBuf,
    /// Only compare with the digests in it
    #[arg(long, required = true)]
    checksums_only: bool,
}

pub(crate) async fn run(args: &Verify) -> anyhow::Result<()> {
    let directory = args.directory.clone();
    report(&blocking(move || verify::checksums(&directory)).await??)
}

/// Says what is wrong, loudly.
fn report(mismatches: &[Mismatch]) -> anyhow::Result<()> {
    for mismatch in mismatches {
        print(format_args!("NOT THE SAME: {mismatch}\n"))?;
    }
    match mismatches.len() {
        0 => print("all files are as they should be\n"),
        1 => bail!("1 file is not as it should be"),
        many => bail!("{many} files are not as they should be"),
    }
}
