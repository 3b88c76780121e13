"""Talks to grpc_server.py through the broker in host mode. Usage: grpc_client.py NODE AUTHORITY TOKEN WRONG_TOKEN"""

import queue
import sys

import grpc

NODE, AUTHORITY, TOKEN, WRONG = sys.argv[1:]
channel = grpc.insecure_channel(NODE, options=[("grpc.default_authority", AUTHORITY), ("grpc.enable_http_proxy", 0)])
talk = channel.stream_stream("/echo.Echo/Talk")

said = queue.Queue()
answers = talk(iter(said.get, None), metadata=(("authorization", f"Bearer {TOKEN}"),), timeout=60)
for turn in ("one", "two"):
    said.put(turn.encode())
    print(next(answers).decode())
said.put(None)
try:
    next(answers)
except grpc.RpcError as ended:
    trailers = dict(ended.trailing_metadata())
    print(ended.code().name, ended.details(), trailers["x-key"], trailers["x-plain"])
try:
    next(talk(iter([]), metadata=(("authorization", f"Bearer {WRONG}"),), timeout=60))
except grpc.RpcError as refused:
    print(refused.code().name, refused.details())
