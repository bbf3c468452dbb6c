//! `get_diagnostics_files.py`: files and states of the VM in a zip file, for an administrator (§8.2). Secrets stay here.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use platform::exec::Cmd;
use platform::files::BESIDE;
use platform::logging::chain;
use time::OffsetDateTime;
use time::macros::format_description;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::redact::Redactor;
use super::{Reply, find};
use crate::appliance::root::Root;

/// Of one file: the end of a log is where the trouble is.
const MAX_FILE: u64 = 16 << 20;
const MAX_LINE: u64 = 1 << 16;
/// An archive that nobody fetched, and its server has forgotten.
const OLD: Duration = Duration::from_hours(24);
const DIRECTORY: &str = "/root";
const PREFIX: &str = "diagnostics_files_";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    File(String),
    /// One of the words that stand for a program's output.
    Keyword(&'static str, &'static [&'static str]),
    /// `[NAME ARGS]`: a program of `/opt/cloud/bin`.
    Program(String, Vec<String>),
}

/// The keywords (§8.2). There is no iptables here: its log is nft's.
const KEYWORDS: [(&str, &[&str]); 4] = [
    ("iptables", &["nft", "list", "ruleset"]),
    ("ipaddr", &["ip", "address"]),
    ("iprule", &["ip", "rule"]),
    ("iproute", &["ip", "route", "show", "table", "all"]),
];

/// `get_diagnostics_files.py ITEM…`: the last line is the path of the archive.
pub(super) async fn answer(root: &Root, args: &[String]) -> Reply {
    let items = read(&args.join(" "));
    match collect(root, &items).await {
        Ok(path) => Reply::ok(path + "\n"),
        Err(error) => Reply::failed(1, format!("cannot make a diagnostics file: {error}")),
    }
}

/// Blanks or commas are between items; what is in brackets is one.
fn read(text: &str) -> Vec<Item> {
    let mut items = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', ',']);
        if rest.is_empty() {
            return items;
        }
        if let Some(inside) = rest.strip_prefix('[') {
            let (inside, after) = inside.split_once(']').unwrap_or((inside, ""));
            let mut words = inside.split_ascii_whitespace().map(str::to_owned);
            items.extend(words.next().map(|name| Item::Program(name, words.collect())));
            rest = after;
        } else {
            let end = rest.find([' ', '\t', '\n', ',', '[']).unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            let keyword = KEYWORDS.iter().find(|(name, _)| *name == word);
            items.push(keyword.map_or_else(
                || Item::File(word.to_owned()),
                |(name, command)| Item::Keyword(name, command),
            ));
            rest = after;
        }
    }
}

async fn collect(root: &Root, items: &[Item]) -> Result<String, String> {
    let directory = root.path(DIRECTORY);
    remove_old(&directory);
    let now = OffsetDateTime::now_utc();
    let stamp = now.format(format_description!("[year][month][day]-[hour][minute][second]"));
    let path = format!("{DIRECTORY}/{PREFIX}{}.zip", stamp.expect("a time has all these parts"));

    // 0600 from its first byte, and under its name when it is whole.
    let beside = tempfile::Builder::new().prefix(BESIDE).tempfile_in(&directory);
    let beside = beside.map_err(|error| error.to_string())?;
    let mut archive = Archive {
        zip: ZipWriter::new(beside.as_file()),
        names: BTreeSet::new(),
        info: String::new(),
    };
    for item in items {
        archive.add(root, item).await.map_err(|error| error.to_string())?;
    }
    archive.finish().map_err(|error| error.to_string())?;
    beside.as_file().sync_all().map_err(|error| error.to_string())?;
    beside.persist(root.path(&path)).map_err(|error| error.to_string())?;
    Ok(path)
}

struct Archive<W: Write + Seek> {
    zip: ZipWriter<W>,
    names: BTreeSet<String>,
    info: String,
}

impl<W: Write + Seek> Archive<W> {
    async fn add(&mut self, root: &Root, item: &Item) -> io::Result<()> {
        match item {
            Item::File(path) => self.add_file(root, path),
            Item::Keyword(name, command) => {
                let (program, args) = command.split_first().expect("each keyword has a program");
                let text = match Cmd::new(program).args(args).run().await {
                    Ok(output) => output.text(),
                    Err(error) => chain(&error).to_string(),
                };
                self.add_text(&format!("{name}.log"), &text)?;
                self.note(name);
                Ok(())
            }
            Item::Program(name, args) => {
                // An archive in an archive would never end.
                let command = find(name).filter(|command| command.name != "get_diagnostics_files.py");
                let Some(command) = command else {
                    writeln!(self.info, "[{name}] File Not Found!!").expect("a String takes everything");
                    return Ok(());
                };
                let reply = Box::pin(command.run(root, args)).await;
                let text = String::from_utf8_lossy(&reply.stdout).into_owned() + &reply.stderr;
                self.add_text(&format!("{name}.log"), &text)?;
                self.note(&format!("[{name}]"));
                Ok(())
            }
        }
    }

    fn add_file(&mut self, root: &Root, path: &str) -> io::Result<()> {
        // Neither wait for a pipe's writer nor read a directory.
        let open = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(root.path(path));
        let found = open.and_then(|file| file.metadata().map(|found| (file, found.is_file(), found.len())));
        let Ok((file, true, length)) = found else {
            writeln!(self.info, "{path} File Not Found!!").expect("a String takes everything");
            return Ok(());
        };
        let name = Path::new(path)
            .file_name()
            .map_or_else(|| "file".into(), |name| name.to_string_lossy());
        if is_only_secret(&name) {
            writeln!(self.info, "{path} is secret and was left out").expect("a String takes everything");
            return Ok(());
        }
        self.start(&name)?;
        copy_redacted(file, length, &mut self.zip)?;
        self.note(path);
        Ok(())
    }

    fn add_text(&mut self, name: &str, text: &str) -> io::Result<()> {
        self.start(name)?;
        let mut redactor = Redactor::default();
        for line in text.lines() {
            if let Some(line) = redactor.line(line) {
                writeln!(self.zip, "{line}")?;
            }
        }
        Ok(())
    }

    /// Files of the same name from two directories are two files.
    fn start(&mut self, name: &str) -> io::Result<()> {
        let mut unique = name.to_owned();
        let mut number = 1;
        while !self.names.insert(unique.clone()) {
            unique = format!("{name}.{number}");
            number += 1;
        }
        let options = SimpleFileOptions::default().unix_permissions(0o600);
        self.zip.start_file(unique, options).map_err(io::Error::other)
    }

    fn note(&mut self, what: &str) {
        writeln!(self.info, "{what}").expect("a String takes everything");
    }

    fn finish(mut self) -> io::Result<()> {
        self.start("fileinfo.txt")?;
        self.zip.write_all(self.info.as_bytes())?;
        self.zip.finish().map(drop).map_err(io::Error::other)
    }
}

/// The end of a file, line by line.
fn copy_redacted(mut file: File, length: u64, to: &mut impl Write) -> io::Result<()> {
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
    let mut file = BufReader::new(file.take(MAX_FILE));
    let mut redactor = Redactor::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        // A "line" without an end must not fill the memory.
        if file.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let has_end = line.pop_if(|last| *last == b'\n').is_some();
        if let Some(shown) = redactor.line(&String::from_utf8_lossy(&line)) {
            to.write_all(shown.as_bytes())?;
            if has_end {
                to.write_all(b"\n")?;
            }
        }
    }
}

/// Files of which nothing can be shown.
fn is_only_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let ends = [".key", ".key.new", ".jks", ".p12", ".pfx", "-secrets", ".secrets"];
    let is_host_key = name.starts_with("ssh_host_") && Path::new(&name).extension().is_none_or(|end| end != "pub");
    is_host_key
        || name.starts_with("shadow")
        || name.starts_with("gshadow")
        || ends.iter().any(|end| name.ends_with(end))
}

/// Whether this is the path of an archive of ours.
pub(super) fn is_archive(path: &str) -> bool {
    let stamp = || {
        path.strip_prefix(DIRECTORY)?
            .strip_prefix('/')?
            .strip_prefix(PREFIX)?
            .strip_suffix(".zip")
    };
    stamp().is_some_and(|stamp| {
        let shape = b"00000000-000000";
        let fits = |(found, wanted): (u8, u8)| {
            if wanted == b'0' {
                found.is_ascii_digit()
            } else {
                found == wanted
            }
        };
        stamp.len() == shape.len() && stamp.bytes().zip(*shape).all(fits)
    })
}

fn remove_old(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry
            .metadata()
            .and_then(|found| found.modified())
            .ok()
            .and_then(|at| at.elapsed().ok());
        if is_archive(&format!("{DIRECTORY}/{name}")) && age.is_some_and(|age| age > OLD) {
            fs::remove_file(entry.path()).ok(); // the next one tries again
        }
    }
}

#[cfg(test)]
mod tests {
    use platform::files;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn items_are_paths_keywords_and_programs_in_brackets() {
        let wanted = vec![
            Item::Keyword("iptables", &["nft", "list", "ruleset"]),
            Item::File("/etc/hosts".to_owned()),
            Item::Program("netusage.sh".to_owned(), vec!["-g".to_owned()]),
            Item::File("/x".to_owned()),
        ];
        assert_eq!(read("iptables /etc/hosts [netusage.sh -g] /x"), wanted);
        assert_eq!(read(",iptables,/etc/hosts,[ netusage.sh  -g ],/x,"), wanted);
        assert_eq!(read(" [] "), []);
        assert_eq!(read("[x"), [Item::Program("x".to_owned(), Vec::new())]);
    }

    #[tokio::test]
    async fn an_archive_has_what_is_there_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let put = |path: &str, text: &[u8]| {
            fs::create_dir_all(root.path(path).parent().unwrap()).unwrap();
            let _ = files::replace(root.path(path), text, 0o600).unwrap();
        };
        put("/root/x", b"");
        put(
            "/a/agent.properties",
            b"keystore.passphrase=swordfish\nhost=192.0.2.10\n",
        );
        put("/b/agent.properties", b"no line end");
        put("/a/cloud.key", b"swordfish");
        put("/a/noise", b"\xff\xfe\0binary");
        let args = "/a/agent.properties,/b/agent.properties,/a/cloud.key,/a/noise,/a,/nowhere,[bumpup_priority.sh],[reboot],ipaddr";
        let answer = answer(&root, &[args.to_owned()]).await;
        assert_eq!((answer.code, answer.stderr.as_str()), (0, ""));
        let path = String::from_utf8(answer.stdout).unwrap();
        assert!(is_archive(path.trim_end()), "{path}");

        let mut zip = zip::ZipArchive::new(File::open(root.path(path.trim_end())).unwrap()).unwrap();
        let mut text = |name: &str| {
            let mut text = String::new();
            zip.by_name(name).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(text("agent.properties"), "keystore.passphrase=***\nhost=192.0.2.10\n");
        assert_eq!(text("agent.properties.1"), "no line end");
        assert!(text("ipaddr.log").contains("127.0.0.1"));
        assert_eq!(
            text("fileinfo.txt"),
            "/a/agent.properties\n/b/agent.properties\n/a/cloud.key is secret and was left out\n/a/noise\n\
             /a File Not Found!!\n/nowhere File Not Found!!\n[bumpup_priority.sh]\n[reboot] File Not Found!!\nipaddr\n"
        );
        assert_eq!(zip.len(), 6);
    }

    proptest! {
        #[test]
        fn every_list_is_read(text: String) {
            let _items = read(&text);
        }
    }
}
