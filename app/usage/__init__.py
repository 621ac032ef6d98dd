"""What tenants may use and what they use: quotas, the ledger of usage."""
