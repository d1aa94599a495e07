// The page: takes `overview` events from the service, keeps their history, and shows both.

import { byId, key, longDuration, readEvents, request, RequestError, setAttribute, setState, setText, setValue, whole } from "./base.js";
import { History, Plots } from "./history.js";
import { makeNodes } from "./nodes.js";
import { makeDevices, makePools, makeQueues, makeTotals } from "./panels.js";
import { latencyOf, makeFailures, makeLatency, makeObjectives } from "./quality.js";
import { makePrompt, makeTimeline } from "./tasks.js";

/** Without an event for this long the figures are stale; after the second span the connection is given up. */
const STALE_MS = 3500;
const SILENCE_MAX_MS = 12_000;
const BACKOFF_MS = [500, 1000, 2000, 4000, 8000, 15_000];

const history = new History();
let plots = null;
let panels = [];
let overview = null;
let counts = { events: 0, renders: 0 };
let frame = null; // The promise of the render that is due.

// ---- taking and showing events

/** Takes one overview, from the stream or from a test. Resolves when it is on the page. */
function feed(next) {
  counts.events += 1;
  announceChanges(overview, next);
  overview = next;
  history.push(next.at_ms, next.pools ?? [], readHistory);
  // Events may come faster than frames, and nobody looks at a hidden page: the newest is shown when it can be seen.
  if (document.hidden) return Promise.resolve();
  frame ??= new Promise((done) => requestAnimationFrame(() => {
    frame = null;
    render();
    done();
  }));
  return frame;
}

function readHistory(pool, name) {
  switch (name) {
    case "queue_depth": return (pool.queue_depth ?? []).reduce((a, b) => a + b, 0);
    case "tokens_per_s": return pool.tokens_per_s ?? NaN;
    case "slots_used": return pool.slots_used ?? NaN;
    default: return latencyOf(pool, "interactive", "1m", "first_token", "p95");
  }
}

function render() {
  if (!overview) return;
  counts.renders += 1;
  renderHeader();
  for (const update of panels) update(overview);
  plots.draw();
}

function renderHeader() {
  setText(byId("version"), overview.version ? `v${overview.version}` : "");
  setValue(byId("uptime"), overview.uptime_s, longDuration);
  setValue(byId("generation"), overview.config?.generation, whole);
  const pools = overview.pools ?? [];
  const ready = pools.filter((pool) => pool.state === "ready").length;
  const health = byId("health");
  const state = pools.length === 0 ? "stopped" : ready === pools.length ? "ready" : ready === 0 ? "broken" : "suspect";
  setState(health, state, pools.length === 0 ? "no pools" : `${ready} of ${pools.length} pools ready`);
  setAttribute(health, "data-metric", "pools_ready");
  setAttribute(health, "data-value", String(ready));
  const title = ready === pools.length ? "orchestratord" : `(${pools.length - ready} not ready) orchestratord`;
  if (document.title !== title) document.title = title;
}

// ---- what a reader of screens hears: changes of state, and no numbers

let unsaid = [];
let saying = 0;

function announce(text) {
  unsaid.push(text);
  saying ||= setTimeout(() => {
    setText(byId("announce"), unsaid.slice(-6).join(" "));
    unsaid = [];
    saying = 0;
  }, 400);
}

function announceChanges(before, after) {
  if (!before) return;
  const say = (items, was, id, of, words) => {
    const known = new Map((was ?? []).map((item) => [item[id], item]));
    for (const item of items ?? []) {
      const old = known.get(item[id]);
      if (old && of(old) !== of(item)) announce(words(item));
    }
  };
  say(after.pools, before.pools, "pool_id", (pool) => pool.state, (pool) => `Pool ${pool.pool_id} is ${pool.state}.`);
  say(after.devices?.devices, before.devices?.devices, "id", (device) => device.condition, (device) => `Device ${device.id} is ${device.condition}.`);
  const met = (row) => row.attainment === null || row.attainment === undefined || row.attainment >= row.target;
  const long = (rows) => (rows ?? []).filter((row) => row.window === "10m");
  say(long(after.slo), long(before.slo), "priority", met, (row) => `The ${row.priority} objective is ${met(row) ? "met" : "missed"}.`);
}

// ---- the connection

const link = { state: "connecting", abort: null, failures: 0, lastEventAt: 0, retryAt: 0, paused: false, wake: () => {} };

function setLink(state) {
  if (link.state === state) return;
  link.state = state;
  document.body.dataset.connection = state;
  announce({ live: "Connected.", reconnecting: "The connection is lost. Reconnecting.", locked: "The service wants a key.", stale: "No figures are coming in.", denied: "This key may not see the figures." }[state] ?? "");
  showLink();
}

/** Called each second: counts down to the next try, and finds out that figures have stopped coming. */
function showLink() {
  const node = byId("connection");
  const age = link.lastEventAt > 0 ? `, figures are ${longDuration((Date.now() - link.lastEventAt) / 1000)} old` : "";
  const wait = Math.ceil((link.retryAt - Date.now()) / 1000);
  byId("retry-now").hidden = link.state !== "reconnecting" && link.state !== "denied";
  if (link.state === "live") setState(node, "live");
  else if (link.state === "connecting") setState(node, "waiting");
  else if (link.state === "stale") setState(node, "lost", `no figures${age}`);
  else if (link.state === "locked") setState(node, "locked");
  else if (link.state === "denied") setState(node, "locked", "this key may not see the figures");
  else if (link.state === "paused") setState(node, "stopped", "paused");
  else setState(node, "lost", wait > 0 ? `reconnecting in ${wait} s${age}` : `reconnecting${age}`);
}

function watchLink() {
  const silence = Date.now() - Math.max(link.lastEventAt, link.openedAt ?? 0);
  if (link.state === "live" && silence > STALE_MS) setLink("stale");
  if (link.abort && silence > SILENCE_MAX_MS) link.abort.abort();
  showLink();
}

/** Reads the stream for ever. Each failure makes the next try later, up to 15 seconds. */
async function keepConnected() {
  for (;;) {
    if (link.paused) {
      setLink("paused");
      await pause(Infinity);
      continue;
    }
    try {
      await readStream();
      setLink("reconnecting"); // The service closed the stream: it goes down, or something between does.
    } catch (error) {
      if (error instanceof RequestError && error.status === 401) setLink("locked");
      else if (error instanceof RequestError && error.status === 403) setLink("denied");
      else setLink("reconnecting");
    }
    if (link.state === "locked") {
      await pause(Infinity);
    } else {
      const longest = BACKOFF_MS[Math.min(link.failures, BACKOFF_MS.length - 1)];
      link.failures += 1;
      await pause(longest * (0.75 + 0.5 * Math.random())); // Not all tabs at the same moment.
    }
  }
}

async function readStream() {
  link.abort = new AbortController();
  link.openedAt = Date.now();
  const { signal } = link.abort;
  try {
    const answer = await request("v1/events", { headers: { accept: "text/event-stream" }, signal });
    await readEvents(answer, (type, data) => {
      if (type !== "overview" || signal.aborted) return;
      link.lastEventAt = Date.now();
      link.failures = 0;
      setLink("live");
      feed(JSON.parse(data));
    });
  } finally {
    link.abort = null;
  }
}

/** Waits, or less when somebody asks for a try at once. */
function pause(ms) {
  link.retryAt = Date.now() + ms;
  showLink();
  return new Promise((done) => {
    const timer = Number.isFinite(ms) ? setTimeout(done, ms) : 0;
    link.wake = () => {
      clearTimeout(timer);
      link.retryAt = 0;
      done();
    };
  });
}

// ---- the key

function makeKeyForm() {
  const dialog = byId("key-dialog");
  const input = byId("key-input");
  const button = byId("key-button");
  const ask = (message) => {
    setText(byId("key-message"), message);
    byId("key-forget").hidden = !key.get();
    button.hidden = false;
    if (!dialog.open) dialog.showModal();
    input.focus();
  };
  const showButton = () => setText(button, key.get() ? "Key" : "Enter a key");
  const usual = "It is kept in this tab only and forgotten when the tab closes.";
  key.onRefused(() => ask(key.get() ? "The service did not accept this key. Check it, or ask for another." : usual));
  button.addEventListener("click", () => ask(usual));
  byId("key-form").addEventListener("submit", () => {
    key.set(input.value.trim());
    input.value = "";
    showButton();
    reconnect();
  });
  byId("key-forget").addEventListener("click", () => {
    key.forget();
    showButton();
    dialog.close();
    reconnect();
  });
  button.hidden = !key.get();
  showButton();
}

function reconnect() {
  link.failures = 0;
  link.abort?.abort();
  setLink("connecting");
  link.wake();
}

// ---- the theme

/** Follows the system until somebody chooses otherwise; a choice that is the system's own is forgotten again. */
function makeTheme() {
  const name = "orchestratord.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const button = byId("theme");
  const chosen = () => localStorage.getItem(name);
  const show = () => {
    const theme = chosen() ?? (system.matches ? "dark" : "light");
    document.documentElement.dataset.theme = theme;
    button.setAttribute("aria-pressed", String(theme === "dark"));
  };
  button.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    if (theme === (system.matches ? "dark" : "light")) localStorage.removeItem(name);
    else localStorage.setItem(name, theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}

// ---- begin

function begin() {
  makeTheme();
  makeKeyForm();
  plots = new Plots(history, { plots: byId("plots"), span: byId("history-span"), legend: byId("history-legend") });
  plots.draw();
  panels = [makeTotals(), makePools(), makeObjectives(), makeFailures(), makeLatency(), makeQueues(), makeDevices(), makeNodes(), makePrompt()];
  makeTimeline();
  setState(byId("health"), "stopped", "no figures yet");
  showLink();
  byId("retry-now").addEventListener("click", () => link.wake());
  window.addEventListener("online", () => link.state === "reconnecting" && link.wake());
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) return;
    render();
    if (link.state === "reconnecting") link.wake();
  });
  setInterval(watchLink, 1000);
  keepConnected();
}

/** For tests: the same path as real events, and what the page holds. `pause` closes the stream so that only fed events count. */
window.orchestratorDashboard = {
  feed,
  stats: () => ({ ...counts, connection: link.state, elements: document.getElementsByTagName("*").length, ...history.stats() }),
  pause() {
    link.paused = true;
    link.abort?.abort();
    link.wake();
  },
  resume() {
    link.paused = false;
    link.wake();
  },
};

begin();
