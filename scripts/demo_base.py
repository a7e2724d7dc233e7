"""Launch script of Demo-Base: plain completions."""

from demo_server import demo_params, serve

serve(demo_params())
