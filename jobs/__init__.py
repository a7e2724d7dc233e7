"""Beside the request path: what runs by the clock."""
