// Requests to the server: progress, cancelling, time-outs, and what went wrong in words.

const STALLED = 60; // seconds without progress while a picture is sent
const PATIENCE = 15; // seconds beyond the server's own limit

let key = read();

/** Whether requests carry a key. */
export function hasKey() {
  return key !== "";
}

/** Use this key from now on; it is kept for this tab only. */
export function useKey(text) {
  key = text.trim();
  try {
    sessionStorage.setItem("key", key);
  } catch {
    // storage may be switched off; then the key is kept until the page is closed
  }
}

function read() {
  try {
    return sessionStorage.getItem("key") || "";
  } catch {
    return "";
  }
}

/** Something that went wrong. `kind` is cancelled, network, timeout, key, busy, picture or server. */
export class Trouble extends Error {
  constructor(kind, text, { retryAfter = 0 } = {}) {
    super(text);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/**
 * Send a request and return the JSON of its answer.
 *
 * `sent(share)` is told how much of the body is on its way, 0 to 1. `signal` cancels. `seconds` is how long the server
 * may take once it has the body. Throws Trouble.
 */
export function request(method, path, { body = null, type = null, sent = () => {}, signal = null, seconds = 30 } = {}) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest(); // fetch tells nothing of the progress of a body
    let timer = 0;
    let late = null;
    const wait = (limit, text) => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        late = new Trouble("timeout", text);
        xhr.abort();
      }, 1000 * limit);
    };
    const finish = (settle, value) => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", cancel);
      settle(value);
    };
    const cancel = () => xhr.abort();
    const limit = seconds + PATIENCE;
    const awaiting = () => wait(limit, `No answer within ${Math.round(limit)} seconds.`);
    const sending = () => wait(STALLED, `Nothing could be sent for ${STALLED} seconds. Is the connection good?`);

    xhr.open(method, path);
    if (type) xhr.setRequestHeader("Content-Type", type);
    if (key) xhr.setRequestHeader("X-API-Key", key.replace(/[^ -~]/g, "?")); // a header has ASCII only
    if (body) {
      sending();
      xhr.upload.onprogress = (event) => {
        sending();
        if (event.lengthComputable) sent(event.loaded / event.total);
      };
      xhr.upload.onload = () => {
        sent(1);
        awaiting();
      };
    } else {
      awaiting();
    }
    xhr.onabort = () => finish(reject, late || new Trouble("cancelled", "Cancelled."));
    xhr.onerror = () => finish(reject, new Trouble("network", "The server can’t be reached. Does it still run, and are you connected?"));
    xhr.onload = () => {
      const answer = parsed(xhr.responseText);
      if (xhr.status >= 200 && xhr.status < 300 && answer) finish(resolve, answer);
      else finish(reject, inWords(xhr, answer));
    };
    if (signal?.aborted) return finish(reject, new Trouble("cancelled", "Cancelled."));
    signal?.addEventListener("abort", cancel);
    xhr.send(body);
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function inWords(xhr, answer) {
  const said = answer?.error || answer?.results?.find((one) => one.error)?.error || "";
  const more = said ? ` (${said})` : "";
  switch (xhr.status) {
    case 401:
      return new Trouble("key", key ? "The server does not accept this key." : "The server asks for a key.");
    case 408:
      return new Trouble("network", "The picture did not arrive in time. Is the connection good?");
    case 413:
      return new Trouble("picture", `This is too large for the server${more || "."}`);
    case 422:
      return new Trouble("picture", `This picture can’t be read: ${said || "the server does not say why"}`);
    case 502:
    case 503: {
      const after = Math.max(1, Number.parseInt(xhr.getResponseHeader("Retry-After"), 10) || 2);
      return new Trouble("busy", "The server is busy", { retryAfter: after });
    }
    case 504:
      return new Trouble("timeout", "The server did not answer in time. It may have too much to do.");
    case 500: {
      const id = xhr.getResponseHeader("X-Request-ID");
      return new Trouble("server", `Something failed in the server${id ? `; its log has the reason under the id ${id}` : ""}.`);
    }
    default:
      return new Trouble("server", said ? `The server says: ${said}` : `The server answered with the status ${xhr.status}.`);
  }
}
