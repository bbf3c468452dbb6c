//! A US keyboard: which key a character is on, and what a browser is told when it is struck.
//! Names are those of W3C "UI Events KeyboardEvent code/key Values"; key codes are Windows' virtual keys.

use serde_json::{Value, json};

const ALT: u8 = 1;
const CONTROL: u8 = 2;
const META: u8 = 4;
const SHIFT: u8 = 8;

/// One key with the modifiers held meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stroke {
    modifiers: u8,
    key: Key,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    /// `KeyboardEvent.key`.
    name: String,
    /// `KeyboardEvent.code`: where it is on the keyboard.
    code: String,
    windows_code: u32,
    /// What it types, unless Control or Alt is held.
    text: Option<String>,
}

/// `key`, `code`, virtual key, and what it types.
const NAMED: [(&str, &str, u32, Option<&str>); 15] = [
    ("Enter", "Enter", 13, Some("\r")),
    ("Tab", "Tab", 9, None),
    ("Escape", "Escape", 27, None),
    ("Backspace", "Backspace", 8, None),
    ("Delete", "Delete", 46, None),
    ("Insert", "Insert", 45, None),
    ("ArrowLeft", "ArrowLeft", 37, None),
    ("ArrowUp", "ArrowUp", 38, None),
    ("ArrowRight", "ArrowRight", 39, None),
    ("ArrowDown", "ArrowDown", 40, None),
    ("Home", "Home", 36, None),
    ("End", "End", 35, None),
    ("PageUp", "PageUp", 33, None),
    ("PageDown", "PageDown", 34, None),
    ("Space", "Space", 32, Some(" ")),
];

/// Keys with a sign: alone, with Shift, `code`, virtual key.
const SIGNS: [(char, char, &str, u32); 22] = [
    ('`', '~', "Backquote", 192),
    ('1', '!', "Digit1", 49),
    ('2', '@', "Digit2", 50),
    ('3', '#', "Digit3", 51),
    ('4', '$', "Digit4", 52),
    ('5', '%', "Digit5", 53),
    ('6', '^', "Digit6", 54),
    ('7', '&', "Digit7", 55),
    ('8', '*', "Digit8", 56),
    ('9', '(', "Digit9", 57),
    ('0', ')', "Digit0", 48),
    ('-', '_', "Minus", 189),
    ('=', '+', "Equal", 187),
    ('[', '{', "BracketLeft", 219),
    (']', '}', "BracketRight", 221),
    ('\\', '|', "Backslash", 220),
    (';', ':', "Semicolon", 186),
    ('\'', '"', "Quote", 222),
    (',', '<', "Comma", 188),
    ('.', '>', "Period", 190),
    ('/', '?', "Slash", 191),
    (' ', ' ', "Space", 32),
];

/// The stroke that types a character.
pub(super) fn of_char(character: char) -> Option<Stroke> {
    if character == '\n' {
        return named("Enter");
    }
    let (code, virtual_key, with_shift) = if character.is_ascii_alphabetic() {
        let upper = character.to_ascii_uppercase();
        (format!("Key{upper}"), u32::from(upper), character.is_ascii_uppercase())
    } else {
        let &(plain, _, code, virtual_key) = SIGNS
            .iter()
            .find(|(plain, shifted, ..)| [*plain, *shifted].contains(&character))?;
        (code.to_owned(), virtual_key, character != plain)
    };
    Some(Stroke {
        modifiers: if with_shift { SHIFT } else { 0 },
        key: Key {
            name: character.into(),
            code,
            windows_code: virtual_key,
            text: Some(character.into()),
        },
    })
}

/// `Enter`, `Shift+Tab`, `Control+Alt+Delete`, `Control+a`, `F5`.
pub(super) fn named(keys: &str) -> Option<Stroke> {
    let (modifiers, name) = match keys.rsplit_once('+') {
        Some((modifiers, name)) if !modifiers.is_empty() && !name.is_empty() => (modifiers, name),
        _ => ("", keys),
    };
    let mut held = 0;
    for modifier in modifiers.split('+').filter(|modifier| !modifier.is_empty()) {
        held |= MODIFIERS.iter().find(|(_, name, ..)| *name == modifier)?.0;
    }
    let mut stroke = key_named(name)?;
    stroke.modifiers |= held;
    Some(stroke)
}

fn key_named(name: &str) -> Option<Stroke> {
    let mut characters = name.chars();
    if let (Some(character), None) = (characters.next(), characters.next()) {
        return of_char(character);
    }
    let function = name.strip_prefix('F').and_then(|number| number.parse::<u32>().ok());
    let (code, virtual_key, text) = if let Some(number @ 1..=12) = function {
        (name, 111 + number, None)
    } else {
        let &(_, code, virtual_key, text) = NAMED.iter().find(|(key, ..)| *key == name)?;
        (code, virtual_key, text)
    };
    Some(Stroke {
        modifiers: 0,
        key: Key {
            name: if name == "Space" { " ".into() } else { name.into() },
            code: code.into(),
            windows_code: virtual_key,
            text: text.map(str::to_owned),
        },
    })
}

/// Bit, `key`, `code`, virtual key.
const MODIFIERS: [(u8, &str, &str, u32); 4] = [
    (CONTROL, "Control", "ControlLeft", 17),
    (ALT, "Alt", "AltLeft", 18),
    (META, "Meta", "MetaLeft", 91),
    (SHIFT, "Shift", "ShiftLeft", 16),
];

impl Stroke {
    /// Parameters of `Input.dispatchKeyEvent`, in order: modifiers down, key down and up, modifiers up.
    pub(super) fn events(&self) -> Vec<Value> {
        let held = || MODIFIERS.iter().filter(|(bit, ..)| self.modifiers & bit != 0);
        let mut events = Vec::new();
        let mut now = 0;
        for (bit, key, code, virtual_key) in held() {
            now |= bit;
            events.push(event("rawKeyDown", now, key, code, *virtual_key));
        }
        let Key {
            name: key,
            code,
            windows_code: virtual_key,
            text,
        } = &self.key;
        let types = self.modifiers & (ALT | CONTROL | META) == 0;
        let down = if types && let Some(text) = text {
            let mut down = event("keyDown", now, key, code, *virtual_key);
            down["text"] = json!(text);
            down
        } else {
            let mut down = event("rawKeyDown", now, key, code, *virtual_key);
            if self.modifiers == CONTROL && key == "a" {
                down["commands"] = json!(["selectAll"]); // headless Chromium has no shortcuts of its own
            }
            down
        };
        events.push(down);
        events.push(event("keyUp", now, key, code, *virtual_key));
        for (bit, key, code, virtual_key) in held().collect::<Vec<_>>().into_iter().rev() {
            now &= !bit;
            events.push(event("keyUp", now, key, code, *virtual_key));
        }
        events
    }
}

fn event(kind: &str, modifiers: u8, key: &str, code: &str, virtual_key: u32) -> Value {
    json!({
        "type": kind,
        "modifiers": modifiers,
        "key": key,
        "code": code,
        "windowsVirtualKeyCode": virtual_key,
        "nativeVirtualKeyCode": virtual_key,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stroke: &Stroke) -> Vec<String> {
        let shown = |event: &Value| {
            let text = |name: &str| event[name].as_str().unwrap_or("-").to_owned();
            format!("{} {} {}", text("type"), text("code"), text("text"))
        };
        stroke.events().iter().map(shown).collect()
    }

    #[test]
    fn every_printable_ascii_character_has_a_key_that_types_it() {
        for character in ' '..='~' {
            let stroke = of_char(character).unwrap_or_else(|| panic!("no key for {character:?}"));
            assert_eq!(stroke.key.text, Some(character.to_string()));
        }
        assert_eq!(of_char('é'), None);
    }

    #[test]
    fn shift_is_held_while_a_capital_is_typed() {
        let wanted = [
            "rawKeyDown ShiftLeft -",
            "keyDown KeyA A",
            "keyUp KeyA -",
            "keyUp ShiftLeft -",
        ];
        assert_eq!(shown(&of_char('A').unwrap()), wanted);
    }

    #[test]
    fn with_control_nothing_is_typed_and_modifiers_end_in_reverse_order() {
        let wanted = [
            "rawKeyDown ControlLeft -",
            "rawKeyDown AltLeft -",
            "rawKeyDown Delete -",
            "keyUp Delete -",
            "keyUp AltLeft -",
            "keyUp ControlLeft -",
        ];
        assert_eq!(shown(&named("Control+Alt+Delete").unwrap()), wanted);
    }

    #[test]
    fn names_are_those_of_keyboard_events_and_others_are_refused() {
        assert_eq!(shown(&named("Enter").unwrap())[0], "keyDown Enter \r");
        assert_eq!(named("F5").unwrap().key.windows_code, 116);
        assert_eq!(named("+").unwrap().key.code, "Equal");
        for wrong in ["Return", "F13", "Hyper+a", "", "Shift+"] {
            assert_eq!(named(wrong), None, "{wrong}");
        }
    }
}
