//! The drop-in checklist of appliance.md §14: each of its 41 items is a test here, named after it, and so are the promises
//! that are not on it (ports, bad boot arguments).
//!
//! Items share VMs: a *scenario* is a VM and what is done to it. At most two run at once. A test waits for what the
//! scenarios find out about its item, and asking for one item (`cargo test -p system-tests --test checklist item_14`) runs
//! only the scenarios that it needs.

#![expect(
    clippy::print_stdout,
    reason = "tests print: what failed, and how long a scenario took"
)]

mod board;
mod checks;
mod scenarios;
mod steps;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

use board::Board;
use checks::Check;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    let board = Arc::new(Board::default());
    let mut trials = Vec::new();
    let mut wanted = Vec::new();
    for check in Check::all() {
        let board = Arc::clone(&board);
        let trial = Trial::test(check.name(), move || Ok(board.wait_for(check)?));
        if !args.is_filtered_out(&trial) {
            wanted.push(check);
        }
        trials.push(trial);
    }
    trials.push(Trial::test(
        "every_item_of_the_list_is_a_test_and_has_a_scenario",
        || Ok(scenarios::cover_everything()?),
    ));
    let lanes = if args.list {
        None
    } else {
        Some(board::run(&board, scenarios::needed_for(&wanted)))
    };
    // Trials only wait: all at once, so that each is printed when it is known.
    args.test_threads = Some(trials.len());
    let conclusion = libtest_mimic::run(&args, trials);
    if let Some(lanes) = lanes {
        lanes.finish();
    }
    conclusion.exit_code()
}
