//! The management server of a zone: keeps its system VMs alive, and serves agents, clients and browsers.
//! Facts: agent-protocol.md and management.md; § numbers refer to the former unless a page is named.
//!
//! | module | |
//! |---|---|
//! | [`server`] | listens, starts and ends links |
//! | [`agents`] | the connected agents, and how to ask them something |
//! | [`hooks`] | what agents ask of the rest of the server |
//! | `session` | one agent's link |
//! | `startup` | what an agent says of itself, checked |
//! | `connect` | what a new agent is told before it is ready |
//! | `link` | TLS, chunks, messages |
//! | [`settings`] | how the agent side behaves |
//! | [`host_status`] | what is believed of a host |
//! | [`zone`] | what a zone does: the parts below, together |
//! | [`zone_network`] | the networks of a zone whose VMs run on this machine |
//! | [`scanner`] | which system VMs a zone lacks |
//! | [`restart_budget`] | how often a VM that does not stay up is started again |
//! | [`system_vms`] | starts, watches and ends them |
//! | [`driver`] | how a VM is run |
//! | [`host`] | keeps the disks of VMs, as a KVM host does |
//! | [`embedded`] | this machine as the zone's host, with VMs under QEMU |
//! | [`boot_line`] | what a system VM is told at its start |
//! | [`instance_state`] | the states of an instance |
//! | [`user_vms`] | makes, starts and ends VMs of users |
//! | [`usage`] | what VMs use of this machine |
//! | [`start_phases`] | how long they take to start |
//! | [`offering`] | how big those are |
//! | [`downloads`] | brings templates to image stores |
//! | [`template_sync`] | compares a store with what should be on it |
//! | [`console`] | lets users see screens |
//! | [`download_state`] | how far a template is |
//! | [`store`] | SQLite: everything that outlives the process |
//! | [`ca`] | the certificate authority |
//! | [`certificates`] | certificates over the agent link |
//! | [`client_auth`] | which client certificates are good |
//! | [`web`] | what is served over HTTP |
//! | [`api`] | the HTTP API: its commands |
//! | [`page`] | the web page's files |
//! | [`live`] | what the page shows, as it changes |
//! | [`client`] | asks a running server over its socket |
//! | [`running`] | which server runs on a data directory |
//! | [`management`] | what commands work with |
//! | [`configuration`] | settings |
//! | [`metrics`] | numbers for Prometheus |
//! | [`jobs`] | work that goes on after its caller was answered |
//! | [`alerts`] | kinds of alerts |
//! | [`password`] | passwords of users |

pub mod agents;
pub mod alerts;
pub mod api;
pub mod boot_line;
pub mod ca;
pub mod certificates;
pub mod client;
pub mod client_auth;
pub mod configuration;
mod connect;
pub mod console;
pub mod download_state;
pub mod downloads;
pub mod driver;
pub mod embedded;
pub mod hooks;
pub mod host;
pub mod host_status;
pub mod instance_state;
pub mod jobs;
mod link;
pub mod live;
pub mod management;
pub mod metrics;
pub mod offering;
pub mod page;
pub mod password;
mod random;
pub mod restart_budget;
pub mod running;
pub mod scanner;
pub mod server;
mod session;
pub mod settings;
pub mod start_phases;
mod startup;
pub mod store;
pub mod system_vms;
pub mod template_sync;
pub mod usage;
pub mod user_vms;
pub mod web;
pub mod zone;
pub mod zone_network;
