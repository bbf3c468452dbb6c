// One instance, closely.

import { charts } from "../charts.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { chip, empty, facts, heading, loading, when } from "../parts.js";
import { state } from "../state.js";
import { instance } from "../words.js";
import { actions, label } from "./instances.js";
import { section } from "./systemvm.js";

export function instanceDetail(id) {
    const back = h("a", { href: "#/instances", class: "back" }, icon("back"), "All instances");
    if (state.virtualmachines === null) return [back, heading("Instance"), loading("the instances")];
    const vm = state.virtualmachines.find((vm) => vm.id === id);
    if (vm === undefined) return [back, heading("Instance"), empty("It does not exist any more.")];
    const meaning = instance(vm);
    const { samples, log } = state.watched ?? { samples: [], log: null };
    return [
        back,
        heading(label(vm), chip(meaning)),
        h("div", { class: "detail", key: "detail" },
            meaning.reason && h("p", { class: `reason-box ${meaning.kind}`, key: "reason" }, meaning.reason),
            actions(vm),
            vm.state === "Running" && section("use", "Use of the hypervisor's host", charts({ samples, memory: vm.memory && vm.memory * 2 ** 20, hasNetwork: false })),
            section("facts", "Facts", facts([
                ["Name", vm.name],
                ["Name at the hypervisor", vm.instancename],
                ["State", vm.state],
                ["Since", when(vm.lastupdated)],
                ["Size", vm.serviceofferingname && `${vm.serviceofferingname}: ${vm.cpunumber} processor, ${vm.memory} MiB`],
                ["Template", vm.templatename],
                ["Operating system", vm.osdisplayname],
                ["Network", "none: there are no guest networks yet"],
                ["Owner", vm.account],
                ["Zone", vm.zonename],
                ["Created", when(vm.created)],
            ])),
            log && section("log", "End of its log", h("pre", { class: "log-end", tabindex: "0", "aria-label": `End of the log of ${label(vm)}` }, log))),
    ];
}
