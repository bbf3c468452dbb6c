//! The API of the zone, through `mgmt-stub api`, as an operator would use it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use platform::exec::Cmd;
use serde_json::Value;

/// The program and the directory of its server.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) program: PathBuf,
    pub(crate) data_dir: PathBuf,
}

impl Api {
    pub(crate) fn mgmt_stub(&self) -> Cmd {
        Cmd::new(&self.program).arg("--data-dir").arg(&self.data_dir)
    }

    /// Calls a command; what is inside of the answer.
    pub(crate) async fn call(&self, command: &str, parameters: &[(&str, &str)]) -> anyhow::Result<Value> {
        let words = parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.run(command, words).await
    }

    /// Likewise, with one more parameter whose value is in a file: it never is on a command line.
    pub(crate) async fn call_with_secret(
        &self,
        command: &str,
        parameters: &[(&str, &str)],
        (name, file): (&str, &Path),
    ) -> anyhow::Result<Value> {
        let mut words: Vec<String> = parameters
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        words.push(format!("{name}@{}", file.display()));
        self.run(command, words).await
    }

    async fn run(&self, command: &str, words: Vec<String>) -> anyhow::Result<Value> {
        let output = self.mgmt_stub().args(["api", command]).args(words).run().await?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading the answer of {command}: {}", output.text()))?;
        Ok(inside(answer))
    }

    /// The objects of a list command; none at all is an empty list.
    pub(crate) async fn list(
        &self,
        command: &str,
        object: &str,
        parameters: &[(&str, &str)],
    ) -> anyhow::Result<Vec<Value>> {
        let mut answer = self.call(command, parameters).await?;
        Ok(match answer.get_mut(object).map(Value::take) {
            Some(Value::Array(objects)) => objects,
            _ => Vec::new(),
        })
    }
}

/// Without the key around it, `listzonesresponse` for example.
fn inside(answer: Value) -> Value {
    match answer {
        Value::Object(outer) if outer.len() == 1 && outer.keys().all(|key| key.ends_with("response")) => {
            outer.into_iter().next().map_or(Value::Null, |(_, inner)| inner)
        }
        answer => answer,
    }
}

/// A text of an object; empty if it has none.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object[name].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_key_around_an_answer_is_taken_off_once() {
        let zones = json!({"count": 1, "zone": [{}]});
        assert_eq!(inside(json!({"listzonesresponse": zones})), zones);
        assert_eq!(inside(zones.clone()), zones);
    }
}
