//! `deploy/release/`: equal packages of equal binaries, an installer that verifies, and a
//! newcomer's first minute.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use seks_tests::{
    machine::Machine,
    process::{Finished, binary, run},
};
use sha2::{Digest as _, Sha256};

use crate::deploy_dir;

const PROGRAMS: [&str; 3] = ["seks", "seks-control-plane", "seks-data-plane"];

/// Small programs of this machine under the names of the binaries: packing needs no more.
fn stand_ins(directory: &Path) -> PathBuf {
    let binaries = directory.join("binaries");
    fs::create_dir(&binaries).unwrap();
    for program in PROGRAMS {
        fs::copy("/usr/bin/true", binaries.join(program)).unwrap();
    }
    binaries
}

fn package(sources: &Path, binaries: &Path, out: &Path, umask: &str) -> Finished {
    let mut command = Command::new("bash");
    command.env("SOURCE_DATE_EPOCH", "1700000000").arg("-c").arg("umask $0 && exec \"$@\"").arg(umask);
    command.arg(sources.join("deploy/release/package"));
    run(command.args(["--arch", std::env::consts::ARCH, "--binaries"]).arg(binaries).arg("--out").arg(out), b"")
}

/// A copy of what `package` reads.
fn copy_of_sources(to: &Path) {
    let root = deploy_dir().join("..");
    fs::create_dir_all(to).unwrap();
    for name in ["Cargo.toml", "Cargo.lock", "LICENSE", "README.md", "CHANGELOG.md", "deploy"] {
        let done = run(Command::new("cp").arg("-r").arg(root.join(name)).arg(to), b"");
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

#[test]
fn packages_of_two_folders_are_equal_and_what_they_should_be() {
    let directory = tempfile::tempdir().unwrap();
    let binaries = stand_ins(directory.path());
    let (copy, outs) = (directory.path().join("another/folder"), ["a", "b"].map(|name| directory.path().join(name)));
    copy_of_sources(&copy);
    for (sources, out, umask) in [(&deploy_dir().join(".."), &outs[0], "022"), (&copy, &outs[1], "007")] {
        let done = package(sources, &binaries, out, umask);
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    let sums = outs.each_ref().map(|out| fs::read_to_string(out.join("SHA256SUMS")).unwrap());
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0].lines().count(), 4, "archive, image, package, SBOM: {}", sums[0]);

    let sbom = fs::read_dir(&outs[0]).unwrap().map(|entry| entry.unwrap().path());
    let sbom = sbom.into_iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    let sbom: serde_json::Value = serde_json::from_slice(&fs::read(sbom).unwrap()).unwrap();
    let lock = fs::read_to_string(deploy_dir().join("../Cargo.lock")).unwrap();
    let components = sbom["components"].as_array().unwrap();
    assert_eq!(components.len(), lock.matches("[[package]]").count());
    assert!(components.iter().any(|c| c["name"] == "rustls" && c["hashes"][0]["alg"] == "SHA-256"));

    let package = fs::read_dir(&outs[0]).unwrap().map(|entry| entry.unwrap().path());
    let package = package.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb")).unwrap();
    let contents = run(Command::new("dpkg-deb").arg("--contents").arg(package), b"").stdout;
    for wanted in
        ["./usr/bin/seks-data-plane", "./usr/lib/systemd/system/seks-control-plane.service", "sysusers.d/seks.conf"]
    {
        assert!(contents.contains(wanted), "{contents}");
    }
    image_is_consistent(&outs[0], directory.path());
}

/// Every blob is what its name says, and everything that is referred to is there.
fn image_is_consistent(out: &Path, directory: &Path) {
    let layout = directory.join("layout");
    fs::create_dir(&layout).unwrap();
    let archive = fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    let archive = archive.into_iter().find(|path| path.to_string_lossy().contains("-oci-")).unwrap();
    assert_eq!(run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&layout), b"").code, Some(0));
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let blob = |descriptor: &serde_json::Value| {
        let name = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
        let bytes = fs::read(layout.join("blobs/sha256").join(&name)).unwrap();
        assert_eq!((digest(&bytes), descriptor["size"].as_u64()), (name, Some(bytes.len() as u64)));
        bytes
    };
    let read = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let index = read(&fs::read(layout.join("index.json")).unwrap());
    let manifest = read(&blob(&index["manifests"][0]));
    let config = read(&blob(&manifest["config"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    let layers = manifest["layers"].as_array().unwrap();
    for (layer, diff) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        let mut plain = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&blob(layer)[..]), &mut plain).unwrap();
        assert_eq!(format!("sha256:{}", digest(&plain)), diff.as_str().unwrap());
    }
    if cfg!(has = "skopeo") {
        let done = run(Command::new("skopeo").arg("inspect").arg(format!("oci:{}", layout.display())), b"");
        assert_eq!(done.code, Some(0), "{done:?}");
    }
}

/// A release with the built binaries, without what only debuggers read.
fn release(out: &Path) -> PathBuf {
    let name = format!("seks-0.1.0-linux-{}", std::env::consts::ARCH);
    let tree = out.join(&name);
    fs::create_dir(&tree).unwrap();
    for program in PROGRAMS {
        let done = run(Command::new("strip").arg("-o").arg(tree.join(program)).arg(binary(program)), b"");
        assert_eq!(done.code, Some(0), "{done:?}");
    }
    run(Command::new("cp").arg("-r").arg(deploy_dir()).arg(&tree), b"");
    fs::copy(deploy_dir().join("release/install.sh"), out.join("install.sh")).unwrap();
    let script =
        format!("tar -cf - {name} | gzip -1 >{name}.tar.gz && rm -r {name} && sha256sum {name}.tar.gz >SHA256SUMS");
    let done = run(Command::new("sh").arg("-c").arg(script).current_dir(out), b"");
    assert_eq!(done.code, Some(0), "{done:?}");
    out.join(format!("{name}.tar.gz"))
}

#[test]
#[cfg_attr(not(has = "systemd"), ignore = "needs systemd")]
fn a_newcomer_without_rust_installs_and_sees_the_demo_in_ten_seconds() {
    let directory = tempfile::tempdir().unwrap();
    release(directory.path());
    let machine = Machine::boot(&[], directory.path());
    assert_eq!(machine.run("command -v cargo rustc").stdout, "");
    // Processor time, because a loaded machine's clock measures the others. What is waited for
    // besides is no sleep.
    let printed = machine.output("sh /mnt/install.sh --from /mnt; times");
    assert!(printed.contains("installed seks 0.1.0"), "{printed}");
    let installing = printed.lines().last().map(seconds_of_times).unwrap();
    machine.output("seks dev --demo --ready-file /root/ready >/root/demo.log 2>&1 & echo $! >/root/pid");
    machine.until("test -s /root/ready && grep -q seks_token_ /root/demo.log");
    // Fields 14 and 15 of proc_pid_stat(5), in ticks: of user and system.
    let ticks = machine.output("awk '{ print $14 + $15, '\"$(getconf CLK_TCK)\"' }' /proc/$(cat /root/pid)/stat");
    let (ticks, each) = ticks.trim().split_once(' ').unwrap();
    let serving = ticks.parse::<f64>().unwrap() / each.parse::<f64>().unwrap();
    assert!(
        installing + serving < 10.0,
        "{installing} s to install and {serving} s until the demo is over\n{}",
        machine.output("cat /root/demo.log")
    );
    assert!(serving > 0.0, "something was measured");
    machine.output("kill $(cat /root/pid)");
}

/// User and system time of a shell's children, by the last line of `times`: `0m1.25s 0m0.50s`.
fn seconds_of_times(line: &str) -> f64 {
    let seconds = |text: &str| {
        let (minutes, seconds) = text.trim_end_matches('s').split_once('m').unwrap_or_else(|| panic!("{line}"));
        minutes.parse::<f64>().unwrap() * 60.0 + seconds.parse::<f64>().unwrap()
    };
    line.split_whitespace().map(seconds).sum()
}

#[test]
fn an_archive_that_was_changed_is_refused_and_nothing_is_installed() {
    let directory = tempfile::tempdir().unwrap();
    let name = format!("seks-0.1.0-linux-{}", std::env::consts::ARCH);
    let tree = directory.path().join(&name);
    fs::create_dir_all(tree.join("deploy")).unwrap();
    for program in PROGRAMS {
        fs::copy("/usr/bin/true", tree.join(program)).unwrap();
    }
    let archive = directory.path().join(format!("{name}.tar.gz"));
    let script = format!("tar -czf {name}.tar.gz {name} && sha256sum {name}.tar.gz >SHA256SUMS");
    run(Command::new("sh").arg("-c").arg(script).current_dir(directory.path()), b"");
    let sums = fs::read_to_string(directory.path().join("SHA256SUMS")).unwrap();
    let good = fs::read(&archive).unwrap();
    let prefix = directory.path().join("prefix");
    let install = |from: &str| {
        let mut command = Command::new("sh");
        command.arg(deploy_dir().join("release/install.sh")).args(["--from", from, "--prefix"]).arg(&prefix);
        run(&mut command, b"")
    };
    let here = directory.path().to_str().unwrap();
    let other = sums.replace(&sums[..8], "00000000");
    let short = format!("{}\n", &sums[..60]);
    for (archive_bytes, sums, why) in [
        ([&good[..], b"x"].concat(), sums.as_str(), "is not what SHA256SUMS says"),
        (good.clone(), &other, "is not what SHA256SUMS says"),
        (good.clone(), &short, "does not name one archive"),
        (good.clone(), "", "does not name one archive"),
        (good.clone(), &format!("{sums}{sums}"), "does not name one archive"),
    ] {
        fs::write(&archive, archive_bytes).unwrap();
        fs::write(directory.path().join("SHA256SUMS"), sums).unwrap();
        let done = install(here);
        assert_eq!(done.code, Some(1), "{done:?}");
        assert!(done.stderr.contains(why) && !prefix.exists(), "{done:?}");
    }
    assert!(install("http://mirror.example").stderr.contains("not encrypted"));
    fs::write(&archive, good).unwrap();
    fs::write(directory.path().join("SHA256SUMS"), &sums).unwrap();
    let done = install(here);
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(prefix.join("bin/seks").exists());
}

#[test]
fn the_built_binaries_keep_the_floor_of_glibc() {
    let mut command = Command::new("bash");
    command.arg(deploy_dir().join("release/glibc-floor"));
    let done = run(command.args(PROGRAMS.map(binary)), b"");
    assert_eq!(done.code, Some(0), "{done:?}");
}

/// Scripts that people run are checked where the checker is.
#[test]
#[cfg_attr(not(has = "shellcheck"), ignore = "needs shellcheck")]
fn scripts_are_free_of_what_shellcheck_warns_of() {
    let mut scripts = vec![deploy_dir().join("../tests/data/machine/boot")];
    let mut pending = vec![deploy_dir()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if fs::read(&path).unwrap().starts_with(b"#!/") {
            let first = fs::read_to_string(&path).unwrap_or_default();
            scripts.extend(first.lines().next().filter(|line| line.ends_with("sh")).map(|_| path));
        }
    }
    assert!(scripts.len() > 8, "{scripts:?}");
    let done = run(Command::new("shellcheck").args(&scripts), b"");
    assert_eq!(done.code, Some(0), "{}", done.stdout);
}
