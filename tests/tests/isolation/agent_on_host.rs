//! A program that runs as the same user as SEKS, as a child of `seks run`, gets neither a
//! credential nor administration.

mod host;
mod old_kernel;
mod ordinary_tools;
mod planes;
mod state;

use std::{fs, os::unix::fs::PermissionsExt as _};

use seks_tests::{Upstream, process::Finished};

use self::host::{Host, KEY, Outside};

fn red_team(host: &Host, form: &str, outside: &Outside) -> (Finished, Vec<String>) {
    let script = host.red_team(form == "strict", outside);
    let finished = host.confined(form, &["/usr/bin/python3", script.to_str().unwrap(), "where.json"]);
    let got: Vec<_> = finished.stdout.lines().filter(|line| line.starts_with("GOT ")).map(String::from).collect();
    let tried = finished.stdout.lines().find_map(|line| line.strip_prefix("DONE ")?.parse::<usize>().ok());
    assert!(tried.is_some_and(|tried| tried > 200), "{form}: not all attacks were made: {finished:?}");
    assert!(finished.code == Some(0) && !finished.stdout.contains(KEY), "{form}: {finished:?}");
    (finished, got)
}

#[test]
#[cfg_attr(not(has = "python3"), ignore = "needs python3")]
fn the_red_team_gets_nothing_in_either_form() {
    let upstream = Upstream::ok();
    for host in Host::each() {
        host.quick_start(&upstream.origin());
        let services = host.admin(&["service", "list", "-o", "json"]).stdout;
        let outside = Outside::start(&host);
        for form in ["default", "strict"] {
            let (finished, got) = red_team(&host, form, &outside);
            assert_eq!(got, [""; 0], "{form}, root: {}", host.is_root());
            assert!(!finished.stderr.contains("warning"), "{form}: {finished:?}");
            assert!(outside.udp.recv(&mut [0; 8]).is_err(), "{form}: a datagram left the sandbox");
            // The user's next command isn't led astray by what was left in the project.
            assert!(host.project().join(".seks-data/context.toml").exists());
            assert_eq!(host.admin(&["service", "list", "-o", "json"]).stdout, services, "{form}");
        }
        assert!(!host.home().join(".config/seks/context.toml").exists());
        assert!(upstream.requests().is_empty(), "the key went nowhere");
    }
}

#[test]
#[cfg_attr(not(has = "python3"), ignore = "needs python3")]
fn without_confinement_the_same_script_reads_and_administers() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    let outside = Outside::start(&host);
    let (_, got) = red_team(&host, "none", &outside);
    for attack in
        ["read context.toml", "read kek", "find", "status", "abstract socket", "unix socket renamed", "replace seks"]
    {
        assert!(got.iter().any(|line| line.starts_with(&format!("GOT {attack}: "))), "{attack}: {got:#?}");
    }
    let admin = format!("GOT port {} at 127.0.0.1", host.port_of("admin"));
    assert!(got.iter().any(|line| line.starts_with(&admin)), "{got:#?}");
}

#[test]
#[cfg_attr(not(has = "python3"), ignore = "needs python3")]
fn the_command_reaches_the_proxy_in_either_form() {
    for host in Host::each() {
        let upstream = Upstream::ok();
        host.quick_start(&upstream.origin());
        let call = "import os, urllib.request as r\n\
            q = r.Request(os.environ['OPENAI_BASE_URL'] + '/models', headers={'authorization': 'Bearer ' + os.environ['OPENAI_API_KEY']})\n\
            print(r.urlopen(q).status)";
        for form in ["default", "strict", "none"] {
            let called = host.confined(form, &["/usr/bin/python3", "-c", call]);
            assert_eq!((called.code, called.stdout.as_str()), (Some(0), "200\n"), "{form}: {called:?}");
        }
        assert_eq!(upstream.requests().len(), 3);
    }
}

#[test]
fn what_would_defeat_the_confinement_is_refused_before_the_command_starts() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    let refused = |expect: &str| {
        let finished = host.confined("default", &["touch", "started"]);
        assert!(finished.code != Some(0) && finished.stderr.contains(expect), "{expect}: {finished:?}");
        assert!(!host.project().join("started").exists());
    };
    // A second name of the key-encryption key, which would not be hidden.
    let name = host.project().join("innocent");
    fs::hard_link(host.data().join("kek"), &name).unwrap();
    refused("another name");
    fs::remove_file(&name).unwrap();
    // A current directory inside what is hidden.
    let mut inside = host.command();
    inside.current_dir(host.data()).args(["run", "--", "cat", "kek"]);
    let finished = seks_tests::process::run(&mut inside, b"");
    assert!(finished.code != Some(0) && finished.stderr.contains("is hidden"), "{finished:?}");
    // A directory that is open in the command from the start leads below the mounts.
    let mut shell = host.command();
    let script = "exec 5<../home/.local; exec ../bin/seks run -- cat /proc/self/fd/5/state/seks/dev/kek";
    shell = {
        let mut sh = std::process::Command::new("/bin/sh");
        sh.envs(shell.get_envs().filter_map(|(k, v)| Some((k, v?))));
        sh
    };
    shell.current_dir(host.project()).args(["-c", script]);
    let finished = seks_tests::process::run(&mut shell, b"");
    assert!(finished.code != Some(0) && finished.stderr.contains("descriptor 5"), "{finished:?}");
    assert_eq!(host.confined("default", &["true"]).code, Some(0));
}

#[test]
fn a_symbolic_link_on_the_way_cannot_be_replaced() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    let dotfiles = host.home().join("dotfiles");
    fs::create_dir_all(dotfiles.join("seks")).unwrap();
    fs::set_permissions(dotfiles.join("seks"), fs::Permissions::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink("dotfiles", host.home().join(".config")).unwrap();
    host.quick_start(&upstream.origin());
    for form in ["default", "strict"] {
        let script = "rm ~/.config; mkdir -p ~/.config/seks; echo planted > ~/.config/seks/context.toml; echo new > file; cat file";
        let finished = host.confined(form, &["sh", "-c", script]);
        assert_eq!(finished.stdout, "new\n", "{finished:?}");
        assert!(host.home().join(".config").is_symlink() && !dotfiles.join("seks/context.toml").exists(), "{form}");
    }
    host.admin(&["status"]);
}
