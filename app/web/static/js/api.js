// The public JSON API, called with the session of this browser.

const token = document.querySelector('meta[name="csrf-token"]').content;

/** An error answer (RFC 9457). */
export class Problem extends Error {
  constructor(body) {
    super(body.detail ?? "the service did not answer as expected");
    this.status = body.status;
    this.code = body.code;
    this.hint = body.hint;
    this.errors = body.errors ?? [];
  }
}

/** Send a request and return the answer; a body that is no Blob goes as JSON. Throws a Problem. */
export async function request(method, path, { body, headers = {}, signal } = {}) {
  const isRaw = body instanceof Blob || body === undefined;
  const json = isRaw ? {} : { "Content-Type": "application/json" };
  const response = await fetch(path, {
    method,
    signal,
    headers: { Accept: "application/json", "X-CSRF-Token": token, ...json, ...headers },
    body: isRaw ? body : JSON.stringify(body),
  });
  if (response.status === 401) signIn();
  if (!response.ok && response.status !== 304) throw await problemOf(response);
  return response;
}

/** Send a request and return what the answer says. */
export async function call(method, path, body, options = {}) {
  const response = await request(method, path, { body, ...options });
  return response.status === 204 ? null : response.json();
}

/** Every row of a list, page after page. */
export async function* rows(path) {
  const url = new URL(path, location.href);
  for (;;) {
    const page = await call("GET", url);
    yield* page.data;
    if (!page.has_more) return;
    url.searchParams.set("cursor", page.next_cursor);
  }
}

async function problemOf(response) {
  try {
    return new Problem(await response.json());
  } catch {
    return new Problem({ status: response.status, detail: `the service answered ${response.status}` });
  }
}

function signIn() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}
