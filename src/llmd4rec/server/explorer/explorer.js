// The explorer. No library, no build: it reads top to bottom as state → request → render.
// Everything that comes from the catalogue is written with textContent; nothing becomes markup.
"use strict";

const SHOWN = 10; // items at first
const ASKED = 50; // items in reach of "Show more", and of the place of what was chosen then
const $ = (id) => document.getElementById(id);

const state = {
  service: null, // GET /v1/models
  history: [], // items {item_id, title, fields}, oldest first
  example: null, // the example that was taken, while its history is unchanged
  examples: [],
  answers: null, // {served, before}
  more: false,
};

// ---- talking to the service --------------------------------------------------------------------------------------
class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.error = error;
  }
}

async function call(path, body, signal) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const started = performance.now();
  let response;
  try {
    response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The service does not answer." });
  }
  let value;
  try {
    value = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(response.status, { message: "What came back is no answer of this service." });
  }
  if (!response.ok) throw new Refused(response.status, value.error || { message: response.statusText });
  const inside = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") || "");
  return { value, outside: performance.now() - started, inside: inside ? Number(inside[1]) : null };
}

function kindly(error) {
  if (error.status === 0) return ["The service does not answer.", "It may have been stopped, or the network is down."];
  if (error.status === 503) return ["The service is busy.", "Try again in a moment."];
  if (error.status >= 500) return ["Something went wrong in the service.", `Its log has the details (${error.error.request_id || "no id"}).`];
  return [sentence(error.message), error.error.remedy || ""];
}

let again = null;
function show(error, retry) {
  if (error.status === 401) askForKey(retry);
  else tell(kindly(error), retry);
}

function tell([title, text], retry) {
  $("error-title").textContent = title;
  $("error-text").textContent = text;
  again = retry;
  $("error").hidden = false;
}

function askForKey(retry) {
  sessionStorage.removeItem("key");
  again = retry;
  if (!$("key").open) $("key").showModal();
}

// ---- small pieces ------------------------------------------------------------------------------------------------
function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => `${capital(text)}.`;
const title = (name) => capital(name).replaceAll("_", " ");
// Four digits are not grouped: most of them are years.
const number = new Intl.NumberFormat("en", { useGrouping: "min2" });
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 10 ? 1 : 0)}`;
const plural = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;
const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " ms";

// One quiet line under a title: categories shortened to their ends, long texts left out.
function meta(item) {
  const facets = state.service ? state.service.served.fields : [];
  const parts = [];
  for (const facet of facets) {
    const value = item.fields[facet.name];
    if (value === null || value === undefined || value === "" || facet.kind === "text") continue;
    parts.push(facet.kind === "number" ? `${facet.name} ${number.format(value)}` : String(value).split(" > ").slice(-2).join(" › "));
  }
  return parts.slice(0, 3).join(" · ");
}

// ---- history -----------------------------------------------------------------------------------------------------
function add(item) {
  state.history.push(item);
  changed();
  say(`Added ${item.title}.`);
}

function remove(place) {
  const [item] = state.history.splice(place, 1);
  changed();
  say(`Removed ${item.title}.`);
}

function changed(example = null) {
  state.example = example;
  state.more = false;
  renderHistory();
  remember();
  ask();
}

// The history is in the address, so that a page can be sent on and survives a reload.
function remember() {
  const ids = state.history.map((item) => encodeURIComponent(item.item_id)).join(",");
  history.replaceState(null, "", ids ? `#${ids}` : location.pathname);
}

async function recall() {
  let ids;
  try {
    ids = location.hash.slice(1).split(",").filter(Boolean).map(decodeURIComponent);
  } catch {
    return; // an address that was cut in the middle of a sign
  }
  ids = ids.slice(-state.service.limits.max_history);
  if (!ids.length) return;
  const { value } = await call("/v1/items/lookup", { ids });
  const known = new Map(value.items.map((item) => [item.item_id, item]));
  state.history = ids.filter((id) => known.has(id)).map((id) => known.get(id));
}

function renderHistory() {
  const list = $("history");
  const inside = list.contains(document.activeElement);
  const read = state.service ? state.service.served.max_length : Infinity;
  const unread = Math.max(0, state.history.length - read);
  list.replaceChildren(
    ...state.history.map((item, place) => {
      const row = make("li", place < unread ? "unread" : "");
      row.dataset.id = item.item_id;
      row.append(make("span", "place", String(place + 1)), make("span", "", item.title));
      row.firstChild.setAttribute("aria-hidden", "true");
      const button = make("button", "icon", "×");
      button.type = "button";
      button.setAttribute("aria-label", `Remove ${item.title}`);
      button.addEventListener("click", () => {
        remove(place);
        const rest = list.querySelectorAll("button");
        (rest[Math.min(place, rest.length - 1)] || $("search")).focus();
      });
      row.append(button);
      return row;
    }),
  );
  if (!inside) list.scrollTop = list.scrollHeight;
  const empty = !state.history.length;
  $("history-empty").hidden = !empty;
  $("clear").hidden = empty;
  $("history-count").textContent = empty ? "" : String(state.history.length);
  $("window").hidden = !unread;
  $("window").textContent = `The model reads the last ${read}.`;
  if (!state.example) {
    $("example").value = "";
    $("then").hidden = true;
  }
}

// ---- search: a combobox ------------------------------------------------------------------------------------------
const search = { items: [], active: -1, timer: 0, control: null };

function find() {
  clearTimeout(search.timer);
  search.timer = setTimeout(lookUp, 90);
}

async function lookUp() {
  const text = $("search").value.trim();
  if (search.control) search.control.abort();
  if (!text) return fold();
  search.control = new AbortController();
  try {
    const { value } = await call(`/v1/items?limit=12&q=${encodeURIComponent(text)}`, null, search.control.signal);
    unfold(value.items);
  } catch (error) {
    if (error.name === "AbortError") return;
    fold();
    show(error, lookUp);
  }
}

function unfold(items) {
  search.items = items;
  $("found").replaceChildren(
    ...items.map((item, place) => {
      const option = make("li");
      option.id = `found-${place}`;
      option.setAttribute("role", "option");
      option.append(make("span", "title", item.title), make("span", "meta", meta(item)));
      option.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
      option.addEventListener("click", () => take(place));
      return option;
    }),
  );
  if (!items.length) {
    const none = make("li", "none", "No title has these words.");
    none.setAttribute("role", "option");
    none.setAttribute("aria-disabled", "true");
    $("found").append(none);
  }
  $("found").hidden = false;
  $("search").setAttribute("aria-expanded", "true");
  mark(items.length ? 0 : -1);
  say(items.length ? `${plural(items.length, "item")} found.` : "Nothing found.");
}

function fold() {
  search.items = [];
  $("found").hidden = true;
  $("search").setAttribute("aria-expanded", "false");
  mark(-1);
}

function mark(place) {
  search.active = place;
  [...$("found").children].forEach((option, index) => {
    option.setAttribute("aria-selected", String(index === place));
    if (index === place) option.scrollIntoView({ block: "nearest" });
  });
  if (place < 0) $("search").removeAttribute("aria-activedescendant");
  else $("search").setAttribute("aria-activedescendant", `found-${place}`);
}

function take(place) {
  const item = search.items[place];
  if (!item) return;
  $("search").value = "";
  fold();
  add(item);
}

function onSearchKey(event) {
  const last = search.items.length - 1;
  if (event.key === "ArrowDown" && last >= 0) mark(search.active >= last ? 0 : search.active + 1);
  else if (event.key === "ArrowUp" && last >= 0) mark(search.active <= 0 ? last : search.active - 1);
  else if (event.key === "Enter") take(search.active);
  else if (event.key === "Escape") {
    $("search").value = "";
    fold();
  } else if (event.key === "Backspace" && !$("search").value && state.history.length) remove(state.history.length - 1);
  else return;
  event.preventDefault();
}

// ---- options -----------------------------------------------------------------------------------------------------
function renderOptions() {
  $("fields").replaceChildren(
    ...state.service.served.fields
      .filter((facet) => (facet.kind === "category" && facet.values.length > 1) || (facet.kind === "number" && facet.min < facet.max))
      .map((facet) => (facet.kind === "category" ? choice(facet) : span(facet))),
  );
}

function choice(facet) {
  const box = make("div", "field");
  const label = make("label", "", title(facet.name));
  const select = make("select");
  label.htmlFor = select.id = `field-${facet.name}`;
  select.dataset.where = facet.name;
  select.append(new Option("Any", ""), ...facet.values.map((value) => new Option(value.replaceAll(" > ", " › "), value)));
  box.append(label, select);
  return box;
}

function span(facet) {
  const box = make("div", "field");
  const row = make("div", "row");
  for (const [edge, word] of [["min", "from"], ["max", "to"]]) {
    const input = make("input");
    input.type = "number";
    input.step = "any";
    input.placeholder = `${word} ${number.format(facet[edge])}`;
    input.dataset.between = facet.name;
    input.dataset.edge = edge;
    input.setAttribute("aria-label", `${title(facet.name)} ${word}`);
    row.append(input);
  }
  box.append(make("span", "label", title(facet.name)), row);
  return box;
}

function options() {
  const where = {};
  const between = {};
  for (const select of document.querySelectorAll("[data-where]")) if (select.value) where[select.dataset.where] = [select.value];
  for (const input of document.querySelectorAll("[data-between]")) {
    if (input.value !== "" && Number.isFinite(input.valueAsNumber))
      (between[input.dataset.between] ||= {})[input.dataset.edge] = input.valueAsNumber;
  }
  const diversity = Number($("diversity").value);
  const count = Object.keys(where).length + Object.keys(between).length;
  return { where, between, count, diversity, seen: $("seen").checked ? "keep" : "remove", explain: $("why").checked };
}

function renderActive() {
  const chosen = options();
  $("diversity-value").textContent = chosen.diversity ? chosen.diversity.toFixed(1) : "off";
  const parts = [];
  if (chosen.count) parts.push(plural(chosen.count, "filter"));
  if (chosen.diversity) parts.push(`variety ${chosen.diversity.toFixed(1)}`);
  $("reset").hidden = !parts.length && chosen.explain && $("seen").checked === $("seen").defaultChecked;
  $("active").textContent = parts.length ? `· ${parts.join(", ")}` : "";
}

// ---- asking ------------------------------------------------------------------------------------------------------
let asking = null;

async function ask() {
  if (asking) asking.abort();
  const control = (asking = new AbortController());
  const chosen = options();
  const limits = state.service.limits;
  const one = {
    history: state.history.slice(-limits.max_history).map((item) => item.item_id),
    k: Math.min(ASKED, limits.max_k),
    seen: chosen.seen,
    diversity: chosen.diversity,
    explain: chosen.explain,
  };
  if (chosen.count) one.filters = { where: chosen.where, between: chosen.between };
  const models = state.service.served.before ? ["served", "before"] : ["served"];
  $("columns").parentElement.classList.add("busy");
  try {
    const answer = await call("/v1/recommend/batch", { requests: models.map((model) => ({ ...one, model })) }, control.signal);
    $("error").hidden = true;
    state.answers = Object.fromEntries(models.map((model, place) => [model, answer.value.answers[place]]));
    renderAnswers();
    renderTime(answer);
    summarise();
  } catch (error) {
    if (error.name !== "AbortError") show(error, ask);
  } finally {
    if (asking === control) $("columns").parentElement.classList.remove("busy");
  }
}

function renderTime({ inside, outside }) {
  // The two are measured by two clocks: a round trip that seems shorter than its own part is not shown.
  const parts = inside === null ? [] : [make("b", "", milliseconds(inside)), " in the service"];
  if (inside === null || outside >= inside) {
    parts.push(`${parts.length ? " · " : ""}${milliseconds(outside)}`, make("span", "long", " round trip"));
  }
  $("time").replaceChildren(...parts);
}

function summarise() {
  const { served } = state.answers;
  const first = served.items[0];
  say(first ? `${plural(Math.min(SHOWN, served.items.length), "recommendation")}; the first is ${first.title}.` : "Nothing fits these filters.");
}

// ---- answers -----------------------------------------------------------------------------------------------------
function renderAnswers() {
  const { served } = state.answers;
  // Without a known history both models say the same: one list is enough.
  const before = served.fallback ? null : state.answers.before;
  $("columns").classList.toggle("two", Boolean(before));
  $("before-column").hidden = $("switch").hidden = !before;
  $("served-title").textContent = before ? "Distilled" : served.fallback ? "Most chosen" : "Served";
  const count = state.more ? ASKED : SHOWN;
  const places = (answer) => new Map(answer.items.map((item, place) => [item.item_id, place]));
  const old = before ? places(before) : null;
  renderList($("served"), served, count, old);
  if (before) renderList($("before"), before, count, null);
  $("more").hidden = state.more || Math.max(served.items.length, before ? before.items.length : 0) <= SHOWN;
  const popular = "Without a history, this is what is chosen most often.";
  $("served-sub").textContent = served.fallback ? popular : `The best of ${plural(served.considered, "item")}.`;
  if (before) $("before-sub").textContent = difference(served, before);
  renderThen();
}

function difference(served, before) {
  const first = new Set(before.items.slice(0, SHOWN).map((item) => item.item_id));
  const top = served.items.slice(0, SHOWN);
  const shared = top.filter((item) => first.has(item.item_id)).length;
  return top.length ? `Shares ${shared} of its first ${top.length} with the distilled model.` : "";
}

function renderThen() {
  const line = $("then");
  const next = state.example && state.example.next;
  line.hidden = !next;
  if (!next) return;
  const { served, before } = state.answers;
  const place = (answer) => answer.items.findIndex((item) => item.item_id === next.item_id) + 1;
  const said = (answer) => (place(answer) ? `place ${place(answer)}` : `not among the first ${answer.items.length}`);
  let found = sentence(said(served));
  if (before) {
    const neither = `Neither model has it among its first ${served.items.length}.`;
    const each = sentence(`${said(served)} for the distilled model, ${said(before)} before distillation`);
    found = place(served) || place(before) ? each : neither;
  }
  line.replaceChildren("This person then chose ", make("b", "", next.title), make("span", "", found));
}

function renderList(list, answer, count, old) {
  const items = answer.items.slice(0, count);
  const tops = new Map([...list.children].map((row) => [row.dataset.id, row.getBoundingClientRect().top]));
  const focused = list.contains(document.activeElement) ? [...list.children].findIndex((row) => row.contains(document.activeElement)) : -1;
  const hit = state.example && state.example.next ? state.example.next.item_id : null;
  if (!items.length) {
    const nothing = make("li", "nothing", "Nothing fits. Take a filter away.");
    list.replaceChildren(nothing);
    return;
  }
  list.replaceChildren(...items.map((item, place) => card(item, place, old, hit)));
  if (focused >= 0) list.children[Math.min(focused, items.length - 1)].querySelector(".pick").focus({ preventScroll: true });
  glide(list, tops);
}

function card(item, place, old, hit) {
  const row = make("li", item.item_id === hit ? "hit" : "");
  row.dataset.id = item.item_id;
  const pick = make("button", "pick");
  pick.type = "button";
  const text = make("span");
  text.append(make("span", "title", item.title), make("span", "meta", meta(item)));
  text.firstChild.title = item.title;
  pick.append(make("span", "place", String(place + 1)), text);
  pick.setAttribute("aria-label", `Add to the history: ${item.title}`);
  pick.addEventListener("click", () => add(item));
  const tail = make("span", "tail");
  const info = make("button", "icon", "⋯");
  info.type = "button";
  info.setAttribute("aria-label", `More about ${item.title}`);
  info.addEventListener("click", () => openItem(item.item_id));
  tail.append(info);
  const shift = old && !state.answers.served.fallback ? moved(old.get(item.item_id), place) : null;
  if (shift) tail.append(shift);
  row.append(pick, tail);
  const reasons = telling(item.because || []);
  if (reasons.length) row.append(why(reasons));
  for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focusin", true], ["focusout", false]])
    row.addEventListener(event, () => relate(item, on));
  return row;
}

// The reasons worth a line: at most two, and none that is small beside the first.
function telling(reasons) {
  const least = reasons.length ? Math.max(0.05, Math.abs(reasons[0].effect) / 10) : 0;
  return reasons.filter((reason) => Math.abs(reason.effect) >= least).slice(0, 2);
}

// How far an item has come against the model before distillation.
function moved(was, place) {
  if (was === undefined) return badge("move new", "new", `Not among the first ${ASKED} before distillation`);
  const steps = was - place;
  if (!steps) return null;
  return badge(`move ${steps > 0 ? "up" : "down"}`, `${steps > 0 ? "▲" : "▼"} ${Math.abs(steps)}`, `Place ${was + 1} before distillation`);
}

function badge(className, text, label) {
  const element = make("span", className, text);
  element.title = label;
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", label);
  return element;
}

function why(reasons) {
  const line = make("div", "why");
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", "Why");
  for (const reason of reasons) {
    const chip = make("span", reason.effect < 0 ? "against" : "");
    chip.append(make("b", "", signed(reason.effect)), ` ${reason.title}`);
    chip.title = `${reason.effect < 0 ? "Spoke against it" : "Spoke for it"}: ${reason.title}`;
    line.append(chip);
  }
  return line;
}

// The same item in the other list, and what spoke for it in the history, light up together.
function relate(item, on) {
  for (const row of document.querySelectorAll(".columns .list > li")) row.classList.toggle("twin", on && row.dataset.id === item.item_id);
  const reasons = new Set((item.because || []).filter((reason) => reason.effect > 0).map((reason) => reason.item_id));
  for (const row of $("history").children) row.classList.toggle("hot", on && reasons.has(row.dataset.id));
}

// Rows slide to their new places instead of jumping there.
function glide(list, tops) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches || !tops.size) return;
  for (const row of list.children) {
    const top = tops.get(row.dataset.id);
    if (top === undefined) row.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 180 });
    else {
      const by = top - row.getBoundingClientRect().top;
      if (by) row.animate([{ transform: `translateY(${by}px)` }, { transform: "none" }], { duration: 220, easing: "ease-out" });
    }
  }
}

// ---- one item ----------------------------------------------------------------------------------------------------
async function openItem(id) {
  try {
    const [item, similar] = await Promise.all([
      call(`/v1/items/${id.split("/").map(encodeURIComponent).join("/")}`),
      call("/v1/similar", { item_id: id, k: 6 }),
    ]);
    $("item-title").textContent = item.value.title;
    const fields = Object.entries(item.value.fields).filter(([, value]) => value !== null && value !== "");
    const facts = [...fields, ["identifier", item.value.item_id], ["chosen", plural(item.value.count, "time")]];
    $("item-fields").replaceChildren(...facts.flatMap(([name, value]) => [make("dt", "", title(name)), make("dd", "", String(value))]));
    $("similar").replaceChildren(
      ...similar.value.items.map((other, place) => {
        const row = card({ ...other, because: null }, place, null, null);
        row.querySelector(".pick").addEventListener("click", () => $("item").close());
        return row;
      }),
    );
    if (!$("item").open) $("item").showModal();
    $("item-body").scrollTop = 0;
  } catch (error) {
    show(error, () => openItem(id));
  }
}

// ---- examples ----------------------------------------------------------------------------------------------------
function renderExamples() {
  $("examples").hidden = !state.examples.length;
  $("example").replaceChildren(
    new Option("Choose a person", ""),
    ...state.examples.map((example, place) => new Option(`${example.name} · ${plural(example.history.length, "item")}`, String(place))),
  );
}

function takeExample(place) {
  const example = state.examples[place];
  if (!example) return;
  state.history = [...example.history];
  changed(example);
  $("example").value = String(place);
}

// ---- start -------------------------------------------------------------------------------------------------------
let speaking = 0;
function say(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => ($("live").textContent = text), 150);
}

function renderModel() {
  const { served } = state.service;
  const name = served.network.toUpperCase() === "SASREC" ? "SASRec" : served.network;
  const line = [make("b", "", name), ` ${served.stage} · ${plural(served.items, "item")}`];
  if (served.validation_ndcg !== null) line.push(make("span", "long", ` · validation NDCG@10 ${served.validation_ndcg.toFixed(4)}`));
  $("model").replaceChildren(...line);
}

async function start() {
  try {
    state.service = (await call("/v1/models")).value;
    state.examples = (await call("/v1/examples")).value.examples;
    $("seen").checked = $("seen").defaultChecked = state.service.served.seen === "keep";
    renderModel();
    renderOptions();
    renderExamples();
    await recall();
    renderHistory();
    await ask();
  } catch (error) {
    if (error instanceof Refused) return show(error, start);
    throw error;
  }
}

function listen() {
  $("search").addEventListener("input", find);
  $("search").addEventListener("keydown", onSearchKey);
  $("search").addEventListener("blur", fold);
  $("search").addEventListener("focus", () => $("search").value && lookUp());
  $("clear").addEventListener("click", () => {
    state.history = [];
    changed();
    $("search").focus();
  });
  $("options").addEventListener("input", () => {
    renderActive();
    clearTimeout(asking_soon);
    asking_soon = setTimeout(ask, 60);
  });
  $("options").addEventListener("reset", () => setTimeout(() => (renderActive(), ask())));
  $("options").addEventListener("submit", (event) => event.preventDefault());
  $("example").addEventListener("change", () => takeExample(Number($("example").value || NaN)));
  $("surprise").addEventListener("click", () => takeExample(Math.floor(Math.random() * state.examples.length)));
  $("more").addEventListener("click", () => {
    state.more = true;
    renderAnswers();
    const next = $("columns").dataset.show === "before" ? $("before") : $("served");
    if (next.children[SHOWN]) next.children[SHOWN].querySelector(".pick").focus();
  });
  for (const button of $("switch").children)
    button.addEventListener("click", () => {
      $("columns").dataset.show = button.dataset.show;
      for (const other of $("switch").children) other.setAttribute("aria-pressed", String(other === button));
    });
  $("retry").addEventListener("click", () => {
    $("error").hidden = true;
    if (again) again();
  });
  $("key").addEventListener("cancel", () => tell(["Without a key there is nothing to see.", ""], again));
  $("key-form").addEventListener("submit", () => {
    sessionStorage.setItem("key", $("key-input").value.trim());
    $("key-input").value = "";
    if (again) again();
  });
  for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
  $("item").addEventListener("click", (event) => event.target === $("item") && $("item").close());
  document.addEventListener("keydown", (event) => {
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName) && document.activeElement.type !== "checkbox";
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    $("search").focus();
  });
  addEventListener("hashchange", async () => {
    try {
      state.history = [];
      await recall();
      state.example = null;
      renderHistory();
      ask();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      show(error, start);
    }
  });
}

let asking_soon = 0;
listen();
renderActive();
start();
