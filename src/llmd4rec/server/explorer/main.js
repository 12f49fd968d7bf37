// The start of the explorer: loads what is served, and connects the controls. No library, no build.
import { call, Refused, listenForRetries, show } from "./api.js";
import { make, plural } from "./format.js";
import { changed, recall, renderHistory } from "./history.js";
import { openItem } from "./item.js";
import { renderActive, renderOptions } from "./options.js";
import { ask, renderAnswers } from "./recommendations.js";
import { find, fold, lookUp, onSearchKey } from "./search.js";
import { $, SHOWN, state } from "./state.js";

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

function renderModel() {
  const { served } = state.service;
  const name = served.network.toUpperCase() === "SASREC" ? "SASRec" : served.network;
  const line = [make("b", "", name), ` ${served.stage} · ${plural(served.items, "item")}`];
  if (served.validation !== null) line.push(make("span", "long", ` · validation ${served.selection} ${served.validation.toFixed(4)}`));
  $("model").replaceChildren(...line);
}

async function start() {
  try {
    state.service = (await call("/v1/models")).value;
    state.examples = (await call("/v1/examples")).value.examples;
    $("filter-seen").checked = $("filter-seen").defaultChecked = state.service.served.filter_seen;
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
  let askingSoon = 0;
  $("options").addEventListener("input", () => {
    renderActive();
    clearTimeout(askingSoon);
    askingSoon = setTimeout(ask, 60);
  });
  $("options").addEventListener("reset", () => setTimeout(() => (renderActive(), ask())));
  $("options").addEventListener("submit", (event) => event.preventDefault());
  $("example").addEventListener("change", () => takeExample(Number($("example").value || NaN)));
  $("surprise").addEventListener("click", () => takeExample(Math.floor(Math.random() * state.examples.length)));
  $("more").addEventListener("click", () => {
    state.more = true;
    renderAnswers();
    const next = $("columns").dataset.show === "undistilled" ? $("undistilled") : $("served");
    if (next.children[SHOWN]) next.children[SHOWN].querySelector(".pick").focus();
  });
  for (const button of $("switch").children)
    button.addEventListener("click", () => {
      $("columns").dataset.show = button.dataset.show;
      for (const other of $("switch").children) other.setAttribute("aria-pressed", String(other === button));
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

document.addEventListener("history-changed", ask);
document.addEventListener("item-opened", (event) => openItem(event.detail));
listenForRetries();
listen();
renderActive();
start();
