//! `publish`: what a CloudStack management server expects of a system VM template.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use image_builder::formats;
use image_builder::publish::{Publication, Version};
use image_builder::stop;
use url::Url;

/// Make the files that a CloudStack management server expects
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  image-builder publish systemvm.qcow2 --out published
  image-builder publish systemvm.qcow2 --out published --cloudstack-version 4.20.1 --base-url https://example.org/systemvm

Writes the templates for KVM, VMware, XenServer and Hyper-V, sha512sum.txt and metadata.ini, and prints their paths.
docs/use-with-cloudstack.md says how a server gets them.")]
pub(crate) struct Publish {
    /// The image: raw, qcow2, VHD, VMDK or OVA
    image: PathBuf,
    /// The directory for the files; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The release of CloudStack, which file names and metadata.ini carry
    #[arg(long, value_name = "VERSION", default_value = "4.22.0.0")]
    cloudstack_version: Version,
    /// Where servers will download from: the files belong into its subdirectory of the release, such as 4.22
    #[arg(long, value_name = "URL")]
    base_url: Option<Url>,
}

pub(crate) async fn run(args: &Publish) -> anyhow::Result<()> {
    let publication = Publication {
        out: args.out.clone(),
        version: args.cloudstack_version,
        base_url: args.base_url.clone(),
    };
    let image = args.image.clone();
    stop::until_dropped(move |stop| {
        formats::check_manifest(&image)?;
        let disk = formats::open(&image)?.disk;
        for path in publication.make(&*disk, stop)? {
            writeln!(io::stdout(), "{}", path.display())?;
        }
        Ok(())
    })
    .await
}
