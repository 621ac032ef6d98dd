// The place where files of a model are dropped: sends them, then registers the model.

import { call } from "./api.js";
import { complain, say } from "./messages.js";
import { upload } from "./upload.js";

/** Make the place work; `onModel` gets every model that was registered. */
export function receiveModels(onModel) {
  const place = document.getElementById("drop");
  if (!place) return;
  const send = (files, name) => sendModel([...files], name, onModel).catch(complain);
  const [names, suffixes] = [JSON.parse(place.dataset.names), place.dataset.suffixes.split(" ")];
  const belongs = ({ name }) => names.includes(name) || suffixes.includes(/.[.][^.]*$/.exec(name)?.[0].slice(1));
  const sendFolder = (files, name) => send(files.filter(belongs), name);
  const input = document.getElementById("files");
  const folder = document.getElementById("folder");
  const sendChosen = () => {
    if (!folder.files.length) return;
    const [name] = folder.files[0].webkitRelativePath.split("/");
    sendFolder([...folder.files].filter((file) => file.webkitRelativePath.split("/").length === 2), name);
  };
  input.addEventListener("change", () => send(input.files));
  folder.addEventListener("change", sendChosen);
  send(input.files); // chosen before this ran
  sendChosen();
  place.addEventListener("dragover", (event) => {
    event.preventDefault();
    place.dataset.over = "";
  });
  place.addEventListener("dragleave", () => delete place.dataset.over);
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    delete place.dataset.over;
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
    const dropped = entries.find((entry) => entry?.isDirectory);
    if (dropped) filesIn(dropped).then((files) => sendFolder(files, dropped.name)).catch(complain);
    else send(event.dataTransfer.files);
  });
}

// The files right in a dropped folder. They come in parts; an empty one is the end.
async function filesIn(folder) {
  const [reader, files] = [folder.createReader(), []];
  for (;;) {
    const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!entries.length) return files;
    const found = entries.filter((entry) => entry.isFile);
    files.push(...(await Promise.all(found.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))))));
  }
}

async function sendModel(files, name, onModel) {
  if (!files.length) {
    if (name) throw new Error(`The folder ${name} holds no files of a model: config.json and *.safetensors.`);
    return;
  }
  const lines = files.map((file) => line(file));
  const listed = [];
  for (const [index, file] of files.entries()) {
    listed.push({ path: file.name, upload_id: await upload(file, lines[index].progress) });
    lines[index].done();
  }
  const model = await call("POST", "/v1/models", { name, source: { type: "upload", files: listed } });
  say(`The model is registered: ${model.name ?? model.architecture ?? model.id}.`);
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
