// A list of recommendations: cards with the place, the title, the reasons, and the change of place.
import { make, meta, plural, signed } from "./format.js";
import { add } from "./history.js";
import { $, ASKED, state } from "./state.js";

export function renderList(list, answer, count, old) {
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

export function card(item, place, old, hit) {
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
  info.addEventListener("click", () => document.dispatchEvent(new CustomEvent("item-opened", { detail: item.item_id })));
  tail.append(info);
  const shift = old && !state.answers.served.fallback ? moved(old.get(item.item_id), place) : null;
  if (shift) tail.append(shift);
  row.append(pick, tail);
  const reasons = telling(item.reasons || []);
  if (reasons.length) row.append(why(reasons));
  for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focusin", true], ["focusout", false]])
    row.addEventListener(event, () => relate(item, on));
  return row;
}

// The reasons worth a line: at most two, and none that is much smaller than the first.
function telling(reasons) {
  const threshold = reasons.length ? Math.max(0.05, Math.abs(reasons[0].effect) / 10) : 0;
  return reasons.filter((reason) => Math.abs(reason.effect) >= threshold).slice(0, 2);
}

// How many places an item has gained on the undistilled model.
function moved(was, place) {
  if (was === undefined) return badge("move new", "new", `Not among the first ${ASKED} of the undistilled model`);
  const steps = was - place;
  if (!steps) return null;
  return badge(`move ${steps > 0 ? "up" : "down"}`, `${steps > 0 ? "▲" : "▼"} ${Math.abs(steps)}`, `Place ${was + 1} of the undistilled model`);
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
    const said = told(reason);
    chip.append(make("b", "", signed(reason.effect)), ` ${said}`);
    chip.title = `${reason.effect < 0 ? "Spoke against it" : "Spoke for it"}: ${said}`;
    line.append(chip);
  }
  return line;
}

// A reason in words: an item of the history, and how it is known to matter; or that the item is chosen now.
function told(reason) {
  if (reason.kind === "follows") return `often follows ${reason.title}`;
  if (reason.kind === "reads-like") return `reads like ${reason.title}`;
  if (reason.kind === "chosen-with") return `often chosen with ${reason.title}`;
  if (reason.kind === "recent") return `chosen ${plural(reason.number, "time")} this week`;
  return reason.title;
}

// The same item in the other list, and what spoke for it in the history, light up together.
function relate(item, on) {
  for (const row of document.querySelectorAll(".columns .list > li")) row.classList.toggle("twin", on && row.dataset.id === item.item_id);
  const reasons = new Set((item.reasons || []).filter((reason) => reason.effect > 0).map((reason) => reason.item_id));
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
