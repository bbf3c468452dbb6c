//! Secondary storage.

fn main() {}
