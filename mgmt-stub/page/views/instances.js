// Users' virtual machines, and their consoles.

import * as api from "../api.js";
import { h } from "../dom.js";
import { follow } from "../notices.js";
import { button, chip, empty, heading, loading, table, when } from "../parts.js";
import { state, whileBusy } from "../state.js";
import { instance } from "../words.js";

/** In other states there is no screen (management.md §8). */
const NO_SCREEN = ["Stopped", "Error", "Destroyed", "Expunging"];

export function instances() {
    if (state.virtualmachines === null) return [heading("Instances"), loading("the instances")];
    if (state.virtualmachines.length === 0) {
        return [heading("Instances"), empty("There are none. A machine with a VNC screen that runs elsewhere can be added on the server: ",
            h("code", null, "mgmt-stub api registerExternalVirtualMachine"))];
    }
    return [
        heading("Instances"),
        table("Instances", ["Name", "State", "Hypervisor", "Operating system", "Zone", "Created", "Console"],
            state.virtualmachines.map((vm) => ({
                key: vm.id,
                cells: [
                    [h("strong", null, vm.displayname ?? vm.name), vm.displayname && vm.displayname !== vm.name && h("span", { class: "hint" }, ` ${vm.name}`)],
                    chip(instance(vm)),
                    vm.hypervisor,
                    vm.osdisplayname ?? "—",
                    vm.zonename,
                    when(vm.created),
                    NO_SCREEN.includes(vm.state) ? "—" : consoleButton(vm),
                ],
            }))),
    ];
}

function consoleButton(vm) {
    const name = vm.displayname ?? vm.name;
    return button("console", state.busy.get(vm.id) ?? "Console", `of ${name}`, { disabled: state.busy.has(vm.id), onclick: () => openConsole(vm, name) });
}

/** Asks for an address that is good for one use within two minutes, and opens it in a tab that cannot reach this one. */
async function openConsole(vm, name) {
    await whileBusy(vm.id, "Opening…", () =>
        follow(`Opening the console of ${name}`, ({ url }) => ({
            text: `The console of ${name} opens in a new tab.`,
            link: h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, "If it does not, open it here"),
        }), async () => {
            const { consoleendpoint } = await api.call("createConsoleEndpoint", { virtualmachineid: vm.id });
            if (!consoleendpoint?.url) throw new Error(consoleendpoint?.details ?? "the server gave no address");
            const url = new URL(consoleendpoint.url, location.href);
            if (!["http:", "https:"].includes(url.protocol)) throw new Error(`the server gave an address with ${url.protocol}`);
            window.open(url, "_blank", "noopener,noreferrer");
            return { url: url.href };
        }));
}
