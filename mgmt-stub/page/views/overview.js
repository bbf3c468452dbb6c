// Is everything well? What is not, first.

import { h } from "../dom.js";
import { count } from "../format.js";
import { icon } from "../icons.js";
import { chip, heading, loading, table, usage, when } from "../parts.js";
import { state } from "../state.js";
import * as words from "../words.js";
import { eventList } from "./events.js";

const RECENT_EVENTS = 8;
const RECENT_ALERTS = 5;

export function overview() {
    if (state.zones === null) return [heading("Overview"), loading("the server")];
    const images = [...(state.templates ?? []), ...(state.isos ?? [])];
    const zones = state.zones.map((zone) => zone.name).join(", ");
    return [
        heading(zones ? `Zone ${zones}` : "Overview"),
        h("ul", { class: "tiles", "aria-label": "Summary" },
            tile("systemvms", "System VMs", state.systemvms, words.systemVm, "up"),
            tile("templates", "Templates", images, words.template, "ready"),
            tile("instances", "Instances", state.virtualmachines, words.instance, "running"),
            tile(null, "Hosts", state.hosts, words.host, "up"),
        ),
        attention(images),
        section("stores", "Secondary storage", stores()),
        section("pools", "Primary storage", pools()),
        section("hosts", "Hosts", hosts()),
        section("alerts", "Latest alerts", alerts()),
        section("recent", "Latest events", eventList(state.events?.slice(0, RECENT_EVENTS)), h("a", { href: "#/events" }, "All events")),
    ];
}

function section(id, title, content, more) {
    return content && h("section", { key: id, "aria-labelledby": `${id}-title` },
        h("div", { class: "heading" }, h("h2", { id: `${id}-title` }, title), more), content);
}

function tile(view, name, objects, meaning, good) {
    const all = objects ?? [];
    const kinds = all.map((object) => meaning(object).kind);
    const number = (kind) => kinds.filter((other) => other === kind).length;
    const rest = [
        number("work") > 0 && `${number("work")} in progress`,
        number("problem") > 0 && count(number("problem"), "problem", "problems"),
        number("off") > 0 && `${number("off")} off`,
    ].filter(Boolean);
    const kind = number("problem") > 0 ? "problem" : number("work") > 0 ? "work" : "good";
    return h("li", { key: name, class: `tile ${all.length ? kind : "off"}` },
        h(view ? "a" : "div", { href: view && `#/${view}` },
            icon(view ?? "hosts"),
            h("span", { class: "name" }, name),
            h("span", { class: "number" }, all.length ? `${number("good")} of ${all.length} ${good}` : "none"),
            h("span", { class: "rest" }, rest.join(", ") || (all.length ? "all well" : "")),
        ));
}

function attention(images) {
    const vms = (state.systemvms ?? []).map((vm) => ({ ...words.systemVm(vm), id: vm.id, name: vm.name, view: "systemvms" }));
    const downloads = images.map((image) => ({ ...words.template(image), id: image.id, name: image.name, view: "templates", reason: image.downloaderror ?? image.status }));
    const open = [...vms, ...downloads].filter(({ kind, view }) => kind === "problem" || (kind !== "good" && view === "systemvms"));
    if (open.length === 0) return null;
    return h("section", { key: "attention", class: "attention", "aria-labelledby": "attention-title" },
        h("h2", { id: "attention-title" }, "Needs attention"),
        h("ul", { class: "plain-list" },
            open.map(({ id, kind, label, name, view, reason }) =>
                h("li", { key: id }, chip({ kind, label }), h("a", { href: `#/${view}` }, name), h("span", { class: "reason" }, reason)))));
}

function stores() {
    if (!state.imagestores?.length) return h("p", { class: "empty" }, "No store is known. Templates need one: start the server with --image-store or --local-store.");
    return table("Secondary storage", ["Store", "Provider", "Address", "Space"],
        state.imagestores.map((store) => ({
            key: store.id,
            cells: [[store.name, store.readonly && chip({ kind: "off", label: "read-only" })], store.providername, h("code", null, store.url), usage(store.disksizeused, store.disksizetotal)],
        })));
}

function pools() {
    if (!state.storagepools?.length) return null;
    return table("Primary storage", ["Pool", "State", "Type", "Space"],
        state.storagepools.map((pool) => ({ key: pool.id, cells: [pool.name, pool.state, pool.type, usage(pool.disksizeused, pool.disksizetotal)] })));
}

function hosts() {
    if (!state.hosts?.length) return h("p", { class: "empty" }, "No agent has connected yet.");
    return table("Hosts", ["Host", "State", "Type", "Address", "Version", "Last heard of"],
        state.hosts.map((host) => ({
            key: host.id,
            cells: [host.name, chip(words.host(host)), host.type, host.ipaddress, host.version, when(host.lastpinged)],
        })));
}

function alerts() {
    if (!state.alerts?.length) return h("p", { class: "empty" }, "No alerts.");
    return h("ul", { class: "log" },
        state.alerts.slice(0, RECENT_ALERTS).map((alert) =>
            h("li", { key: alert.id, class: "problem" }, h("span", { class: "when" }, when(alert.sent)), h("span", null, alert.description ?? alert.name))));
}
