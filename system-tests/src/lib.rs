//! Tests of the built programs, from outside: what a user, a client or a browser sees.
//!
//! | module | |
//! |---|---|
//! | [`browser`] | Debian's Chromium, driven over its DevTools protocol |
//! | [`bundle`] | signed bundles for live upgrades |
//! | [`console`] | the console page, compared with the machine behind it |
//! | [`management`] | a management server for VMs that a test starts |
//! | [`nfs`] | a real NFS server in a test's network |
//! | [`page`] | the management server's page |
//! | [`programs`] | where the built programs are |
//! | [`python`] | clients from PyPI |
//! | [`qmp`] | what a machine in QEMU really shows |
//! | [`site`] | the networks of a hypervisor host, and the system VMs of the spec's examples |
//! | [`source`] | a web server with images: throttled, with ranges, able to misbehave |
//! | [`up`] | a zone that `cargo xtask up` has started |
//! | [`vm`] | system VMs under QEMU, as a hypervisor host starts and treats them |
//! | [`wait`] | waiting for a condition, with a limit |
//! | [`zone`] | a zone of plain processes in a directory of its own |

#![expect(clippy::panic, clippy::print_stdout, reason = "this crate is all tests")]

pub mod browser;
pub mod bundle;
pub mod console;
pub mod management;
pub mod nfs;
pub mod page;
pub mod programs;
pub mod python;
pub mod qmp;
pub mod site;
pub mod source;
pub mod up;
pub mod vm;
pub mod wait;
pub mod zone;
