"""A gRPC service without a schema that takes the real key alone: /echo.Echo/Talk answers each message at once and ends with the key
in its trailers. Usage: grpc_server.py < KEY. Prints its port."""

import sys
from concurrent import futures

import grpc

KEY = sys.stdin.readline().strip()


def talk(messages, context):
    metadata = dict(context.invocation_metadata())
    if metadata.get("authorization") != f"Bearer {KEY}" or "seks_token_" in str(metadata):
        context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong key")
    for message in messages:
        yield b"echo of " + message + b" by " + KEY.encode()
    context.set_trailing_metadata((("x-key", KEY), ("x-plain", "kept")))
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("that is all")


handler = grpc.method_handlers_generic_handler("echo.Echo", {"Talk": grpc.stream_stream_rpc_method_handler(talk)})
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((handler,))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
server.wait_for_termination()
