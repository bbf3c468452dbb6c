//! `image-builder inspect`.

use std::path::PathBuf;

use clap::Args;
use image_builder::inspect::Report;

use super::{blocking, print};

const EXAMPLES: &str = "\
Examples:
  image-builder inspect sysvm.qcow2
  image-builder inspect sysvm.ova --packages --largest 30
  image-builder inspect sysvm.tar --json --files | jq '.files[] | select(.mode == \"4755\")'

Nothing is mounted and no root is needed. docs/image-builder.md describes the JSON.";

/// Say what is in an image: kernel, packages, units, users, largest files
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    /// An image in any of our formats (raw, qcow2, vhd, vmdk, ova), an ext4, or a tar such as sysvm.tar
    image: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List all files of the root file system, too
    #[arg(long)]
    files: bool,
    /// List all packages by name, not only the largest
    #[arg(long)]
    packages: bool,
    /// How many of the largest packages, directories and files to list
    #[arg(long, value_name = "N", default_value_t = 10)]
    largest: usize,
}

pub(crate) async fn run(args: &Inspect) -> anyhow::Result<()> {
    let (image, largest, files) = (args.image.clone(), args.largest, args.files);
    let report = blocking(move || Report::of(&image, largest, files)).await??;
    if args.json {
        print(format_args!("{}\n", serde_json::to_string_pretty(&report)?))
    } else {
        print(report.text(args.packages))
    }
}
