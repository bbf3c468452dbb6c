//! Of what an image was made, so that it is not made again.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use platform::files;
use sha2::{Digest, Sha256};

use crate::assets::hex;

/// 260 packages, 210 MB.
pub(super) const FETCH_LIMIT: Duration = Duration::from_mins(30);

/// Written last, beside the image.
const STAMP: &str = ".made-of";
const MAX_STAMP: u64 = 1 << 16;

/// Everything that decides what an image is, as a digest.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inputs(String);

impl Inputs {
    /// Of files, and directories with all in them, and of which formats are wanted.
    pub(super) fn of(paths: &[&Path], formats: &[String]) -> anyhow::Result<Self> {
        let mut digest = Digested(Sha256::new());
        for path in paths {
            digest
                .add(path)
                .with_context(|| format!("reading {}", path.display()))?;
        }
        digest.0.update(formats.join(","));
        Ok(Self(hex(&digest.0.finalize())))
    }

    /// Whether the image in a directory was made of them, and is whole.
    pub(super) fn made(&self, directory: &Path) -> anyhow::Result<bool> {
        let stamp = files::read_limited(directory.join(STAMP), MAX_STAMP)?;
        Ok(match stamp {
            Some(stamp) => stamp == self.stamp(directory)?.into_bytes(),
            None => false,
        })
    }

    /// Notes that the image in a directory was made of them.
    pub(super) fn remember(&self, directory: &Path) -> anyhow::Result<()> {
        let _ = files::replace(directory.join(STAMP), self.stamp(directory)?, 0o644)?;
        Ok(())
    }

    /// With names and sizes of what is there: a file that was cut off or deleted is noticed.
    fn stamp(&self, directory: &Path) -> anyhow::Result<String> {
        let mut stamp = format!("{}\n", self.0);
        for (name, size) in sizes(directory).with_context(|| format!("reading {}", directory.display()))? {
            writeln!(stamp, "{size} {name}")?;
        }
        Ok(stamp)
    }
}

/// Files in a directory, sorted, without hidden ones.
fn sizes(directory: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut sizes = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            sizes.push((name, entry.metadata()?.len()));
        }
    }
    sizes.sort();
    Ok(sizes)
}

struct Digested(Sha256);

impl Digested {
    fn add(&mut self, path: &Path) -> anyhow::Result<()> {
        let data = fs::metadata(path)?;
        if data.is_file() {
            self.0.update(data.len().to_le_bytes());
            let mut file = File::open(path)?;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match file.read(&mut buffer)? {
                    0 => break,
                    count => self.0.update(&buffer[..count]),
                }
            }
            return Ok(());
        }
        if !data.is_dir() {
            bail!("it is neither a file nor a directory");
        }
        let mut names = fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort();
        for name in names {
            // A slash is in no name: what is a name and what is contents is clear.
            self.0.update(name.as_encoded_bytes());
            self.0.update("/");
            self.add(&path.join(name))?;
        }
        self.0.update("//");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, contents: &str) {
        let _ = files::replace(path, contents, 0o644).unwrap();
    }

    #[test]
    fn an_image_is_made_again_when_an_input_or_an_output_is_another() {
        let place = tempfile::tempdir().unwrap();
        let (inputs, outputs) = (place.path().join("in"), place.path().join("out"));
        for directory in [&inputs, &outputs] {
            fs::create_dir(directory).unwrap();
        }
        put(&inputs.join("agent"), "program");
        let of = |formats: &[&str]| {
            let formats: Vec<_> = formats.iter().map(|name| (*name).to_owned()).collect();
            Inputs::of(&[&inputs], &formats).unwrap()
        };
        let first = of(&[]);
        assert!(!first.made(&outputs).unwrap());
        put(&outputs.join("sysvm.qcow2"), "image");
        first.remember(&outputs).unwrap();
        assert!(first.made(&outputs).unwrap());
        assert!(!of(&["vhd"]).made(&outputs).unwrap());

        put(&outputs.join("sysvm.qcow2"), "ima");
        assert!(!first.made(&outputs).unwrap());
        put(&outputs.join("sysvm.qcow2"), "image");
        assert!(of(&[]).made(&outputs).unwrap());

        put(&inputs.join("agent"), "another");
        assert!(!of(&[]).made(&outputs).unwrap());
    }

    #[test]
    fn where_a_name_ends_is_part_of_the_digest() {
        let place = tempfile::tempdir().unwrap();
        let digest = |name: &str, contents: &str| {
            let directory = place.path().join(format!("{name}-{contents}"));
            fs::create_dir(&directory).unwrap();
            put(&directory.join(name), contents);
            Inputs::of(&[&directory], &[]).unwrap()
        };
        assert_ne!(digest("ab", "c"), digest("a", "bc"));
    }
}
