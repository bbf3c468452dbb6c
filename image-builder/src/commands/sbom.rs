//! `image-builder sbom`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use image_builder::sbom::Bill;
use image_builder::view::View;

use super::{RecipeDir, blocking, deliver, read, read_lock};

const EXAMPLES: &str = "\
Examples:
  image-builder sbom sysvm.qcow2 --lock image.lock --format spdx --out sysvm.spdx.json
  image-builder sbom sysvm.tar --format cyclonedx
  cargo metadata --format-version 1 --filter-platform x86_64-unknown-linux-gnu > crates.json
  image-builder sbom sysvm.qcow2 --lock image.lock --crates crates.json --format cyclonedx

The same image gives the same bytes. Licences are those of the packages' copyright files.";

/// Bytes of what cargo metadata prints; ours prints 4 MB.
const MAX_METADATA: u64 = 256 << 20;

/// Write the bill of materials of an image: SPDX 2.3 or CycloneDX 1.6
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sbom {
    /// An image in any of our formats, or a sysvm.tar
    image: PathBuf,
    /// In which language
    #[arg(long, value_enum)]
    format: Format,
    /// The lock file that the image was built from: digests of packages come from it
    #[arg(long, value_name = "FILE")]
    lock: Option<PathBuf>,
    /// What `cargo metadata` prints: the crates in our programs come from it
    #[arg(long, value_name = "FILE")]
    crates: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeDir,
    /// Where to write it; standard output unless told otherwise
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// SPDX 2.3 (ISO/IEC 5962) in JSON
    Spdx,
    /// CycloneDX 1.6 (ECMA-424) in JSON
    Cyclonedx,
}

pub(crate) async fn run(args: &Sbom) -> anyhow::Result<()> {
    let lock = args.lock.as_deref().map(read_lock).transpose()?;
    let crates = args
        .crates
        .as_deref()
        .map(|path| read(path, MAX_METADATA))
        .transpose()?;
    let recipe = args.recipe.read()?;
    let image = args.image.clone();
    let view = blocking(move || View::open(&image)).await??;
    let bill = Bill::of(&view.tree, lock.as_ref(), crates.as_deref(), &recipe).context("listing what is in it")?;
    let text = match args.format {
        Format::Spdx => bill.spdx()?,
        Format::Cyclonedx => bill.cyclonedx()?,
    };
    deliver(&text, args.out.as_ref())
}
