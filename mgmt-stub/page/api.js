// The HTTP API (docs/api.md): one function for a call, one for a job. Session cookies are HttpOnly; with them each call
// needs the session key, which alone opens nothing and may therefore be kept where other tabs find it.

const STORED = "sysvm.session";
const JOB_INTERVAL_MS = 1000;
const CALL_LIMIT_MS = 30_000;

/** An answer that says no. `code` is CloudStack's, 0 when nobody answered. */
export class ApiError extends Error {
    constructor(text, code, parameter) {
        super(text);
        this.code = code;
        /** The parameter that the text is about, if it names one. */
        this.parameter = parameter;
    }
}

/** Who is logged in: `{ username, userid, sessionkey, mustChoosePassword }`, or null. */
export function session() {
    try {
        return JSON.parse(localStorage.getItem(STORED));
    } catch {
        return null;
    }
}

function remember(session) {
    if (session === null) localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, JSON.stringify(session));
}

let onSessionEnd = () => {};

/** Who is told when the server no longer knows the session. */
export function whenSessionEnds(callback) {
    onSessionEnd = callback;
}

let lastCall = 0;

/** Milliseconds since the last call: the server ends sessions that are not used. */
export function idleTime() {
    return Date.now() - lastCall;
}

/** What is inside the answer's one key. */
export async function call(command, parameters = {}) {
    const key = session()?.sessionkey;
    return send(command, { ...parameters, ...(key ? { sessionkey: key } : {}) });
}

async function send(command, parameters) {
    lastCall = Date.now();
    const form = new URLSearchParams({ command, response: "json" });
    for (const [name, value] of Object.entries(parameters)) {
        if (value !== undefined && value !== null && value !== "") form.set(name, value);
    }
    let answer, body;
    try {
        answer = await fetch("api", { method: "POST", body: form, signal: AbortSignal.timeout(CALL_LIMIT_MS) });
        body = Object.values(await answer.json())[0] ?? {};
    } catch (error) {
        if (answer !== undefined && error.name !== "TimeoutError") {
            throw new ApiError(`The server answered with status ${answer.status} and no words`, answer.status);
        }
        throw new ApiError("The server does not answer. What was asked may or may not have been done.", 0);
    }
    if (answer.ok && body.errorcode === undefined) return body;
    const text = body.errortext ?? `The server answered with status ${answer.status}`;
    if (answer.status === 401 && command !== "login") onSessionEnd();
    throw new ApiError(text, body.errorcode ?? answer.status, /parameter (\w+)/.exec(text)?.[1]);
}

/** Opens a session, which may be one in which a password has to be chosen first. */
export async function login(username, password) {
    const answer = await send("login", { username, password });
    remember({
        username: answer.username ?? username,
        userid: answer.userid,
        sessionkey: answer.sessionkey,
        mustChoosePassword: String(answer.passwordchangerequired) === "true",
    });
}

export async function choosePassword(chosen, current) {
    await call("updateUser", { id: session().userid, password: chosen, currentpassword: current });
    remember({ ...session(), mustChoosePassword: false });
}

export async function logout() {
    try {
        await call("logout");
    } finally {
        remember(null);
    }
}

export function forgetSession() {
    remember(null);
}

/** Starts a job; answers what `finish` takes. */
export async function start(command, parameters) {
    return (await call(command, parameters)).jobid;
}

/** Waits for the end of a job; answers `jobresult`. The server may go away meanwhile, and come back. */
export async function finish(jobid) {
    for (;;) {
        await new Promise((resolve) => setTimeout(resolve, JOB_INTERVAL_MS));
        let answer;
        try {
            answer = await call("queryAsyncJobResult", { jobid });
        } catch (error) {
            if (error.code === 0 || error.code === 401) continue; // away, or asked to log in: both pass
            throw error;
        }
        const result = answer.jobresult;
        if (answer.jobstatus === 1) return result;
        if (answer.jobstatus === 2) {
            throw new ApiError(result?.errortext ?? (typeof result === "string" ? result : "The job failed"), answer.jobresultcode);
        }
    }
}

/** Starts a job and waits for its end. */
export async function job(command, parameters) {
    return finish(await start(command, parameters));
}
