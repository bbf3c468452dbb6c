//! What the kernel command line wants of us. The rest of it is for the kernel and for systemd.

use std::path::PathBuf;

use crate::superblock::{Superblock, parse_uuid};

/// Which file system becomes the root, how, and what runs then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cmdline {
    /// `root=`.
    pub root: Root,
    /// `ro` or `rw`, whichever comes last; written to unless told otherwise.
    pub is_read_only: bool,
    /// `rootflags=`: mount options of the file system.
    pub flags: Option<String>,
    /// `init=`.
    pub init: PathBuf,
}

/// How the root file system is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// `LABEL=root`: the file system's label.
    Label(String),
    /// `UUID=6d0c6b3e-…`: the file system's UUID.
    Uuid([u8; 16]),
    /// `/dev/vda3`: this name in `/sys/class/block`.
    Device(String),
}

/// Why the command line cannot be followed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCmdline {
    /// There is no `root=`.
    #[error("the kernel command line has no root=; write root=LABEL=root, root=UUID=… or root=/dev/vda3")]
    NoRoot,
    /// `root=` is of a kind that we do not know.
    #[error("root={0} is not understood; write root=LABEL=root, root=UUID=… or root=/dev/vda3")]
    BadRoot(String),
}

impl Cmdline {
    /// Reads `/proc/cmdline`. As everywhere in the kernel, the last of several wins.
    ///
    /// # Errors
    /// There is no root in it that we understand.
    pub fn parse(line: &str) -> Result<Self, BadCmdline> {
        let (mut root, mut is_read_only, mut flags, mut init) = (None, false, None, None);
        for word in words(line) {
            match word.split_once('=') {
                Some(("root", value)) => root = Some(value.to_owned()),
                Some(("rootflags", value)) => flags = Some(value.to_owned()),
                Some(("init", value)) => init = Some(value.into()),
                None if word == "ro" => is_read_only = true,
                None if word == "rw" => is_read_only = false,
                _ => {}
            }
        }
        Ok(Self {
            root: Root::parse(&root.ok_or(BadCmdline::NoRoot)?)?,
            is_read_only,
            flags,
            init: init.unwrap_or_else(|| "/sbin/init".into()),
        })
    }
}

impl Root {
    fn parse(value: &str) -> Result<Self, BadCmdline> {
        let bad = || BadCmdline::BadRoot(value.to_owned());
        if let Some(label) = value.strip_prefix("LABEL=") {
            Some(label)
                .filter(|label| !label.is_empty())
                .map(|label| Self::Label(label.to_owned()))
        } else if let Some(uuid) = value.strip_prefix("UUID=") {
            parse_uuid(uuid).map(Self::Uuid)
        } else {
            let name = value
                .strip_prefix("/dev/")
                .filter(|name| !name.is_empty() && !name.contains('/'));
            name.map(|name| Self::Device(name.to_owned()))
        }
        .ok_or_else(bad)
    }

    /// Whether this is the root: a block device of this name, holding this.
    pub fn is(&self, device: &str, found: &Superblock) -> bool {
        match self {
            Self::Label(label) => found.label == *label,
            Self::Uuid(uuid) => found.uuid == *uuid,
            Self::Device(name) => device == name,
        }
    }
}

/// The words of the line, as the kernel splits them: at white space outside of double quotes, which are not kept.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), String::new(), false);
    for character in line.chars() {
        if character == '"' {
            is_quoted = !is_quoted;
        } else if character.is_whitespace() && !is_quoted {
            words.push(std::mem::take(&mut word));
        } else {
            word.push(character);
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::FileSystem;

    #[test]
    fn the_image_s_own_line_is_understood() {
        let line =
            "BOOT_IMAGE=/vmlinuz root=LABEL=root rw net.ifnames=0 console=tty0 console=ttyS0,115200n8 panic=10\n";
        let wanted = Cmdline {
            root: Root::Label("root".to_owned()),
            is_read_only: false,
            flags: None,
            init: "/sbin/init".into(),
        };
        assert_eq!(Cmdline::parse(line), Ok(wanted));
    }

    #[test]
    fn the_last_of_several_wins_and_quotes_hold_words_together() {
        let line = r#"root=/dev/sda1 rw ro rootflags="noatime,data=ordered" init=/bin/a "root=LABEL=my disk""#;
        let wanted = Cmdline {
            root: Root::Label("my disk".to_owned()),
            is_read_only: true,
            flags: Some("noatime,data=ordered".to_owned()),
            init: "/bin/a".into(),
        };
        assert_eq!(Cmdline::parse(line), Ok(wanted));
    }

    #[test]
    fn a_root_that_cannot_be_found_is_refused() {
        assert_eq!(Cmdline::parse("quiet rw"), Err(BadCmdline::NoRoot));
        for root in [
            "LABEL=",
            "UUID=1234",
            "PARTUUID=1-2",
            "/dev/",
            "/dev/disk/by-label/root",
            "vda1",
            "",
        ] {
            let error = Cmdline::parse(&format!("root={root}")).unwrap_err();
            assert_eq!(error, BadCmdline::BadRoot(root.to_owned()), "{root}");
        }
    }

    #[test]
    fn each_way_of_naming_the_root_looks_at_its_own_part() {
        let found = Superblock {
            kind: FileSystem::Ext4,
            uuid: [7; 16],
            label: "root".to_owned(),
        };
        let is = |root: &str| Cmdline::parse(&format!("root={root}")).unwrap().root.is("vda3", &found);
        assert!(is("LABEL=root") && is("UUID=07070707-0707-0707-0707-070707070707") && is("/dev/vda3"));
        assert!(!is("LABEL=roots") && !is("UUID=07070707-0707-0707-0707-070707070708") && !is("/dev/vda"));
    }
}
