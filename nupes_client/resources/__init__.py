"""One class per resource of the service; `nupes_client.client.Client` holds one of each."""
