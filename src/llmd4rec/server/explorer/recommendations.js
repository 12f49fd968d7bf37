// Asking for recommendations, and showing those of the distilled and the undistilled model side by side.
import { call, show } from "./api.js";
import { renderList } from "./cards.js";
import { make, milliseconds, plural, say, sentence } from "./format.js";
import { options } from "./options.js";
import { $, ASKED, SHOWN, state } from "./state.js";

let asking = null;

export async function ask() {
  if (asking) asking.abort();
  const control = (asking = new AbortController());
  const chosen = options();
  const limits = state.service.limits;
  const one = {
    history: state.history.slice(-limits.max_history).map((item) => item.item_id),
    k: Math.min(ASKED, limits.max_k),
    filter_seen: chosen.filterSeen,
    diversity: chosen.diversity,
    explain: chosen.explain,
  };
  // Nobody says here when an item was chosen: to a model that reads times, all of them were chosen now.
  if (state.service.served.reads.length) one.times = one.history.map(() => Math.floor(Date.now() / 1000));
  if (chosen.count) one.filters = { where: chosen.where, between: chosen.between };
  const models = state.service.served.has_undistilled ? ["served", "undistilled"] : ["served"];
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

export function renderAnswers() {
  const { served } = state.answers;
  // Without a known history both models say the same: one list is enough.
  const undistilled = served.fallback ? null : state.answers.undistilled;
  $("columns").classList.toggle("two", Boolean(undistilled));
  $("undistilled-column").hidden = $("switch").hidden = !undistilled;
  $("served-title").textContent = undistilled ? "Distilled" : served.fallback ? (served.fallback === "recent" ? "Chosen now" : "Most popular") : "Served";
  const count = state.more ? ASKED : SHOWN;
  const places = (answer) => new Map(answer.items.map((item, place) => [item.item_id, place]));
  const old = undistilled ? places(undistilled) : null;
  renderList($("served"), served, count, old);
  if (undistilled) renderList($("undistilled"), undistilled, count, null);
  $("more").hidden = state.more || Math.max(served.items.length, undistilled ? undistilled.items.length : 0) <= SHOWN;
  const which = served.fallback === "recent" ? "the items chosen most of late" : "the most frequent items";
  const popular = `Without a history, these are ${which}.`;
  $("served-sub").textContent = served.fallback ? popular : `The best of ${plural(served.num_candidates, "item")}.`;
  if (undistilled) $("undistilled-sub").textContent = difference(served, undistilled);
  renderThen();
}

function difference(served, undistilled) {
  const first = new Set(undistilled.items.slice(0, SHOWN).map((item) => item.item_id));
  const top = served.items.slice(0, SHOWN);
  const shared = top.filter((item) => first.has(item.item_id)).length;
  return top.length ? `Shares ${shared} of its first ${top.length} with the distilled model.` : "";
}

function renderThen() {
  const line = $("then");
  const next = state.example && state.example.next;
  line.hidden = !next;
  if (!next) return;
  const { served, undistilled } = state.answers;
  const place = (answer) => answer.items.findIndex((item) => item.item_id === next.item_id) + 1;
  const said = (answer) => (place(answer) ? `place ${place(answer)}` : `not among the first ${answer.items.length}`);
  let found = sentence(said(served));
  if (undistilled) {
    const neither = `Neither model has it among its first ${served.items.length}.`;
    const each = sentence(`${said(served)} for the distilled model, ${said(undistilled)} for the undistilled one`);
    found = place(served) || place(undistilled) ? each : neither;
  }
  line.replaceChildren("This person then chose ", make("b", "", next.title), make("span", "", found));
}
