#!/usr/bin/env python3
"""The vendor's API in `region`: upstream.py ADDRESS PORT. It answers only to the real key."""

import http.server
import sys


class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        known = self.headers.get("authorization") == "Bearer REAL-KEY"
        body = b'{"data":[]}' if known else b"no"
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Api).serve_forever()
