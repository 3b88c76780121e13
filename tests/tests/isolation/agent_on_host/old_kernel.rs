//! A machine that can't create namespaces: the answer is stated, and Landlock alone keeps the
//! files.

use std::process::Command;

use seks_tests::{
    Upstream,
    process::{Finished, run},
};

use super::host::Host;

/// `seks run` where no namespace can be created any more.
fn without_namespaces(host: &Host, form: &str, script: &str) -> Finished {
    let limits = "for n in user mnt net; do echo 0 > /proc/sys/user/max_${n}_namespaces || exit 99; done; exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-Ur", "sh", "-c", limits, "sh"]).arg(host.program());
    command.args(["run", "--sandbox", form, "--", "sh", "-c", script]).current_dir(host.project());
    command.env_clear().envs(host.command().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let finished = run(&mut command, b"");
    assert!(!finished.stderr.contains("unshare:") && finished.code != Some(99), "needs namespaces: {finished:?}");
    finished
}

#[test]
#[cfg_attr(not(has = "namespaces"), ignore = "needs namespaces")]
fn without_namespaces_the_default_warns_and_still_hides_the_files_and_strict_refuses() {
    let (host, upstream) = (Host::start(), Upstream::ok());
    host.quick_start(&upstream.origin());
    let kek = host.data().join("kek");
    let script = format!(
        "cat {0} ~/.local/state/seks/dev/context.toml; mv ~/.local ~/other; ln {0} kek; cat kek; echo x > {0}; \
         mkdir -p ~/.config/seks; echo x > ~/.config/seks/context.toml; echo new > file; cat file; touch /tmp/$$ && rm /tmp/$$",
        kek.display()
    );
    let finished = without_namespaces(&host, "default", &script);
    assert_eq!(finished.stdout, "new\n", "{finished:?}");
    let warnings: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("user namespaces"), "{finished:?}");
    assert!(kek.exists() && !host.home().join(".config/seks/context.toml").exists());
    let refused = without_namespaces(&host, "strict", "touch started");
    assert_eq!(refused.code, Some(2), "{refused:?}");
    assert!(refused.stderr.contains("error: --sandbox strict: ") && refused.stderr.contains("hint: "), "{refused:?}");
    assert!(!host.project().join("started").exists());
    host.admin(&["status"]);
}
