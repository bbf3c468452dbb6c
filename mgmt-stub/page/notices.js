// What happened to what the user asked for: at the corner of the page, read out by screen readers. Good news go by
// themselves; bad ones stay until they are closed.

import { h, show } from "./dom.js";
import { icon } from "./icons.js";

const GOOD_NEWS_MS = 6000;
const MAX_NOTICES = 5;
let notices = [];
let lastId = 0;

function draw() {
    show(
        document.querySelector("#notices"),
        notices.map((notice) =>
            h("div", { key: notice.id, class: `notice ${notice.kind}`, role: notice.kind === "problem" ? "alert" : "status" },
                icon(notice.kind === "problem" ? "problem" : notice.kind === "work" ? "work" : "good"),
                h("div", null, h("p", null, notice.text), notice.link),
                notice.kind !== "work" &&
                    h("button", { class: "quiet small", "aria-label": "Close this message", onclick: () => close(notice.id) }, icon("close")),
            ),
        ),
    );
}

function close(id) {
    notices = notices.filter((notice) => notice.id !== id);
    draw();
}

function put(id, kind, text, link) {
    const notice = { id, kind, text, link };
    notices = [...notices.filter((other) => other.id !== id), notice];
    while (notices.length > MAX_NOTICES) notices.shift();
    draw();
    if (kind === "good" && !link) setTimeout(() => notices.includes(notice) && close(id), GOOD_NEWS_MS);
}

/** Says what `work` does until it ends, then how it ended. Answers whether it was good; never throws. */
export async function follow(working, done, work) {
    const id = ++lastId;
    put(id, "work", `${working}…`);
    try {
        const result = await work();
        const news = typeof done === "function" ? done(result) : { text: done };
        put(id, "good", news.text, news.link);
        return true;
    } catch (error) {
        put(id, "problem", `${working} failed: ${error.message}`);
        return false;
    }
}

/** Reads `text` out to those who do not see it. */
export function announce(text) {
    document.querySelector("#announcer").textContent = text;
}
