//! The profile that confines a command on macOS (`sandbox-exec`, Seatbelt). Its text is generated
//! and tested on every system, and used on macOS only.

use std::path::Path;

use super::plan::Plan;

/// The profile, in Seatbelt's language. The last matching rule decides.
pub(super) fn profile(plan: &Plan) -> String {
    let mut text = String::from("(version 1)\n(allow default)\n");
    for path in &plan.hidden {
        text.push_str(&format!("(deny file-read* file-write* (subpath {}))\n", quoted(path)));
    }
    for path in &plan.read_only {
        text.push_str(&format!("(deny file-write* (subpath {}))\n", quoted(path)));
    }
    // Directories on the way cannot be renamed or removed. New entries in them can be created.
    let mut above: Vec<_> =
        plan.hidden.iter().chain(&plan.read_only).flat_map(|path| path.ancestors().skip(1)).collect();
    above.sort_unstable();
    above.dedup();
    for path in above {
        text.push_str(&format!("(deny file-write* (literal {}))\n", quoted(path)));
    }
    text.push_str(
        "(deny process-info* (target others))\n(deny signal (target others))\n(deny mach-priv-task-port)\n\
         (deny appleevent-send)\n(deny job-creation)\n(deny system-privilege)\n",
    );
    if plan.strict {
        text.push_str("(deny network*)\n(allow network-bind network-inbound (local ip \"localhost:*\"))\n");
        for port in plan.forwarded.iter().filter_map(|place| place.rsplit_once(':')).map(|(_, port)| port) {
            text.push_str(&format!("(allow network-outbound (remote ip \"localhost:{port}\"))\n"));
        }
    } else {
        for port in &plan.closed_ports {
            text.push_str(&format!("(deny network-outbound (remote ip \"*:{port}\"))\n"));
        }
    }
    text
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(strict: bool) -> Plan {
        Plan {
            strict,
            hidden: vec!["/Users/u/.config/seks".into(), "/Users/u/a\"b".into()],
            read_only: vec!["/Users/u/bin/seks".into()],
            closed_ports: vec![8301, 8302],
            forwarded: vec!["127.0.0.1:8300".into()],
            ..Plan::default()
        }
    }

    #[test]
    fn the_default_form_hides_files_and_closes_ports() {
        let text = profile(&plan(false));
        for line in [
            "(deny file-read* file-write* (subpath \"/Users/u/.config/seks\"))",
            "(deny file-read* file-write* (subpath \"/Users/u/a\\\"b\"))",
            "(deny file-write* (subpath \"/Users/u/bin/seks\"))",
            "(deny file-write* (literal \"/Users/u/.config\"))",
            "(deny network-outbound (remote ip \"*:8301\"))",
            "(deny signal (target others))",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("(deny network*)") && !text.contains("8300"), "{text}");
    }

    #[test]
    fn the_strict_form_reaches_the_proxy_alone() {
        let text = profile(&plan(true));
        let network: Vec<_> = text.lines().filter(|line| line.contains("network")).collect();
        assert_eq!(
            network,
            [
                "(deny network*)",
                "(allow network-bind network-inbound (local ip \"localhost:*\"))",
                "(allow network-outbound (remote ip \"localhost:8300\"))",
            ]
        );
    }
}
