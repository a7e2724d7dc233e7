"""The domain: models, their servers, requests to them. Knows no web framework."""
