//! The directory a store is mounted at (ssvm.md §1.6).

use md5::{Digest, Md5};
use uuid::Builder;

/// Java's `UUID.nameUUIDFromBytes`: version 3 without a name space. A mount directory is named by
/// `<resolved address>:<path of the URL>`; a trailing slash counts, port and query are not part of it.
pub fn mount_uuid(name: &str) -> String {
    Builder::from_md5_bytes(Md5::digest(name).into())
        .into_uuid()
        .to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn names_are_those_of_the_vectors() {
        let vectors: Value = serde_json::from_str(include_str!("../tests/vectors/mount-uuid.json")).unwrap();
        let names = vectors["name_uuid"].as_array().unwrap();
        assert_eq!(names.len(), 6);
        for name in names {
            assert_eq!(
                mount_uuid(name["input"].as_str().unwrap()),
                name["uuid"].as_str().unwrap()
            );
        }
        for mount in vectors["mounts"].as_array().unwrap() {
            let url = url::Url::parse(mount["url"].as_str().unwrap()).unwrap();
            let name = format!("{}:{}", mount["resolved_ip"].as_str().unwrap(), url.path());
            assert_eq!(mount_uuid(&name), mount["dir"].as_str().unwrap());
        }
    }
}
