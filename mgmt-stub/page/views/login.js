// Who are you? And, after a one-time password: which password do you want?

import * as api from "../api.js";
import { h } from "../dom.js";
import { changed } from "../state.js";

const MIN_PASSWORD_LENGTH = 8;

const form = { isBusy: false, problem: null };
/** The one-time password, until another one is chosen. */
let usedPassword = null;

/** `enter` is called after a good login. `lead` says why it is asked for, if not plain. */
export function loginForm(enter, lead) {
    async function submit(event) {
        event.preventDefault();
        const { username, password } = event.target.elements;
        await attempt(async () => {
            await api.login(username.value, password.value);
            usedPassword = api.session().mustChoosePassword ? password.value : null;
            password.value = "";
            enter();
        }, () => focus("#password"));
    }
    return h("form", { class: "card", key: "login", onsubmit: submit, "aria-labelledby": "login-title" },
        h("h1", { id: "login-title" }, "Log in"),
        lead && h("p", null, lead),
        field({ id: "username", label: "User name", autocomplete: "username", autofocus: true, required: true, autocapitalize: "none", spellcheck: "false" }),
        field({ id: "password", label: "Password", type: "password", autocomplete: "current-password", required: true }),
        problem(),
        h("button", { class: "primary wide", disabled: form.isBusy }, form.isBusy ? "Logging in…" : "Log in"),
        h("p", { class: "hint" }, "No password yet? On the server, ", h("code", null, "mgmt-stub reset-admin-password"), " prints one for a single use."),
    );
}

/** A one-time password has let the user in; now they choose one. */
export function choosePassword(enter, leave) {
    async function submit(event) {
        event.preventDefault();
        const { current, chosen, repeated } = event.target.elements;
        const used = current?.value ?? usedPassword;
        if (chosen.value !== repeated.value) return refuse("The two passwords differ.", "#repeated");
        if (chosen.value === used) return refuse("Choose another one than the one-time password.", "#chosen");
        await attempt(async () => {
            await api.choosePassword(chosen.value, used);
            usedPassword = null;
            enter();
        }, () => focus("#chosen"));
    }
    return h("form", { class: "card", key: "choose", onsubmit: submit, "aria-labelledby": "choose-title" },
        h("h1", { id: "choose-title" }, "Choose a password"),
        h("p", null, "The password you used was good for one login. Choose your own to go on."),
        h("input", { type: "text", name: "username", autocomplete: "username", value: api.session()?.username, readonly: true, class: "unseen", tabindex: "-1", "aria-hidden": "true" }),
        usedPassword === null && field({ id: "current", label: "One-time password", type: "password", autocomplete: "off", required: true }), // after a reload
        field({ id: "chosen", label: "New password", type: "password", autocomplete: "new-password", required: true, minlength: MIN_PASSWORD_LENGTH, autofocus: true,
            hint: `At least ${MIN_PASSWORD_LENGTH} characters; a few words are better than one with signs.` }),
        field({ id: "repeated", label: "The same again", type: "password", autocomplete: "new-password", required: true }),
        problem(),
        h("div", { class: "buttons end" },
            h("button", { type: "button", onclick: leave }, "Cancel"),
            h("button", { class: "primary", disabled: form.isBusy }, form.isBusy ? "Saving…" : "Save and go on")),
    );
}

/** A labelled input; `hint` and `problem` are read with it. */
export function field({ id, label, hint, problem, type = "text", ...properties }) {
    const focus = properties.autofocus ? (input) => queueMicrotask(() => input.focus()) : undefined;
    const more = [problem && `${id}-problem`, hint && `${id}-hint`].filter(Boolean).join(" ") || undefined;
    return h("div", { class: "field", key: id },
        h("label", { for: id }, label),
        h("input", { id, name: id, type, "aria-describedby": more, "aria-invalid": problem ? "true" : undefined, ...properties, made: focus }),
        problem && h("p", { key: "problem", class: "problem-text", role: "alert", id: `${id}-problem` }, problem),
        hint && h("p", { key: "hint", class: "hint", id: `${id}-hint` }, hint),
    );
}

function problem() {
    return h("p", { class: "problem-text", role: "alert" }, form.problem);
}

async function attempt(work, onProblem) {
    form.isBusy = true;
    form.problem = null;
    changed();
    try {
        await work();
    } catch (error) {
        form.problem = error.message;
        onProblem();
    }
    form.isBusy = false;
    changed();
}

function refuse(text, where) {
    form.problem = text;
    focus(where);
    changed();
}

function focus(selector) {
    const input = document.querySelector(selector);
    input?.focus();
    input?.select();
}
