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
