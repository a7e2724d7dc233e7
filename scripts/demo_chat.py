"""Launch script of Demo-Chat."""

from demo_server import serve

serve()
