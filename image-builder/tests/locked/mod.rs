//! The locked packages, for tests of what is made of them.

use std::path::{Path, PathBuf};

use image_builder::cache::Cache;
use image_builder::fetch::provide;
use image_builder::lock::Lock;
use image_builder::mirror::Source;
use image_builder::tools::Tools;

/// The lock file that this checkout's image is built from: the project's own, or, where mirrors have deleted a package of
/// that one, what `cargo xtask image` has resolved anew.
pub(crate) fn lock_file() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    let anew = crate_directory.join("../target/image-parts/image.lock");
    if anew.exists() {
        anew
    } else {
        crate_directory.join("image.lock")
    }
}

/// What it says.
pub(crate) fn lock() -> Lock {
    Lock::parse(&std::fs::read_to_string(lock_file()).unwrap()).unwrap()
}

/// Takes the tools from the cache, and gets what is missing there as `image-builder fetch` does.
#[allow(dead_code, reason = "not every test that includes this module runs tools itself")]
pub(crate) async fn tools(epoch: u64) -> Tools {
    let lock = lock();
    let cache = Cache::open(Cache::default_dir().unwrap()).unwrap();
    provide(&cache, &lock.tools, &Source::default()).await.unwrap();
    Tools::unpack(&cache, &lock.tools, epoch).unwrap()
}
