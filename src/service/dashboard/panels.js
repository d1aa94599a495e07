// What there is, from the `overview` events: totals, pools, devices, queues and clients. Each part makes its elements once and then
// only writes into them.

import {
  bar, byId, duration, el, gib, isGiven, keyed, list, longDuration, metric, oneDigit, percent, PRIORITIES, sentence, setAttribute,
  setState, setText, setValue, stateTone, whole,
} from "./base.js";
import { latencyOf } from "./quality.js";

const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
const sumOf = (counts) => sum(Object.values(counts ?? {}));

// ---- totals

export function makeTotals() {
  const parent = byId("totals");
  const tile = (label, names, join = " / ") => {
    const numbers = names.map((name) => metric("span", name));
    const value = el("p", { class: "big" });
    numbers.forEach((number, i) => value.append(...(i === 0 ? [number] : [el("small", {}, join), number])));
    parent.append(el("div", { class: "tile" }, el("p", { class: "label" }, label), value));
    return numbers;
  };
  const [open, openMax] = tile("Open tasks", ["tasks_open", "tasks_open_max"]);
  const [depth] = tile("Waiting", ["total_queue_depth"]);
  const [used, total] = tile("Slots used", ["total_slots_used", "total_slots_total"]);
  const [tokens] = tile("Tokens/s", ["total_tokens_per_s"]);
  const [first] = tile("First token p95, worst", ["worst_first_token_p95"]);
  const [rejected] = tile("Refused", ["total_rejected"]);
  const [failed] = tile("Failed", ["total_failed"]);
  return (overview) => {
    const pools = list(overview.pools);
    setValue(open, overview.tasks?.tasks_open, whole);
    setValue(openMax, overview.tasks?.tasks_open_max, whole);
    setValue(depth, sum(pools.map((pool) => sum(list(pool.queue_depth)))), whole);
    setValue(used, sum(pools.map((pool) => pool.slots_used)), whole);
    setValue(total, sum(pools.map((pool) => pool.slots_total)), whole);
    setValue(tokens, sum(pools.map((pool) => pool.tokens_per_s)), oneDigit);
    const worst = pools.map((pool) => latencyOf(pool, "interactive", "1m", "first_token", "p95")).filter(Number.isFinite);
    setValue(first, worst.length > 0 ? Math.max(...worst) : NaN, duration);
    setValue(rejected, overview.tasks ? sumOf(overview.tasks.rejected) : NaN, whole);
    setValue(failed, sum(pools.map((pool) => sumOf(pool.failed))), whole);
  };
}

// ---- pools

export function makePools() {
  const sync = keyed(byId("pool-cards"), makePool, updatePool);
  return (overview) => {
    const given = isGiven(overview.pools, "pools-empty", list(overview.pools).length === 0);
    sync(given ? list(overview.pools) : [], (pool) => pool.pool_id);
  };
}

function makePool(pool) {
  const id = pool.pool_id;
  const labels = { pool: id };
  const number = (name, more = {}) => metric("span", name, { ...labels, ...more });
  const parts = {
    state: el("span", { class: "pill" }),
    tokens: number("tokens_per_s"),
    reason: el("p", { class: "reason", hidden: "" }),
    what: el("p", { class: "what" }),
    used: number("slots_used"),
    total: number("slots_total"),
    slots: bar("slots"),
    depth: PRIORITIES.map((priority) => ({ number: number("queue_depth", { priority }), bar: bar(priority) })),
    capacities: [number("queue_capacity"), el("span", { class: "num" })],
    first: number("first_token_p95", { priority: "interactive", window: "1m" }),
    completed: number("completed"),
    failed: number("failed"),
    canceled: number("canceled"),
    restarts: number("restarts"),
    resumed: number("resumed"),
    death: el("p", { class: "death" }),
    replicas: el("tbody"),
  };
  const heading = el("h3", { id: `ph-${id}` }, id);
  const line = (label, ...values) => el("div", { class: "line" }, el("span", { class: "label" }, label), ...values);
  const count = (label, value) => el("div", {}, el("dt", {}, label), el("dd", {}, value));
  const root = el(
    "article",
    { class: "pool panel", "data-pool": id, "aria-labelledby": `ph-${id}` },
    el("div", { class: "pool-head" }, heading, parts.state, el("p", { class: "rate" }, parts.tokens, el("small", {}, " tokens/s"))),
    parts.what,
    parts.reason,
    line("Slots", parts.slots.root, el("span", { class: "of" }, parts.used, " of ", parts.total)),
    ...PRIORITIES.map((priority, i) =>
      line(priority === "batch" ? "Batch" : "Interactive", parts.depth[i].bar.root,
        el("span", { class: "of" }, parts.depth[i].number, " of ", parts.capacities[i]))),
    el("dl", { class: "counts" }, count("First token p95", parts.first), count("Completed", parts.completed), count("Failed", parts.failed),
      count("Cancelled", parts.canceled), count("Resumed", parts.resumed), count("Restarts", parts.restarts)),
    el("div", { class: "replicas" }, el("table", {}, el("caption", { class: "sr" }, `Replicas of ${id}`),
      el("thead", {}, el("tr", {}, ...["Replica", "State", "Slots", "", "Restarts"].map((title, i) => el(title ? "th" : "td", title ? { scope: "col", class: i === 4 ? "num" : "" } : {}, title)))),
      parts.replicas)),
    parts.death,
  );
  return { root, parts, syncReplicas: keyed(parts.replicas, (replica) => makeReplica(replica, id), updateReplica) };
}

function updatePool({ root, parts, syncReplicas }, pool) {
  const replicas = list(pool.replicas);
  setAttribute(root, "data-state", pool.state);
  root.dataset.tone = stateTone(pool.state);
  setState(parts.state, pool.state);
  setValue(parts.tokens, pool.tokens_per_s, oneDigit);
  showReason(parts.reason, pool);
  const versions = [...new Set(replicas.map((replica) => replica.engine_version).filter(Boolean))];
  setText(parts.what, [pool.engine, pool.model, versions.join(", ") || "version not known yet"].filter(Boolean).join(" · "));
  setValue(parts.used, pool.slots_used, whole);
  setValue(parts.total, pool.slots_total, whole);
  parts.slots.set(pool.slots_used / pool.slots_total);
  parts.depth.forEach((part, i) => {
    setValue(part.number, pool.queue_depth?.[i], whole);
    part.bar.set(pool.queue_depth?.[i] / pool.queue_capacity);
  });
  for (const node of parts.capacities) setValue(node, pool.queue_capacity, whole);
  setValue(parts.first, latencyOf(pool, "interactive", "1m", "first_token", "p95"), duration);
  setValue(parts.completed, pool.completed, whole);
  setValue(parts.failed, sumOf(pool.failed), whole);
  setValue(parts.canceled, pool.canceled, whole);
  setValue(parts.resumed, pool.resumed, whole);
  setValue(parts.restarts, sum(replicas.map((replica) => replica.restarts)), whole);
  syncReplicas(replicas, (replica) => replica.replica_id);
  showDeath(parts.death, replicas);
}

function showReason(node, pool) {
  const parts = [pool.reason && sentence(pool.reason)];
  if (typeof pool.next_try_ms === "number" && pool.state !== "ready") parts.push(`Next try in ${longDuration(pool.next_try_ms / 1000)}.`);
  if (pool.reload && pool.reload.state !== "done") parts.push(`Reload ${pool.reload.generation} is ${pool.reload.state}${pool.reload.reason ? `: ${pool.reload.reason}` : ""}.`);
  const text = parts.filter(Boolean).join(" ");
  node.hidden = text === "";
  setText(node, text);
}

/** The newest death of any replica: how it died says more than that it did. */
function showDeath(node, replicas) {
  const dead = replicas.filter((replica) => replica.last_death);
  dead.sort((a, b) => a.last_death.ago_ms - b.last_death.ago_ms);
  node.hidden = dead.length === 0;
  if (dead.length === 0) return;
  const { replica_id, last_death } = dead[0];
  setText(node, `Last death: ${replica_id}, ${longDuration(last_death.ago_ms / 1000)} ago, ${last_death.cause.replaceAll("_", " ")}: ${last_death.message}`);
}

function makeReplica(replica, pool) {
  const labels = { pool, replica: replica.replica_id };
  const parts = {
    state: el("span", { class: "mini" }),
    used: metric("span", "replica_slots_used", labels),
    total: metric("span", "replica_slots_total", labels),
    restarts: metric("td", "replica_restarts", labels),
    slots: bar("slots"),
    name: el("th", { scope: "row" }),
  };
  // The card names the pool already.
  const short = replica.replica_id.startsWith(`${pool}/`) ? replica.replica_id.slice(pool.length + 1) : replica.replica_id;
  setText(parts.name, short);
  const root = el("tr", { "data-replica": replica.replica_id }, parts.name, el("td", {}, parts.state), el("td", { class: "bar-cell" }, parts.slots.root),
    el("td", { class: "of" }, parts.used, "/", parts.total), parts.restarts);
  return { root, parts };
}

function updateReplica({ root, parts }, replica) {
  setAttribute(root, "data-state", replica.state);
  setState(parts.state, replica.state);
  setValue(parts.used, replica.slots_used, whole);
  setValue(parts.total, replica.slots_total, whole);
  setValue(parts.restarts, replica.restarts, whole);
  parts.slots.set(replica.slots_used / replica.slots_total);
  parts.slots.root.style.setProperty("--cells", replica.slots_total <= 8 ? Math.max(1, replica.slots_total) : 1);
  const devices = list(replica.devices).join(", ");
  setAttribute(parts.name, "title", `${replica.replica_id}${devices ? ` on ${devices}` : ""}`);
}

/** A UUID's begin is enough to know a device by. */
const shortDevice = (id) => (id.length > 12 ? `${id.slice(0, 12)}…` : id);

// ---- devices

export function makeDevices() {
  const sync = keyed(byId("device-rows"), makeDevice, updateDevice);
  return (overview) => {
    const part = overview.devices;
    const devices = list(part?.devices);
    const given = isGiven(part, "devices-empty", devices.length === 0);
    byId("devices-scroll").hidden = devices.length === 0;
    const simulated = part?.source === "simulated";
    const chip = byId("devices-source");
    chip.hidden = !given || !part.source;
    chip.dataset.tone = simulated ? "warn" : "off";
    setText(chip, simulated ? "simulated" : `driver ${part?.version ?? ""}`);
    setText(byId("devices-why"), simulated ? `No real device is read: ${part.why}.` : "");
    sync(given ? devices : [], (device) => device.id);
  };
}

function makeDevice(device) {
  const labels = { device: device.id };
  const parts = {
    name: el("th", { scope: "row" }, el("span", { class: "name" }), el("span", { class: "muted sub" })),
    health: el("span", { class: "mini" }),
    why: el("span", { class: "muted sub" }),
    load: metric("span", "device_utilization", labels),
    loadBar: bar("load"),
    used: metric("span", "device_memory_used", labels),
    total: metric("span", "device_memory_total", labels),
    memoryBar: bar("memory"),
    temperature: metric("td", "device_temperature", labels),
    power: metric("td", "device_power", labels),
    failures: metric("td", "device_failures", labels),
    replicas: el("td", { class: "wrap" }),
  };
  const root = el("tr", { "data-device": device.id }, parts.name,
    el("td", {}, parts.health, parts.why),
    el("td", {}, el("div", { class: "gauge" }, parts.load, parts.loadBar.root)),
    el("td", {}, el("div", { class: "gauge" }, el("span", {}, parts.used, " / ", parts.total), parts.memoryBar.root)),
    parts.temperature, parts.power, parts.failures, parts.replicas);
  return { root, parts };
}

function updateDevice({ root, parts }, device) {
  const sample = device.sample ?? {};
  const [name, sub] = parts.name.children;
  setText(name, device.index === null || device.index === undefined ? shortDevice(device.id) : `${device.index} ${device.name}`);
  setText(sub, device.index === null || device.index === undefined ? device.name ?? "" : shortDevice(device.id));
  setAttribute(root, "data-state", device.condition);
  setState(parts.health, device.condition);
  const xids = Object.entries(device.xids ?? {}).map(([number, xid]) => `XID ${number}: ${xid.meaning ?? ""} (${xid.count ?? xid})`);
  // A failure is a word, or {"xid": 79}, which stands among the XIDs with its meaning.
  const failure = typeof device.failure === "string" ? device.failure.replaceAll("_", " ") : null;
  setText(parts.why, [failure, ...xids].filter(Boolean).join("; "));
  const load = sample.utilization ?? (typeof sample.utilization_percent === "number" ? sample.utilization_percent / 100 : NaN);
  setValue(parts.load, load, percent);
  parts.loadBar.set(load);
  const total = sample.memory_total ?? (typeof sample.memory_free === "number" ? sample.memory_used + sample.memory_free : device.memory ?? NaN);
  setValue(parts.used, sample.memory_used, gib);
  setValue(parts.total, total, (bytes) => `${gib(bytes)} GiB`);
  parts.memoryBar.set(sample.memory_used / total);
  setValue(parts.temperature, sample.temperature_c, (degrees) => `${whole(degrees)} °C`);
  const watts = sample.power_w ?? (typeof sample.power_mw === "number" ? sample.power_mw / 1000 : NaN);
  setValue(parts.power, watts, (value) => `${whole(value)} W`);
  setValue(parts.failures, device.failures, whole);
  setText(parts.replicas, list(device.replicas).join(", ") || "none");
}

// ---- queues and fairness

export function makeQueues() {
  const select = byId("queues-pool");
  const table = byId("queues-table");
  const syncOptions = keyed(select, (id) => ({ root: el("option", { value: id }, id) }), () => {}, select.firstElementChild);
  const sync = keyed(table, makeQueue, updateQueue, table.tHead);
  let last = { pools: [] };
  const draw = () => {
    const pools = list(last.pools);
    syncOptions(pools.map((pool) => pool.pool_id), (id) => id);
    const chosen = pools.filter((pool) => pool.pool_id === select.value);
    const shown = chosen.length > 0 ? chosen : pools;
    const given = isGiven(last.pools, "queues-empty", pools.every((pool) => list(pool.clients).length === 0));
    byId("queues-scroll").hidden = !given || pools.length === 0;
    sync(shown, (pool) => pool.pool_id);
  };
  select.addEventListener("change", draw);
  return (overview) => {
    last = overview;
    draw();
  };
}

function makeQueue(pool) {
  const id = pool.pool_id;
  const depth = PRIORITIES.map((priority) => metric("td", "class_depth", { pool: id, priority }));
  const used = metric("td", "class_running", { pool: id });
  const note = el("td", { colspan: "4", class: "muted" });
  const head = el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: "2" }, id), ...depth, used, note);
  const root = el("tbody", {}, head);
  return { root, depth, used, note, syncClients: keyed(root, ({ client }) => makeClient(client, id), updateClient, head) };
}

function updateQueue(queue, pool) {
  queue.depth.forEach((node, i) => setValue(node, pool.queue_depth?.[i], whole));
  setValue(queue.used, pool.slots_used, whole);
  setText(queue.note, `of ${whole(pool.queue_capacity)}, when full: ${pool.full_policy.replaceAll("_", " ")}`);
  // By name and not by load: rows that change places every second cannot be read.
  const clients = [...list(pool.clients)].sort((a, b) => (a.client_id < b.client_id ? -1 : 1));
  // Bars end at the largest share of the pool, in tenths: among eight clients a scale to 100% would show nothing.
  const largest = Math.max(0, ...clients.flatMap((client) => [client.share || 0, client.fair_share || 0]));
  const scale = Math.max(0.1, Math.ceil(10 * largest - 1e-9) / 10);
  queue.syncClients(clients.map((client) => ({ client, scale })), ({ client }) => client.client_id);
}

function makeClient(client, pool) {
  const labels = { pool, client: client.client_id };
  const parts = {
    weight: metric("td", "client_weight", labels),
    waiting: PRIORITIES.map((priority) => metric("td", "client_waiting", { ...labels, priority })),
    running: metric("td", "client_running", labels),
    shareBar: bar("share"),
    tick: el("i", { class: "tick" }),
    share: metric("td", "client_share", labels),
    fair: metric("td", "client_fair_share", labels),
    tokens: metric("td", "client_tokens", labels),
  };
  parts.shareBar.root.append(parts.tick);
  const root = el("tr", { "data-client": client.client_id }, el("th", { scope: "row" }, client.client_id), parts.weight, ...parts.waiting, parts.running,
    el("td", { class: "share-cell" }, parts.shareBar.root), parts.share, parts.fair, parts.tokens);
  return { root, parts };
}

function updateClient({ root, parts }, { client, scale }) {
  setValue(parts.weight, client.weight, whole);
  parts.waiting.forEach((node, i) => setValue(node, client.waiting?.[i], whole));
  setValue(parts.running, client.running, whole);
  setValue(parts.share, client.share, (value) => `${(100 * value).toFixed(1)}%`);
  setValue(parts.fair, client.fair_share, (value) => `${(100 * value).toFixed(1)}%`);
  setValue(parts.tokens, client.tokens, whole);
  parts.shareBar.set(client.share / scale);
  parts.tick.style.left = `${Math.round(1000 * Math.min(1, (client.fair_share || 0) / scale)) / 10}%`;
  // Who waits and gets less than four fifths of what is due is the one to look at.
  const waits = sum(list(client.waiting)) > 0;
  setAttribute(root, "data-short", String(waits && client.share < 0.8 * client.fair_share));
}
