//! Keeps logs short: a guest may write to its serial console without end, and make QEMU complain.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use platform::files;
use tracing::debug;

use super::Places;

/// Bytes of a log before it is cut.
const MAX_LOG: u64 = 8 * 1024 * 1024;
/// Bytes of its end that are kept beside it then.
const KEPT: u64 = 1024 * 1024;

/// Cuts the logs that are too long: their ends are moved to where those of the run before are.
pub(super) fn shorten(places: &Places) {
    for log in [places.log(), places.console()] {
        if fs::metadata(&log).is_ok_and(|found| found.len() > MAX_LOG) {
            let cut = cut(&log, &Places::last(&log));
            debug!(path = %log.display(), is_ok = cut.is_ok(), "Log of a VM cut");
        }
    }
}

/// QEMU appends to it, whatever its length. What it writes between the two steps is lost.
fn cut(log: &Path, last: &Path) -> io::Result<()> {
    let mut end = Vec::new();
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(KEPT)))?;
    file.take(KEPT).read_to_end(&mut end)?;
    let kept = files::replace(last, end, 0o600).map_err(io::Error::other);
    // Also when the end cannot be kept, as on a full disk.
    OpenOptions::new().write(true).open(log)?.set_len(0)?;
    kept.map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_is_cut_while_it_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let places = Places::new(directory.path());
        let mut writer = OpenOptions::new()
            .append(true)
            .create(true)
            .open(places.console())
            .unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        for _ in 0..MAX_LOG / 1024 {
            writer.write_all(&line).unwrap();
        }
        shorten(&places);
        assert_eq!(fs::metadata(places.console()).unwrap().len(), MAX_LOG);
        writer.write_all(b"more\n").unwrap();
        shorten(&places);
        writer.write_all(b"still\n").unwrap();
        assert_eq!(fs::read(places.console()).unwrap(), b"still\n");
        let kept = fs::read(Places::last(&places.console())).unwrap();
        assert!(kept.ends_with(b"x\nmore\n"));
        assert_eq!(kept.len(), 1024 * 1024);
    }
}
