// The service as a node of a cluster, from the `overview` events: its links. Hidden where it is none.

import { byId, el, keyed, list, metric, oneDigit, setState, setText, setValue, whole } from "./base.js";

export function makeNodes() {
  const sync = keyed(byId("node-rows"), makePeer, updatePeer);
  return (overview) => {
    const node = overview.cluster;
    byId("nodes").hidden = !node;
    byId("nodes-nav").hidden = !node;
    if (!node) return;
    setText(byId("nodes-own"), `this is ${node.name}${node.is_draining ? ", draining" : ""}; ${whole(node.guests_open)} guests`);
    sync(list(node.peers), (peer) => peer.name);
  };
}

function makePeer(peer) {
  const labels = { peer: peer.name };
  const parts = {
    state: el("span", { class: "mini" }),
    why: el("span", { class: "muted sub" }),
    trip: metric("td", "link_round_trip", labels),
    lent: metric("td", "link_lent", labels),
    guests: metric("td", "link_guests", labels),
    outbox: metric("td", "link_outbox", labels),
    made: metric("td", "links_made", labels),
    pools: el("td", { class: "wrap" }),
  };
  const root = el("tr", { "data-peer": peer.name }, el("th", { scope: "row" }, peer.name), el("td", {}, parts.state, parts.why),
    parts.trip, parts.lent, parts.guests, parts.outbox, parts.made, parts.pools);
  return { root, parts };
}

const TONES = { alive: "ready", suspect: "suspect", none: "broken" };

function updatePeer({ parts }, peer) {
  const link = peer.link ?? {};
  const state = peer.link ? link.state : "none";
  setState(parts.state, TONES[state] ?? state, state === "none" ? "no link" : state);
  setText(parts.why, peer.link ? (link.is_draining ? "draining" : "") : peer.trouble ?? "");
  setValue(parts.trip, link.round_trip_ms, oneDigit);
  setValue(parts.lent, link.lent, whole);
  setValue(parts.guests, link.guests, whole);
  setValue(parts.outbox, link.outbox_bytes, whole);
  setValue(parts.made, peer.links_made, whole);
  setText(parts.pools, list(link.pools).join(", "));
}
