//! Words of somebody whom we do not trust, fit for a log, a terminal and a page.

/// At most `max` letters, none of which does something: no control characters but line ends, nothing that turns the
/// direction of writing.
pub(crate) fn plain(text: &str, max: usize) -> String {
    let letters = text.chars().take(max);
    letters
        .map(|letter| if does_something(letter) { '\u{fffd}' } else { letter })
        .collect()
}

fn does_something(letter: char) -> bool {
    (letter.is_control() && letter != '\n')
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
