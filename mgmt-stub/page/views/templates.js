// Templates and ISOs: how far they are, what went wrong, and new ones.

import * as api from "../api.js";
import { confirm } from "../dialog.js";
import { h } from "../dom.js";
import { bytes, duration, time } from "../format.js";
import { icon } from "../icons.js";
import { follow } from "../notices.js";
import { button, chip, empty, heading, loading, when } from "../parts.js";
import { now, state, whileBusy } from "../state.js";
import { template as meaningOf } from "../words.js";
import { openRegister, registerDialog } from "./register.js";

export function templates() {
    const register = h("button", { class: "primary", onclick: openRegister }, icon("add"), h("span", null, "Register by URL"));
    if (state.templates === null) return [heading("Templates and ISOs", register), loading("the templates"), registerDialog()];
    const images = [
        ...state.templates.map((image) => ({ ...image, isIso: false })),
        ...(state.isos ?? []).map((image) => ({ ...image, isIso: true })),
    ].sort((one, other) => String(other.created).localeCompare(String(one.created)) || one.name.localeCompare(other.name));
    return [
        heading("Templates and ISOs", register),
        images.length === 0
            ? empty("There are none yet. Register one by the URL of its image: http or https; qcow2, raw, vhd, vmdk, ova or iso, also compressed.")
            : h("ul", { class: "images" }, images.map(row)),
        registerDialog(),
    ];
}

function row(image) {
    const { kind, label } = meaningOf(image);
    const hasFailed = image.downloadstate === "DOWNLOAD_ERROR" && !image.isready;
    const working = state.busy.get(image.id);
    return h("li", { key: `${image.id}-${image.zoneid}`, class: "card image", "aria-labelledby": `name-${image.id}` },
        h("div", { class: "card-title" },
            h("span", { class: "badge" }, icon(image.isIso ? "disc" : "templates")),
            h("div", null,
                h("h2", { id: `name-${image.id}` }, image.name),
                h("p", { class: "hint" }, about(image))),
            chip({ kind, label })),
        hasFailed ? failure(image, label) : kind === "work" && progress(image),
        h("div", { class: "card-foot" },
            h("p", { class: "hint source" }, image.url && h("code", null, image.url)),
            h("div", { class: "buttons" },
                working
                    ? h("p", { class: "working" }, icon("work"), `${working}…`)
                    : button("remove", kind === "work" ? "Cancel and delete" : "Delete", image.name, { class: "danger-quiet", onclick: () => remove(image) }))),
    );
}

function about(image) {
    const isReady = image.isready;
    return [
        image.isIso ? "ISO" : image.format,
        image.displaytext !== image.name && image.displaytext,
        isReady && image.size > 0 && (image.physicalsize > 0 && image.physicalsize !== image.size ? `${bytes(image.physicalsize)} stored, ${bytes(image.size)} virtual` : bytes(image.size)),
        image.ostypename,
        image.zonename,
        image.created && when(image.created),
    ].filter(Boolean).flatMap((part, index) => (index === 0 ? [part] : [" · ", part]));
}

/** Percent, bytes, rate, time left, attempt: what is known of a download. The server's own fields, beside CloudStack's. */
function progress(image) {
    const { downloadpercent: percent = 0, downloadbytes: come, downloadrate: rate, downloadeta: left, downloadattempt: attempt } = image;
    const isMoving = percent > 0 || come > 0;
    const words = [
        isMoving ? `${percent} %` : "Waiting for the secondary storage VM",
        come > 0 && bytes(come),
        rate > 0 && percent < 100 && `${bytes(rate)}/s`,
        left > 0 && `about ${duration(left)} left`,
        attempt > 1 && `attempt ${attempt} of ${image.downloadattempts}`,
    ].filter(Boolean).join(" · ");
    return h("div", { class: "progress", key: "progress" },
        h("progress", { max: "100", value: isMoving ? String(percent) : undefined, "aria-label": `Download of ${image.name}`, "aria-valuetext": words }),
        h("p", { class: "numbers" }, words));
}

/** What went wrong, and when it is tried again. */
function failure(image, label) {
    const next = time(image.downloadnext);
    const seconds = next && (next - now()) / 1000;
    return h("div", { class: `reason-box ${label === "Failed" ? "problem" : "work"}`, key: "failure" },
        h("p", null, image.downloaderror ?? image.status),
        next && h("p", { class: "numbers" }, `${image.downloadpercent > 0 ? `${image.downloadpercent} % have come. ` : ""}Attempt ${image.downloadattempt + 1} of ${image.downloadattempts} begins ${seconds > 1 ? `in ${duration(seconds)}` : "now"}.`));
}

async function remove(image) {
    const noun = image.isIso ? "ISO" : "template";
    const isWanted = await confirm({
        title: `Delete ${image.name}?`,
        text: image.isready ? `The ${noun} is deleted from secondary storage. Instances made from it are not touched.` : `Its download ends, and what has come so far is deleted.`,
        action: "Delete",
        isDangerous: true,
    });
    if (!isWanted) return;
    await whileBusy(image.id, "Deleting", () =>
        follow(`Deleting ${image.name}`, `${image.name} is deleted`, () =>
            api.job(image.isIso ? "deleteIso" : "deleteTemplate", { id: image.id, zoneid: image.zoneid })));
}
