// What states mean, in words and in one of four kinds: good, work (it will pass), problem (somebody should look), off.

/** Of a system VM: its own state and its agent's, as one. `{ kind, label, reason }`. */
export function systemVm(vm) {
    const reason = sentence(vm.reason, vm.state);
    if (vm.state === "Running" && vm.agentstate !== "Up" && vm.bootproblem) return { kind: "problem", label: "Has a problem", reason };
    switch (vm.state) {
        case "Running":
            switch (vm.agentstate) {
                case "Up": return { kind: "good", label: "Up" };
                case "Connecting":
                case "Creating": return { kind: "work", label: "Agent connecting", reason: reason ?? "It runs, and its agent is being set up." };
                case undefined: return { kind: "work", label: "Waiting for agent", reason: reason ?? "It runs; its agent has not connected yet." };
                case "Disconnected": return { kind: "problem", label: "Agent disconnected", reason: reason ?? "It runs, but its agent has left." };
                default: return { kind: "problem", label: `Agent ${vm.agentstate.toLowerCase()}`, reason: reason ?? "It runs, but its agent does not answer." };
            }
        case "Starting":
        case "Stopping":
        case "Expunging":
        case "Migrating": return { kind: "work", label: vm.state, reason };
        case "Stopped":
        case "Destroyed": return { kind: "off", label: vm.state, reason: reason ?? "It has been stopped." };
        default: return { kind: "problem", label: vm.state ?? "Unknown", reason: reason ?? "The server does not know more." };
    }
}

/** Of a step of a VM's start. */
export const STEP_OUTCOMES = {
    running: { kind: "work", icon: "work", label: "goes on" },
    waiting: { kind: "work", icon: "wait", label: "waits" },
    done: { kind: "good", icon: "good", label: "done" },
    failed: { kind: "problem", icon: "problem", label: "failed" },
};

/** The server's reason as a sentence, without the state, which is shown beside it. */
function sentence(reason, state) {
    if (!reason) return undefined;
    const text = reason.startsWith(`${state}: `) ? reason.slice(state.length + 2) : reason;
    return text.charAt(0).toUpperCase() + text.slice(1);
}

export const SYSTEM_VM_TYPES = {
    consoleproxy: { name: "Console proxy", icon: "proxy", duty: "shows consoles in browsers" },
    secondarystoragevm: { name: "Secondary storage VM", icon: "storage", duty: "moves templates and snapshots" },
};

/** Of an agent's host. */
export function host(host) {
    if (host.state === "Up") return { kind: "good", label: "Up" };
    if (["Connecting", "Creating"].includes(host.state)) return { kind: "work", label: host.state };
    return { kind: "problem", label: host.state ?? "Unknown" };
}

/** Of a template or ISO. One that failed and is tried again needs nobody. */
export function template(image) {
    if (image.isready) return { kind: "good", label: "Ready" };
    switch (image.downloadstate) {
        case "DOWNLOAD_ERROR": return image.downloadnext ? { kind: "work", label: "Retrying" } : { kind: "problem", label: "Failed" };
        case "ABANDONED": return { kind: "work", label: "Being deleted" };
        case "DOWNLOAD_IN_PROGRESS": return { kind: "work", label: image.downloadpercent >= 100 ? "Installing" : "Downloading" };
        case "DOWNLOADED": return { kind: "work", label: "Installing" };
        default: return { kind: "work", label: "Waiting" };
    }
}

/** Of a virtual machine. Why it runs, or was stopped as asked, nobody asks. */
export function instance(vm) {
    const kind = { Running: "good", Stopped: "off", Destroyed: "off", Error: "problem", Unknown: "problem" }[vm.state] ?? "work";
    const isPlain = vm.state === "Running" || ["new", "stopped", "destroyed", "recovered"].includes(vm.reason);
    return { kind, label: vm.state, reason: isPlain ? undefined : sentence(vm.reason, vm.state) };
}
