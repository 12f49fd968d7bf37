// Elements and texts. Everything from the catalogue is written with textContent; nothing becomes markup.
import { $, state } from "./state.js";

export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
export const sentence = (text) => `${capital(text)}.`;
export const title = (name) => capital(name).replaceAll("_", " ");
// Numbers of four digits are not grouped: most of them are years.
export const number = new Intl.NumberFormat("en", { useGrouping: "min2" });
export const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(Math.abs(value) < 10 ? 1 : 0)}`;
export const plural = (count, word) => `${number.format(count)} ${word}${count === 1 ? "" : "s"}`;
export const milliseconds = (value) => (value < 10 ? value.toFixed(1) : Math.round(value)) + " ms";

// The line under a title: short ends of categories, without long texts.
export function meta(item) {
  const facets = state.service ? state.service.served.fields : [];
  const parts = [];
  for (const facet of facets) {
    const value = item.fields[facet.name];
    if (value === null || value === undefined || value === "" || facet.kind === "text") continue;
    parts.push(facet.kind === "number" ? `${facet.name} ${number.format(value)}` : String(value).split(" > ").slice(-2).join(" › "));
  }
  return parts.slice(0, 3).join(" · ");
}

// Tells assistive software what has changed.
let speaking = 0;
export function say(text) {
  clearTimeout(speaking);
  speaking = setTimeout(() => ($("live").textContent = text), 150);
}
