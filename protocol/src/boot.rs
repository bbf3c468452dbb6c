//! Boot arguments: the one line of `key=value` words that tells a system VM who it is.
//!
//! Bytes become [`BootArgs`] (the grammar), and those become a [`SystemVm`] (what each key means for this type of VM).
//! Both steps report everything that is wrong at once. Every key is listed in `docs/boot-arguments.md`; the facts come from
//! appliance.md §2 and agent-protocol.md §1.4 and §8.

mod agent;
mod bad_boot_args;
mod boot_args;
mod dhcp_range;
mod encoded;
mod host_list;
mod load_balancer;
mod mac_addr;
mod machine;
mod names;
mod nic;
mod reader;
mod router;
mod system_vm;

pub use agent::{Agent, ConsoleProxy, SecondaryStorage, StorageNic};
pub use bad_boot_args::{BadBootArgs, BadValue};
pub use boot_args::BootArgs;
pub use dhcp_range::DhcpRange;
pub use host_list::{BadHostList, HostList};
pub use load_balancer::LoadBalancer;
pub use mac_addr::MacAddr;
pub use machine::{BootProtocol, Historic, Machine};
pub use names::{DnsName, InterfaceName, LogRotation};
pub use nic::Nic;
pub use reader::Reader;
pub use router::{BareMetal, GuestDns, Redundancy, RedundantState, Router, VirtualRouter, VpcRouter};
pub use system_vm::{Role, SystemVm, VmType};
