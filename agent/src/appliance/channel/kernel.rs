//! The kernel's command line: PV guests of Xen, and whoever starts QEMU with `-append`.

use platform::files;
use protocol::boot::VmType;

use super::{ChannelError, MAX_LINE};
use crate::appliance::hypervisor::Hypervisor;
use crate::appliance::root::Root;

/// Keys of our own image's boot loader and of the kernel, which say nothing about the VM.
const KERNELS: [&str; 10] = [
    "BOOT_IMAGE",
    "root",
    "rootfstype",
    "initrd",
    "init",
    "console",
    "panic",
    "loglevel",
    "net.ifnames",
    "biosdevname",
];

pub(super) fn read(root: &Root, hypervisor: Hypervisor) -> Result<Option<Vec<u8>>, ChannelError> {
    let line = files::read_limited(root.path("/proc/cmdline"), MAX_LINE)?.unwrap_or_default();
    Ok(words(&line, hypervisor == Hypervisor::Xen))
}

/// The words of ours, when a `type=` that CloudStack knows is among them. On Xen every `%` stands for a space (§3.3).
fn words(line: &[u8], is_xen: bool) -> Option<Vec<u8>> {
    let is_separator = |byte: &u8| byte.is_ascii_whitespace() || (is_xen && *byte == b'%');
    let words: Vec<&[u8]> = line.split(is_separator).filter(|word| is_ours(word)).collect();
    words.iter().any(|word| is_type(word)).then(|| words.join(&b' '))
}

fn is_ours(word: &[u8]) -> bool {
    let Some(equals) = word.iter().position(|byte| *byte == b'=') else {
        return false;
    };
    let key = &word[..equals];
    !KERNELS.iter().any(|kernels| kernels.as_bytes() == key)
        && !key.starts_with(b"systemd.")
        && !key.starts_with(b"rd.")
}

fn is_type(word: &[u8]) -> bool {
    let value = word.strip_prefix(b"type=").unwrap_or_default();
    VmType::ALL.iter().any(|known| known.name().as_bytes() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str, is_xen: bool) -> Option<String> {
        words(line.as_bytes(), is_xen).map(|line| String::from_utf8(line).unwrap())
    }

    #[test]
    fn boot_arguments_after_the_kernels_own_words_are_found() {
        let kernel = "BOOT_IMAGE=/vmlinuz root=LABEL=root rw net.ifnames=0 console=tty0 console=ttyS0,115200n8 panic=10 quiet \
                      systemd.show_status=false";
        assert_eq!(of(kernel, false), None);
        assert_eq!(
            of(
                &format!("{kernel} template=domP type=router name=r-4-VM eth1ip=169.254.3.7\n"),
                false
            )
            .unwrap(),
            "template=domP type=router name=r-4-VM eth1ip=169.254.3.7"
        );
    }

    #[test]
    fn xens_percent_signs_are_spaces_only_on_xen() {
        let line = "root=/dev/xvda1 ro %template=domP%type=secstorage%name=s-1-VM";
        assert_eq!(of(line, true).unwrap(), "template=domP type=secstorage name=s-1-VM");
        assert_eq!(of(line, false), None);
    }

    #[test]
    fn another_programs_type_is_no_boot_argument() {
        assert_eq!(of("type=dracut root=/dev/sda", false), None);
        assert_eq!(of("", true), None);
    }
}
