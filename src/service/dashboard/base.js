// What every part of the page uses: elements, numbers as text, requests and server-sent events.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children. Strings become text nodes: nothing from outside is ever parsed as markup. */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Writes text only when it differs, into the text node that is there, so that a quiet second costs nothing. */
export function setText(node, text) {
  const first = node.firstChild;
  if (first && first === node.lastChild && first.nodeType === Node.TEXT_NODE) {
    if (first.data !== text) first.data = text;
  } else if (node.textContent !== text || first) {
    node.textContent = text;
  }
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** A number as people read it, and in full precision as `data-value`; a missing one is a dash and "". */
export function setValue(node, value, format) {
  const known = typeof value === "number" && Number.isFinite(value);
  setAttribute(node, "data-value", known ? String(value) : "");
  setText(node, known ? format(value) : "–");
}

/** An element that holds one number, with the hooks by which a test finds it. */
export function metric(tag, name, labels = {}, className = "num") {
  const node = el(tag, { class: className, "data-metric": name, "data-value": "" }, "–");
  for (const [label, value] of Object.entries(labels)) node.setAttribute(`data-${label}`, value);
  return node;
}

/** A bar whose fill is a share of its width; the number stands beside it, so readers of screens skip it. */
export function bar(className = "") {
  const fill = el("span", { class: "fill" });
  const root = el("span", { class: `bar ${className}`, "aria-hidden": "true" }, fill);
  let shown = -1;
  return {
    root,
    set(share) {
      const percent = Math.round(1000 * Math.min(1, Math.max(0, share || 0))) / 10;
      if (percent !== shown) fill.style.width = `${percent}%`;
      shown = percent;
    },
  };
}

/**
 * Keeps the children of `parent`, those behind `after` if it is given, in step with items by key: rows are made once, moved when
 * they must, removed when gone.
 */
export function keyed(parent, create, update, after = null) {
  const rows = new Map();
  return (items, keyOf) => {
    const wanted = new Map();
    for (const item of items) {
      let key = keyOf(item);
      while (wanted.has(key)) key += "'";
      wanted.set(key, item);
    }
    for (const [key, row] of rows) {
      if (wanted.has(key)) continue;
      row.root.remove();
      rows.delete(key);
    }
    let place = after ? after.nextElementSibling : parent.firstElementChild;
    for (const [key, item] of wanted) {
      let row = rows.get(key);
      if (!row) rows.set(key, (row = create(item)));
      if (row.root === place) place = place.nextElementSibling;
      else parent.insertBefore(row.root, place);
      update(row, item);
    }
  };
}

/** A row of buttons of which one is pressed. `values` are [value, label] pairs. */
export function choice(parent, values, chosen, onChoose) {
  const buttons = values.map(([value, label]) => {
    const button = el("button", { type: "button", "data-choice": value, "aria-pressed": String(value === chosen) }, label);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      onChoose(value);
    });
    return button;
  });
  parent.append(...buttons);
}

// ---- states: a word, a shape and a tone for each

const STATES = {
  ready: ["ready", "i-check", "ok"],
  healthy: ["healthy", "i-check", "ok"],
  preloading: ["preloading", "i-load", "info"],
  reloading: ["reloading", "i-turn", "info"],
  suspect: ["suspect", "i-ask", "warn"],
  draining: ["draining", "i-down", "warn"],
  backoff: ["backoff", "i-clock", "bad"],
  unready: ["unready", "i-warn", "bad"],
  device_down: ["device down", "i-warn", "bad"],
  broken: ["broken", "i-stop", "bad"],
  failed: ["failed", "i-stop", "bad"],
  late: ["late", "i-clock", "warn"],
  reset_pending: ["reset pending", "i-ask", "warn"],
  stopped: ["stopped", "i-off", "off"],
  live: ["live", "i-check", "ok"],
  waiting: ["connecting", "i-load", "info"],
  lost: ["reconnecting", "i-turn", "warn"],
  locked: ["needs a key", "i-stop", "bad"],
};

export const stateTone = (state) => (STATES[state] ?? STATES.suspect)[2];

/** Shows a state as shape, word and colour. `words` replaces the state's own word. */
export function setState(node, state, words) {
  const [word, icon, tone] = STATES[state] ?? [state, "i-ask", "warn"];
  if (node.dataset.shown !== state) {
    const use = svg("use", { href: `#${icon}` });
    node.replaceChildren(svg("svg", { class: "icon", "aria-hidden": "true", focusable: "false" }, use), el("span"));
    node.dataset.shown = state;
    node.dataset.tone = tone;
  }
  setText(node.lastChild, words ?? word);
}

// ---- numbers as text

const WHOLE = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
export const whole = (value) => WHOLE.format(value);
export const oneDigit = (value) => (Math.abs(value) < 99.95 ? value.toFixed(1) : WHOLE.format(value));
export const percent = (value) => `${(100 * value).toFixed(0)}%`;
export const percentFine = (value) => `${(100 * value).toFixed(2)}%`;
export const gib = (bytes) => (bytes / 2 ** 30).toFixed(1);

/** A duration with the unit that suits it. */
export function duration(ms) {
  if (ms < 1000) return `${oneDigit(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return longDuration(ms / 1000);
}

/** A duration in two units at most, for ages and uptimes. */
export function longDuration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** A message of the service as a sentence, so that another can follow it. */
export function sentence(text) {
  const words = String(text);
  return `${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

// ---- requests

const KEY_NAME = "orchestratord.key";
let onUnauthorized = () => {};

export const key = {
  get: () => sessionStorage.getItem(KEY_NAME),
  set: (value) => sessionStorage.setItem(KEY_NAME, value),
  forget: () => sessionStorage.removeItem(KEY_NAME),
  /** Called whenever the service answers 401. */
  onRefused: (callback) => (onUnauthorized = callback),
};

/** What went wrong with a request, in the service's own words where it gave some. */
export class RequestError extends Error {
  constructor(status, envelope) {
    const forbidden = status === 403 ? "this key does not allow it" : `the service answered ${status}`;
    super(envelope?.message ?? forbidden);
    this.status = status;
    this.code = envelope?.code ?? (status === 403 ? "FORBIDDEN" : `HTTP ${status}`);
    this.retryAfterMs = envelope?.retry_after_ms ?? null;
  }
}

/**
 * Sends a request with the key, if there is one. Throws RequestError for any answer but success.
 * The path has no slash in front: it stands beside the page, below whatever path a proxy has put before both.
 */
export async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  const secret = key.get();
  if (secret) headers.set("authorization", `Bearer ${secret}`);
  const answer = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options, headers });
  if (answer.ok) return answer;
  let envelope = null;
  try {
    envelope = await answer.json();
  } catch {
    // An answer without an envelope: its status says what there is to say.
  }
  if (answer.status === 401) onUnauthorized();
  const error = new RequestError(answer.status, envelope);
  if (error.retryAfterMs === null && answer.headers.has("retry-after")) {
    error.retryAfterMs = 1000 * Number(answer.headers.get("retry-after")) || null;
  }
  throw error;
}

export const getJson = async (path, signal) => (await request(path, { signal })).json();

/** Longest event that is taken. More is not an event of this service, and must not fill the tab's memory. */
const EVENT_CHARS_MAX = 8 * 1024 * 1024;

/** Reads server-sent events from an answer's body; `onEvent(type, data, id)` gets each, `onBytes` hears of comments too. */
export async function readEvents(answer, onEvent, onBytes = () => {}) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = { type: "message", data: [], id: null };
  const line = (text) => {
    if (text === "") {
      if (event.data.length > 0) onEvent(event.type, event.data.join("\n"), event.id);
      event = { type: "message", data: [], id: event.id };
      return;
    }
    const colon = text.indexOf(":");
    if (colon === 0) return; // A comment that keeps the connection open.
    const field = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(text[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "event") event.type = value;
    else if (field === "data") event.data.push(value);
    else if (field === "id") event.id = value;
  };
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      rest += value;
      // A "\r" at the end may be the first half of "\r\n": it waits for what follows.
      const whole = rest.endsWith("\r") ? rest.slice(0, -1) : rest;
      const lines = whole.split(/\r\n|\r|\n/);
      rest = lines.pop() + rest.slice(whole.length);
      lines.forEach(line);
      if (rest.length > EVENT_CHARS_MAX) throw new Error("an event of the service is too long");
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// ---- parts of an overview

export const PRIORITIES = ["interactive", "batch"];

/** A list, or the empty one where there is none. */
export const list = (value) => (Array.isArray(value) ? value : []);

/** Whether a part of the overview is there; a key may see some parts and not others. */
export function isGiven(part, emptyId, isEmpty) {
  const note = byId(emptyId);
  const denied = part === undefined || part === null || part.code !== undefined;
  note.dataset.usual ??= note.textContent;
  note.hidden = !denied && !isEmpty;
  if (denied) setText(note, `This key may not see this part${part?.code ? ` (${part.code})` : ""}.`);
  else if (note.dataset.denied === "true") setText(note, note.dataset.usual);
  note.dataset.denied = String(denied);
  return !denied;
}
