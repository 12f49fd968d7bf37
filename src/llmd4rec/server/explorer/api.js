// Requests to the service, and what is shown when one fails.
import { sentence } from "./format.js";
import { $ } from "./state.js";

export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.error = error;
  }
}

export async function call(path, body, signal) {
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
    throw new Refused(response.status, { message: "The answer is not from this service." });
  }
  if (!response.ok) throw new Refused(response.status, value.error || { message: response.statusText });
  const inside = /dur=([\d.]+)/.exec(response.headers.get("Server-Timing") || "");
  return { value, outside: performance.now() - started, inside: inside ? Number(inside[1]) : null };
}

function described(error) {
  if (error.status === 0) return ["The service does not answer.", "It may have been stopped, or the network is down."];
  if (error.status === 503) return ["The service is busy.", "Try again in a moment."];
  if (error.status >= 500) return ["Something went wrong in the service.", `Its log has the details (${error.error.request_id || "no id"}).`];
  return [sentence(error.message), error.error.remedy || ""];
}

let again = null; // what to do when the reader asks to try again
export function show(error, retry) {
  if (error.status === 401) askForKey(retry);
  else tell(described(error), retry);
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

// Connects the error banner and the dialog that asks for a key.
export function listenForRetries() {
  $("retry").addEventListener("click", () => {
    $("error").hidden = true;
    if (again) again();
  });
  $("key").addEventListener("cancel", () => tell(["Nothing can be shown without a key.", ""], again));
  $("key-form").addEventListener("submit", () => {
    sessionStorage.setItem("key", $("key-input").value.trim());
    $("key-input").value = "";
    if (again) again();
  });
}
