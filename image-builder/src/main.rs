//! `image-builder`: makes, checks and explains the system VM image.

fn main() {}
