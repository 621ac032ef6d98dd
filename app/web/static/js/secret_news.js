// A secret stored in one tab can be chosen in the others, which may hold a form that is half filled in.

const channel = new BroadcastChannel("nupes-secrets");

/** Tell the other tabs; `secret` is an answer of the API. */
export function tell(secret) {
  channel.postMessage({ name: secret.name });
}

/** Hear of every secret that another tab stored. */
export function onStored(listener) {
  channel.addEventListener("message", (event) => listener(event.data));
}
