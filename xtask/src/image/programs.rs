//! The programs in the image, compiled so that their bytes depend on sources and compiler, and on nothing of this machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use platform::exec::Cmd;
use platform::files;

use super::holds;
use crate::must_succeed;

/// Started by systemd in the guest.
const DAEMONS: [&str; 3] = ["agent", "console-proxy", "ssvm"];
/// The initrd's `init`: nothing is there to link with, so it is static.
const INIT: &str = "stage1";

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Of Cargo.toml: as a release, without symbols; and as small as can be.
const PROFILE: &str = "image";
const INIT_PROFILE: &str = "stage1";
/// Other flags than everybody else's would make cargo compile everything anew each time.
const TARGET_DIRECTORY: &str = "target/programs";

/// Between flags in `CARGO_ENCODED_RUSTFLAGS`; paths may have blanks.
const SEPARATOR: &str = "\x1f";

/// Compiles them and puts them into `directory`; cargo knows when there is nothing to do.
pub(super) async fn build(directory: &Path) -> anyhow::Result<PathBuf> {
    let here = Places::find().await?;
    compile(&here, &[]).await?;
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let all = DAEMONS
        .map(|name| (PROFILE, name))
        .into_iter()
        .chain([(INIT_PROFILE, INIT)]);
    for (profile, name) in all {
        let built = Path::new(TARGET_DIRECTORY).join(TARGET).join(profile).join(name);
        let contents = fs::read(&built).with_context(|| format!("reading {}", built.display()))?;
        here.must_not_be_in(&contents, name)?;
        let target = directory.join(name);
        if !holds(&target, &contents)? {
            let _ = files::replace(&target, &contents, 0o755)?;
        }
    }
    Ok(directory.to_owned())
}

/// Only compiles them, saying nothing but what is wrong: while something else is said. cargo keeps what comes of it where
/// it keeps nothing else, so neither waits for the other.
pub(super) async fn compile_ahead() -> anyhow::Result<()> {
    compile(&Places::find().await?, &["--quiet"]).await
}

async fn compile(here: &Places, options: &[&str]) -> anyhow::Result<()> {
    let compile = |verb: &str, profile: &str| {
        Cmd::new("cargo")
            .args([verb, "--profile", profile])
            .args(options)
            .args(["--target", TARGET, "--target-dir", TARGET_DIRECTORY])
            .env("CARGO_ENCODED_RUSTFLAGS", here.rust_flags())
            .env("CFLAGS", here.c_flags())
    };
    let packages = DAEMONS.iter().flat_map(|name| ["--package", name]);
    must_succeed(&compile("build", PROFILE).args(packages)).await?;
    let init = compile("rustc", INIT_PROFILE).args(["--package", INIT, "--bin", INIT]);
    must_succeed(&init.args(["--", "-C", "target-feature=+crt-static"])).await
}

/// Directories of this machine that a compiler would write into what it makes, and what is written instead. What is
/// inside of another comes after it: the last that fits counts.
struct Places(Vec<(String, String)>);

impl Places {
    async fn find() -> anyhow::Result<Self> {
        let text = |path: PathBuf| {
            path.into_os_string()
                .into_string()
                .ok()
                .context("a path that is not UTF-8")
        };
        let workspace = text(env::current_dir().context("asking where we are")?)?;
        let cargo_home: PathBuf = match env::var_os("CARGO_HOME") {
            Some(set) if !set.is_empty() => set.into(),
            _ => env::home_dir().context("HOME is not set")?.join(".cargo"),
        };
        let rustc = async |args: &[&str]| Ok::<_, anyhow::Error>(Cmd::new("rustc").args(args).run().await?.text());
        let sysroot = rustc(&["--print", "sysroot"]).await?;
        let version = rustc(&["-vV"]).await?;
        let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: "));
        let mut places = vec![
            (workspace, "/sysvm".to_owned()),
            (text(cargo_home.clone())?, "/cargo".to_owned()),
            // Where the sources of the standard library are, if they are installed; rustc writes the other otherwise.
            (
                format!("{}/lib/rustlib/src/rust", sysroot.trim()),
                format!("/rustc/{}", commit.unwrap_or("unknown")),
            ),
        ];
        // Each registry, or mirror of one, has a directory of its own name there.
        let registries = cargo_home.join("registry/src");
        for registry in fs::read_dir(&registries).with_context(|| format!("reading {}", registries.display()))? {
            places.push((text(registry?.path())?, "/crates".to_owned()));
        }
        places[3..].sort();
        Ok(Self(places))
    }

    fn rust_flags(&self) -> String {
        let flag = |(from, to): &(_, _)| format!("--remap-path-prefix={from}={to}");
        self.0.iter().map(flag).collect::<Vec<_>>().join(SEPARATOR)
    }

    /// For the C in some crates.
    fn c_flags(&self) -> String {
        let flag = |(from, to): &(_, _)| format!("-ffile-prefix-map={from}={to}");
        self.0.iter().map(flag).collect::<Vec<_>>().join(" ")
    }

    fn must_not_be_in(&self, program: &[u8], name: &str) -> anyhow::Result<()> {
        for (place, _) in &self.0 {
            let is_there = program.windows(place.len()).any(|bytes| bytes == place.as_bytes());
            ensure!(
                !is_there,
                "the program {name} has the directory {place} in it: built elsewhere it would be another"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Places {
        let places = [
            ("/home/me/sysvm", "/sysvm"),
            ("/home/me/.cargo", "/cargo"),
            ("/rust/lib/rustlib/src/rust", "/rustc/0123"),
        ];
        Places(places.map(|(from, to)| (from.to_owned(), to.to_owned())).to_vec())
    }

    #[test]
    fn compilers_are_told_to_write_no_directory_of_this_machine() {
        assert_eq!(
            places().rust_flags(),
            "--remap-path-prefix=/home/me/sysvm=/sysvm\x1f--remap-path-prefix=/home/me/.cargo=/cargo\
             \x1f--remap-path-prefix=/rust/lib/rustlib/src/rust=/rustc/0123"
        );
        assert_eq!(
            places().c_flags(),
            "-ffile-prefix-map=/home/me/sysvm=/sysvm -ffile-prefix-map=/home/me/.cargo=/cargo \
             -ffile-prefix-map=/rust/lib/rustlib/src/rust=/rustc/0123"
        );
    }

    #[test]
    fn a_program_that_names_a_directory_of_this_machine_is_refused() {
        places().must_not_be_in(b"/sysvm/agent/src/main.rs", "agent").unwrap();
        let error = places()
            .must_not_be_in(b"..\0/home/me/.cargo/registry\0", "agent")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the program agent has the directory /home/me/.cargo in it: built elsewhere it would be another"
        );
    }
}
