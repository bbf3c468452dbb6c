//! xz data goes through the program `xz`: there is no maintained decoder that needs no C (dependencies.md §2).

use std::io::{self, Read, Write};
use std::thread;

use platform::exec::{Cmd, ExecError};

use super::unpack::{BLOCK, Output, copy};
use super::{Compression, StreamError};

/// For the dictionary. `xz -9`, the largest preset, needs 65 MiB.
const MEMORY: &str = "--memlimit-decompress=128MiB";

pub(super) fn unpack(input: &mut impl Read, mut output: Output) -> Result<Output, StreamError> {
    let command = Cmd::new("xz").args(["--decompress", "--stdout", "--format=xz", "--threads=1", MEMORY]);
    let mut pipe = command.pipe().map_err(StreamError::Xz)?;
    let (Some(mut to_xz), Some(mut from_xz)) = (pipe.input.take(), pipe.output.take()) else {
        return Err(StreamError::Source(io::ErrorKind::BrokenPipe.into()));
    };
    // What ends early closes its pipe, which ends xz, which ends the other side.
    let writer = thread::Builder::new().name("xz-output".to_owned()).spawn(move || {
        copy(&mut from_xz, &mut output, &mut |_| {}).map_err(|error| error.of(Compression::Xz))?;
        Ok::<_, StreamError>(output)
    })?;
    let fed = feed(input, &mut to_xz);
    if fed.is_err() {
        pipe.kill(); // what it has is not all: it shall not end as if it were
    }
    drop(to_xz);
    let written = writer
        .join()
        .map_err(|_| StreamError::Source(io::Error::other("the thread that writes what xz unpacks has panicked")))?;
    let output = written?;
    let damaged = |why| StreamError::Damaged {
        compression: Compression::Xz,
        why,
    };
    fed.map_err(|error| damaged(error.to_string()))?;
    match pipe.finish() {
        Ok(()) => Ok(output),
        Err(ExecError::Failed { printed, .. }) => Err(damaged(printed)),
        Err(error) => Err(StreamError::Xz(error)),
    }
}

/// Gives xz the input as far as it takes it; why it takes no more is said when it ends.
fn feed(input: &mut impl Read, to_xz: &mut impl Write) -> io::Result<()> {
    let mut block = vec![0; BLOCK];
    loop {
        let read = input.read(&mut block)?;
        if read == 0 || to_xz.write_all(&block[..read]).is_err() {
            return Ok(());
        }
    }
}
