//! The page is part of the program: cargo has to be told that a new file in it is a reason to build again.

fn main() {
    println!("cargo::rerun-if-changed=page");
    println!("cargo::rerun-if-changed=build.rs");
}
