//! Consoles: who may see which screen through which proxy (management.md §7, §8).

mod endpoint;
pub mod forwards;
pub mod load;
pub mod ticket;
pub mod token;
pub mod url;

pub use endpoint::{Books, Consoles, Creator, Endpoint, NoConsole, Proxies, screen_address};
