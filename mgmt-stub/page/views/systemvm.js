// One system VM, closely: why it is not up, its start step by step, what it uses, the end of what it prints.

import { charts } from "../charts.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { button, chip, empty, facts, heading, loading, when } from "../parts.js";
import { state } from "../state.js";
import { SYSTEM_VM_TYPES, systemVm } from "../words.js";
import { openConsole } from "./instances.js";
import { startBar, startSteps } from "./start.js";
import { actions, reasonBox } from "./systemvms.js";

export function systemVmDetail(id) {
    const back = h("a", { href: "#/systemvms", class: "back" }, icon("back"), "All system VMs");
    if (state.systemvms === null) return [back, heading("System VM"), loading("the system VMs")];
    const vm = state.systemvms.find((vm) => vm.id === id);
    if (vm === undefined) return [back, heading("System VM"), empty("It does not exist any more. Where one is needed, the zone has made a new one.")];
    const type = SYSTEM_VM_TYPES[vm.systemvmtype] ?? { name: vm.systemvmtype, duty: "" };
    const meaning = systemVm(vm);
    const { samples, log } = state.watched ?? { samples: [], log: null };
    return [
        back,
        heading(vm.name, chip(meaning)),
        h("p", { class: "hint", key: "duty" }, `${type.name}: ${type.duty}`),
        h("div", { class: "detail", key: "detail" },
            reasonBox(vm, meaning),
            meaning.kind !== "good" && vm.state !== "Stopped" && startBar(vm),
            actions(vm, vm.hasscreen && button("console", "Console", `of ${vm.name}`, { key: "console", onclick: () => openConsole(vm, vm.name) })),
            section("use", "Use of this machine", charts({ samples, memory: vm.memory && vm.memory * 2 ** 20, hasNetwork: vm.hypervisor !== "External" })),
            vm.bootprogress?.length > 0 && section("start", "Start", startSteps(vm)),
            section("facts", "Facts", facts([
                ["State", vm.state],
                ["Since", vm.since && when(vm.since)],
                ["Agent", vm.agentstate ?? "not connected"],
                ["Agent gone since", vm.disconnected && when(vm.disconnected)],
                ["Hypervisor", vm.hypervisor],
                ["Memory", vm.memory && `${vm.memory} MiB`],
                ["Public address", vm.publicip && (vm.consoleport ? `${vm.publicip}, port ${vm.consoleport}` : vm.publicip)],
                ["Private address", vm.privateip],
                ["Storage address", vm.storageip],
                ["Link-local address", vm.linklocalip],
                ["Gateway", vm.gateway],
                ["Open consoles", vm.systemvmtype === "consoleproxy" ? String(vm.activeviewersessions ?? 0) : undefined],
                ["Version", vm.version],
                ["Zone", vm.zonename],
                ["Created", when(vm.created)],
            ])),
            section("log", "End of its log", log ? h("pre", { class: "log-end", tabindex: "0", "aria-label": `End of the log of ${vm.name}` }, log) : h("p", { class: "hint" }, "It has printed nothing yet."))),
    ];
}

export function section(id, title, content) {
    return content && h("section", { key: id, class: "card", "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title), content);
}
