// Opens the console that the address bar names.
import RFB from './core/rfb.js';

const raw = new Map(location.search.slice(1).split('&').map(pair => {
    const at = pair.indexOf('=');
    return at < 0 ? [pair, ''] : [pair.slice(0, at), pair.slice(at + 1)];
}));
const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
const query = ['token', 'extra'].filter(name => raw.has(name)).map(name => `${name}=${raw.get(name)}`).join('&');
const url = `${scheme}://${location.hostname}:${raw.get('port') || location.port}/websockify?${query}`;

const status = document.getElementById('status');
const rfb = new RFB(document.getElementById('screen'), url, { wsProtocols: ['binary'] });
rfb.scaleViewport = true;
rfb.addEventListener('connect', () => {
    history.replaceState(null, '', location.pathname);
    status.textContent = 'Connected';
});
rfb.addEventListener('desktopname', event => { document.title = event.detail.name; });
rfb.addEventListener('disconnect', () => { status.textContent = 'The console has ended'; });
