// Pieces that several views show.

import { h } from "./dom.js";
import { ago, bytes, time } from "./format.js";
import { icon } from "./icons.js";
import { now } from "./state.js";

/** A state as a coloured word; the colour repeats what the word says. */
export function chip({ kind, label }) {
    return h("span", { class: `chip ${kind}` }, label);
}

export function when(text) {
    const date = time(text);
    return date ? h("time", { datetime: date.toISOString(), title: date.toLocaleString() }, ago(date, now())) : "—";
}

/** A heading with what can be done beside it. `main` takes the focus when the view changes. */
export function heading(text, ...actions) {
    return h("div", { class: "heading" }, h("h1", { id: "heading", tabindex: "-1" }, text), h("div", { class: "buttons" }, actions));
}

export function facts(pairs) {
    const known = pairs.filter(([, value]) => value !== undefined && value !== null && value !== "" && value !== false);
    return h("dl", { class: "facts" }, known.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value))));
}

export function empty(text, ...more) {
    return h("div", { class: "empty" }, h("p", null, text), more);
}

export function loading(what) {
    return h("p", { class: "empty", key: "loading" }, `Waiting for ${what}…`);
}

/** A button that says more to screen readers than there is room for. */
export function button(name, label, about, properties) {
    return h("button", { "aria-label": `${label} ${about}`, ...properties }, icon(name), h("span", null, label));
}

/** Part of a whole, such as the used bytes of a store. */
export function usage(used, total) {
    if (!(total > 0)) return "not known yet";
    const percent = Math.round((used / total) * 100);
    const text = `${bytes(used)} of ${bytes(total)} used (${percent} %)`;
    return [
        h("meter", { min: "0", max: "100", low: "75", high: "90", optimum: "0", value: String(percent), "aria-label": text }),
        h("span", { class: "small-text" }, text),
    ];
}

/** Rows with the same columns; on narrow screens each row becomes a block with the column's name before each cell. */
export function table(caption, columns, rows) {
    return h("table", null,
        h("caption", { class: "unseen" }, caption),
        h("thead", null, h("tr", null, columns.map((column) => h("th", { scope: "col" }, column)))),
        h("tbody", null,
            rows.map(({ key, cells }) =>
                h("tr", { key }, cells.map((cell, index) => h("td", { "data-column": columns[index] }, cell)))),
        ),
    );
}

/** A choice in a form: pairs of a value and its words. */
export function select(id, label, options, chosen, onchange) {
    return h("div", { class: "field", key: id },
        h("label", { for: id }, label),
        h("select", { id, name: id, onchange }, options.map(([value, text]) => h("option", { key: value, value, selected: value === chosen }, text))));
}
