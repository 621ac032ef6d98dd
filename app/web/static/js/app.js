// On every page: buttons that call the API, forms that send JSON, copying, and what live parts need.

import { call } from "./api.js";
import { sendForm } from "./jsonform.js";
import { ask, complain, say } from "./messages.js";

document.documentElement.classList.add("live");

// <button data-call="POST /v1/jobs/ID/cancel" data-ask="Cancel it?" data-then="/jobs/{id}">
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-call]");
  if (!button) return;
  const { call: request, ask: question, then, said } = button.dataset;
  if (question && !(await ask(question))) return;
  button.disabled = true;
  try {
    const [method, path] = request.split(" ");
    const answer = await call(method, path);
    if (then) location.assign(then.replace("{id}", answer?.id ?? ""));
    else if (said) say(said);
    refresh();
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = button.closest(".copy").querySelector("pre");
  try {
    await navigator.clipboard.writeText(source.textContent);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(source);
    say("Press Ctrl+C: this browser lets pages copy over HTTPS only.", "warning");
  }
});

document.addEventListener("submit", (event) => {
  if (!event.target.dataset.send) return;
  event.preventDefault();
  sendForm(event.target);
});

// A page nobody looks at asks for nothing.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden) event.preventDefault();
});

function refresh() {
  const live = document.getElementById("live");
  if (live && window.htmx) window.htmx.trigger(live, "refresh");
}
