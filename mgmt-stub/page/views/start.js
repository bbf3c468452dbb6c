// How far the start of a system VM is: a bar, and its steps.

import { h } from "../dom.js";
import { duration } from "../format.js";
import { icon } from "../icons.js";
import { STEP_OUTCOMES } from "../words.js";

function count(steps) {
    return steps.filter(({ outcome }) => outcome === "done").length;
}

/** The last one that is not over, in words. */
function current(steps) {
    return steps.findLast(({ outcome }) => outcome !== "done");
}

/** One line and a bar, while it starts. */
export function startBar(vm) {
    const steps = vm.bootprogress ?? [];
    if (steps.length === 0) return null;
    const step = current(steps);
    const words = step ? `${step.name} ${STEP_OUTCOMES[step.outcome]?.label ?? ""}${step.detail ? `: ${step.detail}` : ""}` : "all steps are done";
    return h("div", { class: "progress", key: "start" },
        h("progress", { max: String(steps.length), value: String(count(steps)), "aria-label": `Start of ${vm.name}`, "aria-valuetext": words }),
        h("p", { class: "numbers" }, `Start: step ${Math.min(count(steps) + 1, steps.length)} of ${steps.length} so far · ${words}`));
}

/** All steps, each with the time since the one before. */
export function startSteps(vm) {
    const steps = vm.bootprogress ?? [];
    if (steps.length === 0) return null;
    const seconds = (steps.at(-1).at - steps[0].at) / 1000;
    return h("details", { key: "steps", class: "steps", made: (element) => { element.open = count(steps) < steps.length; } },
        h("summary", null, `${count(steps)} of ${steps.length} steps of its start are done, in ${duration(seconds)}`),
        h("ol", null, steps.map((step, index) => {
            const outcome = STEP_OUTCOMES[step.outcome] ?? STEP_OUTCOMES.running;
            const took = index > 0 ? (step.at - steps[index - 1].at) / 1000 : 0;
            return h("li", { key: step.name, class: outcome.kind },
                icon(outcome.icon),
                h("span", null, h("strong", null, step.name), h("span", { class: "unseen" }, ` ${outcome.label}`), step.detail && h("span", { class: "hint" }, ` ${step.detail}`)),
                h("span", { class: "hint numbers" }, took >= 0.05 ? `+${took.toFixed(1)} s` : ""));
        })));
}
