//! `image-builder check-signature`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Args;
use image_builder::manifest::{Contents, SUMS, Sums};
use image_builder::sign;

use super::{blocking, print};

const EXAMPLES: &str = "\
Examples:
  image-builder check-signature out/ --public-key image.pub     the list of digests and every file in it
  image-builder check-signature sysvm.qcow2 --public-key image.pub
  image-builder check-signature out/ --public-key RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3

The signature is beside the file, with the ending .minisig. Exit status 1: not signed, or not good.";

/// Check that images are what somebody signed
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckSignature {
    /// Files, or directories that `build` filled
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The public key: its file, or the key itself
    #[arg(long, value_name = "FILE|KEY")]
    public_key: String,
}

pub(crate) async fn run(args: &CheckSignature) -> anyhow::Result<()> {
    let key = sign::public_key(&args.public_key)?;
    for path in &args.files {
        let (path, key) = (path.clone(), key.clone());
        let good = blocking(move || check(&path, &key)).await??;
        print(good)?;
    }
    Ok(())
}

fn check(path: &Path, key: &minisign::PublicKey) -> anyhow::Result<String> {
    if !path.is_dir() {
        let comment = sign::check(path, key)?;
        return Ok(format!("{}: good ({})\n", path.display(), comment.replace('\t', " ")));
    }
    let comment = sign::check(&path.join(SUMS), key)?;
    let sums = Sums::load(path)?.0;
    let paths: Vec<_> = sums.keys().map(|name| path.join(name)).collect();
    let mut text = format!("{}: good ({})\n", path.join(SUMS).display(), comment.replace('\t', " "));
    for ((name, sum), contents) in sums.iter().zip(Contents::of_files(&paths)) {
        if contents?.sha256 != *sum {
            bail!(
                "{} is not what was signed: its digest is not as the signed {SUMS} says",
                path.join(name).display()
            );
        }
        writeln!(text, "{}: good", path.join(name).display())?;
    }
    Ok(text)
}
