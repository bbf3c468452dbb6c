//! Images by the real `qemu-img` and `genisoimage`, and what hostile people make of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod formats;
mod hostile;
mod noise;
mod start;
mod vectors;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use platform::exec::{Cmd, ExecError};
use protocol::transfer::ImageFormat;
use serde_json::Value;
use ssvm::image::{Judged, Limits, Refusal, judge, judge_start};
use tempfile::TempDir;

/// Runs a program to its end and gives what it printed.
fn run(program: &str, args: &[&str]) -> String {
    try_run(program, args).unwrap()
}

fn try_run(program: &str, args: &[&str]) -> Result<String, ExecError> {
    let mut pipe = Cmd::new(program).args(args).pipe()?;
    drop(pipe.input.take());
    let mut text = String::new();
    pipe.output.take().unwrap().read_to_string(&mut text).unwrap();
    pipe.finish().map(|()| text)
}

/// A directory in which images are made.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `qemu-img create` with options.
    fn create(&self, format: &str, options: &str, size: &str) -> PathBuf {
        let path = self.at(&format!(
            "{format}-{}.img",
            fs::read_dir(self.0.path()).unwrap().count()
        ));
        let mut args = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([path.to_str().unwrap(), size]);
        run("qemu-img", &args);
        path
    }

    /// 3 MiB with something in it, converted.
    fn convert(&self, format: &str, options: &str) -> PathBuf {
        let raw = self.at("source.raw");
        let file = File::create(&raw).unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(&vec![0xa5; 70_000], 1 << 20).unwrap();
        let path = self.at(&format!(
            "{format}-{}.img",
            fs::read_dir(self.0.path()).unwrap().count()
        ));
        let mut args = vec!["convert", "-q", "-f", "raw", "-O", format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([raw.to_str().unwrap(), path.to_str().unwrap()]);
        run("qemu-img", &args);
        path
    }
}

fn judged(path: &Path, format: ImageFormat) -> Result<Judged, Refusal> {
    judge_both_ways(&File::open(path).unwrap(), format)
}

/// What is refused by its start is refused as a whole: nothing good is refused too early.
fn judge_both_ways(file: &File, format: ImageFormat) -> Result<Judged, Refusal> {
    let limits = Limits::default();
    let judged = judge(file, format, &limits);
    let whole = file.metadata().unwrap().len();
    for length in [whole, whole.min(1 << 20), whole.min(2_500_000)] {
        let start = judge_start(file, length, format, &limits);
        assert!(judged.is_err() || start.is_ok(), "its first {length} bytes: {start:?}");
    }
    judged
}

fn refused(path: &Path, format: ImageFormat) -> String {
    judged(path, format).unwrap_err().to_string()
}

/// What QEMU says a guest would see.
fn virtual_size(path: &Path, format: &str) -> u64 {
    let text = run(
        "qemu-img",
        &["info", "--output=json", "-f", format, path.to_str().unwrap()],
    );
    serde_json::from_str::<Value>(&text).unwrap()["virtual-size"]
        .as_u64()
        .unwrap()
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}
