//! Which context `seks` uses: never one that a folder brings along.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use seks_tests::{
    Upstream,
    process::{Finished, Process, run, wait_for},
};

use super::host::{Host, Outside};

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_context_that_a_folder_brings_along_is_never_used() {
    let host = Host::start();
    let outside = Outside::start(&host);
    // Whoever made the repository: as a file, and as a link to the folder.
    for name in [".seks-data/context.toml", "context.toml", ".config/seks/context.toml", "seks/dev/context.toml"] {
        write(&host.project().join(name), &outside.planted, 0o600);
    }
    let status = host.admin(&["status"]);
    let line = format!("context: {} (the running `seks dev`)\n", host.data().join("context.toml").display());
    assert_eq!(status.stderr, line, "one line names what is used");
    // Relative variables would name the current folder.
    let mut relative = host.command();
    relative.env("XDG_CONFIG_HOME", ".config").env("XDG_STATE_HOME", ".").arg("status");
    assert_eq!(run(&mut relative, b"").stderr, line);
    // Without a running `seks dev` there is nothing, whatever lies around.
    let mut elsewhere = host.command();
    let nothing = run(elsewhere.env("HOME", host.project().join("empty")).arg("status"), b"");
    assert!(nothing.code == Some(2) && nothing.stderr.contains("no context file"), "{nothing:?}");
    assert!(nothing.stderr.contains("hint: ./.seks-data/context.toml is not used by itself"), "{nothing:?}");
}

#[test]
fn the_order_is_flag_variable_own_file_running_dev() {
    let host = Host::start();
    let dev = fs::read_to_string(host.data().join("context.toml")).unwrap();
    let own = host.home().join(".config/seks/context.toml");
    write(&own, &dev, 0o600);
    assert_eq!(host.admin(&["status"]).stderr, "", "the user's own needs no word");
    let broken = dev.replace(&format!("127.0.0.1:{}", host.port_of("admin")), "127.0.0.1:1");
    write(&own, &broken, 0o600);
    assert_eq!(host.seks(&["status"]).code, Some(6), "an own context is not overridden by a running `seks dev`");
    let file = host.data().join("context.toml");
    let file = file.to_str().unwrap();
    assert_eq!(host.admin(&["--context-file", file, "status"]).stderr, "");
    let mut variable = host.command();
    let named = run(variable.env("SEKS_CONTEXT_FILE", file).arg("status"), b"");
    assert_eq!((named.code, named.stderr), (Some(0), format!("context: {file} (SEKS_CONTEXT_FILE)\n")));
}

#[test]
fn a_context_that_others_could_have_written_or_read_is_refused() {
    let host = Host::start();
    let dev = fs::read_to_string(host.data().join("context.toml")).unwrap();
    let own = host.home().join(".config/seks/context.toml");
    for mode in [0o644, 0o640, 0o606, 0o660, 0o610] {
        write(&own, &dev, mode);
        let refused = host.seks(&["status"]);
        assert_eq!(refused.code, Some(2), "{mode:o}: {refused:?}");
        assert!(
            refused.stderr.contains(&format!("mode {mode:04o}")) && refused.stderr.contains("chmod 600"),
            "{refused:?}"
        );
    }
    if host.is_root() {
        write(&own, &dev, 0o600);
        std::os::unix::fs::chown(&own, Some(65534), None).unwrap();
        let refused = host.seks(&["status"]);
        assert!(refused.code == Some(2) && refused.stderr.contains("owned by user id 65534"), "{refused:?}");
    }
    fs::remove_file(&own).unwrap();
    // By a symbolic link it is the file itself that is checked.
    write(&host.project().join("theirs.toml"), &dev, 0o644);
    symlink(host.project().join("theirs.toml"), &own).unwrap();
    assert_eq!(host.seks(&["status"]).code, Some(2));
}

fn dev(host: &Host, arguments: &[&str]) -> Finished {
    let mut command = host.command();
    let ports = ["--proxy-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
    run(command.arg("dev").args(ports).args(arguments), b"")
}

#[test]
fn a_data_directory_that_others_can_enter_is_refused() {
    let host = Host::start();
    let data = host.project().join("shared");
    write(&data.join("store.redb"), "", 0o600);
    for mode in [0o777, 0o755, 0o750, 0o705] {
        fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
        let refused = dev(&host, &["--data-dir", "shared"]);
        assert_eq!(refused.code, Some(2), "{mode:o}: {refused:?}");
        assert!(
            refused.stderr.contains("gives access to other users") && refused.stderr.contains("chmod 700"),
            "{refused:?}"
        );
    }
    if host.is_root() {
        fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&data, Some(65534), None).unwrap();
        let refused = dev(&host, &["--data-dir", "shared"]);
        assert!(refused.code == Some(2) && refused.stderr.contains("owned by user id 65534"), "{refused:?}");
    }
}

#[test]
fn data_of_the_former_place_is_pointed_out_and_served_when_named() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    let former = host.project().join(".seks-data");
    write(&former.join("store.redb"), "", 0o600);
    let refused = dev(&host, &[]); // the default one is in use
    assert!(refused.stderr.contains("hint: ./.seks-data is no longer the default"), "{refused:?}");
    fs::remove_dir_all(&former).unwrap();
    let mut command = host.command();
    command.args(["dev", "--data-dir", "./.seks-data", "--ready-file", "former.json"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    let mut second = Process::spawn("second", &host.project(), &mut command);
    second.wait_for("it to be ready", || fs::metadata(host.project().join("former.json")).ok());
    // Two are running: the one in the default place is the default, and the other is out of an
    // agent's reach, too.
    let line = format!("context: {} (the running `seks dev`)\n", host.data().join("context.toml").display());
    assert_eq!(host.admin(&["status"]).stderr, line);
    let confined = host.confined("default", &["cat", ".seks-data/kek", ".seks-data/context.toml"]);
    assert!(confined.code == Some(1) && confined.stdout.is_empty(), "{confined:?}");
    second.kill();
    wait_for("its registration to be void", || (host.seks(&["status"]).code == Some(0)).then_some(()));
}

#[test]
fn what_is_remembered_stays_hidden_when_nothing_runs_there() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    let mut command = host.command();
    command.args(["dev", "--data-dir", "./elsewhere/data", "--ready-file", "second.json"]);
    for listener in ["--proxy-listen", "--admin-listen", "--metrics-listen"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    let mut second = Process::spawn("second", &host.project(), &mut command);
    second.wait_for("it to be ready", || fs::metadata(host.project().join("second.json")).ok());
    second.kill();
    wait_for("its registration to be void", || (host.seks(&["status"]).code == Some(0)).then_some(()));
    let created = host.admin(&["operator", "create", "ann", "--role", "owner", "--out", "ann.toml"]);
    assert_eq!(created.code, Some(0), "{created:?}");
    let above = host.project().parent().unwrap().join(".seks-data");
    write(&above.join("store.redb"), "", 0o600);
    write(&above.join("kek"), "k", 0o600);
    for form in ["default", "strict"] {
        for secret in ["elsewhere/data/kek", "elsewhere/data/context.toml", "ann.toml", "../.seks-data/kek"] {
            assert!(fs::metadata(host.project().join(secret)).is_ok(), "{secret}");
            let confined = host.confined(form, &["cat", secret]);
            // Root may open the empty file that covers a hidden one.
            assert!(confined.stdout.is_empty(), "{form}: {secret}: {confined:?}");
        }
    }
}
