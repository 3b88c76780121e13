//! `seks top` on a terminal: it is drawn again, fits the window, ends with a key or a signal, and
//! leaves the terminal as it was.

use std::process::Command;

use seks_tests::{
    Sandbox, Upstream,
    process::{binary, program, run},
    sandbox::clean_environment,
};
use serde_json::Value;

use super::{KEY, succeed};

/// Runs `seks top` on a terminal of its own, does what `argv[1]` says, and reports as JSON.
const TERMINAL: &str = r#"
import fcntl, json, os, pty, re, select, signal, struct, sys, termios, time
action, command = sys.argv[1], sys.argv[2:]
master, slave = pty.openpty()
size = lambda rows, columns: fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
size(30, 120)
before = termios.tcgetattr(slave)
pid = os.fork()
if pid == 0:
    os.setsid()
    fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
    for fd in (0, 1, 2): os.dup2(slave, fd)
    os.execvp(command[0], command)
seen = b""
def read(until, limit=60):
    global seen
    end = time.monotonic() + limit
    while not until(seen) and time.monotonic() < end:
        if select.select([master], [], [], 0.1)[0]:
            try: seen += os.read(master, 65536)
            except OSError: break
    return until(seen)
frames = lambda text: text.count(b"\x1b[H")
report = {"first": read(lambda text: b"NODE" in text and frames(text) >= 1)}
report["again"] = read(lambda text: frames(text) >= 3)
if action == "resize":
    seen = b""
    size(8, 60)
    os.kill(pid, signal.SIGWINCH)
    # A frame may be on its way at the old size.
    read(lambda text: frames(text) >= 4)
    frame = seen.split(b"\x1b[H")[-2].decode()
    lines = [line.rstrip("\r") for line in re.sub("\x1b\\[[0-9]*[A-Za-z]", "", frame).split("\r\n")]
    report["lines"] = len(lines)
    report["widest"] = max(len(line) for line in lines)
    os.write(master, b"q")
elif action == "term": os.kill(pid, signal.SIGTERM)
elif action == "hup": os.kill(pid, signal.SIGHUP)
else: os.write(master, {"q": b"q", "ctrl-c": b"\x03", "others": b"xyz\x1b[Aq"}[action])
end, ended = time.monotonic() + 60, None
while ended is None and time.monotonic() < end:
    read(lambda text: False, 0.1)
    done, status = os.waitpid(pid, os.WNOHANG)
    if done: ended = os.waitstatus_to_exitcode(status)
report["exit"] = ended
report["left"] = seen.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
report["restored"] = termios.tcgetattr(slave) == before
report["text"] = seen.decode(errors="replace")
print(json.dumps(report))
"#;

fn on_terminal(sandbox: &Sandbox, action: &str) -> Value {
    let mut command = Command::new(program("python3"));
    clean_environment(&mut command);
    command.args(["-c", TERMINAL, action]).arg(binary("seks"));
    command.args(["top", "--interval", "200ms", "--context-file"]).arg(sandbox.context_file()).env("TERM", "xterm");
    let done = run(&mut command, b"");
    assert_eq!(done.code, Some(0), "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

#[cfg_attr(not(has = "python3"), ignore = "needs python3")]
#[test]
fn top_is_drawn_again_and_leaves_the_terminal_as_it_was() {
    let (sandbox, upstream) = (Sandbox::start(), Upstream::ok());
    sandbox.service("openai", &upstream, KEY);
    for action in ["q", "ctrl-c", "others", "term", "hup", "resize"] {
        let report = on_terminal(&sandbox, action);
        for part in ["first", "again", "left", "restored"] {
            assert_eq!(report[part], true, "{action}: {part}: {report}");
        }
        assert_eq!(report["exit"], 0, "{action}: {report}");
        if action == "resize" {
            assert!(report["lines"].as_u64().unwrap() <= 7, "{report}");
            assert!(report["widest"].as_u64().unwrap() <= 60, "{report}");
        }
    }
    assert!(!sandbox.everything_emitted().contains(KEY));
}

#[test]
fn top_in_a_pipe_is_one_table() {
    let sandbox = Sandbox::start();
    let once = succeed(sandbox.cli().run(&["top"], ""));
    assert!(once.stdout.contains("NODE") && !once.stdout.contains('\u{1b}'), "{}", once.stdout);
    assert_eq!(once.stdout.matches("replica ").count(), 1, "{}", once.stdout);
}
