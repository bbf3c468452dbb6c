//! `exec` against the programs of a plain Debian: what really runs, what is really gone afterwards.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests may fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use platform::exec::{Cmd, ExecError, Process};
use platform::files::replace;
use platform::logging::chain;
use tokio::time::{sleep, timeout};

/// A child (`timeout`) with a grandchild (`sleep`), both found by a number of seconds nobody else uses.
fn sleeping_family(seconds: &str) -> Cmd {
    Cmd::new("timeout").args(["--foreground", seconds, "sleep", seconds])
}

fn alive(argument: &str) -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let command_lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    command_lines
        .filter(|line| line.split(|byte| *byte == 0).any(|word| word == argument.as_bytes()))
        .count()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), waiting)
        .await
        .unwrap_or_else(|_| panic!("not in 20 s: {what}"));
}

#[tokio::test]
async fn a_failure_is_an_answer_with_both_outputs_for_those_who_ask_so() {
    let exited = Cmd::new("sh")
        .args(["-c", "echo out; echo err >&2; exit 3"])
        .run_to_exit()
        .await
        .unwrap();
    assert_eq!(
        (exited.stdout.as_slice(), exited.stderr.as_str()),
        (b"out\n".as_slice(), "err\n")
    );
    assert_eq!(exited.status.code(), Some(3));
    let late = Cmd::new("sleep")
        .arg("100")
        .time_limit(Duration::from_millis(50))
        .run_to_exit()
        .await;
    assert!(matches!(late, Err(ExecError::TimedOut { .. })), "{late:?}");
}

#[test]
fn a_program_that_cannot_be_started_is_not_become() {
    let error = Cmd::new("/no/such/program").exec();
    assert!(
        chain(&error).to_string().starts_with("cannot start `/no/such/program`"),
        "{error}"
    );
}

async fn error_of(cmd: Cmd) -> String {
    chain(&cmd.run().await.unwrap_err()).to_string()
}

#[tokio::test]
async fn a_program_gets_its_arguments_environment_and_input_and_gives_its_output() {
    let output = Cmd::new("printf")
        .args(["%s|", "two words", "", "$HOME"])
        .run()
        .await
        .unwrap();
    assert_eq!(
        (output.text().as_str(), output.stderr.as_str()),
        ("two words||$HOME|", "")
    );

    let output = Cmd::new("printenv")
        .arg("COLOUR")
        .env("COLOUR", "blue")
        .run()
        .await
        .unwrap();
    assert_eq!(output.text(), "blue\n");

    let output = Cmd::new("cat").run().await.unwrap();
    assert_eq!(output.stdout, b"", "without an input there is an empty one");
}

#[tokio::test]
async fn a_program_can_be_given_nothing_but_the_environment_that_is_named() {
    let env = Cmd::new("/usr/bin/env").env("COLOUR", "blue").without_environment();
    assert_eq!(env.to_string(), "env -i COLOUR=blue /usr/bin/env");
    assert_eq!(env.run().await.unwrap().text(), "COLOUR=blue\n");

    let mut pipe = env.pipe().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(pipe.output.as_mut().unwrap(), &mut text).unwrap();
    assert_eq!(text, "COLOUR=blue\n");
    pipe.finish().unwrap();
}

#[tokio::test]
async fn input_and_output_larger_than_a_pipe_do_not_block_each_other() {
    let megabytes: Vec<u8> = (0..=u8::MAX).cycle().take(4_000_000).collect();
    let output = Cmd::new("cat").stdin(megabytes.clone()).run().await.unwrap();
    assert!(output.stdout == megabytes);
}

#[tokio::test]
async fn a_program_may_leave_its_input_unread() {
    Cmd::new("true").stdin(vec![0; 4_000_000]).run().await.unwrap();
}

#[tokio::test]
async fn a_missing_program_is_named_with_a_hint() {
    assert_eq!(
        error_of(Cmd::new("haproxy-of-tomorrow").args(["-c", "-f", "/etc/haproxy/haproxy.cfg"])).await,
        "cannot start `haproxy-of-tomorrow -c -f /etc/haproxy/haproxy.cfg`; is the package that provides it \
         installed?: No such file or directory (os error 2)"
    );
    assert_eq!(
        error_of(Cmd::new("/etc/passwd")).await,
        "cannot start `/etc/passwd`: Permission denied (os error 13)"
    );
}

#[tokio::test]
async fn a_failure_carries_the_command_line_and_what_was_printed() {
    assert_eq!(
        error_of(Cmd::new("cat").args(["--", "/missing file"]).env("LC_ALL", "C")).await,
        "`LC_ALL=C cat -- '/missing file'` failed (exit status: 1): cat: '/missing file': No such file or directory"
    );
    assert_eq!(error_of(Cmd::new("false")).await, "`false` failed (exit status: 1)");
    // Standard error is empty: standard output has to explain it.
    assert_eq!(
        error_of(Cmd::new("diff").args(["-", "/dev/null"]).stdin("the reason\n")).await,
        "`diff - /dev/null` failed (exit status: 1): 1d0\n< the reason"
    );
}

#[tokio::test]
async fn a_secret_that_the_program_repeats_is_hidden() {
    assert_eq!(
        error_of(Cmd::new("cat").arg("--").secret_arg("/swordfish").env("LC_ALL", "C")).await,
        "`LC_ALL=C cat -- ***` failed (exit status: 1): cat: ***: No such file or directory"
    );
}

#[tokio::test]
async fn endless_output_is_stopped() {
    let error = Cmd::new("yes").run().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "`yes` was stopped because it printed more than 16777216 bytes"
    );
}

#[tokio::test]
async fn of_a_long_standard_error_the_end_is_kept() {
    let missing = (0..3000).map(|number| format!("/missing/{number}"));
    let error = Cmd::new("cat")
        .arg("--")
        .args(missing)
        .env("LC_ALL", "C")
        .run()
        .await
        .unwrap_err();
    let ExecError::Failed { printed, .. } = error else {
        panic!("{error}")
    };
    assert!(
        printed.ends_with("cat: /missing/2999: No such file or directory"),
        "{printed}"
    );
    assert!((4000..=4096).contains(&printed.len()), "{}", printed.len());
}

#[tokio::test]
async fn over_the_time_limit_the_program_and_its_children_are_gone() {
    let cmd = sleeping_family("71321").time_limit(Duration::from_secs(2));
    let (error, ()) = tokio::join!(error_of(cmd), until("both run", || alive("71321") == 2));
    assert_eq!(
        error,
        "`timeout --foreground 71321 sleep 71321` was stopped after 2s without an answer"
    );
    until("both gone", || alive("71321") == 0).await;
}

#[tokio::test]
async fn what_a_stopped_program_printed_is_in_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("progress");
    let _ = replace(&path, "trying 10.1.4.2\n", 0o600).unwrap();
    assert_eq!(
        error_of(Cmd::new("tail").arg("-f").arg(&path).time_limit(Duration::from_secs(1))).await,
        format!(
            "`tail -f {}` was stopped after 1s without an answer: trying 10.1.4.2",
            path.display()
        )
    );
}

#[tokio::test]
async fn a_dropped_run_kills_the_program_and_its_children() {
    let cmd = sleeping_family("71322");
    let run = tokio::spawn(async move { cmd.run().await });
    until("both run", || alive("71322") == 2).await;
    run.abort();
    until("both gone", || alive("71322") == 0).await;
}

#[tokio::test]
async fn an_inherited_run_answers_with_any_exit_status() {
    assert_eq!(Cmd::new("true").run_inherited().await.unwrap().code(), Some(0));
    assert_eq!(
        Cmd::new("grep")
            .args(["-q", "needle"])
            .stdin("hay\n")
            .run_inherited()
            .await
            .unwrap()
            .code(),
        Some(1)
    );
    assert!(matches!(
        Cmd::new("/missing").run_inherited().await,
        Err(ExecError::Start { .. })
    ));
}

#[tokio::test]
async fn a_spawned_program_appends_to_its_log_until_it_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let (path, log) = (dir.path().join("input"), dir.path().join("log"));
    let _ = replace(&path, "ready\n", 0o600).unwrap();
    for round in 1..=2 {
        let running = Cmd::new("tail")
            .args(["-f", "/missing"])
            .arg(&path)
            .env("LC_ALL", "C")
            .spawn(&log)
            .unwrap();
        until("it is ready", || read(&log).matches("ready\n").count() == round).await;
        assert!(running.id().is_some());
        running.stop(Duration::from_secs(10)).await;
    }
    let errors = read(&log).matches("tail: cannot open '/missing'").count();
    assert_eq!(errors, 2, "standard error goes there, too: {}", read(&log));
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_spawned_program_reads_its_input_and_can_end_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let mut running = Cmd::new("grep")
        .arg("needle")
        .stdin("hay\nneedle\n")
        .spawn(&log)
        .unwrap();
    assert!(running.wait().await.unwrap().success());
    assert_eq!((running.id(), read(&log).as_str()), (None, "needle\n"));
}

#[tokio::test]
async fn a_spawned_program_that_ignores_sigterm_is_killed_after_the_grace_and_one_dropped_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let stubborn = Cmd::new("env")
        .args(["--ignore-signal=TERM"])
        .args(["sleep", "71323"])
        .spawn(&log)
        .unwrap();
    until("sleep has replaced env", || is_program("71323", "sleep")).await;
    timeout(Duration::from_secs(20), stubborn.stop(Duration::from_millis(100)))
        .await
        .unwrap();
    assert_eq!(alive("71323"), 0);

    let family = sleeping_family("71324").spawn(&log).unwrap();
    until("both run", || alive("71324") == 2).await;
    drop(family);
    until("both gone", || alive("71324") == 0).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_opened_is_named() {
    let error = Cmd::new("true").spawn("/missing/log").unwrap_err();
    assert_eq!(
        chain(&error).to_string(),
        "cannot keep the output of `true`: cannot open /missing/log: No such file or directory (os error 2)"
    );
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_program(argument: &str, program: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .any(|line| {
            let mut words = line.split(|byte| *byte == 0);
            words.next() == Some(program.as_bytes()) && words.next() == Some(argument.as_bytes())
        })
}

#[tokio::test]
async fn a_detached_program_has_a_session_of_its_own_and_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let mut started = Cmd::new("sleep").arg("90210").spawn_detached(&log).unwrap();
    let process: Process = started.process().to_string().parse().unwrap();
    assert!(process.is_alive());
    until("setsid became sleep", || {
        let line = fs::read(format!("/proc/{}/cmdline", process.pid())).unwrap_or_default();
        line.starts_with(b"sleep")
    })
    .await;
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let pid = process.pid().to_string();
    assert_eq!(
        (fields[2], fields[3]),
        (pid.as_str(), pid.as_str()),
        "group and session"
    );

    let waiting = tokio::spawn(async move { started.wait().await.unwrap() });
    assert!(process.stop(Duration::from_secs(5)).await);
    assert!(!process.is_alive());
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&waiting.await.unwrap()),
        Some(15)
    );
    assert!(process.stop(Duration::from_secs(5)).await, "stopping it again is fine");
}

#[tokio::test]
async fn a_detached_program_that_does_not_listen_is_killed() {
    let directory = tempfile::tempdir().unwrap();
    let deaf = r#"$SIG{TERM} = "IGNORE"; $| = 1; print "deaf"; sleep 90"#;
    let log = directory.path().join("log");
    let mut started = Cmd::new("perl").args(["-e", deaf]).spawn_detached(&log).unwrap();
    until("it is deaf", || fs::read(&log).unwrap().starts_with(b"deaf")).await;
    assert!(started.process().stop(Duration::from_millis(100)).await);
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&started.wait().await.unwrap()),
        Some(9)
    );
}

#[tokio::test]
async fn a_detached_program_that_is_missing_is_an_error_here_and_now() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let error = Cmd::new(&missing)
        .spawn_detached(directory.path().join("log"))
        .unwrap_err();
    let text = chain(&error).to_string();
    assert!(text.contains("is the package that provides it installed?"), "{text}");
}
