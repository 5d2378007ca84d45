//! kubectl, of whatever version is installed (1.20 and later): the commands that need no controller and no node.
#![allow(
    clippy::disallowed_methods,
    reason = "a test outside the cluster has no event to wait for but the command it repeats"
)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::server::Server;

const KUBECTL: &str = "/usr/bin/kubectl";

const DEPLOYMENT: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: c, image: "nginx:1", ports: [{containerPort: 80}], env: [{name: A, value: "1"}]}
"#;

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.fleet.example.com}
spec:
  group: fleet.example.com
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship, shortNames: [sh]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.masts, statusReplicasPath: .status.masts}}
    additionalPrinterColumns: [{name: Masts, type: integer, jsonPath: .spec.masts}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            description: what the ship is like
            properties:
              masts: {type: integer, minimum: 1, description: how many masts}
              sails: {type: array, items: {type: string}}
          status: {type: object, properties: {masts: {type: integer}}}
"#;

const SHIP: &str = "apiVersion: fleet.example.com/v1\nkind: Ship\nmetadata: {name: a}\nspec: {masts: 3}\n";

/// A session: its namespace, and the client's minor version.
struct Session {
    server: Server,
    minor: u32,
}

struct Said {
    ok: bool,
    out: String,
    all: String,
}

impl Session {
    fn new() -> Self {
        let mut session = Self { server: Server::start(), minor: 0 };
        let version = session.run("version --client -o json", "").out;
        let version: serde_json::Value = serde_json::from_str(&version).expect("the version as JSON");
        let minor = version["clientVersion"]["minor"].as_str().expect("a minor version");
        session.minor = minor.trim_end_matches('+').parse().expect("a number");
        session
    }

    /// Runs a command line; words in single quotes stay together.
    fn run(&self, line: &str, input: &str) -> Said {
        let mut words = Vec::new();
        for (index, part) in line.split('\'').enumerate() {
            match index % 2 {
                0 => words.extend(part.split_whitespace()),
                _ => words.push(part),
            }
        }
        let mut child = Command::new(KUBECTL)
            .args(["-n", "session"])
            .args(words)
            .env("KUBECONFIG", self.server.kubeconfig())
            .env("HOME", self.server.folder())
            .env("EDITOR", "sed -i s/three/four/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        // A command that fails early does not read all of it.
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let output = child.wait_with_output().expect("our child");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let out = text(&output.stdout);
        Said { ok: output.status.success(), all: format!("{out}{}", text(&output.stderr)), out }
    }

    #[track_caller]
    fn check(&self, line: &str, input: &str, ok: bool, wants: &[&str]) -> String {
        let said = self.run(line, input);
        assert_eq!(said.ok, ok, "kubectl {line}\n{}", said.all);
        for want in wants {
            assert!(said.all.contains(want), "kubectl {line}: no {want:?} in\n{}", said.all);
        }
        said.out
    }

    #[track_caller]
    fn ok(&self, line: &str, wants: &[&str]) -> String {
        self.check(line, "", true, wants)
    }

    #[track_caller]
    fn fails(&self, line: &str, wants: &[&str]) {
        self.check(line, "", false, wants);
    }

    /// For clients of this minor version and later.
    #[track_caller]
    fn since(&self, minor: u32, line: &str, wants: &[&str]) {
        if self.minor >= minor {
            self.ok(line, wants);
        }
    }

    #[track_caller]
    fn apply(&self, manifest: &str, want: &str) {
        self.check("apply -f -", manifest, true, &[want]);
    }

    /// Repeats a command until it succeeds.
    #[track_caller]
    fn until(&self, line: &str, wants: &[&str]) {
        let started = Instant::now();
        loop {
            let said = self.run(line, "");
            if said.ok && wants.iter().all(|want| said.all.contains(want)) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "kubectl {line}\n{}", said.all);
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn a_session_of_kubectl() {
    let session = Session::new();
    discovery(&session);
    objects(&session);
    workloads(&session);
    rights(&session);
    custom(&session);
    nodes(&session);
    session.ok("delete cm --all", &["deleted"]);
    session.ok("delete deploy/web --cascade=orphan --wait=false", &["deleted"]);
    session.ok("delete svc,ingress,job --all --wait=false", &["deleted"]);
    session.ok("delete ns session --wait=false", &["deleted"]);
}

fn discovery(s: &Session) {
    s.ok("version", &["v1.36"]);
    s.ok("api-versions", &["apps/v1", "resource.k8s.io/v1"]);
    s.ok("api-resources", &["deployments", "customresourcedefinitions"]);
    s.ok("api-resources --namespaced=false -o name", &["nodes"]);
    s.ok("cluster-info", &["is running at"]);
    s.ok("get --raw /readyz", &["ok"]);
    s.ok("get --raw /metrics", &["apiserver_request_total"]);
    s.ok("get componentstatuses", &["Healthy"]);
    s.ok("explain pods.spec.containers", &["ports"]);
    s.ok("explain deploy --recursive", &["replicas"]);
}

fn objects(s: &Session) {
    s.ok("create ns session", &["created"]);
    s.ok("get ns session -o yaml", &["phase: Active"]);
    s.ok("create sa default", &["created"]);
    s.ok("create cm m --from-literal=k=three", &["configmap/m created"]);
    s.fails("create cm m --from-literal=k=three", &["already exists"]);
    s.ok("get cm m -o jsonpath={.data.k}", &["three"]);
    s.ok("get cm m -o go-template={{.data.k}}", &["three"]);
    s.ok("get cm -o custom-columns=N:.metadata.name,K:.data.k", &["three"]);
    s.ok("get cm m -o json", &["\"k\": \"three\""]);
    s.ok("edit cm m", &["edited"]);
    s.ok("get cm m -o jsonpath={.data.k}", &["four"]);
    s.ok("label cm m a=b", &["labeled"]);
    s.ok("annotate cm m a=b", &["configmap/m annotate"]);
    s.ok("get cm -l a=b --show-labels", &["a=b"]);
    s.ok("get cm --field-selector metadata.name=m -o name", &["configmap/m"]);
    s.ok("create secret generic s --from-literal=p=q", &["created"]);
    s.ok("describe secret s", &["1 bytes"]);
    let login = "--docker-username=u --docker-password=p --docker-server=s";
    s.ok(&format!("create secret docker-registry dr {login}"), &["created"]);
    let map = s.ok("get cm m -o yaml", &[]);
    s.check("replace -f -", &map.replace("four", "five"), true, &["replaced"]);
    let six = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {k: six}\n";
    s.check("replace --force -f -", six, true, &["replaced"]);
    let generated = "apiVersion: v1\nkind: ConfigMap\nmetadata: {generateName: g-}\n";
    s.check("create -f -", generated, true, &["created"]);
    // Old clients prune kinds that are gone.
    if s.minor >= 22 {
        let pruned = |name: &str| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{pr: yes-}}}}\n")
                .replace("yes-", "\"1\"")
        };
        s.check("apply --prune -l pr=1 -f -", &pruned("m1"), true, &["created"]);
        s.check("apply --prune -l pr=1 -f -", &pruned("m2"), true, &["m2 created", "m1 pruned"]);
    }
    let bad =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: C_, image: i}]}\n";
    s.check("apply --validate=false -f -", bad, false, &["Invalid value: \"C_\""]);
    let unknown = bad.replace("C_", "c") + "wrong: 1\n";
    s.check("apply -f -", &unknown, false, &["wrong"]);
}

fn workloads(s: &Session) {
    s.apply(DEPLOYMENT, "deployment.apps/web created");
    s.apply(DEPLOYMENT, "unchanged");
    let replicas = |count: u32| DEPLOYMENT.replace("replicas: 3", &format!("replicas: {count}"));
    s.apply(&replicas(4), "configured");
    s.check("diff -f -", &replicas(5), false, &["-  replicas: 4", "+  replicas: 5"]);
    s.check("apply --dry-run=server -f -", &replicas(7), true, &["(server dry run)"]);
    let apply = "apply --server-side --force-conflicts -f -";
    s.check(apply, &replicas(5), true, &["serverside-applied"]);
    let other = "apply --server-side --field-manager=other -f -";
    s.check(other, &replicas(6), false, &["conflict"]);
    s.ok("apply view-last-applied deploy/web", &["replicas"]);
    s.ok("get deploy", &["READY", "UP-TO-DATE", "0/5"]);
    s.ok("get deploy -o wide", &["CONTAINERS", "nginx:1"]);
    s.ok("scale deploy/web --replicas=2", &["scaled"]);
    s.fails("scale deploy/web --current-replicas=9 --replicas=1", &["Expected replicas to be 9"]);
    s.ok("set image deploy/web c=nginx:2", &["updated"]);
    s.ok("set env deploy/web B=2", &["updated"]);
    s.ok("set env deploy/web --list", &["A=1", "B=2"]);
    s.ok("set resources deploy/web --limits=cpu=1,memory=1Gi", &["updated"]);
    s.ok("set serviceaccount deploy/web default", &["updated"]);
    s.ok("patch deploy web -p '{\"spec\":{\"paused\":true}}'", &["patched"]);
    let replace = r#"'[{"op":"replace","path":"/spec/paused","value":false}]'"#;
    s.ok(&format!("patch deploy web --type=json -p {replace}"), &["patched"]);
    s.ok("patch deploy web --type=merge -p '{\"spec\":{\"minReadySeconds\":3}}'", &["patched"]);
    let status = "'{\"status\":{\"replicas\":2}}'";
    s.since(24, &format!("patch deploy web --subresource=status --type=merge -p {status}"), &["patched"]);
    s.since(24, "get deploy web --subresource=scale -o yaml", &["kind: Scale", "replicas: 2"]);
    s.ok("rollout pause deploy/web", &["paused"]);
    s.ok("rollout resume deploy/web", &["resumed"]);
    s.ok("rollout restart deploy/web", &["restarted"]);
    s.ok("describe deploy web", &["nginx:2", "Selector"]);
    s.ok("expose deploy/web --port=80", &["exposed"]);
    s.ok("describe svc web", &["Endpoints", "ClusterIP"]);
    s.ok("set selector svc/web app=x", &["updated"]);
    s.ok("create service nodeport np --tcp=80:80", &["created"]);
    s.ok("create ingress ing --rule=a.b/c=svc:80", &["created"]);
    s.ok("describe ingress ing", &["a.b"]);
    s.ok("create job j --image=i", &["created"]);
    s.since(21, "create cronjob cj --image=i --schedule '* * * * *'", &["created"]);
    s.since(21, "create job j2 --from=cronjob/cj", &["created"]);
    s.since(22, "create pdb pdb --selector=app=web --min-available=1", &["created"]);
    s.ok("create quota q --hard=pods=30", &["created"]);
    s.ok("create priorityclass pc --value=10", &["created"]);
    s.ok("autoscale deploy web --max=3 --min=1", &["autoscaled"]);
    s.ok("get hpa", &["web"]);
    s.ok("run p --image=i --restart=Never --env=A=1 --labels=x=y", &["pod/p created"]);
    s.ok("get pods -o wide", &["Pending", "NOMINATED NODE"]);
    s.ok("get pod p -o yaml", &["restartPolicy: Never"]);
    s.ok("describe pod p", &["Status:", "Tolerations"]);
    s.ok("get pods --sort-by=.metadata.name", &["p "]);
    s.ok("get pods,svc", &["pod/p", "service/web"]);
    s.ok("get all", &["pod/p", "deployment.apps/web"]);
    s.ok("get pods -A", &["session"]);
    s.fails("wait pod/p --for=condition=Ready --timeout=1s", &["timed out"]);
    s.since(24, "create token default", &["ey"]);
    s.ok("delete pod p --now", &["deleted"]);
    s.ok("get events", &[]);
}

fn rights(s: &Session) {
    s.ok("create role r --verb=get,list --resource=pods,deployments.apps", &["created"]);
    s.ok("create rolebinding rb --role=r --user=jane", &["created"]);
    s.ok("create clusterrole cr --verb=get --non-resource-url=/x", &["created"]);
    s.ok("create clusterrolebinding crb --clusterrole=view --group=g", &["created"]);
    s.until("auth can-i list pods --as jane", &["yes"]);
    s.fails("auth can-i delete pods --as jane", &["no"]);
    s.ok("auth can-i --list --as jane", &["deployments.apps"]);
    s.fails("get secrets --as jane", &["forbidden"]);
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: rr, namespace: session}\n\
                rules: [{apiGroups: [\"\"], resources: [pods], verbs: [get]}]\n";
    s.check("auth reconcile -f -", role, true, &["reconciled"]);
    s.since(28, "auth whoami", &["Username"]);
}

fn custom(s: &Session) {
    s.apply(DEFINITION, "created");
    s.ok("wait --for=condition=established crd/ships.fleet.example.com", &["condition met"]);
    s.apply(SHIP, "created");
    s.apply(&SHIP.replace("masts: 3", "masts: 4"), "configured");
    s.check("apply -f -", &SHIP.replace("masts: 3", "masts: 0"), false, &["greater than or equal to 1"]);
    s.ok("get sh", &["MASTS", "4"]);
    s.until("explain ship.spec", &["how many masts"]);
    s.ok("scale ships/a --replicas=2", &["scaled"]);
    s.ok("patch ship a --type=merge -p '{\"spec\":{\"sails\":[\"three\"]}}'", &["patched"]);
    s.ok("edit ship a -o json", &["\"four\""]);
    s.ok("get ship.v1.fleet.example.com/a -o yaml", &["masts: 2", "four"]);
    s.check("apply --server-side -f -", &SHIP.replace("a}", "b}"), true, &["serverside-applied"]);
    s.ok("describe ship b", &["Masts"]);
    s.ok("delete crd ships.fleet.example.com", &["deleted"]);
}

fn nodes(s: &Session) {
    s.fails("cordon none", &["not found"]);
    s.apply("apiVersion: v1\nkind: Node\nmetadata: {name: nd}\n", "created");
    s.ok("cordon nd", &["cordoned"]);
    s.ok("uncordon nd", &["uncordoned"]);
    s.ok("taint node nd k=v:NoSchedule", &["tainted"]);
    s.ok("taint node nd k-", &["untainted"]);
    s.ok("drain nd --ignore-daemonsets --timeout=20s", &["nd drained"]);
    s.ok("describe node nd", &["Taints"]);
    s.ok("get nodes", &["SchedulingDisabled"]);
    s.ok("delete node nd", &["deleted"]);
}
