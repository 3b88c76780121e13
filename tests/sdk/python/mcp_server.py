"""An MCP server that takes the real key alone, over streamable HTTP at /mcp and over HTTP and SSE at /sse.

Usage: mcp_server.py KEY. Prints its port to standard error.
"""

import socket
import sys

import uvicorn
from mcp.server import MCPServer
from starlette.responses import PlainTextResponse

KEY = sys.argv[1]
tools = MCPServer("tools")


@tools.tool()
def get_greeting(name: str) -> str:
    return f"Hello {name}"


@tools.tool()
def delete_everything() -> str:
    return "deleted"


streamable = tools.streamable_http_app()
streamable.router.routes.extend(tools.sse_app().routes)


async def only_with_the_key(scope, receive, send):
    if scope["type"] == "http":
        headers = dict(scope["headers"])
        if headers.get(b"authorization") != f"Bearer {KEY}".encode() or b"seks_token_" in str(headers).encode():
            return await PlainTextResponse("wrong key", 401)(scope, receive, send)
    await streamable(scope, receive, send)


listener = socket.socket()
listener.bind(("127.0.0.1", 0))
print(listener.getsockname()[1], file=sys.stderr, flush=True)
uvicorn.Server(uvicorn.Config(only_with_the_key, log_level="warning")).run(sockets=[listener])
