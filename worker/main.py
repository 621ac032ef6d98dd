"""Start a worker as the settings say: `python -m worker`."""

from __future__ import annotations

import os
import warnings

from app.settings import get_settings


def main() -> None:
    """Run until TERM; then give back the job in hand and end."""
    from celery.platforms import SecurityWarning

    from worker.celery_app import configure

    # It warns of root because of pickled messages; we take JSON only.
    warnings.filterwarnings("ignore", category=SecurityWarning)

    settings = get_settings()
    settings.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = ["--loglevel", settings.log_level, "--hostname", f"nupes-{settings.device_class}-{os.getpid()}@%h"]
    configure(settings).worker_main(
        ["--quiet", "worker", "--without-gossip", "--without-mingle", "--without-heartbeat", *options]
    )
