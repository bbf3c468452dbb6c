//! What a program of ours leaves on standard error. Each test runs this test binary again as that program.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail as tests do")]

use std::io;
use std::process::ExitCode;

use platform::exec::{Cmd, ExecError};
use platform::{exit, logging};
use tracing::{Level, debug, error, info, span, warn};

/// The program: logs one line per level, then leaves with the code that `EXIT` asks for.
#[test]
fn program() {
    let Ok(wanted) = std::env::var("EXIT") else { return };
    logging::init();
    logging::init();
    let _span = span!(Level::INFO, "command", seq = 7).entered();
    error!("Broken");
    warn!(path = "/mnt", "Coping");
    info!("Moving");
    debug!("Talking");
    let error = io::Error::other("the disk is full");
    let code = match wanted.as_str() {
        "bad_config" => exit::bad_config(&error),
        "failed" => exit::failed(&error),
        _ => ExitCode::SUCCESS,
    };
    // An `ExitCode` cannot be looked into; its `Debug` is all that a test harness's `main` leaves us.
    let is = |number: u8| format!("{code:?}") == format!("{:?}", ExitCode::from(number));
    std::process::exit([0, 1, 78].into_iter().find(|number| is(*number)).unwrap().into());
}

fn program_with(exit: &str, env: &[(&str, &str)]) -> Cmd {
    let this = Cmd::new(std::env::current_exe().unwrap())
        .args(["--exact", "program", "--nocapture"])
        .env("EXIT", exit);
    let clean = ["SYSVM_LOG", "RUST_LOG", "SYSVM_LOG_FORMAT", "JOURNAL_STREAM"]
        .into_iter()
        .map(|name| (name, ""));
    clean
        .chain(env.iter().copied())
        .fold(this, |cmd, (name, value)| cmd.env(name, value))
}

async fn log_with(env: &[(&str, &str)]) -> Vec<String> {
    let lines = program_with("success", env).run().await.unwrap().stderr;
    // Behind the time of day and the level's padding.
    lines
        .lines()
        .map(|line| {
            line.split_once("Z ")
                .map_or(line, |(_, rest)| rest)
                .trim_start()
                .to_owned()
        })
        .collect()
}

#[tokio::test]
async fn info_is_the_level_unless_the_environment_says_otherwise() {
    let usual = [
        "ERROR command: log_and_exit: Broken seq=7",
        "WARN command: log_and_exit: Coping path=\"/mnt\" seq=7",
        "INFO command: log_and_exit: Moving seq=7",
    ];
    let shown = log_with(&[]).await;
    for (variable, level, count) in [
        ("SYSVM_LOG", "error", 1),
        ("RUST_LOG", "warn", 2),
        ("SYSVM_LOG", "debug", 4),
    ] {
        assert_eq!(log_with(&[(variable, level)]).await.len(), count, "{variable}={level}");
    }
    assert_eq!(shown, usual);
}

#[tokio::test]
async fn a_misspelt_setting_costs_a_warning_not_the_log() {
    let lines = log_with(&[("SYSVM_LOG", "degub")]).await;
    assert_eq!(
        lines[0],
        "WARN platform::logging: Log setting ignored, the default is used variable=\"SYSVM_LOG\" value=\"degub\" \
         expected=\"such as `debug` or `info,agent::link=trace`\""
    );
    assert_eq!(lines.len(), 4);
}

#[tokio::test]
async fn json_lines_are_flat_objects() {
    let lines = log_with(&[("SYSVM_LOG_FORMAT", "json")]).await;
    assert!(
        lines[1].contains(r#""level":"WARN","message":"Coping","path":"/mnt""#),
        "{}",
        lines[1]
    );
}

#[tokio::test]
async fn the_two_failures_have_their_exit_codes_and_one_line() {
    for (exit, wanted) in [("bad_config", 78), ("failed", 1)] {
        let error = program_with(exit, &[("SYSVM_LOG", "off")]).run().await.unwrap_err();
        let ExecError::Failed { status, printed, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(
            (status.code(), printed.as_str()),
            (Some(wanted), "error: the disk is full")
        );
    }
}

#[tokio::test]
async fn for_the_journal_lines_have_a_priority_and_no_time() {
    // The journal is recognised by the file behind standard error: here, a log file of ours.
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("journal");
    let _ = platform::files::replace(&log, "", 0o600).unwrap();
    let found = std::fs::metadata(&log).unwrap();
    let stream = format!("{}:{}", found.dev(), found.ino());

    let mut running = program_with("success", &[("JOURNAL_STREAM", &stream)])
        .spawn(&log)
        .unwrap();
    assert!(running.wait().await.unwrap().success());

    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<_> = text.lines().filter(|line| line.starts_with('<')).collect();
    let wanted = ["<3>ERROR", "<4> WARN", "<6> INFO"];
    assert_eq!(
        lines.iter().map(|line| &line[..8]).collect::<Vec<_>>(),
        wanted,
        "{text}"
    );
}
