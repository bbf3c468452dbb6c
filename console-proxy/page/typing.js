// Types text into the guest as keystrokes, at a pace that its keyboard keeps up with.
import { keysymOf, strokesFor } from './layouts.js';

const PACE_MS = 20; // QEMU's PS/2 queue holds 16 bytes, and a slow guest reads them in bursts
const AFTER_ENTER_MS = 120; // else the next line is typed into what the last one has started
export const MAX_TEXT = 20000; // characters; seven minutes at this pace

const SHIFT = [0xffe1, 'ShiftLeft'];
const ALTGR = [0xfe03, 'AltRight'];

/// What typing `text` needs: `keys`, one list of strokes for each character, and `unknown`, the characters that cannot
/// be typed. With `byKey` keys are pressed by their place on the keyboard, so that the layout decides; without it by the
/// character's name, and the server finds the key.
export function plan(text, layout, byKey) {
    const keys = [];
    const unknown = new Set();
    for (const character of text.replace(/\r\n?/g, '\n').normalize('NFC')) {
        const strokes = strokesFor(character, layout);
        if (byKey && !strokes || character < ' ' && !strokes) {
            unknown.add(character);
        } else if (byKey || strokes?.length === 1) {
            keys.push(strokes);
        } else {
            keys.push([{ keysym: keysymOf(character), code: null, level: 'plain' }]);
        }
    }
    return { keys, unknown: [...unknown] };
}

/// Types what `plan` planned. `progress(done, all)` is called after each character; aborting `signal` ends it early.
/// Resolves to the number of characters typed.
export async function type(rfb, keys, byKey, signal, progress = () => {}) {
    let done = 0;
    for (const strokes of keys) {
        for (const stroke of strokes) {
            if (signal.aborted) {
                return done;
            }
            press(rfb, stroke, byKey);
            await pause(stroke.code === 'Enter' ? AFTER_ENTER_MS : PACE_MS);
        }
        done += 1;
        progress(done, keys.length);
    }
    return done;
}

function press(rfb, { keysym, code, level }, byKey) {
    // Servers that find the key by name add AltGr themselves, but few add Shift.
    const modifier = { shift: SHIFT, altgr: byKey ? ALTGR : null }[level];
    if (modifier) {
        rfb.sendKey(...modifier, true);
    }
    rfb.sendKey(keysym, code, true);
    rfb.sendKey(keysym, code, false);
    if (modifier) {
        rfb.sendKey(...modifier, false);
    }
}

function pause(ms) {
    return new Promise(done => { setTimeout(done, ms); });
}
