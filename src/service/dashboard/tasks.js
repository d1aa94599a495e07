// The prompt box and the timeline of one task.

import { byId, duration, el, getJson, keyed, readEvents, request, RequestError, sentence, setState, setText, setValue, whole } from "./base.js";

/** How often a task that has not ended is asked for. */
const LOOK_MS = 1000;
/** Text that is kept of one answer; the task itself is bounded by its max tokens. */
const OUTPUT_CHARS_MAX = 400_000;
/** Tokens are shown in pieces of this much time, so that a reader of screens is not interrupted by each. */
const SHOW_MS = 120;
const RESUMES_MAX = 5;

const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** An error as code, message and when to come back. */
export function errorBox(error) {
  const code = error instanceof RequestError || error.code ? error.code : "NO ANSWER";
  const box = el("p", { class: "error", "data-code": code }, el("strong", {}, String(code)), " ", sentence(error.message ?? error));
  const retry = error.retryAfterMs ?? error.retry_after_ms;
  if (typeof retry === "number") box.append(" ", el("span", { class: "retry", "data-value": String(retry) }, `Come back in ${duration(retry)}.`));
  if (error.status === 403) box.append(" ", el("span", {}, "Your key does not allow this; ask for one that does."));
  return box;
}

// ---- the prompt box

export function makePrompt() {
  const output = byId("prompt-output");
  const form = byId("prompt-form");
  const submit = byId("prompt-submit");
  const cancel = byId("prompt-cancel");
  let running = null;

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new PromptRun(output);
    submit.disabled = true;
    cancel.disabled = false;
    await running.go({
      prompt: byId("prompt").value,
      max_tokens: Number(byId("prompt-max-tokens").value),
      priority: byId("prompt-priority").value,
      model_ref: byId("prompt-model").value || undefined,
    });
    running = null;
    submit.disabled = false;
    cancel.disabled = true;
  });
  cancel.addEventListener("click", () => running?.cancel());
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });

  // A model must be named where several are served; the choice is made of those there are.
  const select = byId("prompt-model");
  const sync = keyed(select, (model) => ({ root: el("option", { value: model }, model) }), () => {}, select.firstElementChild);
  return (overview) => {
    const models = [...new Set((overview.pools ?? []).map((pool) => pool.model))].sort();
    sync(models, (model) => model);
    setText(select.firstElementChild, models.length > 1 ? "choose one" : "the only one");
  };
}

/** One submission, from the request to the end of its stream. */
class PromptRun {
  constructor(output) {
    this.output = output;
    this.text = document.createTextNode("");
    this.pending = "";
    this.timer = 0;
    this.abort = new AbortController();
    this.taskId = null;
    this.lastEvent = null;
    this.started = false;
    this.ended = false;
    this.tokens = 0;
    output.replaceChildren(this.text);
    delete output.dataset.state;
    byId("prompt-figures").replaceChildren();
  }

  async go(body) {
    this.output.dataset.state = "sending";
    this.status("Submitting.");
    try {
      const answer = await request("v1/tasks", {
        method: "POST",
        headers: { accept: "text/event-stream", "content-type": "application/json" },
        body: JSON.stringify(body),
        signal: this.abort.signal,
      });
      this.taskId = answer.headers.get("x-task-id");
      this.waiting(answer.headers.get("x-queue-position"), Number(answer.headers.get("x-predicted-start-ms")));
      this.watchQueue();
      await this.follow(answer);
    } catch (error) {
      if (this.abort.signal.aborted) this.finish("canceled", "Cancelled before the service had taken it.");
      else this.fail(error);
    }
    this.ended = true;
    this.flush();
  }

  /** Reads the stream to its end, and comes back to it behind the last event when the connection breaks. */
  async follow(answer) {
    for (let resumes = 0; ; resumes++) {
      try {
        await readEvents(answer, (type, data, id) => this.event(type, JSON.parse(data), id));
      } catch (error) {
        if (this.abort.signal.aborted || !this.taskId) throw error;
      }
      if (this.ended) return;
      if (!this.taskId || resumes === RESUMES_MAX) throw new Error("the stream ended without an end of the task");
      this.status("The connection broke. Coming back to the stream.");
      await sleep(500 * 2 ** resumes);
      const headers = { accept: "text/event-stream" };
      if (this.lastEvent !== null) headers["last-event-id"] = this.lastEvent;
      try {
        answer = await request(`v1/tasks/${encodeURIComponent(this.taskId)}/stream`, { headers, signal: this.abort.signal });
      } catch (error) {
        if (error instanceof RequestError) throw error;
        answer = { body: new ReadableStream({ start: (control) => control.close() }) };
      }
    }
  }

  event(type, data, id) {
    if (id !== null) this.lastEvent = id;
    if (type === "started") {
      this.started = true;
      this.taskId = data.task_id;
      this.output.dataset.state = "running";
      const again = data.attempt > 1 ? `, attempt ${data.attempt}` : "";
      this.status(`Runs on ${data.replica_id} (${data.engine} ${data.engine_version})${again}.`);
    } else if (type === "token") {
      this.tokens += 1;
      if (this.text.length + this.pending.length < OUTPUT_CHARS_MAX) this.pending += data.t;
      this.timer ||= setTimeout(() => this.flush(), SHOW_MS);
    } else if (type === "end") {
      this.end(data);
    } else if (type === "error") {
      this.fail(data);
    }
  }

  flush() {
    clearTimeout(this.timer);
    this.timer = 0;
    if (this.pending === "") return;
    const atEnd = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 24;
    this.text.appendData(this.pending);
    this.pending = "";
    if (atEnd) this.output.scrollTop = this.output.scrollHeight;
  }

  waiting(position, predictedMs, why = "") {
    this.output.dataset.state = "waiting";
    const quiet = byId("prompt-status").dataset.position === String(position ?? "");
    const status = this.status(`Waiting, ${position} ahead, starts in about ${duration(predictedMs || 0)}.${why ? ` ${sentence(why)}` : ""}`, quiet);
    status.dataset.position = position ?? "";
    status.dataset.predictedStartMs = String(predictedMs);
  }

  /** While the task waits its place changes: the service is asked where it stands. */
  async watchQueue() {
    for (;;) {
      await sleep(LOOK_MS);
      if (this.started || this.ended || !this.taskId) return;
      try {
        const explain = await getJson(`v1/tasks/${encodeURIComponent(this.taskId)}/explain`, this.abort.signal);
        if (this.started || this.ended) return;
        if (explain.standing) this.waiting(explain.standing.queue_position, explain.predicted_start_ms, explain.why);
      } catch {
        return; // The stream itself says what matters.
      }
    }
  }

  async cancel() {
    if (!this.taskId) {
      this.abort.abort();
      return;
    }
    this.status("Cancelling.");
    try {
      await request(`v1/tasks/${encodeURIComponent(this.taskId)}/cancel`, { method: "POST" });
    } catch (error) {
      this.status("");
      byId("prompt-status").replaceChildren(errorBox(error));
    }
  }

  end(end) {
    const words = { stop: "The model ended it.", length: "The budget of tokens is used up.", canceled: "Cancelled." };
    this.finish(end.finish_reason, words[end.finish_reason] ?? end.finish_reason);
    const rate = end.decode_ms > 0 ? (1000 * Math.max(0, end.tokens_out - 1)) / end.decode_ms : NaN;
    const figures = [
      ["Tokens in", "tokens_in", end.tokens_in, whole],
      ["Tokens out", "tokens_out", end.tokens_out, whole],
      ["Queue", "queue_ms", end.queue_ms, duration],
      ["First token", "first_token_ms", end.first_token_ms, duration],
      ["Decode", "decode_ms", end.decode_ms, duration],
      ["Tokens/s", "tokens_per_s", rate, (value) => value.toFixed(1)],
      ["Attempts", "attempts", end.attempts, whole],
    ];
    const items = figures.map(([label, name, value, format]) => {
      const dd = el("dd", { class: "num", "data-metric": `prompt_${name}` });
      setValue(dd, value, format);
      return el("div", {}, el("dt", {}, label), dd);
    });
    if (this.taskId) {
      items.push(el("div", {}, el("dt", {}, "Task"), el("dd", {}, el("a", { href: `#task=${encodeURIComponent(this.taskId)}` }, this.taskId))));
    }
    byId("prompt-figures").replaceChildren(...items);
  }

  finish(state, text) {
    this.ended = true;
    this.flush();
    this.output.dataset.state = state;
    this.status(text);
  }

  fail(error) {
    this.finish("error", "");
    byId("prompt-status").replaceChildren(errorBox(error));
  }

  /** `quiet` for a text that only counts down: it is shown and not spoken. */
  status(text, quiet = false) {
    const node = byId("prompt-status");
    node.setAttribute("aria-live", quiet ? "off" : "polite");
    node.dataset.position = "";
    node.dataset.predictedStartMs = "";
    setText(node, text);
    return node;
  }
}

// ---- the timeline

export function makeTimeline() {
  const input = byId("task-id");
  let look = 0; // Number of the newest look; an older one that answers late is dropped.

  async function show(id) {
    const mine = ++look;
    byId("task-timeline").dataset.task = id;
    let shown = "";
    for (;;) {
      const path = `v1/tasks/${encodeURIComponent(id)}`;
      const [explain, task] = await Promise.allSettled([getJson(`${path}/explain`), getJson(path)]);
      if (mine !== look) return;
      const phase = task.value?.phase ?? explain.value?.phase;
      // Drawn anew only when something has changed: focus and selection stay where they are.
      const news = JSON.stringify([explain.value, task.value]);
      if (news !== shown) drawTimeline(byId("task-timeline"), explain, task);
      shown = news;
      setText(byId("task-status"), `Task ${id}: ${phase ?? "unknown"}`);
      if (phase === undefined || phase === "terminal") return;
      await sleep(LOOK_MS);
      if (mine !== look) return;
    }
  }

  byId("task-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const id = input.value.trim();
    if (id === "") return;
    const hash = `#task=${encodeURIComponent(id)}`;
    if (location.hash === hash) show(id);
    else location.hash = hash;
  });
  const follow = () => {
    if (!location.hash.startsWith("#task=")) return;
    let id = location.hash.slice(6);
    try {
      id = decodeURIComponent(id);
    } catch {
      // Not what this page wrote: taken as it is.
    }
    input.value = id;
    byId("task").scrollIntoView({ block: "nearest" });
    input.focus({ preventScroll: true });
    show(id);
  };
  window.addEventListener("hashchange", follow);
  // A second click on the same link does not change the hash.
  document.addEventListener("click", (event) => {
    const anchor = event.target.closest("a[href^='#task=']");
    if (anchor && anchor.getAttribute("href") === location.hash) follow();
  });
  follow();
}

function drawTimeline(parent, explain, task) {
  const known = explain.value ?? task.value;
  if (!known) {
    const error = explain.reason;
    parent.dataset.phase = "";
    parent.replaceChildren(errorBox(error));
    return;
  }
  const phase = task.value?.phase ?? explain.value?.phase ?? "refused";
  parent.dataset.phase = phase;
  const children = [headline(known, task.value, phase), el("p", { class: "why" }, sentence(explain.value?.why ?? "The explanation is not available"))];
  if (explain.status === "rejected") children.push(errorBox(explain.reason));
  if (task.status === "rejected" && !explain.value?.refusal) children.push(errorBox(task.reason));
  const error = task.value?.error ?? explain.value?.refusal;
  if (error) children.push(errorBox(error));
  if (task.value?.end) children.push(...phases(task.value.end));
  else if (phase === "terminal") children.push(el("p", { class: "empty" }, "The service keeps no timings of a task that failed."));
  else if (phase !== "refused") children.push(waitingFacts(explain.value, task.value));
  if (explain.value?.pools?.length > 0) children.push(considered(explain.value.pools, known.replica_id));
  parent.replaceChildren(...children);
}

function headline(known, task, phase) {
  const facts = [
    ["Phase", phase],
    ["Client", known.client_id],
    ["Priority", known.priority],
    ["Pool", known.pool_id],
    ["Replica", known.replica_id],
    ["Attempts", task?.attempts],
    ["Tokens out", task?.tokens_out],
  ];
  return el("dl", { class: "figures" }, ...facts.filter(([, value]) => value !== undefined && value !== null)
    .map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", {}, String(value)))));
}

/** Queue, first token, decode, in proportion. */
function phases(end) {
  const first = end.first_token_ms ?? end.queue_ms;
  const parts = [
    ["queue", "Queue", end.queue_ms],
    ["first_token", "First token", Math.max(0, first - end.queue_ms)],
    ["decode", "Decode", end.decode_ms],
  ];
  const total = parts.reduce((all, [, , ms]) => all + ms, 0);
  const strip = el("div", { class: "strip", role: "img", "aria-label": parts.map(([, label, ms]) => `${label} ${duration(ms)}`).join(", ") });
  const legend = el("dl", { class: "phases" });
  for (const [name, label, ms] of parts) {
    const part = el("span", { class: `phase ${name}`, "data-phase": name, "data-value": String(ms), title: `${label} ${duration(ms)}` });
    part.style.flexGrow = String(total > 0 ? ms / total : 1);
    strip.append(part);
    const dd = el("dd", { class: "num", "data-metric": "task_phase", "data-stage": name });
    setValue(dd, ms, duration);
    legend.append(el("div", {}, el("dt", {}, el("i", { class: `swatch ${name}` }), label), dd));
  }
  const dd = el("dd", { class: "num", "data-metric": "task_phase", "data-stage": "total" });
  setValue(dd, total, duration);
  legend.append(el("div", {}, el("dt", {}, "Total"), dd));
  return [strip, legend];
}

function waitingFacts(explain, task) {
  const standing = explain?.standing;
  const facts = [
    ["Ahead", standing?.queue_position ?? task?.queue_position],
    ["Starts in about", explain?.predicted_start_ms === undefined ? undefined : duration(explain.predicted_start_ms)],
    ["Clients ahead", standing?.clients_ahead],
    ["Ahead in its lane", standing?.lane_ahead],
    ["Class that is next", standing?.class_next],
  ];
  return el("dl", { class: "figures" }, ...facts.filter(([, value]) => value !== undefined && value !== null)
    .map(([label, value]) => el("div", {}, el("dt", {}, label), el("dd", { class: "num" }, String(value)))));
}

function considered(pools, chosen) {
  const rows = pools.flatMap((pool) => {
    const state = el("span", { class: "mini" });
    setState(state, pool.state);
    const head = el("tr", { class: "group" }, el("th", { scope: "row" }, pool.pool_id), el("td", {}, state),
      el("td", { class: "wrap" }, pool.why_not ?? "could take it"), el("td", { class: "num" }, duration(pool.wait_ms ?? 0)));
    const replicas = (pool.replicas ?? []).map((replica) => el("tr", { class: replica.replica_id === chosen ? "chosen" : "" },
      el("th", { scope: "row" }, replica.replica_id), el("td", {}, `${replica.slots_used} of ${replica.slots_total}`),
      el("td", { class: "wrap" }, replica.fit.replaceAll("_", " ") + (replica.replica_id === chosen ? ", chosen" : "")), el("td")));
    return [head, ...replicas];
  });
  const table = el("table", { class: "considered" }, el("caption", {}, "Pools and replicas, as they stand now"),
    el("thead", {}, el("tr", {}, ...["Pool or replica", "State or slots", "Fit", "Wait"].map((title, i) => el("th", { scope: "col", class: i === 3 ? "num" : "" }, title)))),
    el("tbody", {}, ...rows));
  return el("div", { class: "scroll", role: "region", "aria-label": "Pools considered", tabindex: "0" }, table);
}
