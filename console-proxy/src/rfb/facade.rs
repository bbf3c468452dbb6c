//! The browser's side of the handshake (§7.7): our own door, of security type None. The browser never sees the host's
//! version, challenge or password.

use super::handshake::ServerInit;
use super::{VERSION_LEN, Version};
use crate::browser::Browser;
use crate::session::End;

/// Greets the browser and learns which version it speaks.
///
/// # Errors
/// It speaks none, or left.
pub async fn greet(browser: &mut Browser) -> Result<Version, End> {
    browser.send(Version::V8.line()).await?;
    let line = browser.read_exact::<VERSION_LEN>().await?;
    match &line {
        b"RFB 003.003\n" => Ok(Version::V3),
        b"RFB 003.007\n" => Ok(Version::V7),
        b"RFB 003.008\n" => Ok(Version::V8),
        _ => Err(End::Protocol(
            "the browser answered the RFB version with something else".into(),
        )),
    }
}

/// Lets the browser in. Answers its ClientInit: the shared flag.
///
/// # Errors
/// It does not follow the protocol, or left.
pub async fn admit(browser: &mut Browser, version: Version) -> Result<u8, End> {
    if version == Version::V3 {
        browser.send(&1_u32.to_be_bytes()).await?;
    } else {
        browser.send(&[1 /* type */, 1 /* None */]).await?;
        if browser.read_exact().await? != [1] {
            return Err(End::Protocol(
                "the browser chose a security type that was not offered".into(),
            ));
        }
        if version == Version::V8 {
            browser.send(&0_u32.to_be_bytes()).await?;
        }
    }
    let [shared] = browser.read_exact().await?;
    Ok(shared)
}

/// Shows the browser the screen.
///
/// # Errors
/// It left.
pub async fn begin(browser: &mut Browser, init: &ServerInit, name: &str) -> Result<(), End> {
    browser.send(&init.renamed(name)).await
}

/// Sends a browser away with a sentence, so that even one that knows none of our close codes can show why.
///
/// # Errors
/// It left.
pub async fn refuse(browser: &mut Browser, version: Version, reason: &str) -> Result<(), End> {
    let length = u32::try_from(reason.len()).unwrap_or_default().to_be_bytes();
    let none: &[u8] = if version == Version::V3 { &[0; 4] } else { &[0] };
    browser.send(&[none, &length, reason.as_bytes()].concat()).await
}
