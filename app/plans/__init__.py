"""Plans: what a job would do and cost, from stored headers alone."""
