//! The console page in a browser, and what the machine behind it really shows.

use std::time::Duration;

use serde_json::{Value, json};

use crate::browser::Page;
use crate::qmp::{Monitor, Screen};
use crate::wait;

/// For anything on the page or in the guest.
pub const LIMIT: Duration = Duration::from_mins(1);
/// A guest that has nothing to do changes nothing for so long.
const QUIET: Duration = Duration::from_secs(1);

/// What noVNC has drawn, as [`Screen`] has it.
const CANVAS: &str = "(async () => {
    const canvas = document.querySelector('#screen canvas');
    const {width, height} = canvas;
    const rgba = canvas.getContext('2d').getImageData(0, 0, width, height).data;
    const rgb = new Uint8Array(width * height * 3);
    for (let from = 0, to = 0; from < rgba.length; from += 4) {
        rgb[to++] = rgba[from]; rgb[to++] = rgba[from + 1]; rgb[to++] = rgba[from + 2];
    }
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', rgb));
    return {width, height, digest: Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('')};
})()";

/// Waits until the machine shows something else than `before` and is quiet, and the browser shows the same. (The
/// firmware's cursor blinks; the guest's shell has none.)
///
/// # Panics
/// They do not show the same in time.
pub async fn same_picture(page: &Page, monitor: &mut Monitor, before: Option<&Screen>) -> Screen {
    let mut last = None;
    wait::until("the canvas is the machine's screen", LIMIT, async || {
        let screen = monitor.screen().await.map_err(|error| format!("{error:#}"))?;
        let is_quiet = last.replace(screen.clone()).as_ref() == Some(&screen);
        if before == Some(&screen) || !is_quiet {
            tokio::time::sleep(QUIET).await;
            return Err("the screen has not changed, or still does".into());
        }
        let wanted = json!({"width": screen.width, "height": screen.height, "digest": screen.digest});
        let found: Value = page.evaluate(CANVAS).await.map_err(|error| format!("{error:#}"))?;
        if found == wanted {
            Ok(screen)
        } else {
            Err(format!("{found} instead of {wanted}"))
        }
    })
    .await
}

/// Waits for the words in the page's bar.
///
/// # Panics
/// They do not come.
pub async fn status(page: &Page, words: &str) {
    let condition = format!("document.getElementById('status').textContent === {}", json!(words));
    let came = page.wait_for(&condition, LIMIT).await;
    came.unwrap_or_else(|error| panic!("{error:#}"));
}
