//! The locked tools, for tests of what they make.

use image_builder::cache::Cache;
use image_builder::fetch::provide;
use image_builder::lock::Lock;
use image_builder::mirror::Source;
use image_builder::tools::Tools;

/// The project's lock file.
const LOCK: &str = include_str!("../../image.lock");

/// Takes the tools from the cache, and gets what is missing there as `image-builder fetch` does.
pub(crate) async fn tools(epoch: u64) -> Tools {
    let lock = Lock::parse(LOCK).unwrap();
    let cache = Cache::open(Cache::default_dir().unwrap()).unwrap();
    provide(&cache, &lock.tools, &Source::default()).await.unwrap();
    Tools::unpack(&cache, &lock.tools, epoch).unwrap()
}
