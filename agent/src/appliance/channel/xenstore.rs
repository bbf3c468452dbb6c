//! XenServer and XCP-ng: the value of a key in xenstore (§3.3).

use std::time::Duration;

use platform::exec::{Cmd, ExecError};

use super::ChannelError;

const KEY: &str = "vm-data/cloudstack/init";
/// It answers in milliseconds, or the daemon on the host hangs.
const LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn read() -> Result<Option<Vec<u8>>, ChannelError> {
    match Cmd::new("xenstore-read").arg(KEY).time_limit(LIMIT).run().await {
        Ok(output) => Ok(Some(with_spaces(output.stdout))),
        // Nobody has written it yet.
        Err(ExecError::Failed { printed, .. }) if printed.contains("couldn't read path") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Every `%` stands for a space; there is no escape.
fn with_spaces(mut line: Vec<u8>) -> Vec<u8> {
    for byte in &mut line {
        if *byte == b'%' {
            *byte = b' ';
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_signs_are_spaces() {
        let line = b"%template=domP%type=router  name=r-4-VM\n".to_vec();
        assert_eq!(with_spaces(line), b" template=domP type=router  name=r-4-VM\n");
    }
}
