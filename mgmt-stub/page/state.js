// Everything the views show, in one place. Whoever changes it calls `changed`.

export const state = {
    /** Topics of the live stream, null until they have come. */
    zones: null, hosts: null, imagestores: null, storagepools: null, systemvms: null, templates: null, isos: null,
    virtualmachines: null, alerts: null, events: null,
    /** "connecting", "open" or "away"; and since when it is away. */
    connection: "connecting",
    awaySince: null,
    /** The server's clock minus ours, in milliseconds. */
    clockOffset: 0,
    /** What is being done to an object by us: id -> words. */
    busy: new Map(),
    session: null,
    /** The VM that a view shows closely: `{ id, samples, log }`; samples as in docs/web-page.md. */
    watched: null,
    /** "login", "password" (one has to be chosen), "app" or "again" (the session ended while the app was open). */
    screen: "login",
};

/** The server's time. */
export function now() {
    return Date.now() + state.clockOffset;
}

let draw = () => {};
let isDue = false;

export function whenChanged(callback) {
    draw = callback;
}

/** Draws soon, once for all changes until then. A timer, not a frame: a page in the background is up to date, too. */
export function changed() {
    if (isDue) return;
    isDue = true;
    setTimeout(() => {
        isDue = false;
        draw();
    }, 0);
}

/** Marks an object as busy while `work` goes on. */
export async function whileBusy(id, words, work) {
    state.busy.set(id, words);
    changed();
    try {
        return await work();
    } finally {
        state.busy.delete(id);
        changed();
    }
}
