// The console page: opens what the address bar names and keeps the tools around it.
import RFB from './core/rfb.js';
import { read, withoutSecrets } from './address.js';
import { ending, NOTHING_TO_OPEN } from './endings.js';
import { fill } from './keys.js';
import { LAYOUTS, layoutFor } from './layouts.js';
import { MAX_TEXT, plan, type } from './typing.js';

const at = id => document.getElementById(id);
const wish = read(location);
const tools = ['cad', 'keys-open', 'paste-open', 'touch', 'view-only', 'scaling-open', 'screenshot'].map(at);
const senders = ['cad', 'keys-open', 'paste-open', 'touch'].map(at);

let rfb = null;
let isConnected = false;
let typing = null; // AbortController
let standing = 0; // timer: the status goes back to what it was before the news

const NEWS_MS = 6000;

// Life of a connection

function connect() {
    at('message').hidden = true;
    show('connecting', 'Connecting');
    // Our own WebSocket: noVNC does not tell close codes.
    const socket = new WebSocket(wish.url, ['binary']);
    let isOpened = false;
    socket.addEventListener('open', () => {
        isOpened = true;
        // Used up now; it need not stay in the history. Before this a reload may still help.
        history.replaceState(null, '', withoutSecrets(location));
    });
    socket.addEventListener('close', event => {
        ended(ending({ code: event.code, opened: isOpened, connected: isConnected }), isOpened ? '' : certificateHint());
    });

    rfb = new RFB(at('screen'), socket, { shared: true });
    rfb.background = 'transparent';
    rfb.showDotCursor = wish.showsDot;
    if (wish.quality !== null) {
        rfb.qualityLevel = wish.quality;
    }
    if (wish.compression !== null) {
        rfb.compressionLevel = wish.compression;
    }
    scale(wish.scaling);
    viewOnly(wish.isViewOnly);
    rfb.addEventListener('connect', connected);
    rfb.addEventListener('desktopname', event => {
        at('name').textContent = event.detail.name.trim() || 'Console';
        document.title = at('name').textContent;
    });
    // The canvas is noVNC's; a screen reader should know what has the focus.
    const canvas = at('screen').querySelector('canvas');
    canvas.tabIndex = 0;
    canvas.setAttribute('role', 'application');
    canvas.setAttribute('aria-label', 'Screen of the machine');
    canvas.setAttribute('aria-describedby', 'leave');
}

function connected() {
    isConnected = true;
    tools.forEach(tool => { tool.disabled = false; });
    viewOnly(rfb.viewOnly);
    showConnected();
    rfb.focus({ preventScroll: true });
}

function ended({ title, text }, more = '') {
    typing?.abort();
    isConnected = false;
    tools.forEach(tool => { tool.disabled = true; });
    document.querySelectorAll(':popover-open').forEach(panel => panel.hidePopover());
    if (document.fullscreenElement) {
        document.exitFullscreen();
    }
    show('ended', 'Not connected');
    say(title, text, more);
}

function say(title, text, more) {
    at('message-title').textContent = title;
    at('message-text').textContent = text;
    at('message-more').textContent = more;
    at('message-more').hidden = !more;
    at('message').hidden = false;
    at('message').focus();
}

function show(state, words) {
    clearTimeout(standing);
    at('status').dataset.state = state;
    at('status').textContent = words;
}

function showConnected() {
    show('connected', rfb.viewOnly ? 'Connected, view only' : 'Connected');
}

/// News, for a while.
function showNews(words) {
    show('connected', words);
    standing = setTimeout(showConnected, NEWS_MS);
}

/// A browser that was told to trust the page's port does not trust the console's with it.
function certificateHint() {
    return location.protocol === 'https:' && wish.port !== location.port
        ? `If this browser warned about the certificate of this page, visit https://${location.hostname}:${wish.port}/ `
            + 'once, accept it there too, and then open the console again.'
        : '';
}

// Tools

function viewOnly(isOn) {
    rfb.viewOnly = isOn;
    at('view-only').setAttribute('aria-pressed', isOn);
    senders.forEach(tool => { tool.disabled = isOn || !isConnected; });
    if (isOn) {
        typing?.abort();
    }
}

function scale(mode) {
    rfb.scaleViewport = mode === 'fit';
    rfb.resizeSession = mode === 'guest';
    at('scaling').querySelector(`[value=${mode}]`).checked = true;
}

function save() {
    rfb.toBlob(picture => {
        const link = document.createElement('a');
        link.href = URL.createObjectURL(picture);
        const name = at('name').textContent.replace(/[^\p{L}\p{N}._-]+/gu, '-');
        link.download = `${name}-${new Date().toISOString().slice(0, 19).replaceAll(':', '-')}.png`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
        showNews('Screenshot saved');
    }, 'image/png');
}

async function fullscreen() {
    if (document.fullscreenElement) {
        await document.exitFullscreen();
    } else {
        await document.documentElement.requestFullscreen();
        // Where it exists: Alt+Tab, Esc and the like go to the machine, too. Holding Esc leaves.
        await navigator.keyboard?.lock?.().catch(() => {});
        rfb?.focus();
    }
}

/// Whether the server takes keys by their place. noVNC knows, but has no public word for it.
const typesByKey = () => rfb._qemuExtKeyEventSupported === true;

async function paste(event) {
    event.preventDefault();
    const text = at('paste-text').value;
    const note = at('paste-note');
    const tell = (words, isBad) => {
        note.textContent = words;
        note.classList.toggle('bad', isBad);
        note.setAttribute('role', 'status');
    };
    if (!text || typing) {
        return at('paste-text').focus();
    }
    if (text.length > MAX_TEXT) {
        return tell(`This is ${text.length} characters; ${MAX_TEXT} can be typed at once. Use a file transfer instead.`, true);
    }
    const byKey = typesByKey();
    const { keys, unknown } = plan(text, at('paste-layout').value, byKey);
    if (unknown.length) {
        return tell(`Not on this keyboard layout: ${unknown.slice(0, 20).join(' ')}. Choose another layout or leave them out.`, true);
    }

    typing = new AbortController();
    busy(true);
    tell(`Typing ${keys.length} characters`, false);
    at('paste-abort').focus();
    const done = await type(rfb, keys, byKey, typing.signal, (some, all) => {
        at('paste-progress').value = some / all;
    });
    const isWhole = done === keys.length;
    typing = null;
    busy(false);
    if (isWhole) {
        at('paste-text').value = ''; // may be a password
        tell(`Typed ${done} characters.`, false);
        at('paste').hidePopover();
        showNews(`Typed ${done} characters`);
        rfb.focus();
    } else {
        tell(`Stopped after ${done} of ${keys.length} characters.`, true);
    }
}

function busy(isBusy) {
    at('paste-progress').hidden = at('paste-abort').hidden = !isBusy;
    at('paste-send').hidden = isBusy;
    at('paste-text').readOnly = at('paste-layout').disabled = isBusy;
    at('paste-progress').value = 0;
}

// On-screen keyboards tell what the text is now, not which key was pressed: the difference to before is typed.

const BEFORE = '_'.repeat(64); // something to delete

function touched(input) {
    const text = input.value;
    let same = 0;
    while (same < text.length && text[same] === BEFORE[same]) {
        same += 1;
    }
    for (let deleted = same; deleted < BEFORE.length; deleted += 1) {
        rfb.sendKey(0xff08, 'Backspace');
    }
    const { keys } = plan(text.slice(same), at('paste-layout').value, typesByKey());
    type(rfb, keys, typesByKey(), new AbortController().signal);
    input.value = BEFORE;
}

function wire() {
    const letGo = fill(
        { held: at('held'), once: at('once'), functions: at('function') },
        (keysym, code, isDown) => rfb?.sendKey(keysym, code, isDown),
    );
    for (const event of ['pagehide', 'beforeunload']) {
        window.addEventListener(event, letGo);
    }
    at('cad').addEventListener('click', () => { rfb.sendCtrlAltDel(); rfb.focus(); });
    at('view-only').addEventListener('click', () => {
        letGo();
        viewOnly(!rfb.viewOnly);
        showConnected();
    });
    at('scaling').addEventListener('change', event => scale(event.target.value));
    at('screenshot').addEventListener('click', save);
    at('fullscreen').hidden = !document.fullscreenEnabled;
    at('fullscreen').addEventListener('click', fullscreen);
    document.addEventListener('fullscreenchange', () => {
        at('fullscreen').setAttribute('aria-pressed', document.fullscreenElement !== null);
    });

    at('paste-layout').append(...LAYOUTS.map(([id, name]) => new Option(name, id)));
    at('paste-layout').value = layoutFor(wish.language ?? navigator.language);
    at('paste').addEventListener('submit', paste);
    at('paste').addEventListener('toggle', event => {
        (event.newState === 'open' ? at('paste-text') : rfb)?.focus();
        if (event.newState === 'closed') {
            typing?.abort();
        }
    });
    at('paste-abort').addEventListener('click', () => typing?.abort());
    at('paste').addEventListener('keydown', event => {
        if (event.key === 'Escape') {
            at('paste').hidePopover();
        }
    });

    const input = at('touch-input');
    input.value = BEFORE;
    at('touch').addEventListener('click', () => input.focus());
    input.addEventListener('input', () => touched(input));

    // The one combination that is not the machine's, so that nobody without a mouse is caught on the screen.
    window.addEventListener('keydown', event => {
        if (event.ctrlKey && event.altKey && event.shiftKey && event.code === 'KeyT') {
            event.preventDefault();
            event.stopPropagation();
            tools.find(tool => !tool.disabled && tool.offsetParent)?.focus();
        }
    }, { capture: true });

    at('connect').addEventListener('click', () => { at('connect').hidden = true; connect(); });
}

wire();
if (!wish.url) {
    show('ended', 'Not connected');
    say(NOTHING_TO_OPEN.title, NOTHING_TO_OPEN.text, '');
} else if (wish.connectsAtOnce) {
    connect();
} else {
    show('ended', 'Not connected');
    at('connect').hidden = false;
    say('Ready to connect', 'The screen of the machine opens here.', '');
    at('connect').focus();
}
