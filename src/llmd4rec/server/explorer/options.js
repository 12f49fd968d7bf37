// Filters and options of a request.
import { make, number, plural, title } from "./format.js";
import { $, state } from "./state.js";

export function renderOptions() {
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

export function options() {
  const where = {};
  const between = {};
  for (const select of document.querySelectorAll("[data-where]")) if (select.value) where[select.dataset.where] = [select.value];
  for (const input of document.querySelectorAll("[data-between]")) {
    if (input.value !== "" && Number.isFinite(input.valueAsNumber))
      (between[input.dataset.between] ||= {})[input.dataset.edge] = input.valueAsNumber;
  }
  const diversity = Number($("diversity").value);
  const count = Object.keys(where).length + Object.keys(between).length;
  return { where, between, count, diversity, filterSeen: $("filter-seen").checked, explain: $("why").checked };
}

export function renderActive() {
  const chosen = options();
  $("diversity-value").textContent = chosen.diversity ? chosen.diversity.toFixed(1) : "off";
  const parts = [];
  if (chosen.count) parts.push(plural(chosen.count, "filter"));
  if (chosen.diversity) parts.push(`diversity ${chosen.diversity.toFixed(1)}`);
  $("reset").hidden = !parts.length && chosen.explain && $("filter-seen").checked === $("filter-seen").defaultChecked;
  $("active").textContent = parts.length ? `· ${parts.join(", ")}` : "";
}
