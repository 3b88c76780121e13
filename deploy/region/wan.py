#!/usr/bin/env python3
"""The wide-area network of `region`: carries packets between namespaces, each after the delay between its two ends.

wan.py CONTROL_FILE NAME=ADDRESS=NAMESPACE=DELAY_MS…

Each NAMESPACE gets a TUN device `wan0` with ADDRESS/24. A packet from one to another waits for the sum of their delays. A line `cut
NAME` or `heal NAME` in CONTROL_FILE, which is read every 50 ms, separates an end from the others or connects it again. The kernel's
netem does the same where it is built in; this needs TUN alone.
"""

import ctypes
import fcntl
import heapq
import ipaddress
import os
import selectors
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 1, 0x1000
CLONE_NEWNET = 0x40000000
MAX_WAITING = 20000  # packets; more are dropped, as by a router

libc = ctypes.CDLL(None, use_errno=True)


def enter(namespace):
    with open(namespace, "rb") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {namespace}")


def device(address):
    """A TUN device in the present namespace, which stays in it."""
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", b"wan0", IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "address", "add", f"{address}/24", "dev", "wan0"], check=True)
    subprocess.run(["ip", "link", "set", "wan0", "up"], check=True)
    return file


control, ends = sys.argv[1], [end.split("=") for end in sys.argv[2:]]
home = "/proc/self/ns/net"
with open(home, "rb") as own:
    files, names, delays = {}, {}, {}
    for name, address, namespace, delay in ends:
        enter(f"/run/netns/{namespace}")
        packed = ipaddress.IPv4Address(address).packed
        files[packed], names[packed], delays[packed] = device(address), name, float(delay) / 1000
        libc.setns(own.fileno(), CLONE_NEWNET)

selector = selectors.DefaultSelector()
for packed, file in files.items():
    selector.register(file, selectors.EVENT_READ, packed)
cut, waiting, order, looked, read = set(), [], 0, 0.0, 0
open(control, "a", encoding="ascii").close()
print("ready", flush=True)
while True:
    now = time.monotonic()
    if now - looked > 0.05:
        looked = now
        with open(control, encoding="ascii") as file:
            lines = file.read().splitlines()
        for verb, name in (line.split() for line in lines[read:]):
            (cut.add if verb == "cut" else cut.discard)(name)
        read = len(lines)
    while waiting and waiting[0][0] <= now:
        _, _, to, packet = heapq.heappop(waiting)
        try:
            os.write(files[to], packet)
        except BlockingIOError:
            pass  # its queue is full: a drop
    timeout = min(0.05, max(0.0, waiting[0][0] - now)) if waiting else 0.05
    for key, _ in selector.select(timeout):
        for _ in range(64):
            try:
                packet = os.read(key.fd, 65536)
            except BlockingIOError:
                break
            to = packet[16:20]
            if packet[0] >> 4 != 4 or to not in files or len(waiting) >= MAX_WAITING:
                continue
            if {names[key.data], names[to]} & cut:
                continue
            order += 1
            heapq.heappush(waiting, (time.monotonic() + delays[key.data] + delays[to], order, to, packet))
