// The stream of the one VM that a view shows closely: what it uses, and the end of what it prints.

import * as api from "./api.js";
import { follow } from "./live.js";
import { changed, state } from "./state.js";

/** As many as the server keeps: five minutes. */
const MAX_SAMPLES = 150;
let stream = null;

/** Follows the VM with this id and no other; undefined: none. */
export function watch(id) {
    if (state.watched?.id === id) return;
    stream?.stop();
    stream = null;
    state.watched = id === undefined || state.screen !== "app" ? null : { id, samples: [], log: null };
    if (state.watched === null) return;
    const watched = state.watched;
    stream = follow({
        address: () => `live/vm?id=${encodeURIComponent(id)}&sessionkey=${encodeURIComponent(state.session.sessionkey)}`,
        event: "vm",
        onState: () => {}, // the page's own stream says whether the server is there
        onChange: ({ samples, log }) => {
            const newest = watched.samples.at(-1)?.[0] ?? 0;
            watched.samples = [...watched.samples, ...samples.filter(([at]) => at > newest)].slice(-MAX_SAMPLES);
            watched.log = log ?? watched.log;
            changed();
        },
        // The VM is gone, or the session is over: the page learns both elsewhere.
        isRefused: async () => {
            try {
                await api.call("listCapabilities");
                return !vmIsThere(id);
            } catch (error) {
                return error.code === 401;
            }
        },
    });
}

function vmIsThere(id) {
    return [...(state.systemvms ?? []), ...(state.virtualmachines ?? [])].some((vm) => vm.id === id);
}

export function pauseWatching() {
    stream?.pause();
}

export function resumeWatching() {
    stream?.hurry();
}
