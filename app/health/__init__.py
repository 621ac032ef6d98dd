"""Is the service alive, is it ready, what can it do, and its figures for Prometheus."""
