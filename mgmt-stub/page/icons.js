// Our own icons, drawn with lines on 24 × 24. They are decoration: what they mean is always said in words beside them.

import { h } from "./dom.js";

const PATHS = {
    overview: "M4 13h6V4H4zM14 20h6v-9h-6zM4 20h6v-4H4zM14 8h6V4h-6z",
    systemvms: "M4 5h16v6H4zM4 13h16v6H4zM8 8h.01M8 16h.01M12 8h4M12 16h4",
    templates: "M12 3 4 7v10l8 4 8-4V7zM4 7l8 4 8-4M12 11v10",
    instances: "M3 5h18v11H3zM9 20h6M12 16v4",
    events: "M12 7v5l3 2M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18z",
    console: "M3 5h18v14H3zM7 10l3 2-3 2M12 15h4",
    proxy: "M3 5h18v11H3zM9 20h6M12 16v4M8 10.5h8M13 8l3 2.5-3 2.5",
    hosts: "M3 12h4l3-7 4 14 3-7h4",
    storage: "M5 6c0-1.7 3.1-3 7-3s7 1.3 7 3-3.1 3-7 3-7-1.3-7-3zM5 6v12c0 1.7 3.1 3 7 3s7-1.3 7-3V6M5 12c0 1.7 3.1 3 7 3s7-1.3 7-3",
    disc: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 9.5a2.5 2.5 0 1 0 0 5 2.5 2.5 0 0 0 0-5z",
    start: "M8 5v14l11-7z",
    stop: "M6 6h12v12H6z",
    reboot: "M20 12a8 8 0 1 1-2.5-5.8M20 3v4h-4",
    remove: "M5 7h14M9 7V4h6v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
    add: "M12 5v14M5 12h14",
    close: "M6 6l12 12M18 6 6 18",
    logout: "M10 4H5v16h5M14 8l4 4-4 4M18 12H9",
    problem: "M12 4 2.8 20h18.4zM12 10v4M12 17h.01",
    back: "M15 5l-7 7 7 7",
    wait: "M7 3h10M7 21h10M8 3v4l4 5 4-5V3M8 21v-4l4-5 4 5v4",
    good: "M5 12.5l4.5 4.5L19 7.5",
    work: "M12 4v3M12 17v3M4 12h3M17 12h3M6.5 6.5l2 2M15.5 15.5l2 2M17.5 6.5l-2 2M8.5 15.5l-2 2",
};

export function icon(name) {
    return h("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true", focusable: "false" }, h("path", { d: PATHS[name] }));
}
