//! Loading kernel modules: those that devices ask for, each after what it needs, each once.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::fs::{self, File};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use stage1::table::Table;

/// The modules, and what became of them.
pub(crate) struct Drivers {
    table: Table,
    states: Vec<State>,
    /// Devices whose modalias was looked at.
    seen: BTreeSet<PathBuf>,
    /// Modules that devices asked for and that are not loaded yet, in the table's order.
    wanted: BTreeSet<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Untried,
    Loaded,
    Failed(Errno),
}

impl Drivers {
    pub(crate) fn new(table: Table) -> Self {
        Self {
            states: vec![State::Untried; table.modules.len()],
            table,
            seen: BTreeSet::new(),
            wanted: BTreeSet::new(),
        }
    }

    /// Loads the first driver that a device asks for. The caller looks for the root before the next: drivers of devices
    /// that the root is not on are left to udev, which loads them while other things start.
    pub(crate) fn load_next(&mut self) -> bool {
        self.look();
        let Some(place) = self.wanted.pop_first() else {
            return false;
        };
        self.load(place);
        true
    }

    /// Loads everything, whether a device asks for it or not.
    pub(crate) fn load_all(&mut self) {
        for place in 0..self.states.len() {
            self.load(place);
        }
    }

    /// Loads what answers to an alias: `fs-ext4`.
    pub(crate) fn load_alias(&mut self, alias: &str) {
        for place in self.table.answering(alias).collect::<Vec<_>>() {
            self.load(place);
        }
    }

    /// Reads the modalias of devices that are new.
    fn look(&mut self) {
        let buses = entries("/sys/bus".into());
        for device in buses.into_iter().flat_map(|bus| entries(bus.join("devices"))) {
            if !self.seen.insert(device.clone()) {
                continue;
            }
            if let Ok(alias) = fs::read_to_string(device.join("modalias")) {
                let answering = self.table.answering(alias.trim_end());
                self.wanted
                    .extend(answering.filter(|place| self.states[*place] == State::Untried));
            }
        }
    }

    fn load(&mut self, place: usize) {
        if self.states[place] == State::Untried {
            // Above it in the table, so this ends.
            let (soft, needs) = (
                self.table.modules[place].soft.clone(),
                self.table.modules[place].needs.clone(),
            );
            for needed in soft.into_iter().chain(needs) {
                self.load(needed);
            }
            // Without what it needs, the kernel refuses it and says so.
            self.states[place] = match insert(&self.table.modules[place].name) {
                Ok(()) | Err(Errno::EEXIST) => State::Loaded,
                Err(errno) => State::Failed(errno),
            };
        }
    }
}

fn insert(name: &str) -> Result<(), Errno> {
    let failed = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or_default());
    let file = File::open(format!("/modules/{name}.ko")).map_err(failed)?;
    finit_module(&file, c"", ModuleInitFlags::empty())
}

/// What is in a directory, in the order of names; nothing when it cannot be read.
pub(crate) fn entries(directory: PathBuf) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |list| list.flatten().map(|entry| entry.path()).collect(),
    );
    paths.sort();
    paths
}

impl Display for Drivers {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let named = || self.table.modules.iter().map(|module| &module.name).zip(&self.states);
        let loaded: Vec<&str> = named()
            .filter(|(_, state)| **state == State::Loaded)
            .map(|(name, _)| name.as_str())
            .collect();
        let failed: Vec<String> = named()
            .filter_map(|(name, state)| match state {
                State::Failed(errno) => Some(format!("{name} ({})", errno.desc())),
                _ => None,
            })
            .collect();
        let or_none = |list: String| if list.is_empty() { "none".to_owned() } else { list };
        let (loaded, failed) = (or_none(loaded.join(" ")), or_none(failed.join(", ")));
        write!(f, "drivers loaded: {loaded}; failed: {failed}")
    }
}
