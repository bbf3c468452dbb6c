// Keys that browsers and window systems keep to themselves: modifiers that stay down until clicked again, and
// combinations that are pressed at once.

const HELD = [
    ['Ctrl', 0xffe3, 'ControlLeft'],
    ['Alt', 0xffe9, 'AltLeft'],
    ['Shift', 0xffe1, 'ShiftLeft'],
    ['AltGr', 0xfe03, 'AltRight'],
    ['Windows', 0xffeb, 'MetaLeft'],
];

const [CTRL, ALT] = HELD.map(([, ...key]) => key);
const TAB = [0xff09, 'Tab'];
const ESCAPE = [0xff1b, 'Escape'];
const F = number => [0xffbd + number, `F${number}`];

const ONCE = [
    ['Tab', TAB],
    ['Esc', ESCAPE],
    ['Print', [0xff61, 'PrintScreen']],
    ['Alt+Tab', ALT, TAB],
    ['Alt+F4', ALT, F(4)],
    ['Ctrl+Esc', CTRL, ESCAPE],
    ['Ctrl+Alt+Del', CTRL, ALT, [0xffff, 'Delete']], // narrow screens have it only here
    ['Ctrl+Alt+Backspace', CTRL, ALT, [0xff08, 'Backspace']],
];

const FUNCTION_KEYS = 12;

/// Fills the panel's rows. `send(keysym, code, isDown)` passes a key on. Returns what lets go of all keys held.
export function fill({ held, once, functions }, send) {
    const down = new Map();

    for (const [name, keysym, code] of HELD) {
        const button = add(held, name, () => {
            const isDown = !down.has(button);
            isDown ? down.set(button, [keysym, code]) : down.delete(button);
            button.setAttribute('aria-pressed', isDown);
            send(keysym, code, isDown);
        });
        button.setAttribute('aria-pressed', false);
    }
    for (const [name, ...keys] of ONCE) {
        add(once, name, () => chord(keys, send));
    }
    for (let number = 1; number <= FUNCTION_KEYS; number += 1) {
        const button = add(functions, `F${number}`, () => chord([F(number)], send));
        button.title = `F${number}; hold Ctrl and Alt above for Ctrl+Alt+F${number}`;
    }

    return () => {
        for (const [button, key] of down) {
            button.setAttribute('aria-pressed', false);
            send(...key, false);
        }
        down.clear();
    };
}

function chord(keys, send) {
    keys.forEach(key => send(...key, true));
    keys.toReversed().forEach(key => send(...key, false));
}

function add(row, name, pressed) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = name;
    button.addEventListener('click', pressed);
    row.append(button);
    return button;
}
