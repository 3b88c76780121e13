#!/usr/bin/env python3
"""Agents of one region: load.py REGION ADDRESS PORT TOKEN_FILE SECONDS. Eight connections, one request after the other on each.

Prints one line of JSON: requests, refusals by status, and latencies in ms. The exit code is 1 if a request was not answered with 200.
"""

import http.client
import json
import sys
import threading
import time

region, address, port, token_file, seconds = sys.argv[1:]
with open(token_file, encoding="ascii") as file:
    headers = {"Authorization": "Bearer " + file.read().strip()}
until = time.monotonic() + float(seconds)
latencies, others, lock = [], {}, threading.Lock()


def agent():
    connection = http.client.HTTPConnection(address, int(port), timeout=10)
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            connection.request("GET", "/api/openai/v1/models", headers=headers)
            response = connection.getresponse()
            response.read()
            status = response.status
        except OSError as error:
            status = type(error).__name__
            connection.close()
            time.sleep(0.1)
        with lock:
            if status == 200:
                latencies.append((time.monotonic() - began) * 1000)
            else:
                others[str(status)] = others.get(str(status), 0) + 1


threads = [threading.Thread(target=agent) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
latencies.sort()
percentile = lambda share: round(latencies[min(len(latencies) - 1, int(len(latencies) * share))], 1) if latencies else None
print(json.dumps({"region": region, "ok": len(latencies), "not_ok": others, "p50_ms": percentile(0.5), "p99_ms": percentile(0.99)}))
sys.exit(1 if others or not latencies else 0)
