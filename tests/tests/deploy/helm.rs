//! `deploy/helm/seks`: rendered by Helm, checked against the schemas of Kubernetes' API, and the
//! configurations in it read by the planes.

use std::{fs, process::Command};

use seks_tests::process::{Finished, binary, installed, run};

use crate::deploy_dir;

const ETCD: &str = "etcd.endpoints={https://etcd-0.etcd:2379,https://etcd-1.etcd:2379}";

fn helm(arguments: &[&str]) -> Finished {
    let mut command = Command::new(installed("helm/helm"));
    command.env("HOME", std::env::temp_dir()).env("HELM_CACHE_HOME", std::env::temp_dir());
    run(command.args(arguments), b"")
}

fn template(set: &[&str]) -> Finished {
    let chart = deploy_dir().join("helm/seks");
    let mut arguments =
        vec!["template", "broker", chart.to_str().unwrap(), "--namespace", "seks", "--kube-version", "1.33.0"];
    set.iter().for_each(|value| arguments.extend(["--set", value]));
    helm(&arguments)
}

/// The values that a deployment may choose between.
fn variants() -> [Vec<&'static str>; 3] {
    [
        vec![ETCD],
        vec![
            ETCD,
            "node.kind=DaemonSet",
            "node.tlsSecret=agents-tls",
            "serviceMonitor.enabled=true",
            "controlPlane.auditSize=",
        ],
        vec![
            ETCD,
            "node.autoscaling.enabled=false",
            "node.hosts={seks.example.net}",
            "node.privateNetworks={10.0.0.0/8}",
            "telemetry.otlpEndpoint=http://collector:4317",
            "networkPolicy.enabled=false",
            "controlPlane.extraConfig=[quota]",
            "node.extraConfig=[forward_proxy]\nlisten = \"0.0.0.0:8310\"",
        ],
    ]
}

/// The value of a key of a ConfigMap: the lines that are indented below it.
fn text_of(rendered: &str, key: &str) -> String {
    let lines = rendered.lines().skip_while(|line| line.trim() != format!("{key}: |")).skip(1);
    let lines = lines.take_while(|line| line.is_empty() || line.starts_with("    "));
    lines.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or_default())).collect()
}

#[test]
#[cfg_attr(not(has = "helm"), ignore = "needs helm")]
fn what_the_chart_renders_is_valid_and_the_planes_read_its_configurations() {
    let directory = tempfile::tempdir().unwrap();
    let schemas = installed("helm/schemas/kubernetes_validate/kubernetes-json-schema");
    let schemas = format!("{}/v1.33.0-local-strict/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", schemas.display());
    for set in variants() {
        let rendered = template(&set);
        assert_eq!(rendered.code, Some(0), "{set:?}: {rendered:?}");
        let rendered = rendered.stdout;
        let mut command = Command::new(installed("helm/kubeconform"));
        command.args(["-strict", "-summary", "-skip", "ServiceMonitor", "-schema-location", &schemas]);
        let done = run(&mut command, rendered.as_bytes());
        assert_eq!(done.code, Some(0), "{set:?}: {done:?}\n{rendered}");
        let kind =
            if set.contains(&"node.kind=DaemonSet") { "kind: DaemonSet" } else { "kind: HorizontalPodAutoscaler" };
        assert_eq!(rendered.contains(kind), !set.contains(&"node.autoscaling.enabled=false"), "{set:?}");
        for (key, plane) in [("control-plane.toml", "seks-control-plane"), ("data-plane.toml", "seks-data-plane")] {
            let file = directory.path().join(key);
            let text = text_of(&rendered, key);
            assert!(text.lines().count() > 15, "{key}: {rendered}");
            fs::write(&file, text).unwrap();
            let mut command = Command::new(binary(plane));
            let done = run(command.env_clear().arg("--config").arg(&file).arg("--check-config"), b"");
            assert_eq!(done.code, Some(0), "{set:?}: {done:?}\n{}", fs::read_to_string(&file).unwrap());
        }
    }
}

#[test]
#[cfg_attr(not(has = "helm"), ignore = "needs helm")]
fn values_that_cannot_work_are_refused_by_name() {
    for (set, named) in [
        (vec![], "endpoints"),
        (vec!["etcd.endpoints={http://etcd:2379}"], "endpoints"),
        (vec![ETCD, "node.kind=StatefulSet"], "kind"),
        (vec![ETCD, "node.drainDelay=10"], "drainDelay"),
        (vec![ETCD, "node.replica=3"], "replica"),
    ] {
        let done = template(&set);
        assert_eq!(done.code, Some(1), "{set:?}: {done:?}");
        assert!(done.stderr.contains(named), "{set:?}: {done:?}");
    }
}

#[test]
#[cfg_attr(not(has = "helm"), ignore = "needs helm")]
fn the_chart_is_linted_and_pods_are_confined() {
    let chart = deploy_dir().join("helm/seks");
    let done = helm(&["lint", "--strict", "--kube-version", "1.33.0", chart.to_str().unwrap(), "--set", ETCD]);
    assert_eq!(done.code, Some(0), "{done:?}");
    let rendered = template(&[ETCD]).stdout;
    // Two deployments with one container each, and an init container.
    for (wanted, times) in [
        ("readOnlyRootFilesystem: true", 3),
        ("allowPrivilegeEscalation: false", 3),
        ("runAsNonRoot: true", 2),
        ("automountServiceAccountToken: false", 4),
        ("topologySpreadConstraints:", 2),
        ("kind: PodDisruptionBudget", 2),
        ("kind: NetworkPolicy", 2),
        ("readinessProbe:", 2),
    ] {
        assert_eq!(rendered.matches(wanted).count(), times, "{wanted}");
    }
}
