//! What a stranger sends to port 8250. What must hold is in `protocol/tests/fuzz_targets/mod.rs`; how to run it, and how
//! to seed it with real input, is in `fuzz/README.md`.
#![no_main]

#[path = "../../protocol/tests/fuzz_targets/mod.rs"]
#[allow(dead_code, reason = "each target runs one of the functions")]
mod fuzz_targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::channel(data));
