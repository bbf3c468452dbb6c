//! `cargo xtask image`: the system VM image with this repository's programs, in `target/image`.

mod inputs;
mod programs;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use platform::exec::Cmd;
use platform::files;

use crate::assets;
use crate::must_succeed;
use crate::tools::Install;
use inputs::Inputs;

/// Where the image is put. Only what `image-builder build` makes is in it, and what says of what it was made.
pub(crate) const DIRECTORY: &str = "target/image";
/// What goes into the image besides packages and the recipe.
const PARTS: &str = "target/image-parts";
/// Which packages; committed.
const LOCK: &str = "image-builder/image.lock";
/// As `image-builder` says that a mirror has deleted a package of the lock file.
const GONE: &str = "no longer has";

/// Build the system VM image with the programs of this repository, in target/image. Does nothing when it is there and
/// neither programs nor recipe nor packages have changed.
///
/// Programs are compiled so that their bytes do not depend on where this repository is; packages come from this machine's
/// Debian mirror, or from --mirror, and are kept in ~/.cache/sysvm.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Image {
    /// Use no network: all packages were fetched before
    #[arg(long, conflicts_with = "mirror")]
    offline: bool,
    /// A Debian mirror to use instead of those in this machine's apt configuration; may be repeated
    #[arg(long, value_name = "URL")]
    mirror: Vec<String>,
    /// Which files to make, such as qcow2,vhd; without it all
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    formats: Vec<String>,
    /// The workspace was built just now, and `image-builder` with it.
    #[arg(skip)]
    has_builder: bool,
    #[command(flatten)]
    pub(crate) install: Install,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask image                    every format; the second time it has nothing to do
  cargo xtask image --formats qcow2    only what KVM needs
  cargo xtask image --offline          with the packages of an earlier run";

impl Image {
    /// What `cargo xtask test` needs, which has built the workspace before.
    pub(crate) fn for_tests(install: Install) -> Self {
        Self {
            offline: false,
            mirror: Vec::new(),
            formats: Vec::new(),
            has_builder: true,
            install,
        }
    }

    /// What `cargo xtask up` needs.
    pub(crate) fn for_kvm(install: Install) -> Self {
        Self {
            formats: vec!["qcow2".into()],
            has_builder: false,
            ..Self::for_tests(install)
        }
    }

    /// Options that `image-builder` has, too.
    fn passed_on(&self) -> impl Iterator<Item = &str> {
        let mirrors = self.mirror.iter().flat_map(|url| ["--mirror", url]);
        mirrors.chain(self.offline.then_some("--offline"))
    }
}

/// Compiles what goes into the image, so that [`ensure`] finds it done.
pub(crate) async fn compile_ahead() -> anyhow::Result<()> {
    programs::compile_ahead().await
}

/// Makes sure that the image is there; its directory.
pub(crate) async fn ensure(wanted: &Image) -> anyhow::Result<PathBuf> {
    let novnc = assets::novnc().await?;
    let parts = Path::new(PARTS);
    fs::create_dir_all(parts).with_context(|| format!("making {PARTS}"))?;
    let programs = programs::build(&parts.join("programs")).await?;
    let extra = extra(&novnc, &parts.join("extra"))?;
    let builder = builder(wanted.has_builder).await?;

    let directory = Path::new(DIRECTORY);
    let lock = usable_lock(&builder, wanted, parts).await?;
    let parts: [&Path; 4] = [&builder, &lock, &programs, &extra];
    let inputs = Inputs::of(&parts, &wanted.formats)?;
    // Who wants some formats is content with all of them.
    if inputs.made(directory)? || Inputs::of(&parts, &[])?.made(directory)? {
        eprintln!("The image is in {DIRECTORY}, and nothing that goes into it has changed");
        return Ok(directory.to_owned());
    }
    fs::create_dir_all(directory).with_context(|| format!("making {DIRECTORY}"))?;
    let mut build = Cmd::new(&builder)
        .arg("build")
        .arg("--lock")
        .arg(&lock)
        .arg("--programs")
        .arg(&programs)
        .arg("--extra")
        .arg(&extra)
        .arg("--output")
        .arg(directory)
        .args(wanted.passed_on());
    if !wanted.formats.is_empty() {
        build = build.args(["--formats", &wanted.formats.join(",")]);
    }
    must_succeed(&build).await?;
    inputs.remember(directory)?;
    eprintln!("The image is in {DIRECTORY}");
    Ok(directory.to_owned())
}

/// In the profile of tests, which have it built anyway; what it writes does not depend on how it was compiled.
///
/// Not again when the workspace was built: for one package alone cargo chooses other features of dependencies, and compiles
/// half of them once more.
async fn builder(is_built: bool) -> anyhow::Result<PathBuf> {
    if !is_built {
        must_succeed(&Cmd::new("cargo").args(["build", "--package", "image-builder"])).await?;
    }
    Ok("target/debug/image-builder".into())
}

/// What the image has besides packages, recipe and programs, laid out as in the image: noVNC, as far as the console page
/// uses it, with its licences.
fn extra(novnc: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    let wanted =
        |name: &str| matches!(name, "core" | "vendor") || name.starts_with("LICENSE") || name.starts_with("AUTHORS");
    assets::replace_directory(directory, |fresh| {
        let target = fresh.join("usr/share/novnc");
        fs::create_dir_all(&target)?;
        for entry in fs::read_dir(novnc)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(wanted) {
                copy(&entry.path(), &target.join(entry.file_name()))?;
            }
        }
        Ok(())
    })
    .with_context(|| format!("making {}", directory.display()))?;
    Ok(directory.to_owned())
}

/// Copies a file, or a directory with all in it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if !from.is_dir() {
        fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The committed lock file, with its packages fetched. Mirrors delete packages when Debian replaces them: then one with
/// today's packages, which is good for tests and for nothing else. (Without a network: with those of such an earlier day.)
async fn usable_lock(builder: &Path, wanted: &Image, parts: &Path) -> anyhow::Result<PathBuf> {
    let fetch = |lock: &Path| {
        Cmd::new(builder)
            .arg("fetch")
            .arg("--lock")
            .arg(lock)
            .args(wanted.passed_on())
            .time_limit(inputs::FETCH_LIMIT)
    };
    let committed = Path::new(LOCK);
    ensure!(committed.is_file(), "{LOCK} is missing; `image-builder lock` makes it");
    let first = fetch(committed);
    eprintln!("$ {first}");
    let error = match first.run().await {
        Ok(_) => return Ok(committed.to_owned()),
        Err(error) => error.to_string(),
    };
    let own = parts.join("image.lock");
    let can_go_on = if wanted.offline {
        own.is_file()
    } else {
        error.contains(GONE)
    };
    ensure!(can_go_on, "{error}");
    eprintln!(
        "warning: {error}\n\
         warning: this image is NOT the one that {LOCK} describes: it gets the packages of {}",
        own.display()
    );
    if !wanted.offline {
        fs::copy(committed, &own).with_context(|| format!("writing {}", own.display()))?;
        let resolve = Cmd::new(builder).arg("lock").arg("--lock").arg(&own);
        must_succeed(&resolve.args(wanted.passed_on())).await?;
    }
    let second = fetch(&own);
    eprintln!("$ {second}");
    second.run().await?;
    Ok(own)
}

/// Whether a file already has these contents.
fn holds(path: &Path, contents: &[u8]) -> anyhow::Result<bool> {
    const MAX_PROGRAM: u64 = 256 << 20;
    Ok(files::read_limited(path, MAX_PROGRAM)?.as_deref() == Some(contents))
}
