// What a VM used in the last five minutes, as small lines. Each says in words what it shows.

import { h } from "./dom.js";
import { bytes } from "./format.js";

const WIDTH = 300;
const HEIGHT = 48;
/** Milliseconds from the left edge to the right. */
const SPAN = 300_000;
/** A line must not lie on the edge. */
const MARGIN = 2;

/** Samples: `[milliseconds, hundredths of a percent, bytes, bytes per second in, and out]`. */
export function charts({ samples, memory, hasNetwork }) {
    if (samples.length < 2) return h("p", { class: "hint", key: "charts" }, "What it uses is shown after some seconds.");
    const percent = ([, cpu]) => cpu / 100;
    const [last] = samples.slice(-1);
    return h("div", { class: "charts", key: "charts" },
        chart("Processor", [{ name: "", of: percent }], samples, Math.max(100, ...samples.map(percent)), (value) => `${value.toFixed(value < 10 ? 1 : 0)} %`),
        chart("Memory", [{ name: "", of: (sample) => sample[2] }], samples, Math.max(memory ?? 0, ...samples.map((sample) => sample[2] * 1.2)), bytes),
        hasNetwork && chart("Network", [{ name: "in", of: (sample) => sample[3] }, { name: "out", of: (sample) => sample[4] }], samples,
            Math.max(1024, ...samples.map((sample) => Math.max(sample[3], sample[4]))), (value) => `${bytes(value)}/s`),
        h("span", { class: "unseen" }, `Last sample: ${new Date(last[0]).toLocaleTimeString()}`));
}

function chart(title, lines, samples, top, words) {
    const end = samples.at(-1)[0];
    const now = lines.map(({ name, of }) => `${name ? `${name} ` : ""}${words(of(samples.at(-1)))}`).join(", ");
    const most = lines.map(({ name, of }) => `${name ? `${name} ` : ""}${words(Math.max(...samples.map(of)))}`).join(", ");
    return h("figure", { class: "chart", key: title },
        h("figcaption", null, h("span", null, title), h("span", { class: "numbers" }, now)),
        h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: ${now} now, at most ${most} in the last five minutes` },
            lines.map(({ name, of }, index) => {
                const points = samples.map((sample) => [x(sample[0], end), y(of(sample), top)]);
                return [
                    index === 0 && h("path", { key: `area-${name}`, class: "area", d: `M${points[0][0]} ${HEIGHT}L${points.map(join).join("L")}L${WIDTH} ${HEIGHT}Z` }),
                    h("path", { key: `line-${name}`, class: `line line-${index}`, d: `M${points.map(join).join("L")}` }),
                ];
            })));
}

function x(at, end) {
    return Math.max(0, WIDTH - ((end - at) / SPAN) * WIDTH).toFixed(1);
}

function y(value, top) {
    return (HEIGHT - MARGIN - (Math.min(value, top) / top) * (HEIGHT - 2 * MARGIN)).toFixed(1);
}

function join([left, up]) {
    return `${left} ${up}`;
}
