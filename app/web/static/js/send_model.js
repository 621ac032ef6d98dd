// The place where files of a model are dropped: sends them, then registers the model.

import { call } from "./api.js";
import { complain, say } from "./messages.js";
import { upload } from "./upload.js";

/** Make the place work; `onModel` gets every model that was registered. */
export function receiveModels(onModel) {
  const place = document.getElementById("drop");
  if (!place) return;
  const send = (files) => sendModel([...files], onModel).catch(complain);
  const input = place.querySelector("input[type=file]");
  input.addEventListener("change", () => send(input.files));
  send(input.files); // chosen before this ran
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.dataset.over = "";
  });
  place.addEventListener("dragleave", () => delete place.dataset.over);
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    delete place.dataset.over;
    send(event.dataTransfer.files);
  });
}

async function sendModel(files, onModel) {
  if (!files.length) return;
  const lines = files.map((file) => line(file));
  const listed = [];
  for (const [index, file] of files.entries()) {
    listed.push({ path: file.name, upload_id: await upload(file, lines[index].progress) });
    lines[index].done();
  }
  const model = await call("POST", "/v1/models", { source: { type: "upload", files: listed } });
  say(`The model is registered: ${model.architecture ?? model.id}.`);
  document.getElementById("transfers").replaceChildren();
  onModel(model);
}

function line(file) {
  const item = document.createElement("li");
  const bar = document.createElement("progress");
  bar.max = Math.max(file.size, 1);
  bar.value = 0;
  bar.setAttribute("aria-label", `Sending ${file.name}`);
  const name = document.createElement("span");
  name.textContent = file.name;
  const told = document.createElement("span");
  told.className = "quiet";
  item.append(name, bar, told);
  document.getElementById("transfers").append(item);
  const progress = (safe) => {
    bar.value = safe;
    told.textContent = `${Math.floor((100 * safe) / bar.max)} %`;
  };
  return { progress, done: () => (told.textContent = "sent") };
}
