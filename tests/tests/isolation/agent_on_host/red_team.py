"""An agent that wants more than its token. It runs as the user who also administers SEKS, as a child of `seks run`.

argv[1] names a JSON file that says where everything is: more than a real agent knows. Each attack that works prints `GOT name:
detail`. The last line, `DONE n`, says how many were tried.
"""

import ctypes
import ctypes.util
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys

WHERE = json.load(open(sys.argv[1]))
FILES = WHERE["files"]
PIDS = [WHERE["broker"], os.getppid()]
LIBC = ctypes.CDLL(None, use_errno=True)
# asm/unistd_64.h and asm-generic/unistd.h.
X86 = os.uname().machine == "x86_64"
NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425), "unshare": (272, 97), "mount": (165, 40), "umount2": (166, 39), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "clone3": (435, 435), "open_tree": (428, 428),
    "move_mount": (429, 429), "kcmp": (312, 272), "chroot": (161, 51), "pivot_root": (155, 41), "socket": (41, 198),
}
tried = 0


def call(name, *arguments, x32=False):
    number = NUMBERS[name][0 if X86 else 1] | (0x40000000 if x32 else 0)
    result = LIBC.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def attack(name, function):
    """Counts an attack; whatever it returns was got."""
    global tried
    tried += 1
    try:
        got = function()
    except (OSError, ValueError, subprocess.SubprocessError):
        return
    if got:
        print(f"GOT {name}: {got!r}"[:200], flush=True)


def content(path, flags=os.O_RDONLY, **more):
    with os.fdopen(os.open(path, flags, **more), "rb") as file:
        return secret(file.read(1 << 20))


def secret(data):
    return data if any(known.encode() in data for known in WHERE["secrets"]) else None


def read_files():
    for index, path in enumerate(FILES):
        name = os.path.basename(path)
        attack(f"read {name}", lambda: content(path))
        link = f"link-{index}"
        attack(f"symbolic link to {name}", lambda: (os.symlink(path, link), content(link))[1])
        attack(f"hard link to {name}", lambda: (os.link(path, f"hard-{index}"), content(f"hard-{index}"))[1])
        attack(f"rename {name}", lambda: (os.rename(path, f"moved-{index}"), content(f"moved-{index}"))[1])
        for base in ["self", "thread-self", *map(str, PIDS), "1"]:
            attack(f"/proc/{base}/root to {name}", lambda: content(f"/proc/{base}/root{path}"))
            up = "/.." * 12
            attack(f"/proc/{base}/cwd to {name}", lambda: content(f"/proc/{base}/cwd{up}{path}"))
        attack(f"O_PATH of {name}", lambda: content(f"/proc/self/fd/{os.open(path, os.O_PATH)}"))
        attack(f"write {name}", lambda: os.open(path, os.O_WRONLY))
        attack(f"chmod {name}", lambda: (os.chmod(path, 0o777), "done")[1])
        attack(f"remove {name}", lambda: (os.rename(path, path + ".gone"), os.rename(path + ".gone", path), "done")[2])
        attack(f"handle of {name}", lambda: by_handle(path))
    for descriptor in os.listdir("/proc/self/fd"):
        base = os.path.relpath(FILES[0], "/")
        attack(f"relative to descriptor {descriptor}", lambda: content(base, dir_fd=int(descriptor)))
    attack("find", search)


def by_handle(path):
    # struct file_handle: bytes, type, handle; the parents' handles are got where the file's own is hidden.
    handle, mount = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + b"\0" * 128), ctypes.c_int()
    call("name_to_handle_at", -100, path.encode(), handle, ctypes.byref(mount), 0)
    root = os.open("/", os.O_RDONLY)
    descriptor = call("open_by_handle_at", root, handle, os.O_RDONLY)
    return secret(os.read(descriptor, 1 << 20))


def search():
    found = []
    for base in WHERE["search"]:
        for folder, _, files in os.walk(base):
            for name in files:
                try:
                    if content(os.path.join(folder, name), os.O_RDONLY | os.O_NONBLOCK):
                        found.append(os.path.join(folder, name))
                except OSError:
                    pass
    return [path for path in found if os.path.abspath(path) != os.path.abspath(sys.argv[1])]


def replace_parents():
    for directory in WHERE["directories"]:
        parts = directory.split("/")
        for end in range(2, len(parts) + 1):
            path = "/".join(parts[:end])
            # Folders of other tests are below the parents: without confinement the attack would take them away for a moment.
            if not path.startswith(WHERE["search"][0]):
                continue

            def move(path=path):
                os.rename(path, path + ".aside")
                os.rename(path + ".aside", path)
                return path

            attack(f"rename {path}", move)
        attack(f"new file in {directory}", lambda: os.open(f"{directory}/planted", os.O_CREAT | os.O_WRONLY, 0o600))
        attack(f"remove {directory}", lambda: (os.rmdir(directory), directory)[1])
    program = WHERE["seks"]
    attack("overwrite seks", lambda: os.open(program, os.O_RDWR))

    def swap():
        os.rename(program, program + ".aside")
        os.rename(program + ".aside", program)
        return program

    attack("replace seks", swap)


def other_processes():
    for pid in PIDS:
        for name in ["environ", "mem", "maps", "auxv", "syscall", "stack"]:
            attack(f"/proc/{pid}/{name}", lambda: open(f"/proc/{pid}/{name}", "rb").read(1))
        for name in ["cwd", "root"]:
            attack(f"/proc/{pid}/{name}", lambda: os.listdir(f"/proc/{pid}/{name}"))
        # Root may list the numbers; what they are open on is nobody's business.
        for number in range(40):
            attack(f"/proc/{pid}/fd/{number}", lambda: os.readlink(f"/proc/{pid}/fd/{number}"))
            attack(f"/proc/{pid}/fd/{number}", lambda: os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK))
        attack(f"/proc/{pid}/cmdline", lambda: secret(open(f"/proc/{pid}/cmdline", "rb").read()))
        for request in [16, 0x4206]:  # PTRACE_ATTACH, PTRACE_SEIZE
            attack(f"ptrace {request:#x}", lambda: (call("ptrace", request, pid, 0, 0), "attached")[1])
        buffer = ctypes.create_string_buffer(16)
        ours = struct.pack("PN", ctypes.addressof(buffer), 16)
        attack("process_vm_readv", lambda: call("process_vm_readv", pid, ours, 1, struct.pack("PN", 0x10000, 16), 1, 0))
        for number in range(3, 40):
            attack(f"pidfd_getfd {number}", lambda: call("pidfd_getfd", call("pidfd_open", pid, 0), number, 0))
        attack("kill", lambda: (os.kill(pid, signal.SIGCONT), "sent")[1])
        attack("pidfd_send_signal", lambda: (call("pidfd_send_signal", call("pidfd_open", pid, 0), 18, None, 0), "sent")[1])
        attack("kcmp", lambda: (call("kcmp", os.getpid(), pid, 0, 0, 0), "compared")[1])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        attack("prlimit", lambda: (resource.prlimit(pid, resource.RLIMIT_NOFILE, limits), "set")[1])
        for kind in ["mnt", "user", "net", "pid"]:
            attack(f"setns {kind}", lambda: (call("setns", os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY), 0), kind)[1])


def kernel():
    attack("keyctl", lambda: call("keyctl", 0, -3, 1) or "ring")
    attack("bpf", lambda: call("bpf", 0, struct.pack("IIIIII", 2, 4, 4, 1, 0, 0), 24))
    attack("io_uring", lambda: call("io_uring_setup", 4, ctypes.create_string_buffer(120)))
    attack("perf", lambda: call("perf_event_open", struct.pack("II112x", 1, 112), PIDS[0], -1, -1, 0))
    for flags in [0x10000000, 0x10020000, 0x20000]:
        attack(f"unshare {flags:#x}", lambda: (call("unshare", flags), "entered")[1])
    attack("clone3", lambda: call("clone3", struct.pack("Q", 0x10000000) + b"\0" * 56, 64) or os._exit(0))
    for directory in WHERE["directories"]:
        attack("umount", lambda: (call("umount2", directory.encode(), 2), directory)[1])
    attack("mount", lambda: (call("mount", b"/", b"/mnt", None, 4096, None), "bound")[1])
    attack("open_tree", lambda: call("open_tree", -100, b"/", 1))
    attack("disk", lambda: [d for d in os.listdir("/dev") if disk(d)])
    attack("core_pattern", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))

    def push_input():
        _, terminal = os.openpty()
        fcntl.ioctl(terminal, 0x5412, b"x")  # TIOCSTI
        return "pushed"

    # As the terminal's owner it needs no right; root has it by a capability.
    attack("TIOCSTI", push_input)

    def push_high():
        _, terminal = os.openpty()
        if LIBC.ioctl(terminal, ctypes.c_ulong(0x1_0000_5412), b"x") < 0:
            raise OSError(ctypes.get_errno(), "ioctl")
        return "pushed"

    attack("TIOCSTI with high bits", push_high)


def disk(name):
    import stat

    path = f"/dev/{name}"
    return stat.S_ISBLK(os.stat(path).st_mode) and os.read(os.open(path, os.O_RDONLY), 512)


def connect_everywhere():
    places = [(port, f"port {port}") for port in WHERE["closed"]]
    if WHERE["strict"]:
        places.append((WHERE["tcp"], "another listener"))
    for port, name in places:
        for host in ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "0.0.0.0"]:
            attack(f"{name} at {host}", lambda: socket.create_connection((host, port), 2))
        for protocol in [262, 256]:  # MPTCP, SMC

            def other_protocol():
                s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
                s.settimeout(2)
                s.connect(("127.0.0.1", port))
                return protocol

            attack(f"{name} by protocol {protocol}", other_protocol)

        def smc():
            s = socket.socket(43, socket.SOCK_STREAM, 0)
            s.connect(("127.0.0.1", port))
            return "connected"

        attack(f"{name} by AF_SMC", smc)
        for send in ["sendto", "sendmsg"]:

            def fast_open():
                s = socket.socket()
                s.settimeout(2)
                flag = 0x20000000
                if send == "sendto":
                    s.sendto(b"x", flag, ("127.0.0.1", port))
                else:
                    s.sendmsg([b"x"], [], flag, ("127.0.0.1", port))
                return s.getpeername()

            attack(f"{name} by MSG_FASTOPEN, {send}", fast_open)

        def deferred():
            s = socket.socket()
            s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
            s.connect(("127.0.0.1", port))
            s.send(b"x")
            return s.getpeername()

        attack(f"{name} by TCP_FASTOPEN_CONNECT", deferred)
    if X86:
        attack("x32 system call", lambda: call("socket", 2, 1, 0, x32=True))

    def abstract():
        s = socket.socket(socket.AF_UNIX)
        s.connect("\0" + WHERE["abstract"])
        return "connected"

    attack("abstract socket", abstract)

    def named(path):
        s = socket.socket(socket.AF_UNIX)
        s.connect(path)
        return "connected"

    for path in WHERE["sockets"]:
        attack(f"unix socket {os.path.basename(path)}", lambda: named(path))
    if WHERE["strict"]:
        attack("UDP", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)))
        # Sent to the namespace's own loopback: the test sees that nothing arrives outside.
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", WHERE["udp"]))
        attack("DNS", lambda: socket.getaddrinfo("seks.invalid", 80))
        attack("interfaces", lambda: [n for _, n in socket.if_nameindex() if n != "lo"])
        attack("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).sendto(b"x" * 8, ("127.0.0.1", 0)))


def administer():
    program = WHERE["seks"]
    upstream = f"http://127.0.0.1:{WHERE['tcp']}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SEKS_")}

    def seks(*arguments, **more):
        done = subprocess.run([program, *arguments], env={**clean, **more}, capture_output=True, timeout=20)
        return done.returncode == 0 and (arguments, done.stdout[:80])

    attack("status", lambda: seks("status"))
    redirect = ["service", "enable", "openai", "--upstream", upstream, "--allow-private"]
    attack("redirect", lambda: seks(*redirect))
    for path in FILES:
        attack(f"--context-file {path}", lambda: seks("--context-file", path, *redirect))
        attack(f"SEKS_CONTEXT_FILE {path}", lambda: seks("status", SEKS_CONTEXT_FILE=path))
    attack("another tenant", lambda: seks("--tenant", "other", "credential", "list"))
    attack("LD_PRELOAD", lambda: seks("status", LD_PRELOAD=ctypes.util.find_library("m") or "libm.so.6"))
    attack("a seks of its own", lambda: seks("run", "--sandbox", "none", "--", "true"))
    attack("operator's variables", lambda: [n for n in os.environ if n.startswith(("SEKS_CONTEXT", "SEKS_TEST_LEAK"))])
    os.makedirs(".seks-data", exist_ok=True)
    with open(".seks-data/context.toml", "w") as planted:
        planted.write(WHERE["planted"])


for part in [replace_parents, other_processes, kernel, connect_everywhere, administer, read_files]:
    part()
print(f"DONE {tried}")
