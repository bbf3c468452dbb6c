//! Real clients from PyPI, in a virtual environment that is made once and kept beside the built programs.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use platform::exec::{Cmd, ExecError};
use serde_json::Value;

use crate::programs::target_dir;

/// What is installed, all of it by version: the clients first, then what they need.
const PACKAGES: [&str; 7] = [
    "cs==5.2.0",
    "apache-libcloud==3.9.1",
    "requests==2.34.2",
    "certifi==2026.10.18",
    "charset-normalizer==3.5.2",
    "idna==3.20",
    "urllib3==2.8.0",
];
/// For the packages to arrive.
const INSTALL_LIMIT: Duration = Duration::from_mins(5);
/// For one script.
const SCRIPT_LIMIT: Duration = Duration::from_mins(3);

/// A Python with the clients.
#[derive(Debug, Clone)]
pub struct Python {
    program: PathBuf,
}

impl Python {
    /// Makes the environment, or takes the one that is there if it has the same packages. Several tests may ask at once.
    ///
    /// # Panics
    /// Debian's `python3-venv` is missing, or PyPI cannot be reached.
    pub async fn with_clients() -> Self {
        let directory = target_dir().join("python-clients");
        let program = directory.join("bin/python3");
        fs::create_dir_all(target_dir()).expect("the target directory can be made");
        let lock = File::create(target_dir().join("python-clients.lock")).expect("the lock can be made");
        let lock = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await;
        let _lock = lock.expect("no panic").expect("the lock can be taken");
        let sign = directory.join("packages");
        if fs::read_to_string(&sign).is_ok_and(|found| found == PACKAGES.join("\n")) {
            return Self { program };
        }
        let path = directory.to_str().expect("the path is UTF-8");
        run(Cmd::new("python3").args(["-m", "venv", "--clear", path])).await;
        let install = Cmd::new(&program)
            .args(["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"])
            .args(PACKAGES)
            .time_limit(INSTALL_LIMIT);
        run(install).await;
        let _ = platform::files::replace(&sign, PACKAGES.join("\n"), 0o644).expect("the sign can be written");
        Self { program }
    }

    /// Runs a script of `tests/clients`, which prints one JSON value; its words may be secrets.
    ///
    /// # Panics
    /// It fails, or prints something else.
    pub async fn run(&self, script: &str, arguments: &[&str]) -> Value {
        let path = format!("{}/tests/clients/{script}", env!("CARGO_MANIFEST_DIR"));
        let mut call = Cmd::new(&self.program)
            .args(["-X", "utf8", &path])
            .time_limit(SCRIPT_LIMIT);
        for argument in arguments {
            call = call.secret_arg(argument);
        }
        let printed = match call.run().await {
            Ok(output) => output.text(),
            Err(error) => panic!("{script}: {error}"),
        };
        serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{script} printed {printed:?}: {error}"))
    }
}

async fn run(command: Cmd) {
    let outcome: Result<_, ExecError> = command.run().await;
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
