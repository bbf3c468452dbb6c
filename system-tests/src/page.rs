//! The management server's page, as the administrator opens it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::browser::{Browser, Page};

/// For anything on the page; debug builds on a busy machine are slow.
const LIMIT: Duration = Duration::from_secs(30);
/// What a person types. Not a real one.
const PASSWORD: &str = "correct horse battery";

/// A tab in which the administrator has logged in with a one-time password, and chosen a password.
///
/// # Errors
/// The page shows something else.
pub async fn logged_in(browser: &Browser, http: SocketAddr, one_time: &str) -> anyhow::Result<Page> {
    let page = browser.open(&format!("http://{http}/client/")).await?;
    page.wait_for("document.querySelector('#username') !== null", LIMIT)
        .await?;
    page.fill("#username", "admin").await?;
    page.fill("#password", one_time).await?;
    page.press("Enter").await?;
    page.wait_for_text("Choose a password", LIMIT).await?;
    page.fill("#chosen", PASSWORD).await?;
    page.fill("#repeated", PASSWORD).await?;
    page.press("Enter").await?;
    page.wait_for_text("Live", LIMIT).await?;
    Ok(page)
}

/// Goes to a view by its link.
///
/// # Errors
/// There is none, or it does not open.
pub async fn open_view(page: &Page, view: &str) -> anyhow::Result<()> {
    let link = format!("nav a[href='#/{view}']");
    page.click(&link).await?;
    let is_open = format!("document.querySelector(\"{link}\").ariaCurrent === 'page'");
    page.wait_for(&is_open, LIMIT).await
}
