//! Running other programs. The only place that does: no shell, always a time limit, and a failure carries the whole
//! command line and what the program printed.
//!
//! A `Cmd` is plain data, so plans hold it and tests compare it. Seven ways to run it: `run` wants its output, `run_to_exit`
//! also that of a failure, `run_inherited` lets a person watch, `spawn` leaves it running, `spawn_detached` also beyond our
//! own end, `pipe` sends bytes through it, `exec` becomes it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Debug, Display, Formatter};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use tracing::debug;

use crate::files::{self, FileError};

mod detached;
mod pipe;

pub use detached::{BadProcess, Detached, Process};
pub use pipe::Pipe;

/// Long enough for a slow `systemctl` or `mount`, short enough that a peer still waits for our answer.
const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30);
/// More than any tool we ask prints (a ruleset of 10,000 rules is 3 MB of JSON); beyond it something is wrong.
const STDOUT_LIMIT: usize = 16 * 1024 * 1024;
/// Bytes kept from the end of standard error.
const STDERR_TAIL: usize = 16 * 1024;
/// Bytes of that, or of standard output when it is empty, in an error: the reason is in the last lines.
const PRINTED_TAIL: usize = 4 * 1024;
/// A killed process is gone in milliseconds, except one that hangs in the kernel: for that one we do not wait.
const REAP_LIMIT: Duration = Duration::from_secs(1);

/// A program, its arguments and how to run it. Displayed as an operator would type it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a command does nothing until it is run"]
pub struct Cmd {
    program: OsString,
    args: Vec<Word>,
    env: BTreeMap<OsString, Word>,
    is_env_ours: bool,
    stdin: Input,
    time_limit: Duration,
}

/// What a successful program printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Output {
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// The end of standard error, for the log.
    pub stderr: String,
}

/// How a program ended, whatever its exit code, and what it printed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exited {
    /// Its exit code, or the signal that ended it.
    pub status: ExitStatus,
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// The end of standard error.
    pub stderr: String,
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It never ran.
    #[error("cannot start `{command}`{}", if is_missing(source) { "; is the package that provides it installed?" } else { "" })]
    Start {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ran, and said no.
    #[error("`{command}` failed ({status}){}", after_colon(printed))]
    Failed {
        /// The command line.
        command: String,
        /// Its exit code, or the signal that ended it.
        status: ExitStatus,
        /// The end of what it printed, secrets hidden.
        printed: String,
    },
    /// It was still running, or something it started still held its output, when the time was over.
    #[error("`{command}` was stopped after {limit:?} without an answer{}", after_colon(printed))]
    TimedOut {
        /// The command line.
        command: String,
        /// The time it had.
        limit: Duration,
        /// The end of what it printed until then, secrets hidden.
        printed: String,
    },
    /// It printed more than we are ready to hold.
    #[error("`{command}` was stopped because it printed more than {limit} bytes")]
    TooMuchOutput {
        /// The command line.
        command: String,
        /// Bytes.
        limit: usize,
    },
    /// The system lost it.
    #[error("cannot follow `{command}`")]
    Lost {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file that [`Cmd::spawn`] should print into cannot be opened.
    #[error("cannot keep the output of `{command}`")]
    Log {
        /// The command line.
        command: String,
        /// Which file, and why.
        source: FileError,
    },
}

impl Cmd {
    /// A program by its path, or by its name as found in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: BTreeMap::new(),
            is_env_ours: true,
            stdin: Input::default(),
            time_limit: DEFAULT_TIME_LIMIT,
        }
    }

    /// Adds one argument. What could start with `-` by accident belongs after a `--`.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(Word::Plain(arg.as_ref().to_owned()));
        self
    }

    /// Adds arguments.
    pub fn args(self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Adds an argument that is shown as `***`, also where the program repeats it in an error. Other users of this
    /// machine can see it in `/proc` while the program runs: prefer [`Cmd::stdin`] where the program reads it.
    pub fn secret_arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(Word::Secret(arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable on top of ours.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .insert(name.as_ref().to_owned(), Word::Plain(value.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable whose value is shown as `***`.
    pub fn secret_env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env
            .insert(name.as_ref().to_owned(), Word::Secret(value.as_ref().to_owned()));
        self
    }

    /// Gives the program no environment but what [`Cmd::env`] sets: neither `PATH` nor locale. For programs whose output
    /// must be the same whoever runs them.
    pub fn without_environment(mut self) -> Self {
        self.is_env_ours = false;
        self
    }

    /// Gives the program something to read; never shown. Without it, [`Cmd::run`] and [`Cmd::spawn`] give it an empty
    /// input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Input(bytes.into());
        self
    }

    /// The same command as the last words of another, which becomes it or waits for it: `ip netns exec NAME`,
    /// `setpriv …`. What it reads and its time limit stay.
    pub fn through(self, outer: Self) -> Self {
        let mut args = outer.args;
        args.push(Word::Plain(self.program));
        args.extend(self.args);
        let mut env = outer.env;
        env.extend(self.env);
        Self {
            program: outer.program,
            args,
            env,
            is_env_ours: self.is_env_ours && outer.is_env_ours,
            stdin: self.stdin,
            time_limit: self.time_limit,
        }
    }

    /// How long [`Cmd::run`] waits before it stops the program; 30 s unless set.
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Runs the program to its end and takes what it printed. An exit code other than 0 is an error.
    ///
    /// The program gets a process group of its own. When the time is over or this future is dropped, the whole group is
    /// killed: the program and what it started. A program that leaves a daemon behind is done when the daemon has closed
    /// its output.
    pub async fn run(&self) -> Result<Output, ExecError> {
        let started = Instant::now();
        let result = self.run_to_end().await;
        debug!(command = %self, elapsed = ?started.elapsed(), is_ok = result.is_ok(), "Program finished");
        result
    }

    /// As [`Cmd::run`], but any exit is an answer: for programs whose exit code says something.
    pub async fn run_to_exit(&self) -> Result<Exited, ExecError> {
        let started = Instant::now();
        let result = self.follow_to_end().await;
        debug!(command = %self, elapsed = ?started.elapsed(), is_ok = result.is_ok(), "Program finished");
        result
    }

    /// Becomes the program: it has our process id, our input, output and terminal, and its exit code is ours. Returns only
    /// when it cannot be started. Input of [`Cmd::stdin`] and the time limit do not count.
    #[must_use = "it returns only when it failed"]
    pub fn exec(&self) -> ExecError {
        let mut command = self.command();
        self.cannot_start(command.as_std_mut().stdin(Stdio::inherit()).exec())
    }

    /// Runs the program with our own standard output and error (and input, unless [`Cmd::stdin`] gave one), for as long
    /// as it takes: a person is watching, and their ctrl-C reaches it, too. Any exit is an answer.
    pub async fn run_inherited(&self) -> Result<ExitStatus, ExecError> {
        let started = Instant::now();
        let mut command = self.command();
        if self.stdin.0.is_empty() {
            command.stdin(Stdio::inherit());
        }
        let mut child = command.spawn().map_err(|source| self.cannot_start(source))?;
        let input = child.stdin.take();
        let (_fed, status) = tokio::join!(feed(input, &self.stdin.0), child.wait());
        debug!(command = %self, elapsed = ?started.elapsed(), ?status, "Program finished");
        status.map_err(|source| ExecError::Lost {
            command: self.to_string(),
            source,
        })
    }

    /// Starts the program and leaves it running. What it prints is appended to the file `log` (made with mode 0600).
    /// It ends with [`Running::stop`], or hard, with all it started, when the [`Running`] is dropped.
    pub fn spawn(&self, log: impl AsRef<Path>) -> Result<Running, ExecError> {
        let log = log.as_ref();
        let (stdout, stderr) = open_log(log, &self.to_string())?;
        let mut command = self.command();
        command.process_group(0).stdout(stdout).stderr(stderr);
        let mut child = command.spawn().map_err(|source| self.cannot_start(source))?;
        if let Some(input) = child.stdin.take() {
            let bytes = self.stdin.0.clone();
            tokio::spawn(async move { feed(Some(input), &bytes).await });
        }
        debug!(command = %self, pid = child.id(), log = %log.display(), "Program started");
        Ok(Running {
            child,
            command: self.to_string(),
        })
    }

    async fn run_to_end(&self) -> Result<Output, ExecError> {
        let Exited { status, stdout, stderr } = self.follow_to_end().await?;
        if status.success() {
            return Ok(Output { stdout, stderr });
        }
        Err(ExecError::Failed {
            command: self.to_string(),
            status,
            printed: self.hide_secrets(whichever(&stdout, &stderr)),
        })
    }

    async fn follow_to_end(&self) -> Result<Exited, ExecError> {
        let mut command = self.command();
        command.process_group(0).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| self.cannot_start(source))?;
        let mut running = Running {
            child,
            command: self.to_string(),
        };

        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let following = follow(&mut running.child, &self.stdin.0, &mut stdout, &mut stderr);
        let followed = timeout(self.time_limit, following).await;
        running.kill().await; // of one that has ended, nothing is left to kill

        let command = self.to_string();
        let stderr = lossy(tail(&stderr, STDERR_TAIL));
        match followed {
            Ok(Ok(status)) => Ok(Exited { status, stdout, stderr }),
            Ok(Err(error)) if error.kind() == ErrorKind::FileTooLarge => Err(ExecError::TooMuchOutput {
                command,
                limit: STDOUT_LIMIT,
            }),
            Ok(Err(source)) => Err(ExecError::Lost { command, source }),
            Err(_) => Err(ExecError::TimedOut {
                command,
                limit: self.time_limit,
                printed: self.hide_secrets(whichever(&stdout, &stderr)),
            }),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place the lint sends everybody to"
    )]
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if !self.is_env_ours {
            command.env_clear();
        }
        command
            .args(self.args.iter().map(Word::get))
            .envs(self.env.iter().map(|(name, value)| (name, value.get())))
            .stdin(if self.stdin.0.is_empty() {
                Stdio::null()
            } else {
                Stdio::piped()
            })
            .kill_on_drop(true);
        command
    }

    fn cannot_start(&self, source: io::Error) -> ExecError {
        ExecError::Start {
            command: self.to_string(),
            source,
        }
    }

    /// The end of `printed` as text in which the secrets we passed are `***`: programs like to repeat a bad argument.
    fn hide_secrets(&self, printed: &[u8]) -> String {
        let secrets = self.args.iter().chain(self.env.values()).filter_map(Word::secret);
        let hide = |text: String, secret: &OsStr| text.replace(&*secret.to_string_lossy(), "***");
        let text = secrets.fold(lossy(printed), hide);
        lossy(tail(text.trim().as_bytes(), PRINTED_TAIL))
    }
}

impl Output {
    /// Standard output as text. Bytes that are not UTF-8 become `�`.
    pub fn text(&self) -> String {
        lossy(&self.stdout)
    }
}

/// A program that [`Cmd::spawn`] started. Dropping it kills the program and everything in its process group.
#[derive(Debug)]
#[must_use = "dropping it kills the program"]
pub struct Running {
    child: Child,
    command: String,
}

impl Running {
    /// Its process id; `None` once it has ended and was waited for.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until it ends by itself. May be dropped and called again.
    pub async fn wait(&mut self) -> Result<ExitStatus, ExecError> {
        self.child.wait().await.map_err(|source| ExecError::Lost {
            command: self.command.clone(),
            source,
        })
    }

    /// Asks it to end (SIGTERM to its group), and kills the group if it has not ended after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        self.signal(Signal::SIGTERM);
        let ended = timeout(grace, self.child.wait()).await.is_ok();
        debug!(command = self.command, ended, "Program asked to end");
        self.kill().await;
    }

    async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        timeout(REAP_LIMIT, self.child.wait()).await.ok();
    }

    fn signal(&self, signal: Signal) {
        // Without an id it has been waited for, and its number may be somebody else's by now.
        if let Some(group) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            killpg(Pid::from_raw(group), signal).ok(); // fails only when the whole group is gone already
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL); // the runtime reaps it
    }
}

/// Where the reason is: on standard error, or on standard output when that is all there is.
fn whichever<'a>(stdout: &'a [u8], stderr: &'a str) -> &'a [u8] {
    if stderr.trim().is_empty() {
        stdout
    } else {
        stderr.as_bytes()
    }
}

/// The file for both outputs of `command`.
fn open_log(log: &Path, command: &str) -> Result<(File, File), ExecError> {
    let cannot_log = |source| ExecError::Log {
        command: command.to_owned(),
        source: files::failed("open", log)(source),
    };
    let open = OpenOptions::new().create(true).append(true).mode(0o600).open(log);
    let stdout = open.map_err(cannot_log)?;
    let stderr = stdout.try_clone().map_err(cannot_log)?;
    Ok((stdout, stderr))
}

/// Feeds and listens until the program has closed its output and ended.
async fn follow(child: &mut Child, input: &[u8], stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let (stdin_pipe, stdout_pipe, stderr_pipe) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    tokio::try_join!(
        async { feed(stdin_pipe, input).await.or(Ok(())) },
        read_all(stdout_pipe, stdout),
        read_tail(stderr_pipe, stderr),
    )?;
    // Not earlier: until it is waited for, its process id stays its own, and killing its group hits nobody else.
    child.wait().await
}

/// Fails when the program closes its input early. That is its right; its exit code says whether something is wrong.
async fn feed(pipe: Option<ChildStdin>, bytes: &[u8]) -> io::Result<()> {
    match pipe {
        Some(mut pipe) => pipe.write_all(bytes).await,
        None => Ok(()),
    }
}

async fn read_all(pipe: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    while pipe.read_buf(bytes).await? > 0 {
        if bytes.len() > STDOUT_LIMIT {
            return Err(ErrorKind::FileTooLarge.into());
        }
    }
    Ok(())
}

async fn read_tail(pipe: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    while pipe.read_buf(bytes).await? > 0 {
        if bytes.len() > 2 * STDERR_TAIL {
            bytes.drain(..bytes.len() - STDERR_TAIL);
        }
    }
    Ok(())
}

fn tail(bytes: &[u8], length: usize) -> &[u8] {
    &bytes[bytes.len().saturating_sub(length)..]
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

fn after_colon(printed: &str) -> String {
    if printed.is_empty() {
        String::new()
    } else {
        format!(": {printed}")
    }
}

#[derive(Clone, PartialEq, Eq)]
enum Word {
    Plain(OsString),
    Secret(OsString),
}

impl Word {
    fn get(&self) -> &OsStr {
        let (Self::Plain(word) | Self::Secret(word)) = self;
        word
    }

    fn secret(&self) -> Option<&OsStr> {
        match self {
            Self::Secret(word) if !word.is_empty() => Some(word),
            _ => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Input(Vec<u8>);

impl Debug for Input {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Debug for Word {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Display for Word {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(word) => quote(word, f),
            Self::Secret(_) => f.write_str("***"),
        }
    }
}

impl Display for Cmd {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if !self.is_env_ours {
            f.write_str("env -i ")?;
        }
        for (name, value) in &self.env {
            write!(f, "{}={value} ", name.to_string_lossy())?;
        }
        quote(&self.program, f)?;
        self.args.iter().try_for_each(|arg| write!(f, " {arg}"))
    }
}

/// Writes one word so that bash reads it back unchanged: bare, in `'…'`, or in `$'…'` with escapes for what cannot be
/// printed.
fn quote(word: &OsStr, f: &mut Formatter<'_>) -> fmt::Result {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+^".contains(c);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.chars().all(is_bare) => f.write_str(text),
        Some(text) if !text.contains(char::is_control) => write!(f, "'{}'", text.replace('\'', r"'\''")),
        _ => {
            f.write_str("$'")?;
            for byte in word.as_bytes() {
                match byte {
                    b'\n' => f.write_str(r"\n")?,
                    b'\'' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    b' '..=b'~' => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, r"\x{byte:02x}")?,
                }
            }
            f.write_str("'")
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The part of bash's reading that [`quote`] uses, written from bash(1) "QUOTING".
    fn read_back(line: &str) -> Vec<Vec<u8>> {
        let (mut words, mut word, mut bytes) = (Vec::new(), None::<Vec<u8>>, line.bytes().peekable());
        while let Some(byte) = bytes.next() {
            if byte == b' ' {
                words.extend(word.take());
                continue;
            }
            let word = word.get_or_insert_default();
            match byte {
                b'\'' => word.extend(bytes.by_ref().take_while(|byte| *byte != b'\'')),
                b'\\' => word.extend(bytes.next()),
                b'$' => {
                    assert_eq!(bytes.next(), Some(b'\''));
                    while let Some(byte) = bytes.next().filter(|byte| *byte != b'\'') {
                        word.push(match (byte, bytes.next_if(|_| byte == b'\\')) {
                            (_, Some(b'n')) => b'\n',
                            (_, Some(b'x')) => {
                                let digits = [bytes.next().unwrap(), bytes.next().unwrap()];
                                u8::from_str_radix(str::from_utf8(&digits).unwrap(), 16).unwrap()
                            }
                            (_, Some(escaped)) => escaped,
                            (plain, None) => plain,
                        });
                    }
                }
                _ => {
                    let special = b"|&;<>()`\"*?[]#~{}!\t\n";
                    assert!(!special.contains(&byte), "{line:?} has a bare {:?}", char::from(byte));
                    word.push(byte);
                }
            }
        }
        words.extend(word);
        words
    }

    proptest! {
        #[test]
        fn a_displayed_command_reads_back_as_the_same_words(
            args in prop::collection::vec(prop_oneof![
                any::<Vec<u8>>(),
                "[ -~]{0,12}".prop_map(String::into_bytes),
                any::<String>().prop_map(String::into_bytes),
            ], 0..4),
        ) {
            let cmd = Cmd::new("program").args(args.iter().map(|arg| OsStr::from_bytes(arg)));
            let mut words = read_back(&cmd.to_string()).into_iter();
            prop_assert_eq!(words.next().unwrap(), b"program");
            prop_assert_eq!(words.collect::<Vec<_>>(), args);
        }
    }

    #[test]
    fn a_command_shows_what_to_type_but_no_secret() {
        let cmd = Cmd::new("mount")
            .args(["-t", "cifs", "//10.1.4.2/my share", "it's", "", "a\nb"])
            .secret_arg("password=swordfish")
            .env("LC_ALL", "C")
            .secret_env("TOKEN", "swordfish")
            .stdin("swordfish");
        let shown = r"LC_ALL=C TOKEN=*** mount -t cifs '//10.1.4.2/my share' 'it'\''s' '' $'a\nb' ***";
        assert_eq!(cmd.to_string(), shown);
        assert!(!format!("{cmd:?}").contains("swordfish"), "{cmd:?}");
    }

    #[test]
    fn a_command_goes_through_another_with_its_input_and_secrets() {
        let outer = Cmd::new("ip").args(["netns", "exec", "test"]).env("LC_ALL", "C");
        let inner = Cmd::new("login")
            .secret_arg("swordfish")
            .env("TERM", "dumb")
            .stdin("hello");
        let wanted = Cmd::new("ip")
            .args(["netns", "exec", "test", "login"])
            .secret_arg("swordfish")
            .env("LC_ALL", "C")
            .env("TERM", "dumb")
            .stdin("hello");
        assert_eq!(inner.through(outer), wanted);
    }

    #[test]
    fn commands_are_compared_with_their_secrets() {
        let login = |password| Cmd::new("login").secret_arg(password);
        assert_eq!(login("one"), login("one"));
        assert_ne!(login("one"), login("two"));
        assert_ne!(login("one"), Cmd::new("login").arg("one"));
    }
}
