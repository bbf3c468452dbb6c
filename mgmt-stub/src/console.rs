//! Consoles: who may see which screen through which proxy (management.md §7, §8).

pub mod load;
pub mod ticket;
pub mod token;
pub mod url;
