"""A WebSocket API that takes the real key alone: echoes, and on "leak" says the key: whole, in fragments and as bytes.

Usage: websocket_server.py < KEY. Prints its port.
"""

import asyncio
import sys

from websockets.asyncio.server import serve

KEY = sys.stdin.readline().strip()


def choose(_connection, offered):
    return "realtime" if "realtime" in offered else None


async def talk(socket):
    headers = socket.request.headers
    if headers.get("Authorization") != f"Bearer {KEY}" or "seks_token_" in str(headers):
        await socket.close(1008, "wrong key")
        return
    async for message in socket:
        if message == "leak":
            await socket.send(f"your key is {KEY}")
            await socket.send(["your key is ", KEY[:9], KEY[9:]])
            await socket.send(KEY.encode())
        else:
            await socket.send(message)


async def main():
    async with serve(talk, "127.0.0.1", 0, select_subprotocol=choose, max_size=None) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().create_future()


asyncio.run(main())
