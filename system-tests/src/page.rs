//! The management server's page, as the administrator opens it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};

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

/// What is wrong with how the page looks now, whatever it shows: that one has to scroll sideways, texts that are hard to
/// read, controls that a screen reader cannot name.
///
/// # Errors
/// The browser does not answer.
pub async fn flaws(page: &Page) -> anyhow::Result<Vec<String>> {
    let mut flaws = Vec::new();
    let overflow = page
        .evaluate("document.documentElement.scrollWidth - innerWidth")
        .await?;
    if overflow != 0 {
        flaws.push(format!("one has to scroll sideways by {overflow} pixels"));
    }
    let faint = page.evaluate(FAINT_TEXTS).await?;
    flaws.extend(
        faint
            .as_array()
            .into_iter()
            .flatten()
            .map(|text| format!("contrast below 4.5: {text}")),
    );
    let tree = page.call("Accessibility.getFullAXTree", json!({})).await?;
    let nodes = tree["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    anyhow::ensure!(nodes.len() > 10, "the browser gives no tree of what is accessible");
    let is_nameless = |node: &&Value| {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        let name = node["name"]["value"].as_str().unwrap_or_default();
        node["ignored"] == false && CONTROLS.contains(&role) && name.trim().is_empty()
    };
    flaws.extend(
        nodes
            .iter()
            .filter(is_nameless)
            .map(|node| format!("without a name: {node}")),
    );
    Ok(flaws)
}

/// What must have a name for screen readers.
const CONTROLS: [&str; 9] = [
    "button",
    "link",
    "textbox",
    "searchbox",
    "combobox",
    "checkbox",
    "progressbar",
    "meter",
    "image",
];

/// WCAG 2.2 §1.4.3, of each visible text against the ground it is on.
const FAINT_TEXTS: &str = "(() => {
    const channels = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = (color) => {
        const [r, g, b] = color.slice(0, 3).map((value) => value / 255)
            .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        for (let above = element; above; above = above.parentElement) {
            const color = channels(getComputedStyle(above).backgroundColor);
            if ((color[3] ?? 1) === 1) return color;
        }
        return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const faint = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.data.trim();
        if (text === '' || !element.checkVisibility() || element.closest('.unseen, noscript, script')) continue;
        const [one, other] = [luminance(channels(getComputedStyle(element).color)), luminance(ground(element))];
        const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        if (contrast < 4.5) faint.push(`${text}: ${contrast.toFixed(2)}`);
    }
    return faint;
})()";
