"""MCP over both transports: lists the tools, calls one that is permitted and one that is not. Prints what each said."""

import asyncio

import httpx2
from check import BASE, TOKEN
from mcp import ClientSession
from mcp.client.client import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

HEADERS = {"Authorization": f"Bearer {TOKEN}"}


async def use(session):
    tools = await session.list_tools()
    print(sorted(tool.name for tool in tools.tools))
    greeting = await session.call_tool("get_greeting", {"name": "agent"})
    print(greeting.content[0].text)
    try:
        # The SSE client logs a refused message and goes on waiting for its answer.
        print(await asyncio.wait_for(session.call_tool("delete_everything", {}), 2))
    except Exception as error:
        print("refused:", error)


async def main():
    client = httpx2.AsyncClient(headers=HEADERS)
    async with Client(streamable_http_client(f"{BASE}/mcp", http_client=client)) as session:
        await use(session)
    async with sse_client(f"{BASE}/sse", headers=HEADERS) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        await use(session)


asyncio.run(main())
