"""The queue: wake-ups for workers. Losing one costs latency, never a job."""
