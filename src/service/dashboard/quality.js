// What clients get, from the `overview` events: latency, objectives and failures. Each part makes its elements once and then only
// writes into them.

import {
  bar, byId, choice, duration, el, isGiven, keyed, list, longDuration, metric, oneDigit, percentFine, PRIORITIES, setState,
  setValue, whole,
} from "./base.js";

const WINDOWS = ["1m", "10m", "all"];
const STAGES = [["queue", "Queue"], ["first_token", "First token"], ["per_token", "Per token"], ["decode", "Decode"], ["total", "Total"]];
const QUANTILES = ["p50", "p95", "p99"];

/** The percentile of one row of a pool's latency, or NaN. */
export function latencyOf(pool, priority, window, stage, quantile) {
  const row = list(pool.latency).find((row) => row.priority === priority && row.window === window && row.stage === stage);
  return row?.[quantile] ?? NaN;
}

// ---- latency

export function makeLatency() {
  const table = byId("latency-table");
  const top = el("tr", {}, el("th", { scope: "col", rowspan: "2" }, "Pool"), el("th", { scope: "col", rowspan: "2" }, "Priority"));
  const below = el("tr");
  for (const [, title] of STAGES) {
    top.append(el("th", { scope: "colgroup", colspan: "3", class: "stage" }, title));
    QUANTILES.forEach((quantile, i) => below.append(el("th", { scope: "col", class: i === 0 ? "num first" : "num" }, quantile)));
  }
  top.append(el("th", { scope: "col", rowspan: "2", class: "num first" }, "Tasks"));
  table.append(el("thead", {}, top, below));
  // All windows are kept in the table and one is shown, so that a choice costs no wait for the next event.
  const bodies = WINDOWS.map((window) => {
    const body = el("tbody", { "data-window": window });
    table.append(body);
    return { window, body, sync: keyed(body, (row) => makeLatencyRow(row, window), (row, item) => updateLatencyRow(row, item, window)) };
  });
  const show = (window) => bodies.forEach((one) => (one.body.hidden = one.window !== window));
  choice(byId("latency-window"), WINDOWS.map((window) => [window, { "1m": "1 min", "10m": "10 min", all: "all" }[window]]), "1m", show);
  show("1m");
  return (overview) => {
    const pools = list(overview.pools);
    const rows = pools.flatMap((pool) => PRIORITIES.map((priority) => ({ pool, priority })));
    for (const { sync } of bodies) sync(rows, ({ pool, priority }) => `${pool.pool_id} ${priority}`);
    isGiven(overview.pools, "latency-empty", pools.every((pool) => list(pool.latency).length === 0));
  };
}

function makeLatencyRow({ pool, priority }, window) {
  const labels = { pool: pool.pool_id, priority, window };
  const cells = new Map();
  const root = el("tr", {}, el("th", { scope: "row" }, pool.pool_id), el("td", {}, priority));
  for (const [stage] of STAGES) {
    QUANTILES.forEach((quantile, i) => {
      const cell = metric("td", "latency", { ...labels, stage, quantile }, i === 0 ? "num first" : "num");
      cells.set(`${stage} ${quantile}`, cell);
      root.append(cell);
    });
  }
  const count = metric("td", "latency_count", labels, "num first");
  root.append(count);
  return { root, cells, count };
}

function updateLatencyRow({ cells, count }, { pool, priority }, window) {
  const rows = list(pool.latency).filter((row) => row.priority === priority && row.window === window);
  for (const [stage] of STAGES) {
    const row = rows.find((row) => row.stage === stage);
    for (const quantile of QUANTILES) setValue(cells.get(`${stage} ${quantile}`), row?.[quantile], oneDigit);
  }
  setValue(count, rows.length > 0 ? Math.max(...rows.map((row) => row.count)) : NaN, whole);
}

// ---- objectives

export function makeObjectives() {
  const sync = keyed(byId("slo-cards"), makeSlo, updateSlo);
  return (overview) => {
    const rows = list(overview.slo);
    const given = isGiven(overview.slo, "slo-empty", rows.length === 0);
    const priorities = [...new Set(rows.map((row) => row.priority))];
    const items = priorities.map((priority) => ({
      priority,
      windows: ["10m", "1m"].map((window) => rows.find((row) => row.priority === priority && row.window === window)),
    }));
    sync(given ? items : [], (item) => item.priority);
  };
}

const SLO_WINDOWS = [["10m", "10 min"], ["1m", "1 min"]];

function makeSlo({ priority }) {
  const windows = SLO_WINDOWS.map(([window, words]) => {
    const labels = { priority, window };
    const value = el("span", { class: "num big", "data-slo": priority, "data-window": window, "data-value": "" }, "–");
    const parts = {
      value,
      verdict: el("span", { class: "mini" }),
      bar: bar("slo"),
      tick: el("i", { class: "tick" }),
      target: metric("span", "slo_target", labels),
      burn: metric("span", "slo_burn_rate", labels),
      tasks: metric("span", "slo_tasks", labels),
    };
    parts.bar.root.append(parts.tick);
    parts.root = el("div", { class: "slo-window" },
      el("div", { class: "slo-line" }, el("span", { class: "label" }, words), value, parts.verdict), parts.bar.root,
      el("dl", { class: "counts" }, el("div", {}, el("dt", {}, "Target"), el("dd", {}, parts.target)), el("div", {}, el("dt", {}, "Burn rate"), el("dd", {}, parts.burn)),
        el("div", {}, el("dt", {}, "Tasks"), el("dd", {}, parts.tasks))));
    return parts;
  });
  const body = el("tbody");
  const root = el("article", { class: "slo", "aria-label": priority }, el("h3", {}, priority), el("div", { class: "slo-windows" }, ...windows.map((part) => part.root)),
    el("table", {}, el("caption", { class: "sr" }, `Objectives of ${priority} tasks`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Objective"), el("th", { scope: "col", class: "num" }, "Limit"), ...SLO_WINDOWS.map(([, words]) => el("th", { scope: "col", class: "num" }, words)))), body));
  const sync = keyed(body, (item) => makeObjective(item, priority), updateObjective);
  return { root, windows, sync };
}

function updateSlo({ windows, sync }, item) {
  item.windows.forEach((row, i) => {
    const parts = windows[i];
    const known = typeof row?.attainment === "number";
    const met = known && row.attainment >= row.target;
    setValue(parts.value, row?.attainment, percentFine);
    setState(parts.verdict, known ? (met ? "ready" : "broken") : "stopped", known ? (met ? "met" : "missed") : "no tasks");
    parts.bar.set(row?.attainment);
    parts.bar.root.dataset.tone = known && !met ? "bad" : "ok";
    parts.tick.style.left = `${100 * (row?.target ?? 0)}%`;
    setValue(parts.target, row?.target, (value) => `${Number((100 * value).toFixed(2))}%`);
    setValue(parts.burn, row?.burn_rate, (value) => `${value.toFixed(2)}×`);
    parts.burn.dataset.tone = row?.burn_rate > 1 ? "bad" : "";
    setValue(parts.tasks, row?.tasks, whole);
  });
  const names = [...new Set(item.windows.flatMap((row) => list(row?.objectives).map((objective) => objective.name)))];
  const objectives = names.map((name) => ({ name, windows: item.windows.map((row) => ({ target: row?.target, ...list(row?.objectives).find((objective) => objective.name === name) })) }));
  sync(objectives, (objective) => objective.name);
}

/** An objective's name in words: `tokens_64` is the time for 64 tokens. */
const objectiveWords = (name) => (/^tokens_\d+$/.test(name) ? `${name.slice(7)} tokens` : name.replaceAll("_", " "));

function makeObjective({ name }, priority) {
  const limit = metric("td", "slo_limit", { priority, objective: name });
  const values = SLO_WINDOWS.map(([window]) => metric("td", "slo_objective", { priority, objective: name, window }));
  return { root: el("tr", {}, el("th", { scope: "row" }, objectiveWords(name)), limit, ...values), limit, values };
}

function updateObjective({ limit, values }, { windows }) {
  setValue(limit, windows[0].limit_ms ?? windows[1].limit_ms, duration);
  values.forEach((node, i) => {
    const { attainment, target } = windows[i];
    setValue(node, attainment, percentFine);
    node.dataset.tone = typeof attainment === "number" && attainment < target ? "bad" : "";
  });
}

// ---- failures

export function makeFailures() {
  const sync = keyed(byId("failure-rows"), makeFailure, ({ ago }, failure) => setValue(ago, failure.ago_ms, (ms) => longDuration(ms / 1000)));
  return (overview) => {
    const failures = list(overview.failures).slice(0, 32);
    isGiven(overview.failures, "failures-empty", failures.length === 0);
    byId("failures-scroll").hidden = failures.length === 0;
    sync(failures, (failure) => `${failure.task_id} ${failure.code}`);
  };
}

function makeFailure(failure) {
  const ago = metric("td", "failure_ago_ms", { task: failure.task_id });
  const link = el("a", { href: `#task=${encodeURIComponent(failure.task_id)}` }, failure.task_id);
  const root = el("tr", {}, ago, el("th", { scope: "row" }, link), el("td", {}, failure.pool_id ?? "–"), el("td", {}, failure.client_id ?? "–"),
    el("td", {}, el("code", {}, failure.code)), el("td", { class: "wrap message" }, failure.message ?? ""));
  return { root, ago };
}
