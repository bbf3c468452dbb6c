use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use platform::logging::chain;
use proptest::prelude::*;
use protocol::boot::{BootArgs, SystemVm};

use super::*;

fn packed(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn config(text: &str) -> CloudConfig {
    match UserData::parse(text.as_bytes()).unwrap().unwrap() {
        UserData::CloudConfig(config) => config,
        UserData::Script(script) => panic!("not cloud-config: {script}"),
    }
}

fn refused(text: &str) -> String {
    chain(&UserData::parse(text.as_bytes()).unwrap_err()).to_string()
}

#[test]
fn the_user_data_of_the_example_line_runs_its_command() {
    // appliance.md §2.4 (2).
    let line = "type=consoleproxy host=192.0.2.10 guid=Proxy.2 userdata=H4sIAAAAAAACA1NOzskvTdFNzs9Ly0znKirNS85NseJSUNBVi\
                C7JL03O0FHQL8rPL9EvLU4tSkksSdQtSsyL5QIAJwn6/DYAAAA=";
    let vm = SystemVm::parse(&BootArgs::parse(line).unwrap()).unwrap();
    let sent = vm.machine.user_data.unwrap();
    let wanted = UserData::parse(sent.expose()).unwrap().unwrap();
    assert_eq!(
        wanted,
        UserData::CloudConfig(CloudConfig {
            files: Vec::new(),
            script: Some("#!/bin/sh\n'touch' '/root/userdata-ran'\n".to_owned()),
            ignored: Vec::new(),
        })
    );
}

#[test]
fn a_script_is_kept_as_it_is_packed_or_not() {
    let script = "#!/bin/bash\necho hello\n";
    for bytes in [script.as_bytes().to_owned(), packed(script.as_bytes())] {
        let wanted = UserData::parse(&bytes).unwrap().unwrap();
        assert_eq!(wanted, UserData::Script(script.to_owned()));
    }
    assert_eq!(UserData::parse(b" \n").unwrap(), None);
    assert_eq!(UserData::parse(&packed(b"")).unwrap(), None);
}

#[test]
fn files_come_in_every_encoding_that_cloud_init_has() {
    let base64 = |bytes: &[u8]| BASE64_STANDARD.encode(bytes);
    let zipped = base64(&packed(b"packed"));
    let text = format!(
        "#cloud-config\nwrite_files:\n\
         - path: /etc/plain\n  content: |\n    one\n    two\n\
         - {{path: /etc/b64, encoding: b64, content: {}, permissions: '0600', owner: 'root:root'}}\n\
         - {{path: /etc/gz, encoding: gz+b64, content: {zipped}, permissions: 0755, append: true}}\n\
         - {{path: /etc/empty}}\n",
        base64(b"coded"),
    );
    let file = |path: &str, contents: &[u8], mode| WantedFile {
        path: path.to_owned(),
        contents: contents.to_owned(),
        mode,
        owner: None,
        is_appended: false,
    };
    assert_eq!(
        config(&text).files,
        [
            file("/etc/plain", b"one\ntwo\n", 0o644),
            WantedFile {
                owner: Some("root:root".to_owned()),
                ..file("/etc/b64", b"coded", 0o600)
            },
            WantedFile {
                is_appended: true,
                ..file("/etc/gz", b"packed", 0o755)
            },
            file("/etc/empty", b"", 0o644),
        ]
    );
}

#[test]
fn commands_become_lines_of_sh_and_other_modules_are_named() {
    let nothing = config("#cloud-config\n");
    assert_eq!(nothing, CloudConfig::default());
    let config = config(
        "#cloud-config\npackages: [vim]\nruncmd:\n- echo \"$HOME\" > /tmp/x\n- [echo, \"it's\", 7, true]\nusers:\n- default\n",
    );
    assert_eq!(
        config.script.as_deref(),
        Some("#!/bin/sh\necho \"$HOME\" > /tmp/x\n'echo' 'it'\\''s' '7' 'true'\n")
    );
    assert_eq!(config.ignored, ["packages", "users"]);
}

#[test]
fn what_is_not_understood_is_named() {
    for (text, said) in [
        (
            "Content-Type: multipart/mixed; boundary=\"x\"\n",
            "it begins with \"Content-Type: multipart/mixed; boundary=\"; only a script (`#!`) or `#cloud-config` is \
             understood here",
        ),
        ("#cloud-config\n- a\n", "the document: expected one table of keys"),
        ("#cloud-config\nruncmd: ls\n", "runcmd: expected a list"),
        (
            "#cloud-config\nruncmd: [[[a]]]\n",
            "runcmd[0]: expected a line of text or a list of words",
        ),
        (
            "#cloud-config\nwrite_files: [{path: etc/x}]\n",
            "write_files[0].path: expected an absolute path",
        ),
        (
            "#cloud-config\nwrite_files: [{path: /x, encoding: rot13}]\n",
            "write_files[0].encoding: expected base64, gzip, gz+base64, or text that is so encoded",
        ),
        (
            "#cloud-config\nwrite_files: [{path: /x, permissions: '0999'}]\n",
            "write_files[0].permissions: expected permission bits such as '0644'",
        ),
        ("#cloud-config\na: &x [1]\nb: *x\n", "its YAML has an alias (`*name`)"),
    ] {
        assert_eq!(refused(text), said);
    }
    let deep = format!("#cloud-config\na: {}\n", "[".repeat(100));
    assert_eq!(refused(&deep), "its YAML has too many levels");
    assert!(refused("#cloud-config\na: [\n").starts_with("it is not YAML: "));
}

#[test]
fn what_unpacks_to_more_than_the_limit_or_is_cut_off_is_refused() {
    let large = packed(&vec![b'#'; 3 << 20]);
    assert!(large.len() < 96 * 1024);
    assert!(matches!(UserData::parse(&large), Err(BadUserData::Packed(_))));
    let whole = packed(b"#!/bin/sh\n");
    assert!(matches!(
        UserData::parse(&whole[..whole.len() - 4]),
        Err(BadUserData::Packed(_))
    ));
    assert!(matches!(
        UserData::parse(&vec![b'#'; 2 << 20]),
        Err(BadUserData::TooLong)
    ));
    assert!(matches!(UserData::parse(b"#!\xFF"), Err(BadUserData::NotText)));
}

proptest! {
    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300), text in "[a-z:\\[\\]{}&*\n '\"#!-]{0,200}") {
        let _ = UserData::parse(&noise);
        let _ = UserData::parse(format!("#cloud-config\n{text}").as_bytes());
        let _ = UserData::parse(format!("#cloud-config\nruncmd:\n{text}").as_bytes());
    }
}
