// The search: a combobox.
import { call, show } from "./api.js";
import { make, meta, plural, say } from "./format.js";
import { add, remove } from "./history.js";
import { $, state } from "./state.js";

const search = { items: [], active: -1, timer: 0, control: null };

export function find() {
  clearTimeout(search.timer);
  search.timer = setTimeout(lookUp, 90);
}

export async function lookUp() {
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

export function fold() {
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

export function onSearchKey(event) {
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
