// Views are functions that say what should be on the page; `show` changes what differs and leaves the rest alone, so
// that focus, typed text and what a screen reader is reading stay where they are.

const SVG = "http://www.w3.org/2000/svg";
const shown = new WeakMap(); // DOM node -> the node that described it

/** Describes an element. Properties: attributes, `on…` handlers, `key` among siblings, `made` (called once with the
 *  element). `false`, `null` and `undefined` are left out, of properties and of children. Text is always text. */
export function h(tag, properties, ...children) {
    const { key, made, ...rest } = properties ?? {};
    const isThere = (child) => child !== null && child !== undefined && child !== false;
    return { tag, key, made, properties: rest, children: children.flat(Infinity).filter(isThere).map(text) };
}

function text(child) {
    return typeof child === "object" ? child : { tag: "#text", text: String(child) };
}

/** Makes `children` the content of `parent`. */
export function show(parent, children) {
    const wanted = [children].flat(Infinity).filter(Boolean).map(text);
    const keyed = new Map();
    const unkeyed = [];
    for (const node of parent.childNodes) {
        const key = shown.get(node)?.key;
        if (key === undefined) unkeyed.push(node);
        else keyed.set(key, node);
    }
    const nodes = wanted.map((node) => {
        const found = node.key === undefined ? takeSimilar(unkeyed, node) : keyed.get(node.key);
        if (found === undefined || !isSimilar(found, node)) return make(parent, node);
        keyed.delete(node.key);
        change(found, node);
        return found;
    });
    const kept = new Set(nodes);
    for (const node of [...parent.childNodes]) {
        if (!kept.has(node)) node.remove();
    }
    let place = parent.firstChild;
    for (const node of nodes) {
        if (node === place) place = place.nextSibling;
        else parent.insertBefore(node, place);
    }
}

function takeSimilar(nodes, wanted) {
    const index = nodes.findIndex((node) => isSimilar(node, wanted));
    return index < 0 ? undefined : nodes.splice(0, index + 1)[index];
}

function isSimilar(node, wanted) {
    return shown.get(node)?.tag === wanted.tag;
}

function make(parent, node) {
    if (node.tag === "#text") {
        const made = document.createTextNode(node.text);
        shown.set(made, node);
        return made;
    }
    const isSvg = node.tag === "svg" || parent.namespaceURI === SVG;
    const made = isSvg ? document.createElementNS(SVG, node.tag) : document.createElement(node.tag);
    shown.set(made, { tag: node.tag, key: node.key, properties: {} });
    change(made, node);
    node.made?.(made);
    return made;
}

function change(element, node) {
    const before = shown.get(element);
    shown.set(element, node);
    if (node.tag === "#text") {
        if (before.text !== node.text) element.data = node.text;
        return;
    }
    for (const name of Object.keys(before.properties)) {
        if (!(name in node.properties)) set(element, name, undefined);
    }
    for (const [name, value] of Object.entries(node.properties)) {
        if (before.properties[name] !== value) set(element, name, value);
    }
    show(element, node.children);
}

function set(element, name, value) {
    if (name.startsWith("on")) {
        element[name] = value ?? null;
    } else if (value === undefined || value === null || value === false) {
        element.removeAttribute(name);
    } else {
        element.setAttribute(name, value === true ? "" : value);
    }
}
