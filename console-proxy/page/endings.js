// Why a console ended, in words, and what to do: by the close code of its WebSocket.

const AGAIN = 'Go back to the page where you opened this console and open it again.';

const ENDINGS = {
    1000: ['The console was closed', AGAIN],
    1001: ['The console proxy is shutting down', `It may be updated or moved. ${AGAIN}`],
    1008: ['You may not open this console', `A link to a console works once, and for two minutes. ${AGAIN}`],
    1009: ['The console sent too much at once', `This looks like a fault of the console proxy. ${AGAIN}`],
    1011: ['The console proxy had a problem', `Its log says more. ${AGAIN}`],
    4001: ['Somebody else opened this console', `It may be you, in another window. Only one at a time sees it. ${AGAIN}`],
    4002: ['Closed because nothing happened for a long time', AGAIN],
    4003: ['The machine closed its console', `It was stopped, restarted or moved to another host. ${AGAIN}`],
    4004: ['The machine cannot be reached', 'The console proxy gets no answer from the host of this machine. Check that '
        + `the machine is running. ${AGAIN}`],
    4005: ['The host refused the console password', 'It has probably changed since this console was opened. '
        + AGAIN],
    4006: ['Too many consoles are open', `Close one that you do not need. ${AGAIN}`],
    4007: ['The machine and this page do not understand each other', `The console proxy stopped because of broken data. ${AGAIN}`],
};

/// What `{code, opened, connected}` means, as `{title, text}`: `opened` is whether the WebSocket ever opened,
/// `connected` whether a screen was seen.
export function ending({ code, opened, connected }) {
    if (!opened) {
        return {
            title: 'The console did not open',
            text: `The link has been used already or is older than two minutes, or the console proxy cannot be reached. ${AGAIN}`,
        };
    }
    const [title, text] = ENDINGS[code] ?? (connected
        ? ['The connection was lost', `The machine goes on; only the view of it has ended. ${AGAIN}`]
        : ['The console did not open', `The connection ended before there was a picture. ${AGAIN}`]);
    return { title, text };
}

/// There is no token in the address.
export const NOTHING_TO_OPEN = {
    title: 'No console to open',
    text: 'Consoles are opened from the management page: choose a machine there, then its console button. '
        + 'Their links work once, so this page cannot be reloaded or bookmarked.',
};
