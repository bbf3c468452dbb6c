//! What this machine needs before anything can be checked: one table, and how to get what is missing.

use std::env;
use std::path::Path;

use anyhow::bail;
use clap::Args;
use platform::exec::Cmd;

use crate::must_succeed;
use Sign::{CargoCommand, File, Program};
use Source::{Component, CratesIo, Debian};

/// One thing needed, how to see that it is there, where it comes from, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tool {
    sign: Sign,
    source: Source,
    why: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sign {
    /// An executable in `PATH`.
    Program(&'static str),
    File(&'static str),
    /// `cargo NAME --version` answers. rustup's stand-in programs exist even when the component does not.
    CargoCommand(&'static str),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    /// A package.
    Debian(&'static str),
    /// Of the Rust toolchain: from rustup, or a Debian package where Rust itself is one.
    Component { name: &'static str, debian: &'static str },
    /// Built here; not packaged by Debian.
    CratesIo { name: &'static str, version: &'static str },
}

pub(crate) const RUSTFMT: Tool = Tool {
    sign: CargoCommand("fmt"),
    source: Component {
        name: "rustfmt",
        debian: "rustfmt",
    },
    why: "checks the format",
};
pub(crate) const CLIPPY: Tool = Tool {
    sign: CargoCommand("clippy"),
    source: Component {
        name: "clippy",
        debian: "rust-clippy",
    },
    why: "checks the lints",
};
pub(crate) const DENY: Tool = Tool {
    sign: CargoCommand("deny"),
    source: CratesIo {
        name: "cargo-deny",
        version: "0.20.2",
    },
    why: "checks licences and sources of dependencies (building it takes about three minutes on two cores)",
};

pub(crate) const NPM: Tool = Tool {
    sign: Program("npm"),
    source: Debian("npm"),
    why: "gets noVNC, which draws the console page's screen",
};
pub(crate) const QEMU: Tool = Tool {
    sign: Program("qemu-system-x86_64"),
    source: Debian("qemu-system-x86"),
    why: "runs VMs",
};
pub(crate) const QEMU_IMG: Tool = Tool {
    sign: Program("qemu-img"),
    source: Debian("qemu-utils"),
    why: "makes and checks disk images",
};
/// For zones with virtual machines.
pub(crate) const IP: Tool = Tool {
    sign: Program("ip"),
    source: Debian("iproute2"),
    why: "makes the networks of a zone",
};
pub(crate) const SSH: Tool = Tool {
    sign: Program("scp"),
    source: Debian("openssh-client"),
    why: "is how a host logs in to a VM",
};
pub(crate) const NFT: Tool = Tool {
    sign: File("/usr/sbin/nft"),
    source: Debian("nftables"),
    why: "keeps the networks of a zone apart",
};
pub(crate) const GANESHA: Tool = Tool {
    sign: File("/usr/bin/ganesha.nfsd"),
    source: Debian("nfs-ganesha"),
    why: "is the NFS server of a zone",
};
pub(crate) const GANESHA_VFS: Tool = Tool {
    sign: File("/usr/lib/x86_64-linux-gnu/ganesha/libfsalvfs.so"),
    source: Debian("nfs-ganesha-vfs"),
    why: "lets that server serve a directory",
};
/// For building our programs.
pub(crate) const CC: Tool = Tool {
    sign: Program("cc"),
    source: Debian("gcc"),
    why: "compiles the C of ring and SQLite",
};
pub(crate) const LIBC: Tool = Tool {
    sign: File("/usr/include/stdio.h"),
    source: Debian("libc6-dev"),
    why: "is what that C includes",
};

pub(crate) const ALL: [Tool; 48] = [
    CC,
    LIBC,
    Tool {
        sign: Program("openssl"),
        source: Debian("openssl"),
        why: "reads our certificates independently, in tests",
    },
    Tool {
        sign: Program("javac"),
        source: Debian("default-jdk-headless"),
        why: "is the TLS peer that CloudStack has, in tests",
    },
    Tool {
        sign: Program("chromium"),
        source: Debian("chromium"),
        why: "is the browser that tests use our pages with",
    },
    Tool {
        sign: File("/usr/share/doc/python3-venv/copyright"),
        source: Debian("python3-venv"),
        why: "runs real clients of the API, in tests",
    },
    NPM,
    QEMU,
    QEMU_IMG,
    Tool {
        sign: File("/usr/share/OVMF/OVMF_CODE_4M.fd"),
        source: Debian("ovmf"),
        why: "is the UEFI that our image boots with, in tests",
    },
    Tool {
        sign: File("/usr/sbin/qemu-ga"),
        source: Debian("qemu-guest-agent"),
        why: "is the guest agent that our client of it is tested with",
    },
    IP,
    Tool {
        sign: Program("ping"),
        source: Debian("iputils-ping"),
        why: "is how a host looks for a VM, in tests",
    },
    SSH,
    Tool {
        sign: File("/usr/sbin/sshd"),
        source: Debian("openssh-server"),
        why: "is what hosts log in to, in tests",
    },
    Tool {
        sign: File("/usr/sbin/charon-systemd"),
        source: Debian("charon-systemd"),
        why: "is both ends of a VPN, in tests",
    },
    Tool {
        sign: File("/usr/sbin/swanctl"),
        source: Debian("strongswan-swanctl"),
        why: "says whether a VPN is connected, in tests",
    },
    Tool {
        sign: Program("arping"),
        source: Debian("iputils-arping"),
        why: "is what an administrator runs in a VM, in tests",
    },
    Tool {
        sign: Program("traceroute"),
        source: Debian("traceroute"),
        why: "is what an administrator runs in a VM, in tests",
    },
    Tool {
        sign: File("/usr/sbin/dnsmasq"),
        source: Debian("dnsmasq-base"),
        why: "is the resolver of a zone, in tests",
    },
    Tool {
        sign: Program("nmap"),
        source: Debian("nmap"),
        why: "looks for open ports of VMs, in tests",
    },
    Tool {
        sign: Program("cpio"),
        source: Debian("cpio"),
        why: "reads the initramfs that we write, in tests",
    },
    Tool {
        sign: File("/usr/sbin/sfdisk"),
        source: Debian("fdisk"),
        why: "checks our partition tables, in tests",
    },
    Tool {
        sign: File("/usr/sbin/fsck.fat"),
        source: Debian("dosfstools"),
        why: "checks our EFI system partitions, in tests",
    },
    Tool {
        sign: Program("genisoimage"),
        source: Debian("genisoimage"),
        why: "makes ISO images, in tests",
    },
    Tool {
        sign: Program("xz"),
        source: Debian("xz-utils"),
        why: "unpacks xz for ssvm, and packs it in tests",
    },
    Tool {
        sign: Program("bzip2"),
        source: Debian("bzip2"),
        why: "packs what ssvm unpacks, in tests",
    },
    Tool {
        sign: Program("zip"),
        source: Debian("zip"),
        why: "packs what ssvm unpacks, in tests",
    },
    Tool {
        sign: Program("unzip"),
        source: Debian("unzip"),
        why: "unpacks what image-builder publishes, in tests",
    },
    Tool {
        sign: Program("7z"),
        source: Debian("p7zip-full"),
        why: "reads our VMDK, VHD and qcow2 independently, in tests",
    },
    Tool {
        sign: Program("minisign"),
        source: Debian("minisign"),
        why: "checks our signatures and makes some for us to check, in tests",
    },
    Tool {
        sign: Program("tinyproxy"),
        source: Debian("tinyproxy"),
        why: "is the proxy that ssvm downloads through, in tests",
    },
    Tool {
        sign: Program("bindfs"),
        source: Debian("bindfs"),
        why: "is the store that hangs, in tests",
    },
    Tool {
        sign: File("/usr/sbin/mkfs.ext4"),
        source: Debian("e2fsprogs"),
        why: "makes the file system that hangs, in tests",
    },
    NFT,
    Tool {
        sign: Program("systemd-analyze"),
        source: Debian("systemd"),
        why: "judges the image's units, in tests",
    },
    Tool {
        sign: File("/usr/share/keyrings/debian-archive-keyring.gpg"),
        source: Debian("debian-archive-keyring"),
        why: "says whether lists of packages are Debian's, for image-builder lock",
    },
    Tool {
        sign: Program("gpg-agent"),
        source: Debian("gnupg"),
        why: "signs the lists of a mirror, in tests",
    },
    Tool {
        sign: Program("mmdebstrap"),
        source: Debian("mmdebstrap"),
        why: "installs the image's packages for comparison, in tests",
    },
    Tool {
        sign: Program("faketime"),
        source: Debian("faketime"),
        why: "gives an image builder another date, in tests",
    },
    Tool {
        sign: File("/usr/sbin/rpcbind"),
        source: Debian("rpcbind"),
        why: "tells NFS clients where the server is, in tests",
    },
    GANESHA,
    GANESHA_VFS,
    Tool {
        sign: File("/usr/sbin/haproxy"),
        source: Debian("haproxy"),
        why: "judges the configuration that routers start with, in tests",
    },
    Tool {
        sign: File("/usr/sbin/chronyd"),
        source: Debian("chrony"),
        why: "judges the time servers of a VM, in tests",
    },
    RUSTFMT,
    CLIPPY,
    DENY,
];

/// May we change this machine?
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Install {
    /// Install nothing: fail with the list of what is missing
    #[arg(long)]
    no_install: bool,
}

/// Makes sure that all `tools` are here.
pub(crate) async fn ensure(tools: &[Tool], install: Install) -> anyhow::Result<()> {
    let missing = missing(tools).await;
    for Tool { sign, source, why } in &missing {
        eprintln!("{} is missing; it {why}; it comes with {}", sign.name(), source.name());
    }
    if missing.is_empty() {
        return Ok(());
    }
    if install.no_install {
        let names: Vec<_> = missing.iter().map(|tool| tool.source.name()).collect();
        bail!(
            "not on this machine: {}; run again without --no-install to get them",
            names.join(", ")
        );
    }
    for step in plan(&missing, is_in_path("rustup"), is_root().await?) {
        if let Err(error) = must_succeed(&step.command).await {
            let Some(first) = step.before_retry else {
                return Err(error);
            };
            must_succeed(&first).await?;
            must_succeed(&step.command).await?;
        }
    }
    let still: Vec<_> = self::missing(tools).await.iter().map(|tool| tool.sign.name()).collect();
    if !still.is_empty() {
        bail!("still missing after installing: {}", still.join(", "));
    }
    Ok(())
}

/// Fetches apt's lists of packages, if we may.
pub(crate) async fn update_package_lists(install: Install) -> anyhow::Result<()> {
    if install.no_install {
        bail!("apt's lists of packages are missing or old; run `apt-get update`, or run again without --no-install");
    }
    must_succeed(&apt_get(is_root().await?).arg("update")).await
}

pub(crate) async fn is_root() -> anyhow::Result<bool> {
    Ok(Cmd::new("id").arg("-u").run().await?.text().trim() == "0")
}

async fn missing(tools: &[Tool]) -> Vec<Tool> {
    let mut missing = Vec::new();
    for tool in tools {
        let is_here = match tool.sign {
            Program(name) => is_in_path(name),
            File(path) => Path::new(path).exists(),
            CargoCommand(name) => Cmd::new("cargo").args([name, "--version"]).run().await.is_ok(),
        };
        if !is_here {
            missing.push(*tool);
        }
    }
    missing
}

fn is_in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|directory| directory.join(program).is_file()))
}

#[derive(PartialEq, Eq, Debug)]
struct Step {
    command: Cmd,
    /// Package lists are missing on a fresh machine and may be stale on an old one; they are fetched when that shows.
    before_retry: Option<Cmd>,
}

/// Decides how to install what is missing: as few commands as there are sources.
fn plan(missing: &[Tool], has_rustup: bool, is_root: bool) -> Vec<Step> {
    let packages: Vec<_> = missing
        .iter()
        .filter_map(|tool| tool.source.debian(has_rustup))
        .collect();
    let components: Vec<_> = missing
        .iter()
        .filter_map(|tool| tool.source.component(has_rustup))
        .collect();

    let mut steps = Vec::new();
    if !packages.is_empty() {
        let install = apt_get(is_root)
            .args(["install", "-y", "--no-install-recommends"])
            .args(packages);
        steps.push(Step {
            command: install,
            before_retry: Some(apt_get(is_root).arg("update")),
        });
    }
    if !components.is_empty() {
        let add = Cmd::new("rustup").args(["component", "add"]).args(components);
        steps.push(Step {
            command: add,
            before_retry: None,
        });
    }
    for tool in missing {
        if let CratesIo { name, version } = tool.source {
            let install = Cmd::new("cargo").args(["install", "--locked", name, "--version", version]);
            steps.push(Step {
                command: install,
                before_retry: None,
            });
        }
    }
    steps
}

fn apt_get(is_root: bool) -> Cmd {
    let as_root = if is_root {
        Cmd::new("env")
    } else {
        Cmd::new("sudo").arg("env")
    };
    as_root.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"])
}

impl Sign {
    fn name(self) -> String {
        match self {
            Program(name) | File(name) => name.to_owned(),
            CargoCommand(name) => format!("cargo {name}"),
        }
    }
}

impl Source {
    fn name(self) -> &'static str {
        let (Debian(name) | Component { name, .. } | CratesIo { name, .. }) = self;
        name
    }

    fn debian(self, has_rustup: bool) -> Option<&'static str> {
        match self {
            Debian(name) => Some(name),
            Component { debian, .. } if !has_rustup => Some(debian),
            _ => None,
        }
    }

    fn component(self, has_rustup: bool) -> Option<&'static str> {
        match self {
            Component { name, .. } if has_rustup => Some(name),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.command.to_string()).collect()
    }

    #[test]
    fn one_command_per_source_installs_everything() {
        let steps = plan(&ALL, true, true);
        let wanted = [
            "env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
             gcc libc6-dev openssl default-jdk-headless chromium python3-venv npm qemu-system-x86 \
             qemu-utils ovmf qemu-guest-agent iproute2 iputils-ping openssh-client openssh-server \
             charon-systemd strongswan-swanctl iputils-arping traceroute dnsmasq-base nmap cpio fdisk \
             dosfstools genisoimage xz-utils bzip2 zip unzip p7zip-full minisign tinyproxy bindfs \
             e2fsprogs nftables systemd debian-archive-keyring gnupg mmdebstrap faketime \
             rpcbind nfs-ganesha nfs-ganesha-vfs haproxy chrony",
            "rustup component add rustfmt clippy",
            "cargo install --locked cargo-deny --version 0.20.2",
        ];
        assert_eq!(shown(&steps), wanted);
        assert_eq!(steps[0].before_retry, Some(apt_get(true).arg("update")));
    }

    #[test]
    fn without_rustup_and_root_debian_has_the_components_and_sudo_asks() {
        let command = "sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends rust-clippy";
        assert_eq!(shown(&plan(&[CLIPPY], false, false)), [command]);
        assert_eq!(plan(&[], false, false), []);
    }

    #[tokio::test]
    async fn with_no_install_the_missing_are_named_and_nothing_is_done() {
        let absent = Tool {
            sign: Program("frobnicate"),
            source: Debian("frobnicator"),
            why: "is not there",
        };
        let error = ensure(&[absent], Install { no_install: true })
            .await
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "not on this machine: frobnicator; run again without --no-install to get them"
        );
    }
}
