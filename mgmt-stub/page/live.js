// What the server shows of itself, as it changes: one stream of server-sent events (docs/web-page.md). Each message has
// the topics that changed, whole; the first one after connecting has all.

const RETRY_MS = 1000;
const MAX_RETRY_MS = 5000;
/** The server says something each 15 s; after this silence the connection is dead, even if nobody has noticed. */
const SILENCE_MS = 40_000;

/**
 * Follows the stream until it is stopped: answers `{ stop, pause, hurry }`. `event` is the name of its messages.
 * `onChange(topics)` gets the changed topics; `onState` gets "connecting", "open" or "away"; `isRefused()` is asked when
 * the server did not accept the stream, and answers whether to give up (the session is over).
 */
export function follow({ address, event: name = "state", onChange, onState, isRefused }) {
    let source = null;
    let [retry, silence] = [0, 0];
    let delay = RETRY_MS;
    let isStopped = false;

    function connect() {
        onState("connecting");
        source = new EventSource(address());
        source.onopen = heard;
        source.addEventListener("heartbeat", heard);
        source.addEventListener(name, (event) => {
            heard();
            delay = RETRY_MS;
            onState("open");
            onChange(JSON.parse(event.data));
        });
        source.onerror = async () => {
            // Refused with a status: EventSource has given up. Otherwise the connection broke. We retry at our own pace.
            const wasRefused = source.readyState === EventSource.CLOSED;
            again();
            if (wasRefused && (await isRefused())) stop();
        };
        heard();
    }

    function heard() {
        clearTimeout(silence);
        silence = setTimeout(again, SILENCE_MS);
    }

    function again() {
        close();
        if (isStopped) return;
        onState("away");
        retry = setTimeout(connect, delay);
        delay = Math.min(delay * 1.5, MAX_RETRY_MS);
    }

    function close() {
        clearTimeout(retry);
        clearTimeout(silence);
        source?.close();
    }

    function stop() {
        isStopped = true;
        close();
    }

    /** Until `hurry`: nobody looks, and a browser has few connections for all tabs of a server. */
    function pause() {
        if (isStopped) return;
        close();
        source = null;
    }

    /** Does not wait for the next try: the network is back, or the user looks at the page again. */
    function hurry() {
        if (isStopped || source?.readyState === EventSource.OPEN) return;
        close();
        delay = RETRY_MS;
        connect();
    }

    connect();
    return { stop, pause, hurry };
}
