"""The workers: Celery app, claim and lease, supervisor, runner."""
