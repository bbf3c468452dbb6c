// Keyboard layouts, for typing text into a guest: which key, with which modifiers, gives a character there.
//
// Each row lists what the keys of KEYS give; a space means nothing that we use. The tables agree with those of X.Org for
// the letters, digits and signs that people type; where Windows differs (`~` and `` ` `` wait for a following key there
// on some layouts), a space typed after the character gives it.

const KEYS = ('Backquote Digit1 Digit2 Digit3 Digit4 Digit5 Digit6 Digit7 Digit8 Digit9 Digit0 Minus Equal '
    + 'KeyQ KeyW KeyE KeyR KeyT KeyY KeyU KeyI KeyO KeyP BracketLeft BracketRight '
    + 'KeyA KeyS KeyD KeyF KeyG KeyH KeyJ KeyK KeyL Semicolon Quote Backslash IntlBackslash '
    + 'KeyZ KeyX KeyC KeyV KeyB KeyN KeyM Comma Period Slash IntlRo IntlYen').split(' ');

const ROWS = {
    us: {
        name: 'English (US)',
        plain: '`1234567890-=qwertyuiop[]asdfghjkl;\'\\ zxcvbnm,./',
        shift: '~!@#$%^&*()_+QWERTYUIOP{}ASDFGHJKL:"| ZXCVBNM<>?',
    },
    uk: {
        name: 'English (UK)',
        plain: '`1234567890-=qwertyuiop[]asdfghjkl;\'#\\zxcvbnm,./',
        shift: '¬!"£$%^&*()_+QWERTYUIOP{}ASDFGHJKL:@~|ZXCVBNM<>?',
        altgr: '    €',
    },
    fr: {
        name: 'French',
        plain: '²&é"\'(-è_çà)=azertyuiop $qsdfghjklmù*<wxcvbn,;:!',
        shift: ' 1234567890°+AZERTYUIOP £QSDFGHJKLM%µ>WXCVBN?./§',
        altgr: '  ~#{[|`\\^@]}  €        ¤',
        dead: { '\u0302': ['BracketLeft', 'plain'], '\u0308': ['BracketLeft', 'shift'] },
    },
    de: {
        name: 'German',
        plain: ' 1234567890ß qwertzuiopü+asdfghjklöä#<yxcvbnm,.-',
        shift: '°!"§$%&/()=? QWERTZUIOPÜ*ASDFGHJKLÖÄ\'>YXCVBNM;:_',
        altgr: '  ²³   {[]}\\ @ €        ~            |      µ',
        dead: { '\u0302': ['Backquote', 'plain'], '\u0301': ['Equal', 'plain'], '\u0300': ['Equal', 'shift'] },
    },
    jp: {
        name: 'Japanese',
        plain: ' 1234567890-^qwertyuiop@[asdfghjkl;:] zxcvbnm,./\\',
        shift: ' !"#$%&\'() =~QWERTYUIOP`{ASDFGHJKL+*} ZXCVBNM<>?_|',
    },
    es: {
        name: 'Spanish',
        plain: 'º1234567890\'¡qwertyuiop +asdfghjklñ ç<zxcvbnm,.-',
        shift: 'ª!"·$%&/()=?¿QWERTYUIOP *ASDFGHJKLÑ Ç>ZXCVBNM;:_',
        altgr: '\\|@#~  {[]}    €',
        dead: {
            '\u0300': ['BracketLeft', 'plain'], '\u0302': ['BracketLeft', 'shift'],
            '\u0301': ['Quote', 'plain'], '\u0308': ['Quote', 'shift'],
        },
    },
    tr: {
        name: 'Turkish',
        plain: '"1234567890*-qwertyuıopğüasdfghjklşi,<zxcvbnmöç.',
        shift: 'é!\'^+%&/()=?_QWERTYUIOPĞÜASDFGHJKLŞİ;>ZXCVBNMÖÇ:',
        altgr: '  £#$  {[]}\\|@ €        ~           `',
    },
};

/// What stands alone when a dead key is followed by a space.
const ALONE = { '^': '\u0302', '´': '\u0301', '`': '\u0300', '¨': '\u0308' };

const CONTROLS = {
    '\n': { keysym: 0xff0d, code: 'Enter', level: 'plain' },
    '\t': { keysym: 0xff09, code: 'Tab', level: 'plain' },
    ' ': { keysym: 0x20, code: 'Space', level: 'plain' },
};

/// Layouts to choose from, as `[id, name]`.
export const LAYOUTS = Object.entries(ROWS).map(([id, rows]) => [id, rows.name]);

/// The layout that a language tag most likely means, such as `de-AT`; US if unknown.
export function layoutFor(language) {
    const tag = language.toLowerCase();
    if (tag === 'en-gb' || tag === 'uk') {
        return 'uk';
    }
    const primary = tag.split('-')[0];
    return { ja: 'jp' }[primary] ?? (primary in ROWS ? primary : 'us');
}

/// X11's name for a character, RFC 6143 §7.5.4: Latin-1 as it is, others by their code point.
export function keysymOf(character) {
    const point = character.codePointAt(0);
    return point < 0x100 ? point : 0x01000000 + point;
}

const tables = new Map();

function table(layout) {
    if (!tables.has(layout)) {
        const rows = ROWS[layout];
        const strokes = new Map();
        for (const level of ['plain', 'shift', 'altgr']) {
            [...rows[level] ?? ''].forEach((character, at) => {
                if (character !== ' ' && !strokes.has(character)) {
                    strokes.set(character, { keysym: keysymOf(character), code: KEYS[at], level });
                }
            });
        }
        tables.set(layout, strokes);
    }
    return tables.get(layout);
}

/// The strokes that give one character: `{keysym, code, level}`, level being `plain`, `shift` or `altgr`. `null` if the
/// layout has no way.
export function strokesFor(character, layout) {
    const strokes = table(layout);
    const direct = CONTROLS[character] ?? strokes.get(character);
    if (direct) {
        return [direct];
    }
    const dead = ROWS[layout].dead ?? {};
    const press = mark => ({ keysym: keysymOf(mark), code: dead[mark][0], level: dead[mark][1] });
    if (dead[ALONE[character]]) {
        return [press(ALONE[character]), CONTROLS[' ']];
    }
    const [base, mark, ...more] = character.normalize('NFD');
    if (mark && !more.length && dead[mark] && strokes.has(base)) {
        return [press(mark), strokes.get(base)];
    }
    return null;
}
