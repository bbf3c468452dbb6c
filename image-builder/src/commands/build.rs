//! `image-builder build`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use image_builder::build::{self, Artefact, Options};
use image_builder::mirror::Source;

use super::{CacheDir, LockFile, RecipeDir, print};

/// Make images: packages by the lock file, the recipe, and our programs.
///
/// Nothing of this machine gets into them: not its time, users, paths or tools. Packages that are not in the cache are
/// fetched first; after that no network is needed. Files of an earlier build stay until all new ones are whole, and no
/// file is ever half of one; manifest.json is written last. A rerun does not do again what is in the cache.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Build {
    #[command(flatten)]
    lock: LockFile,
    #[command(flatten)]
    recipe: RecipeDir,
    #[command(flatten)]
    cache: CacheDir,
    #[command(flatten)]
    source: Source,
    /// The directory with our programs: those that the recipe names, and stage1
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// A directory with other files for the image, laid out as there: usr/share/novnc/…
    #[arg(long, value_name = "DIR")]
    extra: Option<PathBuf>,
    /// Where images, manifest.json and SHA256SUMS are put
    #[arg(long, short, value_name = "DIR", default_value = "image")]
    output: PathBuf,
    /// What to make [default: raw, qcow2, qcow2-plain, vhd and ova]
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide_default_value = true)]
    formats: Vec<Artefact>,
}

const EXAMPLES: &str = "\
Examples:
  image-builder build --programs target/image-parts/programs
  image-builder build --programs DIR --formats qcow2 --output /srv/images
  image-builder build --programs DIR --offline          with the packages of an earlier build

`cargo xtask image` builds the programs, too.";

/// What is made unless something else is asked for: all that boots.
const USUAL: [Artefact; 5] = [
    Artefact::Raw,
    Artefact::Qcow2,
    Artefact::Qcow2Plain,
    Artefact::Vhd,
    Artefact::Ova,
];

pub(crate) async fn run(args: &Build) -> anyhow::Result<()> {
    let artefacts = if args.formats.is_empty() {
        &USUAL[..]
    } else {
        &args.formats
    };
    let options = Options {
        recipe: args.recipe.read()?,
        lock: args.lock.read()?,
        cache: args.cache.open()?,
        source: args.source.clone(),
        programs: args.programs.clone(),
        extra: args.extra.clone(),
        output: args.output.clone(),
        artefacts: artefacts.iter().copied().collect::<BTreeSet<_>>(),
    };
    let manifest = build::build(options).await?;
    print(manifest.sums().render())
}
