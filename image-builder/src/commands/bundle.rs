//! `image-builder bundle`.

use std::path::PathBuf;

use clap::Args;
use image_builder::bundle::{self, SUFFIX};
use image_builder::sign;
use platform::bundle::{Range, Version};
use platform::files;

use super::sign::first_line;
use super::{RecipeDir, blocking, print};

const EXAMPLES: &str = "\
Examples:
  image-builder sign --new-key --key upgrade.key                       once: a key, and upgrade.pub for the image
  image-builder bundle --programs DIR --key upgrade.key                write sysvm-0.1.0.sysvm
  image-builder bundle --programs DIR --key upgrade.key --version 0.1.1 --image-at-least 0.1.0

A VM takes it by `agent upgrade FILE`, or when it is uploaded to /var/cache/cloud/sysvm-bundle; it must have the public key
in /etc/sysvm/upgrade-keys: put that into EXTRA/etc/sysvm/upgrade-keys/NAME.pub and build the image with --extra EXTRA.
People look into a bundle with `tar` and `minisign`. docs/upgrade.md is the manual.";

/// Make an upgrade bundle: our programs alone, signed, for system VMs that run
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Bundle {
    /// The directory with our programs
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// The secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The first line of this file is the key's password; without it, the terminal is asked
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The version of the programs: VMs refuse one that is older than what they run
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: Version,
    /// The first version of the image that they run on [default: the first that is compatible with --version]
    #[arg(long, value_name = "VERSION")]
    image_at_least: Option<Version>,
    /// The first version of the image that is too new for them [default: the first that is not compatible]
    #[arg(long, value_name = "VERSION")]
    image_below: Option<Version>,
    /// Where the bundle goes [default: sysvm-VERSION.sysvm]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    recipe: RecipeDir,
}

pub(crate) async fn run(args: &Bundle) -> anyhow::Result<()> {
    let names = args.recipe.read()?.programs;
    let password = args.password_file.as_deref().map(first_line).transpose()?;
    let compatible = args.version.compatible();
    let image = Range {
        at_least: args.image_at_least.unwrap_or(compatible.at_least),
        below: args.image_below.unwrap_or(compatible.below),
    };
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| format!("sysvm-{}{SUFFIX}", args.version).into());
    let (directory, key, version, to) = (args.programs.clone(), args.key.clone(), args.version, output.clone());
    blocking(move || {
        let key = sign::secret_key(&key, password)?;
        let bytes = bundle::make(&directory, &names, version, image, &key)?;
        let _ = files::replace(to, bytes, 0o644)?;
        anyhow::Ok(())
    })
    .await??;
    print(format_args!("{}\n", output.display()))
}
