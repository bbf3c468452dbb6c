use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tracing::debug;

use super::{Cmd, ExecError, STDERR_TAIL, Word, tail};

/// A program that bytes run through, for threads that may block. Read [`Pipe::output`] in one thread while another
/// writes [`Pipe::input`], drop both, then [`Pipe::finish`]. Dropping it kills the program and what it started.
#[derive(Debug)]
#[must_use = "dropping it kills the program"]
pub struct Pipe {
    /// Standard input: dropping it tells the program that there is no more.
    pub input: Option<ChildStdin>,
    /// Standard output.
    pub output: Option<ChildStdout>,
    child: Child,
    printed: Option<JoinHandle<Vec<u8>>>,
    command: Cmd,
}

impl Cmd {
    /// Starts the program as a filter. There is no time limit: it ends when its input does, or is killed when the
    /// [`Pipe`] is dropped.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place the lint sends everybody to"
    )]
    pub fn pipe(&self) -> Result<Pipe, ExecError> {
        let mut command = Command::new(&self.program);
        if !self.is_env_ours {
            command.env_clear();
        }
        let mut child = command
            .args(self.args.iter().map(Word::get))
            .envs(self.env.iter().map(|(name, value)| (name, value.get())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|source| self.cannot_start(source))?;
        let (input, output, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let mut pipe = Pipe {
            input,
            output,
            child,
            printed: None,
            command: self.clone(),
        };
        // A program that nobody listens to would stop at a full pipe.
        if let Some(mut stderr) = stderr {
            let listen = move || {
                let (mut kept, mut block) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = stderr.read(&mut block) {
                    kept.extend_from_slice(&block[..read]);
                    if kept.len() > 2 * STDERR_TAIL {
                        kept.drain(..kept.len() - STDERR_TAIL);
                    }
                }
                kept
            };
            let listener = thread::Builder::new().name("stderr".to_owned()).spawn(listen);
            pipe.printed = Some(listener.map_err(|source| self.cannot_start(source))?);
        }
        debug!(command = %self, pid = pipe.child.id(), "Program started");
        Ok(pipe)
    }
}

impl Pipe {
    /// Waits until the program ends. An exit code other than 0 is an error.
    pub fn finish(mut self) -> Result<(), ExecError> {
        if let Some(mut input) = self.input.take() {
            let _ = input.flush(); // only then it is told the end
        }
        self.output = None;
        let printed = self
            .printed
            .take()
            .and_then(|printed| printed.join().ok())
            .unwrap_or_default();
        let status = self.child.wait().map_err(|source| ExecError::Lost {
            command: self.command.to_string(),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        Err(ExecError::Failed {
            command: self.command.to_string(),
            status,
            printed: self.command.hide_secrets(tail(&printed, STDERR_TAIL)),
        })
    }

    /// Ends the program hard, with all it started.
    pub fn kill(&mut self) {
        // Once it has been waited for, its number may be somebody else's.
        if let (Ok(None), Ok(group)) = (self.child.try_wait(), i32::try_from(self.child.id())) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL); // fails only when it is gone already
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait(); // it was killed, or has ended: no zombie stays
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_run_through_and_the_end_is_told() {
        let mut pipe = Cmd::new("cat").pipe().unwrap();
        pipe.input.take().unwrap().write_all(b"hello").unwrap();
        let mut back = String::new();
        pipe.output.take().unwrap().read_to_string(&mut back).unwrap();
        pipe.finish().unwrap();
        assert_eq!(back, "hello");
    }

    #[test]
    fn a_failure_says_what_the_program_printed() {
        let error = Cmd::new("cat")
            .args(["--", "/nowhere"])
            .pipe()
            .unwrap()
            .finish()
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`cat -- /nowhere` failed (exit status: 1): cat: /nowhere: No such file or directory"
        );
        let error = Cmd::new("no-such-program").pipe().unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("is the package that provides it installed?"),
            "{error}"
        );
    }

    #[test]
    fn dropping_it_ends_the_program() {
        let pipe = Cmd::new("sleep").arg("600").pipe().unwrap();
        let id = Pid::from_raw(i32::try_from(pipe.child.id()).unwrap());
        drop(pipe);
        assert!(nix::sys::signal::kill(id, None).is_err());
    }
}
