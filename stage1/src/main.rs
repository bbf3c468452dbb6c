//! The first program of an image.

fn main() {}
