// Numbers and times as people read them.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** 1536 -> "1.5 KiB". */
export function bytes(count) {
    let [value, unit] = [Number(count), 0];
    if (!Number.isFinite(value) || value < 0) return "unknown";
    while (value >= 1024 && unit < UNITS.length - 1) {
        value /= 1024;
        unit += 1;
    }
    const digits = unit === 0 || value >= 100 ? 0 : 1;
    return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Seconds as the two units that matter: "2 h 5 min". */
export function duration(seconds) {
    const rounded = Math.max(0, Math.round(seconds));
    const [days, hours, minutes] = [Math.floor(rounded / 86400), Math.floor(rounded / 3600) % 24, Math.floor(rounded / 60) % 60];
    if (days > 0) return `${days} d${hours > 0 ? ` ${hours} h` : ""}`;
    if (hours > 0) return `${hours} h${minutes > 0 ? ` ${minutes} min` : ""}`;
    if (minutes >= 5) return `${minutes} min`;
    if (minutes > 0) return `${minutes} min${rounded % 60 > 0 ? ` ${rounded % 60} s` : ""}`;
    return `${rounded} s`;
}

/** The API's "2026-11-20T12:00:00+0000"; null if it is no time. */
export function time(text) {
    const date = new Date(String(text ?? "").replace(/([+-]\d\d)(\d\d)$/, "$1:$2"));
    return Number.isNaN(date.getTime()) ? null : date;
}

/** How long ago, coarse: it is read once, not watched. */
export function ago(date, now) {
    const seconds = (now - date) / 1000;
    if (seconds < 10) return "just now";
    if (seconds < 120) return `${Math.floor(seconds / 10) * 10} s ago`;
    return `${duration(Math.floor(seconds / 60) * 60)} ago`;
}

export function count(number, one, many) {
    return `${number} ${number === 1 ? one : many}`;
}
