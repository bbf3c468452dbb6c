//! Console proxy.

fn main() {}
