// The form of a new job: presets, files, a plan while one types, and the same wish in other languages.

import { call, request } from "./api.js";
import { size } from "./charts.js";
import { bodyOf, clearErrors, showErrors } from "./jsonform.js";
import { complain } from "./messages.js";
import { onStored } from "./secret_news.js";
import { receiveModels } from "./send_model.js";
import { upload } from "./upload.js";

const PAUSE_MS = 350;
const form = document.getElementById("job-form");
const plan = document.getElementById("plan");
const commands = document.getElementById("commands");
let waiting = null;
let asked = null;

form.addEventListener("submit", (event) => {
  if (document.getElementById("model-id").value) return;
  event.preventDefault();
  event.stopPropagation(); // nothing to send yet
  stopLooking();
  showErrors(form, [{ pointer: "/model/id", message: "Choose a model" }]);
  document.getElementById("model-id").focus();
});
form.addEventListener("input", soon);
form.addEventListener("change", (event) => {
  const group = event.target.closest("fieldset[data-object]");
  if (event.target.matches("[data-switch]")) group.querySelector(".switched").hidden = !event.target.checked;
  if (event.target.matches("[data-upload-for]")) sendText(event.target).catch(complain);
});
for (const button of document.querySelectorAll("[data-preset]")) {
  button.addEventListener("click", () => take(JSON.parse(button.dataset.preset)));
}
receiveModels((model) => {
  const choice = document.getElementById("model-id");
  choice.append(new Option(`${model.name ?? model.id} · ${model.architecture ?? "unknown"} · ${size(model.bytes)}`, model.id));
  choice.value = model.id;
  soon();
});
onStored(({ name }) => {
  for (const choice of form.querySelectorAll("[data-secrets]")) {
    const known = [...choice.options].find((option) => option.value === name);
    if (known) known.textContent = name;
    else choice.append(new Option(name));
    choice.value ||= name;
  }
  soon();
});
soon();

// What was on its way would wipe out what is said now.
function stopLooking() {
  clearTimeout(waiting);
  asked?.abort();
}

function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(() => look().catch(complain), PAUSE_MS);
}

// A wish that changes while an answer is on its way makes that answer void.
async function look() {
  asked?.abort();
  clearErrors(form);
  const body = bodyOf(form);
  if (!body.model?.id) return;
  asked = new AbortController();
  const { signal } = asked;
  try {
    showPlan(await call("POST", "/v1/plans", body, { signal }));
    const same = await request("POST", "/jobs/new/commands", { body, signal, headers: { Accept: "text/html" } });
    commands.innerHTML = await same.text();
  } catch (error) {
    if (error.name !== "AbortError") showRefusal(error);
  }
}

function showPlan(predicted) {
  const facts = document.createElement("dl");
  facts.className = "facts";
  const share = Math.round((1000 * predicted.artifact_bytes) / predicted.bytes_before) / 10;
  const adds = predicted.formats[0]?.adds;
  const after = size(predicted.artifact_bytes) + (adds ? ` and its ${adds}` : "");
  fact(facts, "Size", `${size(predicted.bytes_before)} → ${after} (${share} %)`);
  fact(facts, "Bits per weight", predicted.bits_per_weight.toFixed(3));
  fact(facts, "Coverage", `${predicted.coverage_pct.toFixed(1)} % of parameters`);
  fact(facts, "Memory", size(predicted.peak_memory_bytes));
  fact(facts, "Disk", size(predicted.disk_bytes));
  fact(facts, "Time", `about ${Math.max(1, Math.round(predicted.seconds))} s, without the evaluation`);
  fact(facts, "Workers that fit", predicted.worker_classes.join(", ") || `none now: it would wait for ${predicted.device_class}`);
  plan.replaceChildren(facts, skipped(predicted.layers.filter((layer) => layer.skipped_reason)));
}

function fact(list, name, value) {
  const [term, description] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  description.textContent = value;
  list.append(term, description);
}

function skipped(layers) {
  const details = document.createElement("details");
  const summary = document.createElement("summary");
  summary.textContent = `${layers.length} weights stay as they are`;
  const list = document.createElement("ul");
  for (const layer of layers) {
    const item = document.createElement("li");
    item.textContent = `${layer.name}: ${layer.skipped_reason}`;
    list.append(item);
  }
  details.append(summary, list);
  return details;
}

function showRefusal(error) {
  const left = showErrors(form, error.errors ?? []);
  const note = document.createElement("p");
  note.className = "notice error";
  note.textContent = left.length || !error.errors?.length ? [error.message, error.hint].filter(Boolean).join(" ") : "See the marked fields.";
  plan.replaceChildren(note);
}

// Everything back to what the service takes by itself, then what the preset says. The model stays.
function take(body) {
  for (const box of form.querySelectorAll("[data-switch]")) {
    const group = box.closest("fieldset[data-object]");
    box.checked = group.dataset.default === "on" || at(body, group.dataset.object) !== undefined;
    group.querySelector(".switched").hidden = !box.checked;
  }
  for (const field of form.querySelectorAll("[name^='/']:not(#model-id)")) {
    const value = at(body, field.name) ?? field.dataset.default ?? "";
    if (field.dataset.type === "choices") field.checked = JSON.parse(value).includes(field.value);
    else if (field.type === "checkbox") field.checked = String(value) === "true";
    else field.value = value;
  }
  soon();
}

const at = (body, pointer) => pointer.slice(1).split("/").reduce((inner, part) => inner?.[part], body);

async function sendText(input) {
  const [file] = input.files;
  if (!file) return;
  const field = document.getElementById(input.dataset.uploadFor);
  field.value = "";
  field.placeholder = "sending …";
  field.value = await upload(file, (safe) => (field.placeholder = `${Math.floor((100 * safe) / file.size)} %`));
  soon();
}
