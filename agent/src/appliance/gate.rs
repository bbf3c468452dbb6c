//! What a host's SSH command becomes (§7.5). sshd runs `agent ssh-gate` for every login, whatever the client asked for.
//!
//! Hosts upload a script of CloudStack's own appliance and run it to patch the VM. It would replace half of this image. The
//! gate takes the order and carries it out in our way; everything else is what it would be without a gate.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use platform::exec::Cmd;

/// As sshd's configuration names it: `Subsystem sftp`.
pub const SFTP: &str = "/usr/lib/openssh/sftp-server";
/// The stock script: hosts upload it, run it, and it is never executed here.
pub const PATCH_SCRIPT: &str = "/var/cache/cloud/patch-sysvms.sh";
/// Root's shell.
const SHELL: &str = "/bin/bash";
/// Which shells a client may put before [`PATCH_SCRIPT`]: XenServer hosts do.
const SHELLS: [&[u8]; 4] = [b"/bin/bash", b"bash", b"/bin/sh", b"sh"];

/// What the client asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A shell: nothing was given.
    Shell,
    /// Copying files by SFTP, as `scp` does since OpenSSH 9.
    Sftp,
    /// Patch this VM (§7.4).
    Patch,
    /// Anything else: a line for the shell.
    Line(OsString),
}

impl Request {
    /// Reads sshd's variable `SSH_ORIGINAL_COMMAND`.
    pub fn read(original: Option<OsString>) -> Self {
        let Some(line) = original.filter(|line| !line.is_empty()) else {
            return Self::Shell;
        };
        let mut words = line
            .as_bytes()
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty());
        let mut first = words.next();
        if first.is_some_and(|word| SHELLS.contains(&word)) {
            first = words.next();
        }
        // What follows is of no interest: the script knows no arguments.
        if first == Some(PATCH_SCRIPT.as_bytes()) {
            Self::Patch
        } else if line == OsStr::new(SFTP) {
            Self::Sftp
        } else {
            Self::Line(line)
        }
    }

    /// The program that takes our place; `None` for what we do ourselves.
    pub fn program(&self) -> Option<Cmd> {
        match self {
            Self::Shell => Some(Cmd::new(SHELL).arg("-l")),
            Self::Sftp => Some(Cmd::new(SFTP)),
            // The one place where a line goes to a shell: root has logged in to have it so.
            Self::Line(line) => Some(Cmd::new(SHELL).arg("-c").arg(line)),
            Self::Patch => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Request {
        Request::read(Some(line.into()))
    }

    #[test]
    fn the_patch_command_is_known_in_every_hosts_spelling() {
        for line in [
            "/var/cache/cloud/patch-sysvms.sh",
            "/bin/bash /var/cache/cloud/patch-sysvms.sh",
            "  bash  /var/cache/cloud/patch-sysvms.sh \n",
            "/var/cache/cloud/patch-sysvms.sh null",
        ] {
            assert_eq!(read(line), Request::Patch, "{line}");
        }
        for line in [
            "rm -f /var/cache/cloud/patch-sysvms.sh",
            "/var/cache/cloud/patch-sysvms.sh.old",
            "/bin/bash /bin/bash /var/cache/cloud/patch-sysvms.sh",
        ] {
            assert_eq!(read(line), Request::Line(line.into()));
        }
    }

    #[test]
    fn a_login_without_a_command_is_a_login_shell() {
        for original in [None, Some(OsString::new())] {
            assert_eq!(Request::read(original), Request::Shell);
        }
        assert_eq!(Request::Shell.program().unwrap().to_string(), "/bin/bash -l");
    }

    #[test]
    fn sftp_is_started_without_a_shell() {
        assert_eq!(read(SFTP), Request::Sftp);
        assert_eq!(Request::Sftp.program().unwrap().to_string(), SFTP);
    }

    proptest! {
        #[test]
        fn every_other_line_reaches_the_shell_byte_by_byte(line in "[ -~]{1,60}") {
            let request = read(&line);
            prop_assert_eq!(&request, &Request::Line(line.clone().into()));
            prop_assert_eq!(request.program(), Some(Cmd::new("/bin/bash").args(["-c", &line])));
        }
    }
}
