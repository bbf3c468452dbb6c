//! `image-builder sign`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use image_builder::manifest::SUMS;
use image_builder::sign::{self, Password};

use super::{blocking, print, read_text};

const EXAMPLES: &str = "\
Examples:
  image-builder sign --new-key --key image.key          make a key; asks for a password
  image-builder sign out/ --key image.key               sign out/SHA256SUMS, and so every file in it
  image-builder sign sysvm.qcow2 --key image.key        write sysvm.qcow2.minisig
  image-builder sign out/ --key image.key --password-file /run/secrets/image-key

Keys and signatures are minisign's: `minisign -V -p image.pub -m SHA256SUMS` checks them, too.
Passwords never come from the command line, where every user of the machine could read them.";

/// Bytes of a password's file.
const MAX_PASSWORD: u64 = 4096;

/// Sign images, or make a key to sign with
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sign {
    /// Files, or directories that `build` filled: of these, the list of digests is signed
    #[arg(required_unless_present = "new_key", conflicts_with = "new_key")]
    files: Vec<PathBuf>,
    /// The secret key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Make a new key pair: the secret key at --key, the public key beside it with the ending .pub
    #[arg(long)]
    new_key: bool,
    /// With --new-key: where the public key goes
    #[arg(long, value_name = "FILE", requires = "new_key")]
    public_key: Option<PathBuf>,
    /// With --new-key: protect the key by its file's mode alone
    #[arg(long, requires = "new_key", conflicts_with = "password_file")]
    no_password: bool,
    /// The first line of this file is the key's password; without it, the terminal is asked
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// A line that is signed with the files and shown when they are checked
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
}

pub(crate) async fn run(args: &Sign) -> anyhow::Result<()> {
    let password = args.password_file.as_deref().map(first_line).transpose()?;
    if args.new_key {
        return new_key(args, password).await;
    }
    let path = args.key.clone();
    let key = blocking(move || sign::secret_key(&path, password)).await??;
    for file in &args.files {
        let file = if file.is_dir() { file.join(SUMS) } else { file.clone() };
        let (key, comment) = (key.clone(), args.comment.clone());
        let signature = blocking(move || sign::sign(&file, &key, comment.as_deref())).await??;
        print(format_args!("{}\n", signature.display()))?;
    }
    Ok(())
}

async fn new_key(args: &Sign, password: Option<String>) -> anyhow::Result<()> {
    let public = args
        .public_key
        .clone()
        .unwrap_or_else(|| args.key.with_extension("pub"));
    let password = match password {
        Some(password) => Password::Given(password),
        None if args.no_password => Password::None,
        None => Password::Ask,
    };
    let (secret, at) = (args.key.clone(), public.clone());
    let text = blocking(move || sign::new_key(&secret, &at, password)).await??;
    print(format_args!(
        "secret key: {} (keep it; it cannot be made again)\npublic key: {}\n            {text}\n",
        args.key.display(),
        public.display()
    ))
}

pub(super) fn first_line(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path, MAX_PASSWORD)?;
    let line = text.lines().next().filter(|line| !line.is_empty());
    line.map(str::to_owned)
        .with_context(|| format!("{} has no password in its first line", path.display()))
}
