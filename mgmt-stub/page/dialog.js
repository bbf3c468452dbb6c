// Questions before something is done that cannot be undone. The browser's own <dialog> keeps the focus inside and gives
// it back afterwards; Escape answers no.

import { h, show } from "./dom.js";

/** Whether the user wants it. `action` is the word on the button. */
export function confirm({ title, text, action, isDangerous = false }) {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-labelledby", "dialog-title");
    dialog.setAttribute("aria-describedby", "dialog-text");
    show(dialog, [
        h("form", { method: "dialog" },
            h("h2", { id: "dialog-title" }, title),
            h("p", { id: "dialog-text" }, text),
            h("div", { class: "buttons end" },
                h("button", { value: "no", autofocus: true }, "Cancel"),
                h("button", { value: "yes", class: isDangerous ? "danger" : "primary" }, action),
            ),
        ),
    ]);
    document.body.append(dialog);
    return new Promise((resolve) => {
        dialog.onclose = () => {
            dialog.remove();
            resolve(dialog.returnValue === "yes");
        };
        dialog.showModal();
    });
}
