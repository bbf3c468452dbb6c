//! `/var/log/cloud.log`, where people and CloudStack's diagnostics look (§5.4, §13): one line for each step of the boot. It is a
//! link into memory, as all logs of the image are, and never larger than two times [`LIMIT`].

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::root::Root;

/// What `/var/log/cloud.log` links to, and what was there before it was full.
const FILE: &str = "/run/sysvm/cloud.log";
const OLD: &str = "/run/sysvm/cloud.log.1";
/// Bytes of one file: some thousand lines.
const LIMIT: u64 = 128 * 1024;

/// Adds a line. That it cannot be written stops nothing: the journal has it, too.
pub(super) fn append(root: &Root, program: &str, text: &str) {
    if let Err(error) = try_append(root, program, text) {
        tracing::debug!(error = error.to_string(), "Cannot write into cloud.log");
    }
}

fn try_append(root: &Root, program: &str, text: &str) -> io::Result<()> {
    let now = OffsetDateTime::now_utc()
        .replace_nanosecond(0)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let now = now.format(&Rfc3339).map_err(io::Error::other)?;
    let path = root.path(FILE);
    if fs::metadata(&path).is_ok_and(|file| file.len() >= LIMIT) {
        fs::rename(&path, root.path(OLD))?;
    }
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
    // In one call, since two programs write here.
    file.write_all(format!("{now} {program}: {}\n", text.replace('\n', "; ")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_one_line_and_the_file_stays_small() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        append(&root, "boot", "nobody made the directory");
        fs::create_dir_all(root.path("/run/sysvm")).unwrap();
        append(&root, "boot", "network: done\neth0");
        let text = fs::read_to_string(root.path(FILE)).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(
            (time.len(), rest),
            ("2026-11-21T20:00:00Z".len(), "boot: network: done; eth0\n")
        );

        for _ in 0..5000 {
            append(&root, "boot", &"x".repeat(200));
        }
        let sizes = [FILE, OLD].map(|file| fs::metadata(root.path(file)).unwrap().len());
        assert!(sizes.iter().all(|size| *size < LIMIT + 1000), "{sizes:?}");
    }
}
