//! Whether every program finds its libraries in the image.
//!
//! There is no `ld.so.cache` in it: everything is where the loader looks anyway, or where the program says.

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use crate::tree::{Node, Tree};

/// Where Debian's loader looks by itself.
const FOLDERS: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib"];

/// What a program or library says it needs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    /// The loader's path.
    interpreter: Option<String>,
    /// Names of libraries.
    libraries: Vec<String>,
    /// Where to look first.
    folders: Vec<String>,
}

/// A sentence for each library that is not there.
pub(super) fn missing(tree: &Tree) -> Vec<String> {
    let mut problems = Vec::new();
    for (path, entry) in tree.iter() {
        let Node::File(contents) = &entry.node else { continue };
        if !contents.starts_with(&elf::ELFMAG) || path.starts_with("usr/lib/modules/") {
            continue;
        }
        let needs = match Needs::read(contents) {
            Ok(needs) => needs,
            Err(error) => {
                problems.push(format!("{path} is no program that we can read: {error}"));
                continue;
            }
        };
        if let Some(interpreter) = &needs.interpreter
            && tree.resolve(interpreter).is_none()
        {
            problems.push(format!("{path} needs {interpreter}, which is not there"));
        }
        let origin = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let own = needs
            .folders
            .iter()
            .map(|folder| folder.replace("$ORIGIN", origin).replace("${ORIGIN}", origin));
        // A library may count on the program that loads it, which looks in the library's folder.
        let beside = needs.interpreter.is_none().then(|| origin.to_owned());
        let folders: Vec<String> = own.chain(FOLDERS.map(str::to_owned)).chain(beside).collect();
        for library in &needs.libraries {
            let is_there = |folder: &String| tree.resolve(&format!("{folder}/{library}")).is_some();
            if !folders.iter().any(is_there) {
                problems.push(format!("{path} needs {library}, which is not there"));
            }
        }
    }
    problems
}

impl Needs {
    fn read(file: &[u8]) -> object::Result<Self> {
        let header = FileHeader64::<Endianness>::parse(file)?;
        let endian = header.endian()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut needs = Self::default();
        for segment in header.program_headers(endian, file)? {
            if let Some(interpreter) = segment.interpreter(endian, file)? {
                needs.interpreter = Some(text(interpreter));
            }
        }
        let sections = header.sections(endian, file)?;
        let Some((entries, strings)) = sections.dynamic(endian, file)? else {
            return Ok(needs);
        };
        let strings = sections.strings(endian, file, strings)?;
        for entry in entries {
            match entry.tag(endian) {
                elf::DT_NEEDED => needs.libraries.push(text(entry.string(endian, strings)?)),
                elf::DT_RPATH | elf::DT_RUNPATH => {
                    let folders = text(entry.string(endian, strings)?);
                    needs.folders.extend(folders.split(':').map(str::to_owned));
                }
                _ => {}
            }
        }
        Ok(needs)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::tree::Entry;

    #[test]
    fn a_program_without_its_libraries_is_told() {
        // A program that this machine certainly has: this one.
        let program = fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut tree = Tree::new();
        tree.make_parents("usr/bin/program");
        tree.insert("usr/bin/program", Entry::file(0o755, program)).unwrap();
        let problems = missing(&tree);
        let wants = |what: &str| format!("usr/bin/program needs {what}, which is not there");
        assert!(problems.contains(&wants("libc.so.6")), "{problems:?}");
        assert!(problems.contains(&wants("/lib64/ld-linux-x86-64.so.2")), "{problems:?}");

        for library in ["lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/libc.so.6"] {
            tree.make_parents(library);
            tree.insert(library, Entry::file(0o755, "not looked into")).unwrap();
        }
        let left = missing(&tree);
        assert_eq!(left.len(), problems.len() - 2, "{left:?}");
    }

    #[test]
    fn a_damaged_program_is_told() {
        let mut tree = Tree::new();
        tree.insert("program", Entry::file(0o755, &b"\x7fELF and no more"[..]))
            .unwrap();
        let problems = missing(&tree);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].starts_with("program is no program that we can read: "),
            "{problems:?}"
        );
    }
}
