//! A node that joins with a bootstrap token, by requests for its certificates, which it renews before they end.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the cluster has no event to wait for but the command it repeats"
)]

use std::path::Path;
use std::time::{Duration, Instant};

use crate::machine::{Machine, PATIENCE};

/// Lives of certificates, so short that a test sees them renewed.
const LIFE: &str = "40s";
const NODE: &str = "joiner";

/// What lets nodes in: a token, and who may ask for what (as kubeadm sets it up).
const ENTRANCE: &str = "apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData:
  token-id: abcdef
  token-secret: 0123456789abcdef
  usage-bootstrap-authentication: 'true'
  auth-extra-groups: system:bootstrappers:nodes
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: nodes-may-ask}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:node-bootstrapper'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:bootstrappers:nodes'}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: first-certificates-are-approved}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: 'system:certificates.k8s.io:certificatesigningrequests:nodeclient'
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:bootstrappers:nodes'}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: renewals-are-approved}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: 'system:certificates.k8s.io:certificatesigningrequests:selfnodeclient'
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: 'system:nodes'}]
";

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: aboard}
spec:
  nodeName: joiner
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - {name: c, image: carrack.dev/toolbox, imagePullPolicy: IfNotPresent, command: [sh, -c, 'echo ahoy; sleep 100000']}
";

/// Prints the certificate that the kubelet serves with.
const SERVED: &str =
    "import ssl, sys; sys.stdout.write(ssl.get_server_certificate(('127.0.0.1', 10250), timeout=5))";

fn wait<T>(machine: &Machine, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} did not come about\n{}", machine.log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Approves what waits for it: serving certificates are approved by an administrator alone.
fn approve(machine: &Machine) {
    let template = "{range .items[?(@.spec.signerName==\"kubernetes.io/kubelet-serving\")]}\
                    {.metadata.name}={.status.conditions[0].type} {end}";
    let list = machine.kubectl(&["get", "csr", "-o", &format!("jsonpath={template}")]).ok();
    for name in list.split(' ').filter_map(|one| one.strip_suffix('=')) {
        machine.kubectl(&["certificate", "approve", name]).ok();
    }
}

fn start_node(machine: &mut Machine, data: &str, node: &str, bootstrap: &str) {
    let socket = format!("{node}/runtime.sock");
    machine.start_part("runtime", &["--data-dir", node, "--socket", &socket]);
    let (authority, own) = (format!("{data}/pki/ca.crt"), format!("{node}/kubelet.kubeconfig"));
    let endpoint = format!("unix://{socket}");
    let flags = [
        ["--data-dir", node],
        ["--node-name", NODE],
        ["--bootstrap-kubeconfig", bootstrap],
        ["--kubeconfig", &own],
        ["--client-ca-file", &authority],
        ["--container-runtime-endpoint", &endpoint],
    ];
    machine.start_part("kubelet", &flags.concat());
}

#[test]
fn a_node_joins_with_a_token_and_renews_its_certificates() {
    let mut machine = Machine::new();
    let data = machine.data_dir().to_string_lossy().into_owned();
    let node = machine.folder().join("node");
    std::fs::create_dir(&node).expect("a folder");
    let node = node.to_string_lossy().into_owned();
    let admin = format!("{data}/admin.kubeconfig");
    machine.start_part("apiserver", &["--data-dir", &data]);
    machine.eventually("the API server", "/usr/bin/kubectl", &["get", "--raw", "/readyz"], |answer| {
        answer.out == "ok"
    });
    let (certificate, key) = (format!("{data}/pki/ca.crt"), format!("{data}/pki/ca.key"));
    let flags = [
        ["--kubeconfig", &admin],
        ["--cluster-signing-cert-file", &certificate],
        ["--cluster-signing-key-file", &key],
        ["--cluster-signing-duration", LIFE],
        ["--cluster-cidr", "10.244.0.0/16"],
    ];
    machine.start_part("controllers", &flags.concat());
    machine.apply(ENTRANCE).ok();

    let bootstrap = machine.folder().join("bootstrap.kubeconfig");
    let bootstrap = bootstrap.to_string_lossy().into_owned();
    let own = format!("--kubeconfig={bootstrap}");
    for args in [
        &[
            "set-cluster",
            "c",
            "--server=https://127.0.0.1:6443",
            &format!("--certificate-authority={certificate}"),
        ][..],
        &["set-credentials", "u", "--token=abcdef.0123456789abcdef"],
        &["set-context", "x", "--cluster=c", "--user=u"],
        &["use-context", "x"],
    ] {
        machine.kubectl(&[&["config", &own], args].concat()).ok();
    }
    start_node(&mut machine, &data, &node, &bootstrap);

    machine.wait_for(&format!("node/{NODE}"), "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
    let pki = Path::new(&node).join("kubelet/pki");
    let client = std::fs::read_to_string(pki.join("kubelet-client-current.pem")).expect("the certificate");
    // The written kubeconfig is the node's own.
    let who =
        machine.kubectl(&["--kubeconfig", &format!("{node}/kubelet.kubeconfig"), "auth", "whoami"]).ok();
    assert!(who.contains("system:node:joiner") && who.contains("system:nodes"), "{who}");

    machine.apply(POD).ok();
    machine.wait_for("pod/aboard", "{.status.phase}", "Running");
    // Nobody has approved the serving certificate: the node's own API serves nobody.
    machine.kubectl(&["logs", "aboard"]).failed();
    approve(&machine);
    let logs = |machine: &Machine| {
        machine.eventually("logs", "/usr/bin/kubectl", &["logs", "aboard"], |answer| answer.out == "ahoy\n");
    };
    logs(&machine);
    let served = machine.run("/usr/bin/python3", &["-c", SERVED]).ok();
    let kept = std::fs::read_to_string(pki.join("kubelet-server-current.pem")).expect("the certificate");
    assert!(kept.starts_with(served.trim()), "{served}\n{kept}");

    // Both are renewed, and the node goes on with the new ones.
    wait(&machine, "another client certificate", || {
        let now = std::fs::read_to_string(pki.join("kubelet-client-current.pem")).expect("the certificate");
        (now != client).then_some(())
    });
    wait(&machine, "another serving certificate", || {
        approve(&machine);
        let now = machine.run("/usr/bin/python3", &["-c", SERVED]).ok();
        (now != served).then_some(())
    });
    wait(&machine, "the end of the first certificates", || {
        let ended = |pem: &str| {
            let (_, found) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
            !found.parse_x509().expect("a certificate").validity().is_valid()
        };
        approve(&machine);
        (ended(&client) && ended(&served)).then_some(())
    });
    logs(&machine);
    let uses = |machine: &Machine| {
        let args = ["get", "lease", NODE, "-n", "kube-node-lease", "-o", "jsonpath={.spec.renewTime}"];
        machine.kubectl(&args).ok()
    };
    let before = uses(&machine);
    wait(&machine, "a lease renewed with the new certificate", || (uses(&machine) != before).then_some(()));
    machine.wait_for(&format!("node/{NODE}"), "{.status.conditions[?(@.type==\"Ready\")].status}", "True");
}
