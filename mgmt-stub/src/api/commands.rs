//! The table of commands, one module for each noun.

use super::command::Command;

mod account;
mod alert;
mod capacity;
mod configuration;
mod console;
mod discovery;
mod event;
mod host;
mod image_store;
mod job;
mod network;
mod offering;
pub mod os_type;
mod owner;
pub(super) mod session;
mod storage;
mod system_vm;
mod tag;
mod template;
mod virtual_machine;
mod zone;

/// All commands, by noun.
const ALL: &[&[Command]] = &[
    session::COMMANDS,
    discovery::COMMANDS,
    job::COMMANDS,
    zone::COMMANDS,
    host::COMMANDS,
    image_store::COMMANDS,
    storage::COMMANDS,
    system_vm::COMMANDS,
    template::COMMANDS,
    virtual_machine::COMMANDS,
    console::COMMANDS,
    network::COMMANDS,
    offering::COMMANDS,
    os_type::COMMANDS,
    capacity::COMMANDS,
    configuration::COMMANDS,
    event::COMMANDS,
    alert::COMMANDS,
    account::COMMANDS,
    tag::COMMANDS,
];

/// All commands.
pub fn all() -> impl Iterator<Item = &'static Command> {
    ALL.iter().copied().flatten()
}

/// The command of this name, whatever its case.
pub fn find(name: &str) -> Option<&'static Command> {
    all().find(|command| command.name.eq_ignore_ascii_case(name))
}
