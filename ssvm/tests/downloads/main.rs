//! The real `ssvm` program between a server that misbehaves as told and a management server that asks what tests ask.

#![cfg(test)]

mod archives;
mod crash;
mod early;
mod fake_controller;
mod fake_source;
mod faults;
mod images;
mod leftovers;
mod load;
mod machine;
mod proxies;
mod sequences;
mod stores;
mod surroundings;
mod tls;
