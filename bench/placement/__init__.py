"""Replays a trace of requests over devices and models through the program's own placement."""
