//! Boot arguments as servers send them, mistakes in them, and the reference of all keys in `docs/boot-arguments.md`.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes the helpers of tests for production code"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use protocol::boot::{BadBootArgs, BootArgs, SystemVm, VmType};

fn load(path: &Path) -> (String, Result<SystemVm, BadBootArgs>) {
    let line = std::fs::read_to_string(path).unwrap();
    let vm = SystemVm::parse(&BootArgs::parse(&line).unwrap());
    (line, vm)
}

fn beside_the_lines(folder: &str) -> insta::internals::SettingsBindDropGuard {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind_to_scope()
}

#[test]
fn lines_of_a_stock_server_become_their_golden_system_vms() {
    let _settings = beside_the_lines("boot");
    insta::glob!("boot/*.cmdline", |path| insta::assert_debug_snapshot!(
        "vm",
        load(path).1.unwrap()
    ));
}

#[test]
fn a_line_with_several_mistakes_is_answered_with_all_of_them() {
    let _settings = beside_the_lines("boot/bad");
    insta::glob!("boot/bad/*.cmdline", |path| {
        let error = load(path)
            .1
            .unwrap_err()
            .found_in("/var/cache/cloud/cmdline")
            .to_string();
        assert!(!error.contains("hush"), "{error}");
        insta::assert_snapshot!("error", error);
    });
}

#[test]
fn lines_of_a_stock_server_hold_no_unknown_key_and_stay_the_same_when_rendered() {
    insta::glob!("boot/*.cmdline", |path| {
        let (line, vm) = load(path);
        assert_eq!(vm.unwrap().unknown, BootArgs::default());
        let args = BootArgs::parse(&line).unwrap();
        assert_eq!(BootArgs::parse(args.to_line()).unwrap(), args);
    });
}

#[test]
fn user_data_arrives_byte_for_byte() {
    let (_, vm) = load(Path::new("tests/boot/console-proxy.cmdline"));
    let user_data = vm.unwrap().machine.user_data.unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(user_data.expose().as_slice())
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "#cloud-config\nruncmd:\n  - [touch, /root/userdata-ran]\n");
}

/// `docs/boot-arguments.md`, one entry for each row: key -> (letters of the types, example).
fn documented() -> BTreeMap<String, (String, String)> {
    let text = std::fs::read_to_string("../docs/boot-arguments.md").unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|row| {
        let cells: Vec<String> = row
            .replace("\\|", "\u{1}")
            .split('|')
            .map(|cell| cell.trim().to_owned())
            .collect();
        let [_, key, types, _, _, _, example, _] = &cells[..] else {
            panic!("six columns, please: {row}")
        };
        let example = example.trim_matches('`').replace('\u{1}', "|");
        (key.trim_matches('`').to_owned(), (types.clone(), example))
    });
    rows.collect()
}

/// How the reference abbreviates the types, in the order of `VmType::ALL`.
const LETTERS: [&str; 9] = ["S", "C", "R", "D", "P", "I", "E", "K", "F"];

fn is_read_by((types, _): &(String, String), letter: &str) -> bool {
    types == "all" || types.split(' ').any(|known| known == letter)
}

#[test]
fn the_reference_lists_exactly_the_keys_each_type_reads() {
    let documented = documented();
    for (vm_type, letter) in VmType::ALL.into_iter().zip(LETTERS) {
        let known: BTreeSet<String> = SystemVm::known_keys(vm_type)
            .into_iter()
            .map(|key| key.replacen("eth0", "ethN", 1))
            .collect();
        let listed = documented.iter().filter(|(_, row)| is_read_by(row, letter));
        let listed: BTreeSet<String> = listed.map(|(key, _)| key.clone()).collect();
        assert_eq!(listed, known, "left: the reference; right: the code; type: {vm_type}");
    }
}

#[test]
fn the_examples_of_the_reference_are_good_values() {
    let documented = documented();
    for (vm_type, letter) in VmType::ALL.into_iter().zip(LETTERS) {
        let rows = documented
            .iter()
            .filter(|(key, row)| *key != "type" && is_read_by(row, letter));
        let words = rows.map(|(key, (_, example))| format!("{}={example}", key.replacen("ethN", "eth1", 1)));
        let line = format!("type={vm_type} {}", words.collect::<Vec<_>>().join(" "));
        let vm = SystemVm::parse(&BootArgs::parse(&line).unwrap()).unwrap_or_else(|error| panic!("{vm_type}: {error}"));
        assert_eq!(vm.unknown, BootArgs::default(), "{vm_type}");
    }
}
