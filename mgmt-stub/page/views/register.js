// The form for a new template or ISO.

import * as api from "../api.js";
import { h } from "../dom.js";
import { announce } from "../notices.js";
import { select } from "../parts.js";
import { changed, state } from "../state.js";
import { field } from "./login.js";

const FORMATS = ["QCOW2", "RAW", "VHD", "VHDX", "VMDK", "OVA"];
const ENDINGS = [[/\.qcow2?$/, "QCOW2"], [/\.(raw|img)$/, "RAW"], [/\.vhd$/, "VHD"], [/\.vhdx$/, "VHDX"], [/\.ova$/, "OVA"], [/\.vmdk$/, "VMDK"], [/\.iso$/, "ISO"]];

/** Formats that only one hypervisor starts from. */
const HYPERVISORS = { OVA: "VMware", VHDX: "Hyperv" };

/** `null` while the form is closed. */
let form = null;
/** What can be chosen; fetched when the form opens. */
const choices = { ostypes: [], hypervisors: [] };

export async function openRegister() {
    form = { format: "QCOW2", isBusy: false, problem: null };
    changed();
    try {
        const [types, hypervisors] = await Promise.all([api.call("listOsTypes"), api.call("listHypervisors")]);
        choices.ostypes = (types.ostype ?? []).toSorted((one, other) => one.description.localeCompare(other.description));
        choices.hypervisors = (hypervisors.hypervisor ?? []).map(({ name }) => name);
    } catch (error) {
        if (form) form.problem = { text: error.message };
    }
    changed();
}

function close() {
    form = null;
    changed();
}

export function registerDialog() {
    if (form === null) return null;
    const isIso = form.format === "ISO";
    return h("dialog", { key: "register", "aria-labelledby": "register-title", onclose: close, made: (dialog) => queueMicrotask(() => dialog.showModal()) },
        h("form", { onsubmit: submit, novalidate: true },
            h("h2", { id: "register-title" }, "Register a template or ISO"),
            h("p", { class: "hint" }, "The secondary storage VM fetches the image, checks it, and shows its progress here."),
            input({ id: "url", label: "URL", type: "url", required: true, autofocus: true, placeholder: "https://example.org/debian-13.qcow2", oninput: guess, spellcheck: "false",
                hint: "http or https. The file may be compressed: .gz, .bz2, .xz or .zip." }),
            input({ id: "name", label: "Name", required: true, maxlength: "255" }),
            h("div", { class: "pair" },
                select("format", "Format", [...FORMATS, "ISO"].map((format) => [format, format]), form.format, (event) => { form.format = event.target.value; changed(); }),
                select("zoneid", "Zone", (state.zones ?? []).map((zone) => [zone.id, zone.name]), state.zones?.[0]?.id)),
            h("div", { class: "pair" },
                select("ostypeid", "Operating system", [...(isIso ? [] : [["", "Not said"]]), ...choices.ostypes.map((type) => [type.id, type.description])]),
                !isIso && choices.hypervisors.length > 1 && select("hypervisor", "Hypervisor", choices.hypervisors.map((name) => [name, name]), "KVM")),
            input({ id: "checksum", label: "Checksum (optional)", spellcheck: "false", autocapitalize: "none",
                hint: "Such as {SHA-256} followed by 64 hexadecimal digits. A bare number of 32, 40, 64 or 128 digits is MD5, SHA-1, SHA-256 or SHA-512." }),
            h("p", { key: "problem", class: "problem-text", role: "alert" }, !form.problem?.field && form.problem?.text),
            h("div", { class: "buttons end" },
                h("button", { type: "button", onclick: close }, "Cancel"),
                h("button", { class: "primary", disabled: form.isBusy }, form.isBusy ? "Registering…" : "Register")),
        ));
}

function input(properties) {
    const isWrong = form.problem?.field === properties.id;
    return field({ autocomplete: "off", ...properties, problem: isWrong && form.problem.text });
}

/** The file's name says the format, and is a name to begin with. */
function guess(event) {
    const file = event.target.value.split(/[?#]/)[0].split("/").pop().replace(/\.(gz|bz2|xz|zip)$/i, "");
    const format = ENDINGS.find(([ending]) => ending.test(file.toLowerCase()))?.[1];
    const elements = event.target.form.elements;
    if (format) {
        elements.format.value = format;
        form.format = format;
        if (elements.hypervisor && HYPERVISORS[format]) elements.hypervisor.value = HYPERVISORS[format];
    }
    if (elements.name.value === (form.guessedName ?? "")) {
        form.guessedName = file.replace(/\.[^.]*$/, "");
        elements.name.value = form.guessedName;
    }
    changed();
}

async function submit(event) {
    event.preventDefault();
    const elements = event.target.elements;
    const wrong = ["url", "name"].find((name) => !elements[name].checkValidity());
    if (wrong) return refuse(wrong === "url" ? "Give the whole URL of the image, such as https://example.org/debian-13.qcow2." : "Give it a name.", wrong, elements);
    const isIso = elements.format.value === "ISO";
    const wanted = {
        url: elements.url.value.trim(),
        name: elements.name.value.trim(),
        displaytext: elements.name.value.trim(),
        zoneid: elements.zoneid.value,
        ostypeid: elements.ostypeid.value,
        checksum: elements.checksum.value.trim(),
        ...(isIso ? {} : { format: elements.format.value, hypervisor: elements.hypervisor?.value ?? choices.hypervisors[0] ?? "KVM" }),
    };
    form.isBusy = true;
    form.problem = null;
    changed();
    try {
        await api.call(isIso ? "registerIso" : "registerTemplate", wanted);
        announce(`${wanted.name} is registered`);
        close();
    } catch (error) {
        form.isBusy = false;
        refuse(error.message, error.parameter, elements);
    }
}

/** Beside the input that it is about, if the form has it; otherwise above the buttons. */
function refuse(text, name, elements) {
    const isOurs = ["url", "name", "checksum"].includes(name);
    form.problem = { text, field: isOurs ? name : undefined };
    changed();
    if (isOurs) elements[name].focus();
}
