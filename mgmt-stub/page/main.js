// The page: who is logged in, which view is open, and the frame around it. Views are in views/, what they show in
// state.js; what the server tells of itself comes in live.js, what the user wants done goes out in api.js.

import * as api from "./api.js";
import { h, show } from "./dom.js";
import { duration } from "./format.js";
import { icon } from "./icons.js";
import { follow } from "./live.js";
import { announce } from "./notices.js";
import { changed, state, whenChanged } from "./state.js";
import { instance, systemVm, template } from "./words.js";
import { choosePassword, loginForm } from "./views/login.js";
import { events } from "./views/events.js";
import { instanceDetail } from "./views/instance.js";
import { instances } from "./views/instances.js";
import { overview } from "./views/overview.js";
import { systemVmDetail } from "./views/systemvm.js";
import { systemVms } from "./views/systemvms.js";
import { templates } from "./views/templates.js";
import { pauseWatching, resumeWatching, watch } from "./watch.js";

const VIEWS = [
    { id: "overview", name: "Overview", draw: overview },
    { id: "systemvms", name: "System VMs", draw: systemVms, drawOne: systemVmDetail, count: () => state.systemvms?.filter((vm) => systemVm(vm).kind === "problem").length },
    { id: "templates", name: "Templates", draw: templates, count: () => [...(state.templates ?? []), ...(state.isos ?? [])].filter((image) => template(image).kind === "problem").length },
    { id: "instances", name: "Instances", draw: instances, drawOne: instanceDetail, count: () => state.virtualmachines?.filter((vm) => instance(vm).kind === "problem").length },
    { id: "events", name: "Events", draw: events },
];
/** Of relative times such as "20 s ago". */
const CLOCK_MS = 5000;
/** A user who is doing something keeps the session, at the price of one small call. */
const KEEP_ALIVE_MS = 60_000;
/** A restart of the server takes less, and is not worth a line. */
const AWAY_SHOWN_S = 2;
/** A page that nobody has seen for so long gives its connection back until somebody does. */
const HIDDEN_MS = 30_000;

let stream = null;
let pausing = 0;
let shownView = null;

/** The view, and of one that can show a single object closely, which one. */
function view() {
    const [, name, object] = location.hash.split("/");
    const found = VIEWS.find(({ id }) => id === name) ?? VIEWS[0];
    return { ...found, object: found.drawOne && object };
}

function draw() {
    const app = document.querySelector("#app");
    if (state.screen === "login" || state.screen === "password") {
        shownView = null;
        document.title = "Log in – sysvm";
        const form = state.screen === "login" ? loginForm(enter) : choosePassword(enter, leave);
        show(app, h("main", { key: state.screen, class: "login" }, brand(), form));
        return;
    }
    const current = view();
    const place = [current.id, current.object].filter(Boolean).join("-");
    watch(current.object);
    show(app, [
        h("a", { key: "skip", class: "skip", href: "#main", onclick: skip }, "Skip to the content"),
        h("header", { key: "header" },
            brand(),
            h("nav", { "aria-label": "Views" }, VIEWS.map(link)),
            h("div", { class: "session" },
                connection(),
                h("span", { class: "user" }, state.session?.username),
                h("button", { class: "quiet", onclick: leave, title: "Log out" }, icon("logout"), h("span", null, "Log out")),
            ),
        ),
        h("main", { key: "main", id: "main" },
            away(),
            h("div", { key: `view-${place}` }, current.object ? current.drawOne(current.object) : current.draw())),
        state.screen === "again" && askAgain(),
    ]);
    document.title = `${current.name} – sysvm`;
    if (shownView !== place) {
        if (shownView !== null) document.querySelector("#heading")?.focus();
        shownView = place;
    }
}

function brand() {
    return h("div", { class: "brand" }, h("img", { src: "icon.svg", alt: "", width: "28", height: "28" }), h("span", null, "sysvm"));
}

function link({ id, name, count }) {
    const problems = count?.() ?? 0;
    return h("a", { key: id, href: `#/${id}`, "aria-current": view().id === id ? "page" : undefined },
        icon(id),
        h("span", null, name),
        problems > 0 && h("span", { class: "count", "aria-label": `${problems} with problems` }, problems),
    );
}

function connection() {
    if (state.connection === "open") return h("span", { class: "connection good", role: "status" }, "Live");
    const text = state.awaySince === null ? "Connecting…" : "Reconnecting…";
    return h("span", { class: `connection ${state.awaySince === null ? "work" : "problem"}`, role: "status" }, text);
}

/** How old the view is. Not announced: it changes each few seconds, and `connection` has said it. */
function away() {
    const seconds = state.awaySince === null ? 0 : (Date.now() - state.awaySince) / 1000;
    if (state.connection === "open" || seconds < AWAY_SHOWN_S) return null;
    return h("p", { key: "away", class: "banner" }, icon("problem"),
        `The server does not answer. This is how it was ${duration(seconds)} ago; the page goes on by itself when it is back.`);
}

function skip(event) {
    event.preventDefault(); // the hash is the view
    document.querySelector("#heading")?.focus();
}

/** The session ended, but not what the user was looking at. */
function askAgain() {
    return h("dialog", { key: "again", "aria-label": "Log in again", made: (dialog) => queueMicrotask(() => dialog.showModal()), oncancel: (event) => event.preventDefault() },
        loginForm(enter, "Your session has ended. Log in again to go on where you were."));
}

/** After a login, and at the start with a session that is still good. */
function enter() {
    state.session = api.session();
    state.screen = state.session.mustChoosePassword ? "password" : "app";
    if (state.screen === "app") connect();
    changed();
}

async function leave() {
    stream?.stop();
    await api.logout().catch(() => {}); // without an answer the session ends by itself
    location.hash = "";
    location.reload(); // nothing of it stays in memory
}

function connect() {
    stream?.stop();
    stream = follow({
        address: () => `live?sessionkey=${encodeURIComponent(state.session.sessionkey)}`,
        onState: (connection) => {
            state.connection = connection;
            if (connection === "open") state.awaySince = null;
            else if (connection === "away") state.awaySince ??= Date.now();
            changed();
        },
        onChange: ({ now: serverTime, ...topics }) => {
            state.clockOffset = serverTime - Date.now();
            tellProgress(topics);
            Object.assign(state, topics);
            changed();
        },
        isRefused: async () => {
            try {
                await api.call("listCapabilities");
                return false; // too many streams, for example: try again later
            } catch (error) {
                return error.code === 401;
            }
        },
    });
}

/** Reads out each quarter of a download and each end: not each percent. */
function tellProgress(topics) {
    for (const topic of ["templates", "isos"]) {
        const before = new Map((state[topic] ?? []).map((image) => [image.id, image]));
        for (const image of topics[topic] ?? []) {
            if (!before.has(image.id)) continue;
            const [was, is] = [template(before.get(image.id)), template(image)];
            const quarter = (image) => Math.floor((image.downloadpercent ?? 0) / 25);
            if (is.label !== was.label) announce(`${image.name}: ${is.label}`);
            else if (is.kind === "work" && quarter(image) > quarter(before.get(image.id))) announce(`${image.name}: ${quarter(image) * 25} percent`);
        }
    }
}

function keepAlive() {
    if (state.screen === "app" && api.idleTime() > KEEP_ALIVE_MS) api.call("listCapabilities").catch(() => {});
}

whenChanged(draw);
api.whenSessionEnds(() => {
    stream?.stop();
    watch(undefined);
    api.forgetSession();
    if (state.screen === "app") {
        state.screen = "again";
        announce("Your session has ended");
    } else if (state.screen !== "again") {
        state.screen = "login";
    }
    changed();
});
addEventListener("hashchange", changed);
addEventListener("online", () => stream?.hurry());
addEventListener("visibilitychange", () => {
    clearTimeout(pausing);
    if (document.visibilityState === "visible") {
        stream?.hurry();
        resumeWatching();
    } else {
        pausing = setTimeout(() => {
            stream?.pause();
            pauseWatching();
        }, HIDDEN_MS);
    }
});
addEventListener("pointerdown", keepAlive);
addEventListener("keydown", keepAlive);
setInterval(() => document.visibilityState === "visible" && changed(), CLOCK_MS);

if (api.session() === null) changed();
else enter();
