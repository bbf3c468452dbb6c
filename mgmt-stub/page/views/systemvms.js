// The VMs that the zone itself needs, and why one is not up.

import * as api from "../api.js";
import { confirm } from "../dialog.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { follow } from "../notices.js";
import { button, chip, empty, facts, heading, loading, when } from "../parts.js";
import { state, whileBusy } from "../state.js";
import { SYSTEM_VM_TYPES, systemVm } from "../words.js";
import { startBar } from "./start.js";

const ACTIONS = {
    start: { command: "startSystemVm", icon: "start", label: "Start", working: "Starting", done: "has started", from: ["Stopped"] },
    reboot: { command: "rebootSystemVm", icon: "reboot", label: "Reboot", working: "Rebooting", done: "has been rebooted", from: ["Running"],
        title: (vm) => `Reboot ${vm.name}?`, text: interruption },
    stop: { command: "stopSystemVm", icon: "stop", label: "Stop", working: "Stopping", done: "has stopped", from: ["Running", "Starting", "Stopping"],
        title: (vm) => `Stop ${vm.name}?`, text: (vm) => `${interruption(vm)} If the zone needs it, it is started again by itself.` },
    destroy: { command: "destroySystemVm", icon: "remove", label: "Destroy", working: "Destroying", done: "has been destroyed", from: ["Running", "Stopped", "Starting", "Stopping", "Error"],
        title: (vm) => `Destroy ${vm.name}?`, isDangerous: true,
        text: (vm) => `${interruption(vm)} The zone makes a new one by itself; nothing that users own is lost.` },
};

function interruption(vm) {
    const sessions = Number(vm.activeviewersessions ?? 0);
    return vm.systemvmtype === "consoleproxy"
        ? `Consoles that are open through it are cut${sessions > 0 ? ` (${sessions} now)` : ""}.`
        : "Downloads that run on it pause, and go on when the zone has a secondary storage VM again.";
}

export function systemVms() {
    if (state.systemvms === null) return [heading("System VMs"), loading("the system VMs")];
    if (state.systemvms.length === 0) {
        return [heading("System VMs"), empty("There are none yet. With a driver (mgmt-stub serve --driver) the zone starts them by itself.")];
    }
    return [heading("System VMs"), h("div", { class: "cards" }, state.systemvms.map(card))];
}

function card(vm) {
    const type = SYSTEM_VM_TYPES[vm.systemvmtype] ?? { name: vm.systemvmtype, icon: "systemvms", duty: "" };
    const meaning = systemVm(vm);
    return h("article", { key: vm.id, class: "card", "aria-labelledby": `name-${vm.id}` },
        h("div", { class: "card-title" },
            h("span", { class: "badge" }, icon(type.icon)),
            h("div", null, h("h2", { id: `name-${vm.id}` }, h("a", { href: `#/systemvms/${vm.id}` }, vm.name)), h("p", { class: "hint" }, `${type.name}: ${type.duty}`)),
            chip(meaning)),
        reasonBox(vm, meaning),
        vm.state !== "Stopped" && meaning.kind !== "good" && startBar(vm),
        facts([
            ["State", vm.state],
            ["Since", vm.since && when(vm.since)],
            ["Agent", vm.agentstate ?? "not connected"],
            ["Public address", vm.publicip && (vm.consoleport ? `${vm.publicip}, port ${vm.consoleport}` : vm.publicip)],
            ["Private address", vm.privateip],
            ["Open consoles", vm.systemvmtype === "consoleproxy" ? String(vm.activeviewersessions ?? 0) : undefined],
            ["Version", vm.version],
            ["Zone", vm.zonename],
            ["Created", when(vm.created)],
        ]),
        actions(vm),
    );
}

/** Why it is not up, and what to do. */
export function reasonBox(vm, meaning) {
    return meaning.reason && h("div", { class: `reason-box ${meaning.kind}`, key: "reason" },
        h("p", null, meaning.reason),
        vm.whattodo && h("p", { class: "small-text" }, h("strong", null, "What to do: "), vm.whattodo));
}

/** What can be done with it now, or what is being done; `more` is beside it. */
export function actions(vm, ...more) {
    const working = state.busy.get(vm.id);
    return h("div", { class: "buttons", key: "actions" },
        !working && more,
        working
            ? h("p", { class: "working" }, icon("work"), `${working}…`)
            : Object.values(ACTIONS).filter(({ from }) => from.includes(vm.state)).map((action) =>
                button(action.icon, action.label, vm.name, { key: action.label, class: action.isDangerous ? "danger-quiet" : "", onclick: () => perform(action, vm) })));
}

async function perform(action, vm) {
    if (action.title) {
        const isWanted = await confirm({ title: action.title(vm), text: action.text(vm), action: action.label, isDangerous: action.isDangerous });
        if (!isWanted) return;
    }
    await whileBusy(vm.id, action.working, () =>
        follow(`${action.working} ${vm.name}`, `${vm.name} ${action.done}`, () => api.job(action.command, { id: vm.id })));
}
