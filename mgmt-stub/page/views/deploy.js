// The form for a new instance.

import * as api from "../api.js";
import { h } from "../dom.js";
import { follow } from "../notices.js";
import { select } from "../parts.js";
import { changed, state } from "../state.js";
import { field } from "./login.js";

/** `null` while the form is closed. */
let form = null;

export async function openDeploy() {
    form = { offerings: [], isBusy: false, problem: null };
    changed();
    try {
        form.offerings = (await api.call("listServiceOfferings")).serviceoffering ?? [];
    } catch (error) {
        if (form) form.problem = { text: error.message };
    }
    changed();
}

function close() {
    form = null;
    changed();
}

function ready() {
    return (state.templates ?? []).filter((image) => image.isready);
}

export function deployDialog() {
    if (form === null) return null;
    const templates = ready();
    const isWrong = form.problem?.field === "name";
    return h("dialog", { key: "deploy", "aria-labelledby": "deploy-title", onclose: close, made: (dialog) => queueMicrotask(() => dialog.showModal()) },
        h("form", { onsubmit: submit, novalidate: true },
            h("h2", { id: "deploy-title" }, "Deploy an instance"),
            templates.length === 0
                ? h("p", { key: "none", class: "problem-text" }, "There is no template that is ready. Register one first, and wait for its download.")
                : h("p", { key: "hint", class: "hint" }, "The first instance of a template takes longer: its image is copied to primary storage. An instance has no network yet, only a screen."),
            field({ id: "name", label: "Name", required: true, autofocus: true, maxlength: "63", autocomplete: "off", spellcheck: "false",
                hint: "Letters, digits and hyphens.", problem: isWrong && form.problem.text }),
            h("div", { class: "pair" },
                select("templateid", "Template", templates.map((image) => [image.id, image.name]), templates[0]?.id),
                select("serviceofferingid", "Size", form.offerings.map((offering) => [offering.id, `${offering.name} (${offering.memory} MiB)`]), form.offerings[0]?.id)),
            h("p", { key: "problem", class: "problem-text", role: "alert" }, !isWrong && form.problem?.text),
            h("div", { class: "buttons end" },
                h("button", { type: "button", onclick: close }, "Cancel"),
                h("button", { class: "primary", disabled: form.isBusy || templates.length === 0 }, form.isBusy ? "Deploying…" : "Deploy")),
        ));
}

/** The server refuses at once what is wrong; what takes long is followed in the corner. */
async function submit(event) {
    event.preventDefault();
    const { name, templateid, serviceofferingid } = event.target.elements;
    if (!/^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$/.test(name.value.trim())) {
        form.problem = { field: "name", text: "Give it a name of letters, digits and hyphens, such as web-1." };
        changed();
        name.focus();
        return;
    }
    const template = ready().find((image) => image.id === templateid.value);
    const wanted = {
        name: name.value.trim(),
        displayname: name.value.trim(),
        templateid: templateid.value,
        serviceofferingid: serviceofferingid.value,
        zoneid: template?.zoneid,
    };
    form.isBusy = true;
    form.problem = null;
    changed();
    let started;
    try {
        started = await api.start("deployVirtualMachine", wanted);
    } catch (error) {
        if (form === null) return;
        form.isBusy = false;
        form.problem = { text: error.message, field: error.parameter === "name" ? "name" : undefined };
        changed();
        return;
    }
    close();
    await follow(`Deploying ${wanted.name}`, `${wanted.name} runs`, () => api.finish(started));
}
