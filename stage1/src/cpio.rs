//! An initramfs: cpio's "newc" format, as the kernel's documentation describes it (driver-api/early-userspace/buffer-format).
//! Written here because device nodes then need no root, and the same files give the same bytes: all times are 0.

/// What is at a path.
pub enum Node<'a> {
    /// A directory, mode 0755.
    Directory,
    /// A file, mode 0644.
    File(&'a [u8]),
    /// A file, mode 0755.
    Program(&'a [u8]),
    /// A symbolic link to a path.
    Link(&'a str),
    /// A character device, mode 0600.
    Device {
        /// 5 for /dev/console.
        major: u32,
        /// 1 for /dev/console.
        minor: u32,
    },
}

/// The archive so far. Directories come before what is in them.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    count: u32,
}

impl Archive {
    /// Adds a path, written without `/` in front.
    pub fn add(&mut self, path: &str, node: &Node<'_>) {
        let (mode, contents, device) = match node {
            Node::Directory => (0o040_755, &[][..], (0, 0)),
            Node::File(contents) => (0o100_644, *contents, (0, 0)),
            Node::Program(contents) => (0o100_755, *contents, (0, 0)),
            Node::Link(target) => (0o120_777, target.as_bytes(), (0, 0)),
            Node::Device { major, minor } => (0o020_600, &[][..], (*major, *minor)),
        };
        self.count += 1;
        self.entry(path, mode, contents, device);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, contents: &[u8], (major, minor): (u32, u32)) {
        let size = |bytes: usize| u32::try_from(bytes).expect("a guest's files are smaller than 4 GiB");
        let fields = [
            self.count, // inode
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            size(contents.len()),
            0, // device of the file system, major
            0, // and minor
            major,
            minor,
            size(path.len() + 1),
            0, // checksum, unused
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").into_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use platform::exec::Cmd;

    use super::*;

    #[tokio::test]
    async fn cpio_reads_what_was_written() {
        let mut archive = Archive::default();
        archive.add("etc", &Node::Directory);
        archive.add("etc/rc", &Node::Program(b"#!/bin/sh\n"));
        archive.add("init", &Node::Link("bin/busybox"));
        archive.add("console", &Node::Device { major: 5, minor: 1 });
        let list = Cmd::new("cpio")
            .args(["-t", "-v", "--quiet", "-n"])
            .stdin(archive.finish());
        let text = list.run().await.unwrap().text();
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let wanted = [
            "drwxr-xr-x 1 0 0 0 Jan 1 1970 etc",
            "-rwxr-xr-x 1 0 0 10 Jan 1 1970 etc/rc",
            "lrwxrwxrwx 1 0 0 11 Jan 1 1970 init -> bin/busybox",
            "crw------- 1 0 0 5, 1 Jan 1 1970 console",
        ];
        assert_eq!(lines, wanted);
    }
}
