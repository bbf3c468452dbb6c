// What happened: events of commands, and alerts.

import { h } from "../dom.js";
import { heading, loading, when } from "../parts.js";
import { changed, state } from "../state.js";

let filter = "";
let isOnlyProblems = false;

export function events() {
    if (state.events === null) return [heading("Events and alerts"), loading("the events")];
    const wanted = filter.trim().toLowerCase();
    const isShown = (event) =>
        (!isOnlyProblems || event.level !== "INFO") &&
        (wanted === "" || `${event.type} ${event.description} ${event.username}`.toLowerCase().includes(wanted));
    const shown = state.events.filter(isShown);
    return [
        heading("Events and alerts"),
        h("section", { key: "alerts", "aria-labelledby": "all-alerts" },
            h("h2", { id: "all-alerts" }, "Alerts"),
            state.alerts?.length
                ? h("ul", { class: "log" }, state.alerts.map((alert) =>
                    h("li", { key: alert.id, class: "problem" }, h("span", { class: "when" }, when(alert.sent)), h("span", null, alert.description ?? alert.name))))
                : h("p", { class: "empty" }, "No alerts.")),
        h("section", { key: "events", "aria-labelledby": "all-events" },
            h("div", { class: "heading" },
                h("h2", { id: "all-events" }, "Events"),
                h("div", { class: "filters" },
                    h("label", { for: "filter" }, "Filter"),
                    h("input", { id: "filter", type: "search", oninput: (event) => { filter = event.target.value; changed(); } }),
                    h("label", { class: "check" }, h("input", { type: "checkbox", onchange: (event) => { isOnlyProblems = event.target.checked; changed(); } }), "Only warnings and errors"))),
            eventList(shown, wanted || isOnlyProblems ? "No event matches." : undefined),
            h("p", { class: "hint" }, "The latest events are shown; all of them with ", h("code", null, "mgmt-stub api listEvents"), ".")),
    ];
}

export function eventList(events, none = "Nothing has happened yet.") {
    if (!events?.length) return h("p", { class: "empty" }, none);
    return h("ul", { class: "log" },
        events.map((event) =>
            h("li", { key: event.id, class: { ERROR: "problem", WARN: "warn" }[event.level] ?? "" },
                h("span", { class: "when" }, when(event.created)),
                h("span", null,
                    event.level !== "INFO" && h("strong", null, event.level === "ERROR" ? "Error: " : "Warning: "),
                    event.description,
                    h("span", { class: "hint" }, ` ${[event.type, event.state, event.username].filter(Boolean).join(" · ")}`)))));
}
