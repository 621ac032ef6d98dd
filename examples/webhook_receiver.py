"""Receive the webhooks of a service and print them: `python examples/webhook_receiver.py --port 9000`.

The signing secret, which `nupes webhooks create` printed, is read from NUPES_RECEIVER_SECRET. Needs
`pip install standardwebhooks`. What a receiver has to do is in docs/webhooks.md; a real one remembers ids on disk.
"""

from __future__ import annotations

import argparse
import os
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

MAX_BYTES = 64 * 1024


class Receiver(BaseHTTPRequestHandler):
    """Checks who sent a message, forgets those it has seen, answers at once."""

    webhook: Webhook
    seen: set[str]

    def do_POST(self) -> None:
        """Take a message."""
        body = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), MAX_BYTES))
        try:
            message = self.webhook.verify(body, {name.lower(): value for name, value in self.headers.items()})
        except WebhookVerificationError:
            self._answer(HTTPStatus.UNAUTHORIZED)
            return
        self._answer(HTTPStatus.NO_CONTENT)  # before any work: the service waits 15 seconds
        message_id = self.headers["webhook-id"]
        if message_id not in self.seen:
            self.seen.add(message_id)
            data = message["data"]
            print(message["type"], data.get("job_id", ""), data.get("verdict") or "", flush=True)

    def _answer(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of requests."""


def main() -> None:
    """Receive until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=9000)
    options = parser.parse_args()
    Receiver.webhook, Receiver.seen = Webhook(os.environ["NUPES_RECEIVER_SECRET"]), set()
    with ThreadingHTTPServer(("127.0.0.1", options.port), Receiver) as server:
        print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
