//! The node's settings, and what pods get of the node.

use crate::machine::Machine;

const KUBECTL: &str = "/usr/bin/kubectl";

/// A machine whose node has these settings.
fn with_settings(fields: &str) -> Machine {
    let mut machine = Machine::new();
    let file = machine.folder().join("node.yaml");
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}");
    std::fs::write(&file, text).expect("written");
    machine.start_with(&["--kubelet-config", &file.to_string_lossy()]);
    machine
}

/// A pod that runs a command in the toolbox; `resources` and `more` are YAML in one line.
fn pod(name: &str, command: &str, resources: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n  \
         {more}\n  containers:\n  - name: c\n    image: carrack.dev/toolbox\n    imagePullPolicy: IfNotPresent\n    \
         resources: {resources}\n    command: [sh, -c, {command:?}]\n"
    )
}

#[test]
fn settings_hold_and_wrong_ones_are_named() {
    let machine = with_settings(
        "maxPods: 9\nsystemReserved: {cpu: 100m}\nallowedUnsafeSysctls: ['net.core.*']\npodPidsLimit: 40\n\
         crashLoopBackOff: {maxContainerRestartPeriod: 1s}\nhealthzPort: 1\n",
    );
    let shown = machine.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/configz"]).ok();
    for part in [
        "\"maxPods\":9",
        "\"podPidsLimit\":40",
        "\"maxContainerRestartPeriod\":\"1s\"",
        "\"memory.available\":\"100Mi\"",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    machine.wait_for("node/node-1", "{.status.allocatable.pods}", "9");
    assert!(machine.log().contains("healthzPort has no effect"), "{}", machine.log());

    let sysctl = |name: &str| format!("securityContext: {{sysctls: [{{name: {name}, value: '64'}}]}}");
    machine
        .apply(&pod("allowed", "cat /proc/sys/net/core/somaxconn", "{}", &sysctl("net.core.somaxconn")))
        .ok();
    machine.eventually("the sysctl", KUBECTL, &["logs", "allowed"], |answer| answer.out == "64\n");
    machine.apply(&pod("forbidden", "true", "{}", &sysctl("kernel.msgmax"))).ok();
    machine.wait_for("pod/forbidden", "{.status.reason}", "SysctlForbidden");
    machine.wait_for(
        "pod/forbidden",
        "{.status.message}",
        "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted",
    );
    // Forty processes and no more: the shell's own and those it starts.
    let forks = "for i in $(seq 60); do sleep 20 & done 2>/dev/null; ls -d /proc/[0-9]* | wc -l";
    machine.apply(&pod("many", forks, "{}", "")).ok();
    machine.eventually(
        "a bounded number",
        KUBECTL,
        &["get", "pod", "many", "-o", "jsonpath={.status.phase}"],
        |answer| matches!(answer.out.as_str(), "Succeeded" | "Failed"),
    );
    let said = machine.kubectl(&["logs", "many"]).out;
    let count = said.trim().lines().last().and_then(|line| line.trim().parse::<u32>().ok());
    assert!(count.is_none_or(|count| count <= 45), "{said}");

    let file = machine.folder().join("bad.yaml");
    for (fields, why) in [
        ("maxPod: 3", "maxPod: unknown field"),
        ("readOnlyPort: 10255", "readOnlyPort: 10255 is not supported"),
    ] {
        let text =
            format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{fields}\n");
        std::fs::write(&file, text).expect("written");
        let (file, data) = (file.to_string_lossy(), machine.folder().join("other"));
        let args = ["up", "--data-dir", &data.to_string_lossy(), "--kubelet-config", &file];
        let said = machine.carrack(&args).failed();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn a_pods_own_limit_of_cpu_time_binds_once_its_containers_run() {
    let mut machine = Machine::up();
    let limit = "resources: {limits: {cpu: 50m}, requests: {cpu: 10m}}";
    machine.apply(&pod("slow", "sleep 100000", "{}", limit)).ok();
    machine.wait_for("pod/slow", "{.status.phase}", "Running");
    let uid = machine.kubectl(&["get", "pod", "slow", "-o", "jsonpath={.metadata.uid}"]).ok();
    // In version 1, in version 2.
    let files =
        format!("$(find /sys/fs/cgroup -path '*pod{uid}/cpu.cfs_quota_us' -o -path '*pod{uid}/cpu.max')");
    let bound = |machine: &Machine| {
        machine.eventually("the pod's quota", "sh", &["-c", &format!("cat {files}")], |answer| {
            let mut lines = answer.out.lines();
            let first = lines.next();
            first.into_iter().chain(lines).all(|line| matches!(line, "5000" | "5000 100000"))
                && first.is_some()
        });
    };
    bound(&machine);
    // A kubelet that was killed while the quota was lifted puts it in force when it comes again.
    machine.stop(nix::sys::signal::Signal::SIGKILL);
    machine.run("sh", &["-c", &format!("for f in {files}; do echo -1 > $f || echo max > $f; done")]);
    machine.start();
    bound(&machine);
}

#[test]
fn whole_processors_are_given_to_one_pod_alone() {
    let mut machine = with_settings("cpuManagerPolicy: static\nreservedSystemCPUs: '0'\n");
    let show = "while true; do grep Cpus_allowed_list /proc/self/status; sleep 0.2; done";
    let shown = |machine: &Machine, name: &str, right: &dyn Fn(&str) -> bool| {
        machine.eventually("its processors", KUBECTL, &["logs", name, "--tail=1"], |answer| {
            right(answer.out.rsplit(char::is_whitespace).find(|word| !word.is_empty()).unwrap_or_default())
        });
    };
    machine.apply(&pod("shared", show, "{}", "")).ok();
    shown(&machine, "shared", &|list| list.contains('1'));
    let whole = "{limits: {cpu: '1', memory: 32Mi}}";
    machine.apply(&pod("own", show, whole, "")).ok();
    shown(&machine, "own", &|list| !list.is_empty() && !list.contains([',', '-']) && list != "0");
    let own = machine.kubectl(&["logs", "own", "--tail=1"]).ok();
    let own = own.split_whitespace().last().expect("a list").to_owned();
    let without = |list: &str| {
        let set: list::Set = list::parse(list);
        !set.is_empty() && !set.contains(&own.parse::<u32>().expect("a number"))
    };
    shown(&machine, "shared", &without);
    // A restart of the control plane neither forgets nor moves it.
    machine.stop(nix::sys::signal::Signal::SIGKILL);
    let file = machine.folder().join("node.yaml").to_string_lossy().into_owned();
    machine.start_with(&["--kubelet-config", &file]);
    machine.apply(&pod("later", show, "{}", "")).ok();
    shown(&machine, "later", &without);
    shown(&machine, "own", &|list| list == own);
    let all = std::thread::available_parallelism().expect("processors").get();
    machine
        .apply(&pod(
            "much",
            "true",
            &format!("{{limits: {{cpu: '{all}', memory: 32Mi}}}}"),
            "nodeName: node-1",
        ))
        .ok();
    machine.wait_for("pod/much", "{.status.phase}", "Failed");
    machine.kubectl(&["delete", "pod", "own"]).ok();
    shown(&machine, "shared", &|list| list::parse(list).contains(&own.parse::<u32>().expect("a number")));
}

#[test]
fn a_pod_has_its_own_user_namespace() {
    let machine = Machine::up();
    let volumes = "hostUsers: false\n  volumes: [{name: scratch, emptyDir: {}}, {name: facts, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}]";
    let script =
        "id -u; cat /proc/self/uid_map; touch /made /scratch/made; cat /facts/name; echo; sleep 1000";
    let mounts =
        "\n    volumeMounts: [{name: scratch, mountPath: /scratch}, {name: facts, mountPath: /facts}]";
    machine.apply(&(pod("apart", script, "{}", volumes).trim_end().to_owned() + mounts + "\n")).ok();
    let said =
        machine.eventually("its output", KUBECTL, &["logs", "apart"], |answer| answer.out.contains("apart"));
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!([words[0], words[1], words[3]], ["0", "0", "65536"], "{said}");
    assert!(words[2].parse::<u32>().is_ok_and(|host| host >= 65_536), "{said}");
    assert_eq!(words[4..], ["apart"], "{said}");
    let uid = machine.kubectl(&["get", "pod", "apart", "-o", "jsonpath={.metadata.uid}"]).ok();
    let made = format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/scratch/made");
    let made = std::fs::metadata(machine.data_dir().join(made)).expect("the container made it");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0, "a volume is seen with the pod's numbers");
    let inside = machine.kubectl(&["exec", "apart", "--", "sh", "-c", "cat /proc/self/uid_map; id -u"]).ok();
    assert_eq!(inside.split_whitespace().collect::<Vec<_>>(), [words[1], words[2], words[3], "0"]);
    let host = machine.kubectl(&[
        "get",
        "node",
        "node-1",
        "-o",
        "jsonpath={.status.runtimeHandlers[0].features.userNamespaces}",
    ]);
    assert_eq!(host.ok(), "true");
}

#[test]
fn pods_end_gracefully_when_the_machine_goes_down() {
    let machine = with_settings("shutdownGracePeriod: 20s\nshutdownGracePeriodCriticalPods: 5s\n");
    let said = machine.folder().join("said");
    let mount = format!("volumes: [{{name: host, hostPath: {{path: {}}}}}]", machine.folder().display());
    let script = "trap 'echo ended > /host/said; exit 0' TERM; echo up; while true; do sleep 0.1; done";
    let text = pod("patient", script, "{}", &mount)
        .replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: 15");
    machine
        .apply(&(text.trim_end().to_owned() + "\n    volumeMounts: [{name: host, mountPath: /host}]\n"))
        .ok();
    machine.eventually("it runs", KUBECTL, &["logs", "patient"], |answer| answer.out == "up\n");
    let pid = nix::unistd::Pid::from_raw(machine.server_pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGPWR).expect("it runs");
    machine.eventually("it was told", "cat", &[&said.to_string_lossy()], |answer| answer.out == "ended\n");
}

#[path = "../../../kubelet/src/devices/fake.rs"]
mod fake;

#[test]
fn devices_of_a_plug_in_are_given_to_containers() {
    let machine = Machine::up();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let folder = machine.data_dir().join("kubelet/device-plugins");
    let offers = vec![("a", true, None), ("b", true, None)];
    // Its sockets are files, which both sides see.
    let plug_in = runtime.block_on(fake::Fake::start(&folder, "fake.dev/card", offers)).expect("registered");
    machine.wait_for("node/node-1", "{.status.allocatable.fake\\.dev/card}", "2");
    let script = "echo $FAKE_DEVICES; ls -d /dev/fake0 /fake/version; sleep 1000";
    let one = |name: &str| pod(name, script, "{limits: {fake.dev/card: 1}}", "");
    machine.apply(&one("first")).ok();
    machine.eventually("its device", KUBECTL, &["logs", "first"], |answer| {
        answer.out == "b\n/dev/fake0\n/fake/version\n"
    });
    machine.apply(&one("second")).ok();
    machine.eventually("its device", KUBECTL, &["logs", "second"], |answer| answer.out.starts_with("a\n"));
    plug_in.offers.send_replace(vec![("a", true, None), ("b", false, None)]);
    machine.wait_for("node/node-1", "{.status.allocatable.fake\\.dev/card}", "1");
    let health = "{.status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health}";
    machine.wait_for("pod/first", health, "Unhealthy");
    machine.wait_for("pod/second", health, "Healthy");
    machine.apply(&pod("third", "true", "{limits: {fake.dev/card: 1}}", "nodeName: node-1")).ok();
    machine.wait_for("pod/third", "{.status.reason}", "UnexpectedAdmissionError");
    let socket = machine.data_dir().join("kubelet/pod-resources/kubelet.sock");
    let listed = runtime.block_on(async {
        let channel = plugins::connect(&socket).await.expect("it answers");
        let mut lister =
            plugins::podresources::pod_resources_lister_client::PodResourcesListerClient::new(channel);
        let request = plugins::podresources::ListPodResourcesRequest {};
        lister.list(request).await.expect("a list").into_inner().pod_resources
    });
    let first = listed.iter().find(|pod| pod.name == "first").expect("it is listed");
    assert_eq!(first.containers[0].devices[0].device_ids, ["b"]);
    plug_in.end();
    machine.wait_for("node/node-1", "{.status.allocatable.fake\\.dev/card}", "0");
}

/// The kernel's lists of processors.
mod list {
    pub type Set = std::collections::BTreeSet<u32>;

    pub fn parse(list: &str) -> Set {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        };
        list.split(',').filter_map(range).flatten().collect()
    }
}
