//! What this machine can confine, and the hint to the user about what is missing.

/// The supported mechanisms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Support {
    /// Namespaces with mounts in them; for the strict form also a network.
    pub(super) namespaces: bool,
    /// Landlock's rules on files, and with them on processes (Linux 6.2).
    files: bool,
    /// Landlock's rules on TCP ports (Linux 6.7).
    ports: bool,
    /// Landlock's scopes of signals and abstract sockets (Linux 6.12).
    scopes: bool,
    strict: bool,
}

impl Support {
    /// Asks the kernel.
    #[cfg(target_os = "linux")]
    pub(super) async fn probe(strict: bool) -> Self {
        use std::process::Stdio;
        let landlock = super::landlock_rules::Landlock::probe();
        let mut probe = tokio::process::Command::new("/proc/self/exe");
        probe.args([super::helper::PROBE, if strict { "strict" } else { "default" }]);
        let status = probe.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        let namespaces = status.is_ok_and(|status| status.success());
        Self { namespaces, files: landlock.files, ports: landlock.ports, scopes: landlock.scopes, strict }
    }

    /// Seatbelt can do all of it, on every macOS that has `sandbox-exec`.
    #[cfg(not(target_os = "linux"))]
    pub(super) async fn probe(strict: bool) -> Self {
        let there = std::path::Path::new("/usr/bin/sandbox-exec").exists();
        Self { namespaces: there, files: there, ports: there, scopes: there, strict }
    }

    /// What is not confined, in words. Empty when everything is.
    pub(super) fn missing(self) -> Vec<&'static str> {
        let mut missing = Vec::new();
        match (self.namespaces, self.files) {
            (true, true) => {}
            (true, false) => missing.push("access to other processes by more than seccomp"),
            (false, true) => missing.push(
                "unix sockets (session bus, tmux, docker), or let it make new files in the folders around SEKS's own",
            ),
            (false, false) => missing.push("access to SEKS's files and processes"),
        }
        if !self.namespaces && self.strict {
            missing.push("the network");
        }
        if !self.ports && !self.strict {
            missing.push("connections to SEKS's ports");
        }
        if !self.scopes {
            missing.push("signals and abstract sockets");
        }
        missing
    }

    /// How to make the missing mechanisms available.
    pub(super) fn hint(self) -> &'static str {
        match (self.namespaces, self.files && self.ports && self.scopes) {
            (false, true) => {
                "let this user create user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns)"
            }
            (true, false) => "it takes Linux 6.12 with Landlock enabled (the boot option lsm=landlock,…)",
            _ => "it takes Linux 6.12 with Landlock enabled, and user namespaces",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Support = Support { namespaces: true, files: true, ports: true, scopes: true, strict: false };

    #[test]
    fn what_is_not_confined_is_named_with_what_it_takes() {
        assert!(ALL.missing().is_empty());
        for (support, missing, hint) in [
            (Support { namespaces: false, ..ALL }, "unix sockets", "user namespaces"),
            (Support { ports: false, ..ALL }, "ports", "Linux 6.12"),
            (Support { scopes: false, ..ALL }, "signals", "Linux 6.12"),
            (Support { files: false, ..ALL }, "processes", "Landlock"),
            (
                Support { namespaces: false, files: false, ..ALL },
                "SEKS's files",
                "Landlock enabled, and user namespaces",
            ),
            (Support { namespaces: false, strict: true, ..ALL }, "the network", "user namespaces"),
        ] {
            assert!(support.missing().join(", ").contains(missing), "{support:?}");
            assert!(support.hint().contains(hint), "{support:?}");
        }
        assert!(Support { ports: false, strict: true, ..ALL }.missing().is_empty(), "the strict form has no such port");
    }
}
