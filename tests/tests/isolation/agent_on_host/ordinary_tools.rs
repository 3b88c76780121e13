//! What an agent does all day works inside.

use seks_tests::Upstream;

use super::host::Host;

/// Each line must succeed by itself; `$HOME/../bin` is what the test brought along.
const TOOLS: &[&str] = &[
    "echo text > file && grep -q text file && mv file moved && cp moved copy && rm moved copy",
    "mkdir -p node_modules/.bin && ln -s ../x node_modules/.bin/x && mv node_modules node_modules.old && rm -r node_modules.old",
    "t=$(mktemp) && echo x > $t && mv $t here && rm here",
    "touch ~/.new-tool-rc && mkdir -p ~/.cache/tool ~/.config/tool ~/.local/share/tool && echo x > ~/.config/tool/rc",
    "echo x > ~/.gitconfig.tmp && mv ~/.gitconfig.tmp ~/.gitconfig.copy && rm ~/.gitconfig.copy",
    "seq 1000 | sort -nr | head -1 | grep -q 1000",
    "sleep 100 & kill $!; wait $! 2>/dev/null; true",
    "(exit 3) ; [ $? = 3 ]",
    "test -w /dev/null && head -c 8 /dev/urandom >/dev/null && : > /dev/null",
    "[ \"$(id -u)\" = \"$(stat -c %u ~)\" ]",
    "python3 -c 'import multiprocessing as m; assert m.get_context(\"spawn\").Pool(1).map(abs, [-1]) == [1]'",
    "python3 -c 'import socket; s = socket.create_server((\"127.0.0.1\", 0)); c = socket.create_connection(s.getsockname()); c.send(b\"x\")'",
    "python3 -c 'import asyncio; asyncio.run(asyncio.create_subprocess_exec(\"true\"))'",
    "python3 -c 'import os; m, s = os.openpty(); assert os.ttyname(s)'",
    "git init -q repo && git -C repo -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git clone -q repo clone",
    "git config --global user.name agent && git config --global user.name",
    "command -v node >/dev/null || exit 0; node -e 'require(\"child_process\").execSync(\"true\"); require(\"fs\").writeFileSync(\"n\", \"\")'",
];

#[test]
fn ordinary_tools_work_in_either_form() {
    let upstream = Upstream::ok();
    for host in Host::each() {
        host.quick_start(&upstream.origin());
        for form in ["default", "strict"] {
            let script = TOOLS.iter().fold(String::from("rm -rf repo clone\n"), |script, line| {
                script + &format!("( {line} ) || echo 'FAILED: {}'\n", line.replace('\'', "\""))
            });
            let finished = host.confined(form, &["sh", "-c", &script]);
            assert!(finished.code == Some(0) && !finished.stdout.contains("FAILED"), "{form}: {finished:#?}");
        }
        // Bash hands a pipe over by number.
        let piped = host.confined("default", &["bash", "-c", "cat <(echo through)"]);
        assert_eq!(piped.stdout, "through\n", "{piped:?}");
    }
}

#[test]
fn exit_codes_and_missing_programs_are_as_without() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    for form in ["default", "strict", "none"] {
        for (command, code) in [
            (&["sh", "-c", "exit 7"][..], 7),
            (&["sh", "-c", "kill -TERM $$"], 143),
            (&["/nonexistent/program"], 127),
            (&["/etc/passwd"], 126),
        ] {
            assert_eq!(host.confined(form, command).code, Some(code), "{form}: {command:?}");
        }
    }
    assert_eq!(host.admin(&["token", "list", "-o", "json"]).stdout.trim(), "[]", "every token is revoked");
}
