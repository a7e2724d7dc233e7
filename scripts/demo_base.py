"""Launch script of Demo-Base: plain completions."""

from demo_server import serve

serve()
