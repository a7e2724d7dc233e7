"""JSON under `/api`, one blueprint a file; `/health`, `/metrics` and `/openapi.json`."""
