// From the fields of a form to the JSON body of a request, and from the problems of an answer back to the fields.
//
// `name` of a field is the JSON pointer of its value. A field left empty, or as `data-default` has it, is not sent. A
// fieldset with `data-object` is a value that may be null: its fields count while its switch (`data-switch`) is on.

import { call } from "./api.js";
import { complain } from "./messages.js";

const READ = {
  integer: (text) => Number.parseInt(text, 10),
  number: Number,
  json: JSON.parse,
  lines: (text) => text.split("\n").map((line) => line.trim()).filter(Boolean),
  pairs: (text) => Object.fromEntries(text.split("\n").filter(Boolean).map((line) => pair(line))),
  moment: (text) => new Date(text).toISOString(),
};

/** The body that the form says. */
export function bodyOf(form) {
  const body = {};
  for (const group of form.querySelectorAll("fieldset[data-object]")) {
    const pointer = group.dataset.object;
    if (isOff(group.parentElement)) continue;
    if (isOn(group)) put(body, pointer, {});
    else if (group.dataset.default === "on") put(body, pointer, null);
  }
  const lists = new Map();
  for (const field of form.querySelectorAll("[name^='/']")) {
    if (isOff(field)) continue;
    if (field.dataset.type === "choices") {
      const list = lists.get(field.name) ?? { chosen: [], given: field.dataset.default };
      if (field.checked) list.chosen.push(field.value);
      lists.set(field.name, list);
    } else {
      const value = valueOf(field);
      if (value !== undefined) put(body, field.name, value);
    }
  }
  for (const [pointer, { chosen, given }] of lists) {
    if (JSON.stringify(chosen) !== given) put(body, pointer, chosen);
  }
  return body;
}

function valueOf(field) {
  if (field.type === "checkbox") return String(field.checked) === field.dataset.default ? undefined : field.checked;
  const text = field.value.trim();
  if (text === (field.dataset.default ?? "") || (text === "" && field.dataset.empty !== "null")) return undefined;
  if (text === "") return null;
  return (READ[field.dataset.type] ?? String)(text);
}

const isOn = (group) => group.querySelector("[data-switch]").checked;
const isOff = (element) => {
  const group = element?.closest("fieldset[data-object]");
  return Boolean(group) && (!isOn(group) || isOff(group.parentElement));
};

function put(body, pointer, value) {
  const parts = pointer.slice(1).split("/");
  const last = parts.pop();
  const place = parts.reduce((inner, part) => (inner[part] ??= {}), body);
  place[last] = value;
}

function pair(line) {
  const [name, ...rest] = line.split("=");
  return [name.trim(), rest.join("=").trim()];
}

/** Put what is wrong beside the fields it is about; returns the errors that belong to none. */
export function showErrors(form, errors) {
  clearErrors(form);
  return errors.filter(({ pointer, message }) => !mark(form, pointer, message));
}

/** Take all marks away. */
export function clearErrors(form) {
  for (const note of form.querySelectorAll(".problem")) note.textContent = "";
  for (const field of form.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

function mark(form, pointer, message) {
  for (let place = pointer; place; place = place.slice(0, place.lastIndexOf("/"))) {
    const field = form.querySelector(`[name="${CSS.escape(place)}"]`);
    const note = field?.closest(".field")?.querySelector(".problem") ?? noteOf(form, place);
    if (!note) continue;
    note.textContent = message;
    field?.setAttribute("aria-invalid", "true");
    field?.closest("details")?.setAttribute("open", "");
    return true;
  }
  return false;
}

const noteOf = (form, pointer) => form.querySelector(`[data-problem="${CSS.escape(pointer)}"]`);

/** Send a form with `data-send="METHOD /path"`; then show `data-show`, or go to `data-then`. */
export async function sendForm(form) {
  const [method, path] = form.dataset.send.split(" ");
  const button = form.querySelector("button[type=submit]");
  button.disabled = true;
  try {
    clearErrors(form);
    const answer = await call(method, path, bodyOf(form));
    form.dispatchEvent(new CustomEvent("sent", { detail: answer, bubbles: true }));
    if (form.dataset.show) show(form.dataset.show, answer);
    if (form.dataset.then) location.assign(form.dataset.then.replace("{id}", answer.id));
  } catch (error) {
    const left = showErrors(form, error.errors ?? []);
    if (!error.errors?.length || left.length) complain(error);
    form.querySelector("[aria-invalid]")?.focus();
  } finally {
    button.disabled = false;
  }
}

/** Fill the elements with `data-field` inside a hidden part of the page and show it. */
function show(selector, answer) {
  const part = document.querySelector(selector);
  for (const place of part.querySelectorAll("[data-field]")) place.textContent = answer[place.dataset.field];
  part.hidden = false;
  part.focus();
}
