"""A WebSocket client as OpenAI's Realtime has them. Usage: websocket_client.py URL TOKEN header|subprotocol"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

URL, TOKEN, PLACE = sys.argv[1:]


async def main():
    protocols, headers = ["realtime"], {}
    if PLACE == "header":
        headers["Authorization"] = f"Bearer {TOKEN}"
    else:
        protocols.append(f"openai-insecure-api-key.{TOKEN}")
    async with connect(URL, additional_headers=headers, subprotocols=protocols, proxy=None, max_size=None) as socket:
        assert socket.subprotocol == "realtime", socket.subprotocol
        for message in ["hello", os.urandom(1 << 20), ["one ", "message ", "in parts"], ""]:
            await socket.send(message)
            want = "".join(message) if isinstance(message, list) else message
            assert await socket.recv() == want
        await (await socket.ping())
        await socket.send("leak")
        for _ in range(3):
            print("got", await socket.recv())
        print("open", flush=True)
        try:
            await socket.recv()
        except ConnectionClosed as closed:
            print("closed", closed.rcvd.code, closed.rcvd.reason)


asyncio.run(main())
