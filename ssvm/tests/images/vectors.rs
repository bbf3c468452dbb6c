use super::*;
use ImageFormat::{Qcow2, Vhd, Vmdk};

fn load(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(name);
    serde_json::from_reader(File::open(path).unwrap()).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn qcow2_headers_get_the_verdicts_of_the_vectors() {
    for case in load("qcow2-headers.json")["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let header = bytes(case["header_hex"].as_str().unwrap());
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&header, 0).unwrap();
        if header.len() > 40 {
            file.set_len(4 << 20).unwrap(); // the rest of an image: tables that are empty
        }
        let found = judge(&file, Qcow2, &Limits::default());
        let required = case["required"].as_str().unwrap();
        match required.split(' ').next().unwrap() {
            // By default extended L2 counts as what the hypervisors do not read.
            "accept" if !required.contains("else reject") => {
                let found = found.unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
                let size = case["virtual_size"].as_u64().unwrap_or(found.virtual_size);
                assert_eq!(found.virtual_size, size, "{name}");
                assert_eq!(found.warnings.is_empty(), !required.contains("warning"), "{name}");
            }
            _ => assert!(
                matches!(found, Err(Refusal::BadQcow2(_) | Refusal::Mismatch(_))),
                "{name}: {found:?}"
            ),
        }
    }
}

/// The vectors have the first 64 bytes; the checksum that follows makes them whole.
fn footer(hex: &str) -> Vec<u8> {
    let mut footer = bytes(hex);
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer.extend((!sum).to_be_bytes());
    footer.resize(512, 0);
    footer
}

#[test]
fn vhd_sizes_are_those_of_the_vectors() {
    let shop = Workshop::new();
    // Block table and dynamic header of a real one of this size.
    let real = fs::read(shop.create("vpc", "force_size=on", "12M")).unwrap();
    for case in load("virtual-size.json")["vhd"].as_array().unwrap() {
        let wanted = case["virtual_size_required"].as_u64().or(case["virtual_size"].as_u64());
        let file = tempfile::tempfile().unwrap();
        if let Some(last) = case["last_512_first_64_hex"].as_str() {
            let length = case["file_length"].as_u64().unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(&footer(last), length - 512).unwrap();
        } else {
            let footer = footer(case["first_64_hex"].as_str().unwrap());
            file.write_all_at(&real, 0).unwrap();
            file.write_all_at(&footer, 0).unwrap();
            file.write_all_at(&footer, u64::try_from(real.len() - 512).unwrap())
                .unwrap();
        }
        let found = judge(&file, Vhd, &Limits::default()).map(|found| found.virtual_size);
        assert_eq!(found.ok(), wanted, "{}", case["name"]);
    }
}

#[test]
fn vmdk_verdicts_are_those_of_the_vectors() {
    for case in load("virtual-size.json")["vmdk"].as_array().unwrap() {
        let file = tempfile::tempfile().unwrap();
        if let Some(text) = case["text"].as_str() {
            // Flat ones have a size upstream; for us they are refused, as §3.5 has it.
            file.write_all_at(text.as_bytes(), 0).unwrap();
            judge(&file, Vmdk, &Limits::default()).unwrap_err();
            continue;
        }
        let line = case["descriptor_line"].as_str().unwrap();
        let descriptor = format!("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n{line}\n");
        file.set_len(64 << 10).unwrap();
        file.write_all_at(&bytes(case["first_64_hex"].as_str().unwrap()), 0)
            .unwrap();
        file.write_all_at(descriptor.as_bytes(), case["descriptor_offset"].as_u64().unwrap())
            .unwrap();
        let found = judge(&file, Vmdk, &Limits::default()).unwrap();
        assert_eq!(found.virtual_size, case["virtual_size"].as_u64().unwrap());
    }
}
