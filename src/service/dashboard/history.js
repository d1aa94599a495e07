// What the page remembers: rings of bounded size, and the plots that are drawn from them.

import { choice, el, oneDigit, duration, keyed, longDuration, setAttribute, setText, svg, whole } from "./base.js";

const FINE = { capacity: 900, stepMs: 1000 }; // 15 minutes
const COARSE = { capacity: 960, stepMs: 30_000 }; // 8 hours
/** Pools that have a history. More would be unreadable and unbounded. */
const POOLS_MAX = 64;
/** A time that jumps back by more than this is another service's clock: the history begins anew. */
const BACK_MAX_MS = 60_000;

/** Whole where it is whole: half a slot is only ever a mean or a mark of the scale. */
const count = (value) => (Number.isInteger(value) ? whole(value) : oneDigit(value));

/** `merge` says what 30 seconds become: a mean hides a burst, so depth and latency keep their highest value. */
const METRICS = [
  { name: "queue_depth", title: "Queue depth", unit: "tasks", merge: "max", format: count },
  { name: "tokens_per_s", title: "Tokens per second", unit: "tokens/s", merge: "mean", format: oneDigit },
  { name: "first_token_p95", title: "First token p95, interactive", unit: "ms", merge: "max", format: duration },
  { name: "slots_used", title: "Slots used", unit: "slots", merge: "mean", format: count },
];

const SPANS = [
  ["15m", "15 min", 900_000],
  ["1h", "1 h", 3_600_000],
  ["8h", "8 h", 28_800_000],
];

/** Times and, for each series, values in step with them. The oldest is overwritten. */
class Ring {
  constructor({ capacity, stepMs }) {
    this.capacity = capacity;
    this.stepMs = stepMs;
    this.times = new Float64Array(capacity);
    this.series = new Map();
    this.clear();
  }

  clear() {
    this.next = 0;
    this.length = 0;
    for (const values of this.series.values()) values.fill(NaN);
  }

  add(key) {
    this.series.set(key, new Float32Array(this.capacity).fill(NaN));
  }

  /** Makes room for one moment and returns its place. */
  open(at) {
    const place = this.next;
    this.times[place] = at;
    for (const values of this.series.values()) values[place] = NaN;
    this.next = (place + 1) % this.capacity;
    this.length = Math.min(this.length + 1, this.capacity);
    return place;
  }

  /** Places from the oldest to the newest that lie behind `from`. */
  *places(from) {
    for (let i = 0; i < this.length; i++) {
      const place = (this.next - this.length + i + this.capacity) % this.capacity;
      if (this.times[place] > from) yield place;
    }
  }

  get newest() {
    return this.length === 0 ? -Infinity : this.times[(this.next - 1 + this.capacity) % this.capacity];
  }

  get bytes() {
    return this.times.byteLength + this.series.size * this.capacity * Float32Array.BYTES_PER_ELEMENT;
  }
}

export class History {
  constructor() {
    this.fine = new Ring(FINE);
    this.coarse = new Ring(COARSE);
    this.pools = [];
    this.bucket = null; // The 30 seconds that are being gathered: when, and for each series sum, count and maximum.
  }

  /** Takes one moment. `read(pool, metric)` gives a number or NaN. */
  push(at, pools, read) {
    if (at < this.fine.newest - BACK_MAX_MS) this.clear();
    if (at <= this.fine.newest) return;
    this.followPools(pools.slice(0, POOLS_MAX).map((pool) => pool.pool_id));
    this.gather(at);
    const place = this.fine.open(at);
    for (const pool of pools.slice(0, POOLS_MAX)) {
      for (const { name } of METRICS) {
        const key = `${name} ${pool.pool_id}`;
        const value = read(pool, name);
        this.fine.series.get(key)[place] = value;
        if (Number.isFinite(value)) {
          const sums = this.bucket.sums.get(key);
          sums[0] += value;
          sums[1] += 1;
          sums[2] = Math.max(sums[2], value);
        }
      }
    }
  }

  clear() {
    this.fine.clear();
    this.coarse.clear();
    this.bucket = null;
  }

  /** A pool that is gone from the configuration takes its history with it. */
  followPools(ids) {
    if (ids.length === this.pools.length && ids.every((id, i) => id === this.pools[i])) return;
    for (const { name } of METRICS) {
      for (const id of this.pools.filter((id) => !ids.includes(id))) {
        for (const ring of [this.fine, this.coarse]) ring.series.delete(`${name} ${id}`);
        this.bucket?.sums.delete(`${name} ${id}`);
      }
      for (const id of ids.filter((id) => !this.pools.includes(id))) {
        for (const ring of [this.fine, this.coarse]) ring.add(`${name} ${id}`);
        this.bucket?.sums.set(`${name} ${id}`, [0, 0, -Infinity]);
      }
    }
    this.pools = ids;
  }

  /** Closes the 30 seconds before `at`, when they are over. */
  gather(at) {
    const start = Math.floor(at / COARSE.stepMs) * COARSE.stepMs;
    if (this.bucket?.start === start) return;
    if (this.bucket) {
      const place = this.coarse.open(this.bucket.start + COARSE.stepMs);
      for (const { name, merge } of METRICS) {
        for (const id of this.pools) {
          const sums = this.bucket.sums.get(`${name} ${id}`);
          if (sums[1] > 0) this.coarse.series.get(`${name} ${id}`)[place] = merge === "max" ? sums[2] : sums[0] / sums[1];
        }
      }
    } else {
      this.bucket = { start, sums: new Map() };
      for (const key of this.fine.series.keys()) this.bucket.sums.set(key, [0, 0, -Infinity]);
    }
    this.bucket.start = start;
    for (const sums of this.bucket.sums.values()) {
      sums[0] = sums[1] = 0;
      sums[2] = -Infinity;
    }
  }

  /** Visits (time, value) of a series behind `from`: coarse ones first where the fine ring does not reach. */
  visit(key, from, useCoarse, visitor) {
    let behind = from;
    if (useCoarse && this.coarse.series.has(key)) {
      const values = this.coarse.series.get(key);
      for (const place of this.coarse.places(from)) visitor(this.coarse.times[place], values[place]);
      behind = Math.max(from, this.coarse.newest);
    }
    const values = this.fine.series.get(key);
    if (values) for (const place of this.fine.places(behind)) visitor(this.fine.times[place], values[place]);
  }

  stats() {
    return {
      pools: this.pools.length,
      series: this.fine.series.size,
      fine_points: this.fine.length,
      coarse_points: this.coarse.length,
      ring_bytes: this.fine.bytes + this.coarse.bytes,
    };
  }
}

// ---- plots

const COLUMNS = 240; // Points across a plot; more would not be seen.
const HEIGHT = 100;

/** The next of 1, 2, 5, 10, 20 and so on: a scale that stays while values move. */
function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

/** The plots of all metrics, with one span, one legend and one cursor for all of them. */
export class Plots {
  constructor(history, { plots, span, legend }) {
    this.history = history;
    this.span = SPANS[0];
    this.hidden = new Set();
    this.cursor = null; // A column, or null.
    choice(span, SPANS, this.span[0], (value) => {
      this.span = SPANS.find(([name]) => name === value);
      this.draw();
    });
    this.syncLegend = keyed(legend, (id) => this.legendItem(id), ({ root, swatch }, id) => {
      setAttribute(swatch, "class", `swatch ${this.colour(id)}`);
      setAttribute(root, "aria-pressed", String(!this.hidden.has(id)));
    });
    this.plots = METRICS.map((metric) => this.makePlot(metric));
    plots.append(...this.plots.map((plot) => plot.root));
  }

  colour(id) {
    const index = Math.max(0, this.history.pools.indexOf(id));
    return `s${index % 8}${index >= 8 ? " dashed" : ""}`;
  }

  legendItem(id) {
    const swatch = el("i");
    const root = el("button", { type: "button", "aria-pressed": "true", title: "Show or hide this pool" }, swatch, id);
    root.addEventListener("click", () => {
      if (!this.hidden.delete(id)) this.hidden.add(id);
      this.draw();
    });
    return { root, swatch };
  }

  makePlot(metric) {
    const lines = svg("g");
    const mark = svg("line", { class: "mark", y1: 0, y2: HEIGHT, visibility: "hidden" });
    const grid = [0, 50].map((y) => svg("line", { class: "grid", x1: 0, x2: COLUMNS, y1: y, y2: y }));
    const picture = svg("svg", { viewBox: `0 0 ${COLUMNS} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" }, ...grid, lines, mark);
    const top = el("span", { class: "y-top" });
    const middle = el("span", { class: "y-mid" });
    const tip = el("div", { class: "tip", hidden: "" });
    const empty = el("span", { class: "plot-empty" }, "no figures in this span");
    const now = el("span", { class: "now" });
    const area = el("div", { class: "plot", tabindex: "0", role: "slider", "aria-label": metric.title, "aria-valuemin": 0, "aria-valuemax": COLUMNS - 1, "aria-valuenow": COLUMNS - 1, "aria-valuetext": "no figures" }, picture, top, middle, empty, tip);
    const from = el("span");
    const root = el("figure", {}, el("figcaption", {}, el("span", {}, metric.title), now), area, el("div", { class: "x-axis", "aria-hidden": "true" }, from, el("span", {}, "now")));
    const plot = { metric, root, area, lines, mark, top, middle, tip, empty, now, from, paths: new Map(), columns: new Map() };
    area.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      this.moveCursor(Math.floor(((event.clientX - box.left) / box.width) * COLUMNS));
    });
    area.addEventListener("pointerleave", () => this.moveCursor(null));
    area.addEventListener("blur", () => this.moveCursor(null));
    area.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -2, ArrowRight: 2, Home: -COLUMNS, End: COLUMNS }[event.key];
      if (step === undefined) return;
      event.preventDefault();
      this.moveCursor((this.cursor ?? COLUMNS) + step);
    });
    return plot;
  }

  moveCursor(column) {
    this.cursor = column === null ? null : Math.min(COLUMNS - 1, Math.max(0, column));
    this.plots.forEach((plot) => this.showCursor(plot));
  }

  draw() {
    this.syncLegend(this.history.pools, (id) => id);
    for (const plot of this.plots) this.drawPlot(plot);
  }

  /** Values of one series by column: the highest of each, since a peak must not fall between two pixels. */
  columnsOf(key, newest) {
    const [, , width] = this.span;
    const columns = new Float64Array(COLUMNS).fill(NaN);
    this.history.visit(key, newest - width, width > 900_000, (at, value) => {
      const column = Math.min(COLUMNS - 1, Math.floor(((at - newest + width) / width) * COLUMNS));
      if (!(columns[column] >= value)) columns[column] = value;
    });
    return columns;
  }

  drawPlot(plot) {
    const newest = this.history.fine.newest;
    const ids = this.history.pools.filter((id) => !this.hidden.has(id));
    plot.columns.clear();
    let highest = 0;
    for (const id of ids) {
      const columns = this.columnsOf(`${plot.metric.name} ${id}`, newest);
      plot.columns.set(id, columns);
      for (const value of columns) if (value > highest) highest = value;
    }
    const ceiling = niceCeiling(highest);
    for (const [id, path] of plot.paths) {
      if (plot.columns.has(id)) continue;
      path.remove();
      plot.paths.delete(id);
    }
    let any = false;
    for (const [id, columns] of plot.columns) {
      let path = plot.paths.get(id);
      if (!path) plot.paths.set(id, (path = plot.lines.appendChild(svg("path"))));
      setAttribute(path, "class", this.colour(id));
      const d = pathOf(columns, ceiling, this.gapColumns());
      any ||= d !== "";
      path.setAttribute("d", d);
    }
    plot.empty.hidden = any;
    setText(plot.top, plot.metric.format(ceiling));
    setText(plot.middle, plot.metric.format(ceiling / 2));
    setText(plot.from, `${this.span[1]} ago`);
    setText(plot.now, this.summary(plot));
    this.showCursor(plot);
  }

  /** The newest value over all shown pools: a sum, or the worst where a sum says nothing. */
  summary(plot) {
    let total = NaN;
    for (const id of plot.columns.keys()) {
      const values = this.history.fine.series.get(`${plot.metric.name} ${id}`);
      const value = values[(this.history.fine.next - 1 + FINE.capacity) % FINE.capacity];
      if (!Number.isFinite(value)) continue;
      if (!Number.isFinite(total)) total = value;
      else total = plot.metric.name === "first_token_p95" ? Math.max(total, value) : total + value;
    }
    const word = plot.metric.name === "first_token_p95" ? "worst " : "";
    return Number.isFinite(total) ? word + plot.metric.format(total) : "–";
  }

  /** Columns without a value that are still bridged: samples are sparser than columns when a span has just begun. */
  gapColumns() {
    const step = this.span[2] > 900_000 ? COARSE.stepMs : FINE.stepMs;
    return Math.max(2, Math.ceil((2.5 * step * COLUMNS) / this.span[2]) + 1);
  }

  showCursor(plot) {
    const column = this.cursor;
    const visible = column !== null && this.history.fine.length > 0;
    plot.mark.setAttribute("visibility", visible ? "visible" : "hidden");
    plot.tip.hidden = !visible;
    if (!visible) return setAttribute(plot.area, "aria-valuetext", `now ${plot.now.textContent}`);
    plot.mark.setAttribute("x1", column + 0.5);
    plot.mark.setAttribute("x2", column + 0.5);
    const ago = ((COLUMNS - 1 - column) / COLUMNS) * (this.span[2] / 1000);
    const when = ago < 1 ? "now" : `${longDuration(ago)} ago`;
    const spoken = [when];
    const rows = [...plot.columns].map(([id, columns]) => {
      const value = nearest(columns, column, this.gapColumns());
      const text = Number.isFinite(value) ? plot.metric.format(value) : "–";
      spoken.push(`${id} ${text}`);
      return el("div", {}, el("i", { class: `swatch ${this.colour(id)}` }), el("span", {}, id), el("b", {}, text));
    });
    plot.tip.replaceChildren(el("div", { class: "when" }, when), ...rows);
    setAttribute(plot.area, "aria-valuenow", String(column));
    setAttribute(plot.area, "aria-valuetext", spoken.join(", "));
    const left = column > COLUMNS / 2;
    plot.tip.style.left = left ? "auto" : `calc(${(100 * column) / COLUMNS}% + 10px)`;
    plot.tip.style.right = left ? `calc(${100 - (100 * column) / COLUMNS}% + 10px)` : "auto";
  }
}

function pathOf(columns, ceiling, gap) {
  let d = "";
  let last = -Infinity;
  for (let column = 0; column < COLUMNS; column++) {
    if (!Number.isFinite(columns[column])) continue;
    const y = Math.round(10 * (HEIGHT - (HEIGHT * columns[column]) / ceiling)) / 10;
    d += `${column - last > gap ? "M" : "L"}${column + 0.5} ${y}`;
    last = column;
  }
  // A lone point would be a line of no length, which is not drawn.
  return d !== "" && !d.includes("L") ? `${d}h0.5` : d;
}

function nearest(columns, column, gap) {
  for (let far = 0; far <= gap; far++) {
    if (Number.isFinite(columns[column - far])) return columns[column - far];
    if (Number.isFinite(columns[column + far])) return columns[column + far];
  }
  return NaN;
}
