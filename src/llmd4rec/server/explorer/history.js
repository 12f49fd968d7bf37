// The history: a list of items, which is also in the address.
import { call } from "./api.js";
import { make, say } from "./format.js";
import { $, state } from "./state.js";

export function add(item) {
  state.history.push(item);
  changed();
  say(`Added ${item.title}.`);
}

export function remove(place) {
  const [item] = state.history.splice(place, 1);
  changed();
  say(`Removed ${item.title}.`);
}

export function changed(example = null) {
  state.example = example;
  state.more = false;
  renderHistory();
  remember();
  document.dispatchEvent(new Event("history-changed"));
}

// The history is in the address, so that a page can be sent on and survives a reload.
function remember() {
  const ids = state.history.map((item) => encodeURIComponent(item.item_id)).join(",");
  history.replaceState(null, "", ids ? `#${ids}` : location.pathname);
}

export async function recall() {
  let ids;
  try {
    ids = location.hash.slice(1).split(",").filter(Boolean).map(decodeURIComponent);
  } catch {
    return; // an address that was cut in the middle of a character
  }
  ids = ids.slice(-state.service.limits.max_history);
  if (!ids.length) return;
  const { value } = await call("/v1/items/lookup", { ids });
  const known = new Map(value.items.map((item) => [item.item_id, item]));
  state.history = ids.filter((id) => known.has(id)).map((id) => known.get(id));
}

export function renderHistory() {
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
