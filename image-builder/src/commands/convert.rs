//! `convert`: from any of our formats to any other.

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use image_builder::formats::{self, Compression, Format, Watched};
use image_builder::{output, progress};

use image_builder::stop;
use tracing::info;

/// Convert an image to another format
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  image-builder convert systemvm.qcow2 systemvm.ova
  image-builder convert systemvm.ova disk.raw                 a raw disk, with holes
  image-builder convert disk.raw old.qcow2 --compression zlib for hosts with a QEMU before 5.1

The format of IN is found in its bytes; that of OUT is its ending, or --format. The same disk gives the same bytes,
whatever it was before. OUT appears when it is complete, and replaces what was there.")]
pub(crate) struct Convert {
    /// The image to read: raw, qcow2, VHD, VMDK or OVA
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// The image to write
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// The format of OUT, when its ending does not say
    #[arg(long)]
    format: Option<Format>,
    /// How clusters of a qcow2 are stored [default: zstd]
    #[arg(long)]
    compression: Option<Compression>,
}

pub(crate) async fn run(args: &Convert) -> anyhow::Result<()> {
    let Some(format) = args.format.or_else(|| Format::of_name(&args.output)) else {
        bail!(
            "{} does not end in a format's name; give --format",
            args.output.display()
        );
    };
    if args.compression.is_some() && format != Format::Qcow2 {
        bail!("--compression is for qcow2, and this is {format}; leave it out");
    }
    let compression = args.compression.unwrap_or(Compression::Zstd);
    let (input, output) = (args.input.clone(), args.output.clone());
    stop::until_dropped(move |stop| {
        formats::check_manifest(&input)?;
        let image = formats::open(&input)?;
        let progress = progress::step("Converting", image.disk.size());
        let disk = Watched::new(&*image.disk, stop, |bytes| progress.set(bytes));
        output::write(&output, |file| formats::write(&disk, format, compression, file))
            .with_context(|| format!("converting {}", input.display()))?;
        progress.set(image.disk.size());
        info!(path = %output.display(), %format, "Converted");
        Ok(())
    })
    .await
}
