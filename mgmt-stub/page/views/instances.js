// Users' virtual machines, and their consoles.

import * as api from "../api.js";
import { confirm } from "../dialog.js";
import { h } from "../dom.js";
import { icon } from "../icons.js";
import { follow } from "../notices.js";
import { button, chip, empty, heading, loading, table, when } from "../parts.js";
import { state, whileBusy } from "../state.js";
import { instance } from "../words.js";
import { deployDialog, openDeploy } from "./deploy.js";

/** In other states there is no screen (management.md §8). */
const NO_SCREEN = ["Stopped", "Error", "Destroyed", "Expunging"];

const ACTIONS = [
    { command: "startVirtualMachine", icon: "start", label: "Start", working: "Starting", done: "has started", from: ["Stopped"] },
    { command: "rebootVirtualMachine", icon: "reboot", label: "Reboot", working: "Rebooting", done: "has been rebooted", from: ["Running"],
        title: (name) => `Reboot ${name}?`, text: "What runs in it is interrupted." },
    { command: "stopVirtualMachine", icon: "stop", label: "Stop", working: "Stopping", done: "has stopped", from: ["Running", "Stopping"],
        title: (name) => `Stop ${name}?`, text: "It is asked to shut down, and powered off if it does not. Its disk stays." },
    { command: "recoverVirtualMachine", icon: "reboot", label: "Recover", working: "Recovering", done: "is Stopped again", from: ["Destroyed"], isAtOnce: true },
    { command: "destroyVirtualMachine", icon: "remove", label: "Destroy", working: "Destroying", done: "has been destroyed", from: ["Running", "Stopped", "Error"], isDangerous: true,
        title: (name) => `Destroy ${name}?`, text: "It is stopped, and removed with its disk after a day. Until then it can be recovered." },
    { command: "expungeVirtualMachine", icon: "remove", label: "Expunge", working: "Removing", done: "is gone", from: ["Destroyed"], isDangerous: true,
        title: (name) => `Remove ${name} for good?`, text: "Its disk is deleted now. Nothing brings it back." },
];

export function instances() {
    // Without a pool for disks there is no hypervisor that could run one.
    const canDeploy = (state.storagepools ?? []).some((pool) => pool.state === "Up");
    const deploy = canDeploy && h("button", { class: "primary", onclick: openDeploy }, icon("add"), h("span", null, "Deploy"));
    if (state.virtualmachines === null) return [heading("Instances"), loading("the instances")];
    if (state.virtualmachines.length === 0) {
        return [heading("Instances", deploy), canDeploy
            ? empty("There are none yet. Deploy one from a template that is ready.")
            : empty("There are none. This zone has no hypervisor (mgmt-stub serve --driver qemu). A machine with a VNC screen that runs elsewhere can be added on the server: ",
                h("code", null, "mgmt-stub api registerExternalVirtualMachine")),
        deployDialog()];
    }
    return [
        heading("Instances", deploy),
        h("div", { key: "table", class: "instances" }, table("Instances", ["Name", "State", "Size", "Template", "Created", "Actions"],
            state.virtualmachines.map((vm) => ({
                key: vm.id,
                cells: [
                    [h("strong", null, isOurs(vm) ? h("a", { href: `#/instances/${vm.id}` }, label(vm)) : label(vm)), vm.displayname && vm.displayname !== vm.name && h("span", { class: "hint" }, ` ${vm.name}`)],
                    [chip(instance(vm)), instance(vm).reason && h("p", { class: "small-text reason" }, instance(vm).reason)],
                    isOurs(vm) ? vm.serviceofferingname ?? "—" : vm.hypervisor,
                    isOurs(vm) ? vm.templatename ?? "deleted" : vm.osdisplayname ?? "—",
                    when(vm.created),
                    actions(vm),
                ],
            })))),
        deployDialog(),
    ];
}

/** Somebody else runs the others. */
function isOurs(vm) {
    return vm.serviceofferingid !== undefined;
}

export function label(vm) {
    return vm.displayname ?? vm.name;
}

/** What can be done with it now, or what is being done. */
export function actions(vm) {
    const working = state.busy.get(vm.id);
    if (working) return h("p", { class: "working", key: "working" }, icon("work"), `${working}…`);
    const possible = isOurs(vm) ? ACTIONS.filter(({ from }) => from.includes(vm.state)) : [];
    const hasScreen = vm.hasscreen && !NO_SCREEN.includes(vm.state);
    if (possible.length === 0 && !hasScreen) return "—";
    return h("div", { class: "buttons", key: "actions" },
        hasScreen && button("console", "Console", `of ${label(vm)}`, { key: "console", onclick: () => openConsole(vm, label(vm)) }),
        possible.map((action) => button(action.icon, action.label, label(vm), { key: action.label, class: action.isDangerous ? "danger-quiet" : "", onclick: () => perform(action, vm) })));
}

async function perform(action, vm) {
    const name = label(vm);
    if (action.title) {
        const isWanted = await confirm({ title: action.title(name), text: action.text, action: action.label, isDangerous: action.isDangerous });
        if (!isWanted) return;
    }
    const run = action.isAtOnce ? api.call : api.job;
    await whileBusy(vm.id, action.working, () => follow(`${action.working} ${name}`, `${name} ${action.done}`, () => run(action.command, { id: vm.id })));
}

/** Asks for an address that is good for one use within two minutes, and opens it in a tab that cannot reach this one. */
export async function openConsole(vm, name) {
    await whileBusy(vm.id, "Opening", () =>
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
