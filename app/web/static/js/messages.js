// What happened, said at the edge of the page and to screen readers; and questions before what can not be undone.

const SHOWN_MS = 8000;
const ERROR_MS = 30000;

/** Say something; kind is "done", "warning" or "error". */
export function say(text, kind = "done", hint = "") {
  const note = document.createElement("div");
  note.className = `notice ${kind}`;
  const strong = document.createElement("strong");
  strong.textContent = text;
  note.append(strong);
  if (hint) note.append(document.createElement("br"), hint);
  document.getElementById("messages").append(note);
  setTimeout(() => note.remove(), kind === "error" ? ERROR_MS : SHOWN_MS);
}

/** Say what went wrong. */
export function complain(error) {
  say(error.message, "error", error.hint ?? "");
}

/** Ask; resolves to whether the answer is yes. */
export function ask(question) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = question;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
