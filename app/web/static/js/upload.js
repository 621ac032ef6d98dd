// Sending files in pieces, as tus has it: a transfer that broke off goes on where it stopped, also after a reload.

import { call, request } from "./api.js";

const CHUNK = 8 * 1024 * 1024;
const TRIES = 5;
const PAUSE_MS = 500;
const TUS = { "Tus-Resumable": "1.0.0" };

/** Send a file; `onProgress` hears the bytes that are safe. Returns the id of the upload. */
export async function upload(file, onProgress) {
  const { id, offset } = (await resumable(file)) ?? (await announce(file));
  let safe = offset;
  for (let failures = 0; safe < file.size; ) {
    onProgress(safe);
    try {
      safe = await append(id, file, safe);
      failures = 0;
    } catch (error) {
      if (isFinal(error) || ++failures === TRIES) throw error;
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS * 2 ** failures));
      safe = await offsetOf(id).catch(() => safe);
    }
  }
  onProgress(file.size);
  localStorage.removeItem(nameOf(file));
  return id;
}

/** Files of an unfinished transfer are known by name, size and age. */
const nameOf = (file) => `upload:${file.name}:${file.size}:${file.lastModified}`;
const isFinal = (error) => error.status >= 400 && error.status < 500 && ![408, 409, 423, 429, 460].includes(error.status);

async function announce(file) {
  const made = await call("POST", "/v1/uploads", { filename: file.name, size: file.size });
  localStorage.setItem(nameOf(file), made.id);
  if (file.size === 0) await request("PUT", `/v1/uploads/${made.id}/content`, { body: file });
  return made;
}

async function resumable(file) {
  const id = localStorage.getItem(nameOf(file));
  if (!id) return null;
  try {
    return { id, offset: await offsetOf(id) };
  } catch {
    localStorage.removeItem(nameOf(file)); // expired, or of another tenant
    return null;
  }
}

async function offsetOf(id) {
  const response = await request("HEAD", `/v1/uploads/${id}`, { headers: TUS });
  return Number(response.headers.get("Upload-Offset"));
}

async function append(id, file, offset) {
  const chunk = file.slice(offset, offset + CHUNK);
  const headers = { ...TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) };
  const checksum = await checksumOf(chunk);
  if (checksum) headers["Upload-Checksum"] = checksum;
  const response = await request("PATCH", `/v1/uploads/${id}`, { body: chunk, headers });
  return Number(response.headers.get("Upload-Offset"));
}

// Browsers hash for pages of HTTPS and of this machine only.
async function checksumOf(chunk) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = await crypto.subtle.digest("SHA-256", await chunk.arrayBuffer());
  return `sha256 ${btoa(String.fromCharCode(...new Uint8Array(digest)))}`;
}
