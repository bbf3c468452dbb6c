// Reads what the address bar asks for. Values are not percent-encoded by the management server: a token has `+`, `/`
// and `=`, and goes to the proxy exactly as it came.

const SCALINGS = { scale: 'fit', off: 'actual', remote: 'guest' }; // noVNC's words for `resize`, and ours

/// The wishes in an address, a `Location` or `URL`.
export function read(address) {
    const raw = new Map();
    // The query wins over the fragment, as in noVNC.
    for (const part of [address.hash, address.search]) {
        for (const pair of part.slice(1).split('&').filter(Boolean)) {
            const at = pair.indexOf('=');
            raw.set(at < 0 ? pair : pair.slice(0, at), at < 0 ? '' : pair.slice(at + 1));
        }
    }
    const port = /^\d{1,5}$/.test(raw.get('port') ?? '') ? raw.get('port') : address.port;
    const digit = name => /^\d$/.test(raw.get(name) ?? '') ? Number(raw.get(name)) : null;
    return {
        url: webSocket(address, port, raw),
        port,
        connectsAtOnce: flag(raw, 'autoconnect', true),
        isViewOnly: flag(raw, 'view_only', false),
        showsDot: flag(raw, 'show_dot', false),
        scaling: SCALINGS[raw.get('resize')] ?? 'fit',
        quality: digit('quality'),
        compression: digit('compression'),
        language: raw.get('language') ?? null,
    };
}

/// The address of the console, or `null` without a token. Always on the host that this page comes from.
function webSocket(address, port, raw) {
    if (!raw.get('token')) {
        return null;
    }
    const scheme = address.protocol === 'https:' ? 'wss' : 'ws';
    const query = ['token', 'extra'].filter(name => raw.has(name)).map(name => `${name}=${raw.get(name)}`).join('&');
    const path = (raw.get('path') ?? 'websockify').replace(/^\/+/, '').replace(/[?#].*$/s, '');
    return `${scheme}://${address.hostname}${port ? `:${port}` : ''}/${path}?${query}`;
}

function flag(raw, name, otherwise) {
    return raw.has(name) ? ['true', '1', 'yes', 'on', ''].includes(raw.get(name).toLowerCase()) : otherwise;
}

/// The same address without what must not stay in the history.
export function withoutSecrets(address) {
    const keep = text => text.slice(1).split('&').filter(pair => pair && !/^(token|extra)(=|$)/.test(pair)).join('&');
    const [query, fragment] = [keep(address.search), keep(address.hash)];
    return address.pathname + (query && `?${query}`) + (fragment && `#${fragment}`);
}
