//! `up` killed at every step between two changes of what is kept outside of it: after the next start the pod runs, or is gone,
//! and nothing is left of it.
#![allow(clippy::disallowed_methods, reason = "a test outside the cluster has no event to wait for")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::csi;
use crate::machine::{Answer, Machine, PATIENCE};

/// What a test makes, and takes away again, anew for each step.
struct Life {
    /// The steps' names begin with it.
    area: &'static str,
    /// So many steps there are at least.
    least: usize,
    /// The manifest; `NUMBER` stands for that of the round.
    manifest: String,
    /// What is deleted, after the pod `life-NUMBER`.
    others: &'static [&'static str],
    /// Lines of what stays all the time, as [`left`] gives them.
    stays: &'static [&'static str],
}

/// What of pods is left on the machine, a line for each thing.
fn left(machine: &Machine) -> Vec<String> {
    let data = machine.data_dir();
    let script = format!(
        r#"
        cd {data}
        ls kubelet/pods | sed 's/^/pod folder /'
        ls runtime/pods runtime/containers run/runtime/p run/runtime/m | grep -v ':$' | sed '/^$/d; s/^/of the runtime: /'
        ls volumes 2>/dev/null | sed 's/^/volume /'
        grep -o ' {data}/\(kubelet/pods\|kubelet/plugins\|run/runtime/m\|volumes\)/[^ ]*' /proc/self/mountinfo | sed 's/^/mount/'
        find /sys/fs/cgroup -type d -path '*kubepods*/pod*' | sed 's/^/cgroup /'
        ip -brief link | sed -n 's/^\(pod[^ ]*\).*/link \1/p'
        for process in /proc/[0-9]*; do readlink $process/ns/net; done | grep -vF "$(readlink /proc/self/ns/net)" | sort -u | sed 's/^/network namespace /'
        grep -H -s {data}/ /sys/block/loop*/loop/backing_file | sed 's/^/loop device /'
        "#,
        data = data.display()
    );
    machine.run("sh", &["-c", &script]).out.lines().map(str::to_owned).collect()
}

/// The same without what stays all the time.
fn remains(machine: &Machine, life: &Life) -> Vec<String> {
    let mut found = left(machine);
    found.retain(|line| !life.stays.iter().any(|stays| line.contains(stays)));
    found
}

#[track_caller]
fn nothing_is_left(machine: &Machine, life: &Life, when: &str) {
    let started = Instant::now();
    loop {
        let found = remains(machine, life);
        if found.is_empty() {
            return;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{when}: there is left:\n{}\n{}",
            found.join("\n"),
            machine.log()
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Waits until an object's field has the value, or no such object is there if the value is empty; gives the step at which the
/// control plane was killed, if that came first.
#[track_caller]
fn until(machine: &mut Machine, object: &str, path: &str, value: &str) -> Option<String> {
    let started = Instant::now();
    loop {
        let template = format!("jsonpath={path}");
        let answer = machine.kubectl(&["get", object, "--ignore-not-found", "-o", &template]);
        if answer.code == Some(0) && answer.out == value {
            return None;
        }
        if let Some(at) = machine.killed_at() {
            return Some(at);
        }
        if started.elapsed() > PATIENCE {
            let state = machine.kubectl(&["get", "pods,pvc,pv,events", "-A", "-o", "wide"]).out;
            panic!("{object} {path}={value} did not come about: {answer:?}\n{state}\n{}", machine.log());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The step of the kill that made a command fail: its end is seen by its parent a moment after its clients see it.
#[track_caller]
fn killed_soon(machine: &mut Machine, answer: &Answer) -> String {
    let started = Instant::now();
    loop {
        if let Some(at) = machine.killed_at() {
            return at;
        }
        assert!(started.elapsed() < PATIENCE, "{answer:?}\n{}", machine.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes what is of this round; gives the step of the kill, if there was one.
fn begin(machine: &mut Machine, life: &Life, round: usize) -> Option<String> {
    let manifest = life.manifest.replace("NUMBER", &round.to_string());
    let answer = machine.apply(&manifest);
    if answer.code != Some(0) {
        return Some(killed_soon(machine, &answer));
    }
    until(machine, &format!("pod/life-{round}"), "{.status.phase}", "Running")
}

/// Takes it away again.
fn end(machine: &mut Machine, life: &Life, round: usize) -> Option<String> {
    let pod = format!("pod/life-{round}");
    let others = life.others.iter().map(|other| other.replace("NUMBER", &round.to_string()));
    for object in std::iter::once(pod).chain(others) {
        let answer = machine.kubectl(&["delete", &object, "--wait=false", "--ignore-not-found"]);
        if answer.code != Some(0) {
            return Some(killed_soon(machine, &answer));
        }
        if let Some(at) = until(machine, &object, "{.metadata.name}", "") {
            return Some(at);
        }
    }
    // What is done once the objects are gone.
    let started = Instant::now();
    loop {
        if let Some(at) = machine.killed_at() {
            return Some(at);
        }
        let volumes =
            life.area == "provisioner." && !machine.kubectl(&["get", "pv", "-o", "name"]).out.is_empty();
        if !volumes && remains(machine, life).is_empty() {
            return None;
        }
        assert!(started.elapsed() < PATIENCE, "{:?}\n{}", remains(machine, life), machine.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Kills the control plane at the first passing of every step of the area that the life meets, or that mending it meets.
fn killed_everywhere(machine: &mut Machine, life: &Life) {
    assert_eq!(begin(machine, life, 0), None);
    assert_eq!(end(machine, life, 0), None);
    let mut killed = BTreeSet::new();
    for round in 1.. {
        let met = machine.steps_met();
        let Some(next) = met.iter().find(|name| name.starts_with(life.area) && !killed.contains(*name))
        else {
            break;
        };
        killed.insert(next.clone());
        machine.kill_at(&format!("{next}@1"));
        let while_it_began = begin(machine, life, round);
        let began = while_it_began.is_none();
        let at = while_it_began.or_else(|| end(machine, life, round));
        machine.kill_at("");
        let Some(at) = at else {
            // Only what is mended passes here.
            println!("{next} was not met again");
            continue;
        };
        machine.start();
        if !began {
            assert_eq!(begin(machine, life, round), None);
            let pod = format!("life-{round}");
            assert_eq!(
                machine.kubectl(&["exec", &pod, "--", "cat", "/etc/hostname"]).ok(),
                format!("{pod}\n")
            );
        }
        assert_eq!(end(machine, life, round), None);
        nothing_is_left(machine, life, &at);
        println!("{at}");
    }
    assert!(killed.len() >= life.least, "{} has only these steps: {killed:?}", life.area);
}

fn pod(container: &str, volumes: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: life-NUMBER}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         volumes:\n{volumes}  containers:\n  - name: c\n    image: carrack.dev/toolbox\n    \
         imagePullPolicy: IfNotPresent\n    command: [sh, -c, \"trap exit TERM; sleep 100000 & wait\"]\n{container}"
    )
}

#[test]
fn pods_survive_a_kill_at_any_step_of_the_kubelet() {
    let mut machine = Machine::up();
    let objects = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {a: \"1\", b: \"2\"}\n---\n\
        apiVersion: v1\nkind: Secret\nmetadata: {name: secret}\nstringData: {key: value}\n";
    machine.apply(objects).ok();
    let manifest = pod(
        "    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {memory: 64Mi}}\n    volumeMounts:\n    \
         - {name: disk, mountPath: /disk, subPath: sub}\n    - {name: memory, mountPath: /memory}\n    \
         - {name: map, mountPath: /map}\n    - {name: map, mountPath: /one, subPath: a}\n    \
         - {name: secret, mountPath: /secret}\n    - {name: down, mountPath: /down}\n",
        "  - {name: disk, emptyDir: {}}\n  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n  \
         - {name: map, configMap: {name: map}}\n  - {name: secret, secret: {secretName: secret}}\n  \
         - {name: down, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}\n",
    ) + "  hostUsers: false\n";
    let life = Life { area: "kubelet.", least: 25, manifest, others: &[], stays: &[] };
    killed_everywhere(&mut machine, &life);
}

#[test]
fn volumes_of_the_node_survive_a_kill_at_any_step() {
    let mut machine = Machine::up();
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: claim-NUMBER}\nspec:\n  \
        accessModes: [ReadWriteOnce]\n  resources: {requests: {storage: 16Mi}}\n---\n";
    let container = "    volumeMounts: [{name: v, mountPath: /v}]\n    securityContext: {runAsUser: 1000}\n";
    let volumes = "  - {name: v, persistentVolumeClaim: {claimName: claim-NUMBER}}\n";
    let manifest = claim.to_owned() + &pod(container, volumes);
    let life = Life { area: "provisioner.", least: 10, manifest, others: &["pvc/claim-NUMBER"], stays: &[] };
    killed_everywhere(&mut machine, &life);
}

#[test]
fn csi_volumes_survive_a_kill_at_any_step() {
    let mut cluster = csi::Cluster::up();
    let claim = |name: &str, mode: &str| {
        format!(
            "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}-NUMBER}}\nspec:\n  \
             storageClassName: test\n  volumeMode: {mode}\n  accessModes: [ReadWriteOnce]\n  \
             resources: {{requests: {{storage: 1Mi}}}}\n---\n"
        )
    };
    let manifest = claim("data", "Filesystem")
        + &claim("disk", "Block")
        + &pod(
            "    volumeMounts: [{name: v, mountPath: /v}, {name: i, mountPath: /i}]\n    \
             volumeDevices: [{name: d, devicePath: /dev/xvda}]\n",
            "  - {name: v, persistentVolumeClaim: {claimName: data-NUMBER}}\n  \
             - {name: d, persistentVolumeClaim: {claimName: disk-NUMBER}}\n  \
             - {name: i, csi: {driver: csi.test.carrack.dev}}\n",
        );
    let machine = &mut cluster.machine;
    // It is registered before the last of its containers has been made.
    let ready =
        ["wait", "pod", "-n", "kube-system", "-l", "app=driver", "--for=condition=Ready", "--timeout=60s"];
    machine.kubectl(&ready).ok();
    let driver = ["get", "pods", "-n", "kube-system", "-l", "app=driver", "-o"];
    let get = |path: &str| machine.kubectl(&[&driver[..], &[path]].concat()).ok();
    let uid = get("jsonpath={.items[0].metadata.uid}");
    // The driver's own pod, with all that is of it.
    let own = left(machine);
    assert!(own.iter().any(|line| line.ends_with(&uid)), "{own:?}");
    let stays: Vec<&'static str> = own.into_iter().map(|line| &*line.leak()).collect();
    let life = Life {
        area: "csi.",
        least: 25,
        manifest,
        others: &["pvc/data-NUMBER", "pvc/disk-NUMBER"],
        stays: stays.leak(),
    };
    killed_everywhere(machine, &life);
    cluster.nothing_left();
}
