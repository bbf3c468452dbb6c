//! Steps, each announced and timed, and the table at the end.

use std::fmt::{self, Display, Formatter};
use std::process::ExitCode;
use std::time::{Duration, Instant};

#[derive(Default)]
pub(crate) struct Steps(Vec<Step>);

struct Step {
    name: &'static str,
    elapsed: Duration,
    is_ok: bool,
}

impl Steps {
    /// Runs one step and answers whether it succeeded. A failure is printed, and remembered for the end.
    pub(crate) async fn run(&mut self, name: &'static str, work: impl Future<Output = anyhow::Result<()>>) -> bool {
        eprintln!("\n==> {name}");
        let started = Instant::now();
        let result = work.await;
        if let Err(error) = &result {
            eprintln!("error: {error:#}");
        }
        let is_ok = result.is_ok();
        self.0.push(Step {
            name,
            elapsed: started.elapsed(),
            is_ok,
        });
        is_ok
    }

    /// Prints the table. The exit code says whether all steps succeeded.
    pub(crate) fn finish(self) -> ExitCode {
        eprint!("\n{self}");
        if self.0.iter().all(|step| step.is_ok) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl Display for Steps {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<12} {:>9}  result", "step", "time")?;
        self.0.iter().try_for_each(|Step { name, elapsed, is_ok }| {
            let result = if *is_ok { "ok" } else { "FAILED" };
            writeln!(f, "{name:<12} {:>7.1} s  {result}", elapsed.as_secs_f64())
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn one_failed_step_fails_the_whole_and_the_table_says_which() {
        let mut steps = Steps::default();
        assert!(steps.run("environment", async { Ok(()) }).await);
        assert!(!steps.run("fmt", async { bail!("not formatted") }).await);
        steps.0[1].elapsed = Duration::from_millis(123_450);
        let table = "step              time  result\nenvironment      0.0 s  ok\nfmt            123.5 s  FAILED\n";
        assert_eq!(steps.to_string(), table);
        assert_eq!(format!("{:?}", steps.finish()), format!("{:?}", ExitCode::FAILURE));
    }
}
