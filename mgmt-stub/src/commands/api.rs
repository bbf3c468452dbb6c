//! `api`: any command of the API, as the administrator.

use std::path::Path;

use clap::Args;
use mgmt_stub::client::Client;
use platform::{files, logging};

use super::print;

/// Bytes of a parameter's value in a file.
const MAX_VALUE: u64 = 64 << 10;

/// Call any command of the running server's API, as administrator
///
/// The answer is printed as JSON; a job's result when it is over. What the server refuses is told on standard error, and
/// the exit code is 1.
///
/// Examples:
///   mgmt-stub api listZones
///   mgmt-stub api listEvents level=ERROR page=1 pagesize=10
///   mgmt-stub api updateConfiguration name=storage.stats.interval value=30000
///   mgmt-stub api createTags resourcetype=Zone resourceids=UUID tags[0].key=color tags[0].value=blue
///   mgmt-stub api listApis name=listEvents     (what a command takes)
///   mgmt-stub api updateUser id=UUID password@/run/new     (the value is what the file holds: seen by nobody in `ps`)
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Api {
    /// Name of the command, such as listZones.
    command: String,
    /// Parameters. KEY@FILE takes the value from a file, without the newline at its end.
    #[arg(value_name = "KEY=VALUE", value_parser = key_value)]
    parameters: Vec<(String, String)>,
    /// Print the job's id instead of waiting for its end.
    #[arg(long)]
    no_wait: bool,
}

/// Calls it.
pub(crate) async fn run(data_dir: &Path, arguments: Api) -> anyhow::Result<()> {
    let client = Client::new(data_dir);
    let Api {
        command, parameters, ..
    } = &arguments;
    let answer = if arguments.no_wait {
        client.call(command, parameters).await?
    } else {
        client.call_and_wait(command, parameters).await?
    };
    print(&format!("{answer:#}\n"))
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let at = text.find(['=', '@']).ok_or("write it like name=value, or name@file")?;
    let (key, value) = (&text[..at], &text[at + 1..]);
    if text[at..].starts_with('=') {
        return Ok((key.into(), value.into()));
    }
    let bytes = match files::read_limited(value, MAX_VALUE) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(format!("there is no file {value}")),
        Err(error) => return Err(logging::chain(&error).to_string()),
    };
    let contents = String::from_utf8(bytes).map_err(|_| format!("{value} is not UTF-8 text"))?;
    Ok((key.into(), contents.strip_suffix('\n').unwrap_or(&contents).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_has_its_value_or_names_the_file_with_it() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(key_value("email=a@b=c"), pair("email", "a@b=c"));
        assert_eq!(key_value("tags[0].key="), pair("tags[0].key", ""));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("value");
        let _ = files::replace(&file, "s=cr@t\n", 0o600).unwrap();
        assert_eq!(
            key_value(&format!("password@{}", file.display())),
            pair("password", "s=cr@t")
        );
        assert_eq!(key_value("password@/missing").unwrap_err(), "there is no file /missing");
        assert_eq!(
            key_value("password").unwrap_err(),
            "write it like name=value, or name@file"
        );
    }
}
