// Picking jobs: to cancel them, or to look at them side by side. What is picked stays so while the list moves.

import { call } from "./api.js";
import { ask, complain, say } from "./messages.js";

const MOST_COMPARED = 8;
const picked = new Map();
const bar = document.getElementById("bulk");
const cancel = document.getElementById("bulk-cancel");
const compare = document.getElementById("bulk-compare");
bar.hidden = false;

document.addEventListener("change", (event) => {
  if (!event.target.matches("input.pick")) return;
  const { value, checked } = event.target;
  if (checked) picked.set(value, event.target.dataset.status);
  else picked.delete(value);
  show();
});

document.addEventListener("htmx:afterSettle", () => {
  for (const box of document.querySelectorAll("input.pick")) {
    box.checked = picked.has(box.value);
    if (box.checked) picked.set(box.value, box.dataset.status);
  }
  show();
});

cancel?.addEventListener("click", async () => {
  const ids = stoppable();
  if (!(await ask(`Cancel ${ids.length} job${ids.length === 1 ? "" : "s"}?`))) return;
  const ends = await Promise.allSettled(ids.map((id) => call("POST", `/v1/jobs/${id}/cancel`)));
  const failed = ends.filter((end) => end.status === "rejected");
  if (failed.length) complain(failed[0].reason);
  say(`${ids.length - failed.length} of ${ids.length} asked to stop.`);
  picked.clear();
  window.htmx?.trigger(document.getElementById("live"), "refresh");
});

function stoppable() {
  return [...picked].filter(([, status]) => status === "queued" || status === "running").map(([id]) => id);
}

function show() {
  document.getElementById("bulk-count").textContent = `${picked.size} selected`;
  if (cancel) {
    cancel.disabled = stoppable().length === 0;
    cancel.textContent = stoppable().length ? `Cancel ${stoppable().length}` : "Cancel";
  }
  const canCompare = picked.size >= 2 && picked.size <= MOST_COMPARED;
  compare.setAttribute("aria-disabled", String(!canCompare));
  if (canCompare) compare.href = `/jobs/compare?ids=${[...picked.keys()].join(",")}`;
  else compare.removeAttribute("href");
}
