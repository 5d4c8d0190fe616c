// The page of `hotplane lab ui` and `hotplane run --ui`. Names come from others: they become text, never markup.

const byId = (id) => document.getElementById(id);

/** An element with a class, attributes and children; texts become text nodes. */
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (name === "class") element.className = value;
    else if (value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

const state = { overview: null, got: new Map(), explained: 0, searched: 0 };

/** What the server answers; throws with its sentence when it refuses. */
async function ask(path, options = {}) {
  const answer = await fetch(path, options);
  const found = await answer.json().catch(() => ({ error: `${path}: ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error ?? `${path}: ${answer.status}`);
  return found;
}

function wrong(error) {
  byId("wrong").hidden = !error;
  byId("wrong").textContent = error ? error.message : "";
}

function table(heads, rows) {
  const cell = (tag, value, more = {}) =>
    make(tag, { ...more, class: typeof value === "number" ? "number" : undefined }, String(value ?? "–"));
  const number = (at) => rows.some((row) => typeof row[at] === "number");
  const head = heads.map((text, at) => make("th", { scope: "col", class: number(at) ? "number" : undefined }, text));
  const body = rows.map((row) =>
    make("tr", {}, ...row.map((value, at) => (at ? cell("td", value) : cell("th", value, { scope: "row" })))));
  return make("div", { class: "wide", tabindex: "0" },
    make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body)));
}

// Who is there

function placeButton(name, kind, addresses) {
  const chosen = addresses.includes(byId("source").value);
  const got = state.got.get(name);
  return make("button",
    { type: "button", "aria-pressed": String(chosen), "data-place": name, onclick: () => chooseSource(addresses) },
    name, make("small", {}, addresses.join(" ")), got ? make("span", { class: "got" }, `answered ${got}`) : "");
}

function drawPlaces() {
  const focused = document.activeElement?.dataset?.place;
  const { nodes, sources } = state.overview;
  const outside = sources.filter((source) => source.kind === "client");
  byId("outside").replaceChildren(...outside.map((each) => placeButton(each.name, each.kind, each.addresses)));
  byId("nodes").replaceChildren(...nodes.map((node) => make("article", { class: "card" },
    make("h3", {}, node.name, " ", make("span", { class: "hint" }, node.mode || "nothing loaded")),
    make("div", { class: "places" },
      placeButton(node.name, "node", node.addresses),
      ...sources.filter((each) => each.kind === "pod" && !node.pods.length && nodes.length === 1)
        .map((each) => placeButton(each.name, each.kind, each.addresses)),
      ...node.pods.map((pod) => placeButton(pod.name, "pod", pod.addresses))))));
  if (focused !== undefined) {
    [...document.querySelectorAll("[data-place]")].find((each) => each.dataset.place === focused)?.focus();
  }
}

function fillSources() {
  const before = byId("source").value;
  const options = state.overview.sources.flatMap((source) =>
    source.addresses.map((address) => make("option", { value: address }, `${source.name} ${address}`)));
  byId("source").replaceChildren(...options);
  if (options.some((option) => option.value === before)) byId("source").value = before;
}

async function loadOverview() {
  state.overview = await ask("api/overview");
  byId("title").textContent = state.overview.title;
  document.title = `hotplane ${state.overview.title}`;
  byId("sending").hidden = !state.overview.sends;
  fillSources();
  drawPlaces();
}

/** Choose a source of the destination's family, if it has one. */
function chooseSource(addresses) {
  const six = byId("destination").value.startsWith("[");
  byId("source").value = addresses.find((address) => address.includes(":") === six) ?? addresses[0];
  drawPlaces();
  explain();
}

// Services

async function loadServices() {
  const mine = ++state.searched;
  const found = await ask(`api/services?search=${encodeURIComponent(byId("search").value)}`);
  if (mine !== state.searched) return;
  const shown = found.services.length;
  byId("found").textContent = shown < found.total ? `the first ${shown} of ${found.total}` : `${found.total} Service ports`;
  byId("services").replaceChildren(...found.services.map((service) => make("article", { class: "card" },
    make("h3", {}, service.name),
    make("div", { class: "places" }, ...service.frontends.map(frontendButton)),
    make("p", { class: "hint" }, service.endpoints.length ? `endpoints ${service.endpoints.join(", ")}` : "no endpoint"))));
}

function frontendButton(frontend) {
  const chosen = frontend.destination === byId("destination").value;
  return make("button",
    { type: "button", "aria-pressed": String(chosen), "data-frontend": frontend.destination,
      onclick: () => chooseFrontend(frontend.destination) },
    frontend.node ? `${frontend.kind} at ${frontend.node}` : frontend.kind, make("small", {}, frontend.destination));
}

function chooseFrontend(destination) {
  byId("destination").value = destination;
  const six = destination.startsWith("[");
  const now = state.overview.sources.find((source) => source.addresses.includes(byId("source").value));
  const fitting = (source) => source?.addresses.find((address) => address.includes(":") === six);
  byId("source").value = fitting(now) ?? fitting(state.overview.sources.find(fitting)) ?? byId("source").value;
  for (const button of document.querySelectorAll("[data-frontend]")) {
    button.setAttribute("aria-pressed", String(button.dataset.frontend === destination));
  }
  drawPlaces();
  explain();
}

// The path in each mode

/** again: the same packet under a new plan, so that what was sent, or is being sent, still belongs to it. */
async function explain(again = false) {
  const source = byId("source").value, destination = byId("destination").value.trim();
  if (!destination) return;
  const mine = ++state.explained;
  if (!again) byId("sent").replaceChildren();
  try {
    const found = await ask(`api/explain?${new URLSearchParams({ source, destination })}`);
    if (mine !== state.explained) return;
    wrong(null);
    byId("compared").replaceChildren(comparison(found));
    byId("paths").replaceChildren(...grouped(found).map(panel));
  } catch (error) {
    if (mine !== state.explained) return;
    wrong(error);
    byId("compared").replaceChildren();
    byId("paths").replaceChildren();
  }
}

function comparison(found) {
  const rows = found.map((each) => [
    each.loaded ? `${each.mode} (loaded)` : each.mode, each.verdict, each.node,
    each.endpoints.length ? `${each.endpoints.length}: ${each.endpoints.slice(0, 4).join(", ")}${each.endpoints.length > 4 ? ", …" : ""}` : "none",
    each.seen_as.join(" or ") || "nobody is reached"]);
  return table(["mode", "verdict", "decided by", "endpoints", "who endpoints see"], rows);
}

/** Modes with the same picture side by side as one. */
function grouped(found) {
  const groups = new Map();
  for (const each of found) groups.set(each.svg, [...(groups.get(each.svg) ?? []), each]);
  return [...groups.values()];
}

function panel(modes) {
  const common = modes[0].reasons.filter((reason) => modes.every((each) => each.reasons.includes(reason)));
  const own = modes.flatMap((each) =>
    each.reasons.filter((reason) => !common.includes(reason)).map((reason) => `${each.mode}: ${reason}`));
  const refused = ["reject", "drop"].includes(modes[0].verdict);
  return make("article", { class: "card path", "data-modes": modes.map((each) => each.mode).join(" ") },
    make("h3", { class: refused ? "refused" : undefined }, `${modes.map((each) => each.mode).join(", ")}: ${modes[0].verdict}`),
    make("div", { class: "drawn", tabindex: "0" }, picture(modes[0].svg)),
    make("ul", { class: "reasons" }, ...[...common, ...own].map((reason) => make("li", {}, reason))));
}

/** The server's drawing as an element of this page. */
function picture(svg) {
  return document.importNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement, true);
}

// Real packets

async function send() {
  const button = byId("send");
  button.disabled = true;
  byId("sent").replaceChildren(make("p", { class: "hint" }, "sending"));
  try {
    const body = JSON.stringify({
      source: byId("source").value, destination: byId("destination").value.trim(), count: Number(byId("count").value) });
    const headers = { "Content-Type": "application/json", "X-Hotplane-Token": state.overview.token };
    showSent(await ask("api/call", { method: "POST", headers, body }));
    wrong(null);
  } catch (error) {
    byId("sent").replaceChildren();
    wrong(error);
  } finally {
    button.disabled = false;
  }
}

function showSent(sent) {
  const per = (each) => `${each.count} (${(100 * each.share).toFixed(0)}\u00a0%)`;
  state.got = new Map(sent.filter((each) => each.outcome === "answered").map((each) => [each.answer, per(each)]));
  const rows = sent.map((each) => [each.answer, each.count, `${(100 * each.share).toFixed(0)}\u00a0%`, each.seen_as.join(" ")]);
  byId("sent").replaceChildren(table(["answer", "packets", "share", "seen as"], rows));
  drawPlaces();
}

// What happens

function watch() {
  const source = new EventSource("api/events");
  source.addEventListener("open", () => setState(false));
  source.addEventListener("error", () => setState(true));
  source.addEventListener("counters", (event) => showCounters(JSON.parse(event.data)));
  for (const kind of ["refusal", "change", "mode", "problem"]) {
    source.addEventListener(kind, (event) => showEvent(kind, JSON.parse(event.data)));
  }
}

let lostSince = 0;

/** A stream ends now and then and is opened again at once; only a longer silence is told. */
function setState(lost) {
  if (!lost) lostSince = 0;
  else if (!lostSince) lostSince = Date.now();
  const silent = lost && Date.now() - lostSince > 3000;
  byId("state").classList.toggle("lost", silent);
  byId("state").textContent = silent ? "no connection to hotplane; trying again" : `mode ${state.overview?.mode || "none"}, live`;
}

function showCounters(found) {
  if (found.error) {
    byId("counters").replaceChildren(make("p", { class: "refused" }, found.error));
    return;
  }
  const rows = found.flatMap((node) => node.services.filter((each) => each.connections || each.refused)
    .map((each) => [each.service, node.node, each.connections, each.packets ?? "–", each.refused ?? "–"]));
  const refusals = found.flatMap((node) => Object.entries(node.refusals).map(([reason, count]) => [reason, node.node, count]));
  const notes = found.filter((node) => node.note).map((node) => make("li", {}, `${node.node}: ${node.note}`));
  const pings = found.filter((node) => node.pings !== null).map((node) => make("li", {}, `${node.node}: ${node.pings} pings to Services answered`));
  const since = new Set(found.map((node) => node.since).filter(Boolean));
  byId("counters").replaceChildren(
    make("h3", {}, since.size === 1 ? `Connections ${[...since][0]}` : "Connections"),
    rows.length ? table(["Service", "node", "connections", "packets", "refused"], rows)
      : make("p", { class: "hint" }, since.size ? "none" : "not counted"),
    refusals.length ? table(["refused because", "node", "packets"], refusals) : "",
    make("ul", { class: "reasons hint" }, ...pings, ...notes));
}

function showEvent(kind, event) {
  const list = byId("events");
  list.querySelector(".hint")?.remove();
  const time = new Date();
  list.prepend(make("li", { class: kind === "refusal" ? "refused" : undefined },
    make("time", { datetime: time.toISOString() }, time.toLocaleTimeString()), `${event.where}: ${event.text}`));
  while (list.children.length > 100) list.lastChild.remove();
  if (kind !== "refusal") reload();
}

let waiting = 0;

/** After changes: who is there and the Services again, and the path under the new plan; many at a time as one. */
function reload() {
  clearTimeout(waiting);
  waiting = setTimeout(async () => {
    await loadOverview().then(loadServices).catch(wrong);
    await explain(true);
  }, 300);
}

byId("packet").addEventListener("submit", (event) => {
  event.preventDefault();
  explain();
});
byId("source").addEventListener("change", () => { drawPlaces(); explain(); });
byId("send").addEventListener("click", send);
byId("search").addEventListener("input", () => loadServices().catch(wrong));
await loadOverview().then(loadServices).catch(wrong);
byId("state").textContent = `mode ${state.overview?.mode || "none"}`;
watch();
