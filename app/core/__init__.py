"""The technical kit of the service: ids, clock, problems, paging, conditional requests, security, logging."""
