//! The kubelet's own API, asked through the API server, and what monitoring reads there.

use crate::machine::Machine;

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: busy}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: scratch, emptyDir: {}}]
  containers:
  - name: c
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo begun; sleep 100000']
    volumeMounts: [{name: scratch, mountPath: /scratch}]
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
";

fn get(machine: &Machine, path: &str) -> String {
    machine.kubectl(&["get", "--raw", &format!("/api/v1/nodes/node-1/proxy/{path}")]).ok()
}

#[test]
fn monitoring_finds_what_it_reads() {
    let machine = Machine::up();
    machine.apply(POD).ok();
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/busy", "--timeout=120s"]).ok();

    let summary: serde_json::Value = serde_json::from_str(&get(&machine, "stats/summary")).expect("JSON");
    let node = &summary["node"];
    assert_eq!(node["nodeName"], "node-1");
    for field in [
        "/cpu/usageCoreNanoSeconds",
        "/memory/workingSetBytes",
        "/fs/capacityBytes",
        "/runtime/imageFs/usedBytes",
        "/rlimit/maxpid",
        "/network/interfaces",
        "/swap/swapUsageBytes",
    ] {
        assert!(
            !node.pointer(field).unwrap_or(&serde_json::Value::Null).is_null(),
            "{field} is missing: {node}"
        );
    }
    let pods = summary["pods"].as_array().expect("pods");
    let pod = pods.iter().find(|pod| pod["podRef"]["name"] == "busy").expect("the pod");
    for field in [
        "/startTime",
        "/cpu/usageCoreNanoSeconds",
        "/memory/workingSetBytes",
        "/network/rxBytes",
        "/ephemeral-storage/usedBytes",
        "/process_stats/process_count",
        "/containers/0/rootfs/usedBytes",
        "/containers/0/logs/usedBytes",
        "/containers/0/startTime",
    ] {
        assert!(pod.pointer(field).is_some(), "{field} is missing: {pod}");
    }
    let volumes = pod["volume"].as_array().expect("volumes");
    assert!(volumes.iter().any(|volume| volume["name"] == "scratch"), "{volumes:?}");

    let own = "container=\"c\",namespace=\"default\",pod=\"busy\"";
    let resource = get(&machine, "metrics/resource");
    for line in [
        "node_cpu_usage_seconds_total ",
        "resource_scrape_error 0",
        &format!("container_memory_working_set_bytes{{{own}}} "),
        &format!("container_start_time_seconds{{{own}}} "),
        "pod_cpu_usage_seconds_total{namespace=\"default\",pod=\"busy\"} ",
    ] {
        assert!(resource.lines().any(|found| found.starts_with(line)), "{line} is missing:\n{resource}");
    }
    let cadvisor = get(&machine, "metrics/cadvisor");
    for family in [
        "container_cpu_usage_seconds_total",
        "container_memory_working_set_bytes",
        "container_memory_rss",
        "container_network_receive_bytes_total",
        "container_fs_usage_bytes",
        "container_start_time_seconds",
        "machine_cpu_cores",
        "machine_memory_bytes",
    ] {
        assert!(cadvisor.contains(&format!("# TYPE {family} ")), "{family} is missing:\n{cadvisor}");
    }
    assert!(cadvisor.contains("container=\"c\"") && cadvisor.contains("id=\"/kubepods"), "{cadvisor}");
    let metrics = get(&machine, "metrics");
    for family in [
        "kubelet_running_pods",
        "kubelet_runtime_operations_total",
        "kubelet_pod_start_duration_seconds",
        "kubelet_started_containers_total",
        "kubelet_http_requests_total",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(&format!("# TYPE {family} ")), "{family} is missing:\n{metrics}");
    }
    let probes = get(&machine, "metrics/probes");
    assert!(probes.contains("probe_type=\"Readiness\",result=\"successful\""), "{probes}");

    assert!(get(&machine, "healthz?verbose").contains("[+]syncloop ok"));
    assert!(get(&machine, "pods").contains("\"busy\""));
    let running: serde_json::Value = serde_json::from_str(&get(&machine, "runningpods/")).expect("JSON");
    assert!(running["items"].as_array().expect("a list").iter().any(|pod| pod["metadata"]["name"] == "busy"));
    assert!(get(&machine, "configz").contains("KubeletConfiguration"));
    assert!(get(&machine, "logs/").contains("<pre>"));
    let flags = get(&machine, "flagz");
    assert!(flags.contains("kubelet flagz") && flags.contains("\nnode-name=node-1\n"), "{flags}");
    let status = get(&machine, "statusz");
    assert!(status.contains("kubelet statusz") && status.contains("Binary version: 1.36"), "{status}");
    // kubectl keeps the text of such a refusal to itself.
    let refused = ["get", "--raw", "/api/v1/nodes/node-1/proxy/logs/?query=a%3Bb"];
    assert!(machine.kubectl(&refused).failed().contains("BadRequest"));
    let checkpoint =
        ["create", "--raw", "/api/v1/nodes/node-1/proxy/checkpoint/default/busy/c", "-f", "/dev/null"];
    machine.kubectl(&checkpoint).failed();
}

#[test]
fn a_rule_restarts_the_whole_pod() {
    let machine = Machine::up();
    let pod = "apiVersion: v1
kind: Pod
metadata: {name: whole}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  volumes: [{name: count, emptyDir: {}}]
  initContainers:
  - name: first
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'echo x >> /count/begun']
    volumeMounts: [{name: count, mountPath: /count}]
  containers:
  - name: main
    image: carrack.dev/toolbox
    imagePullPolicy: IfNotPresent
    command: [sh, -c, 'sleep 1; [ $(wc -l < /count/begun) -lt 2 ] && exit 42; sleep 100000']
    volumeMounts: [{name: count, mountPath: /count}]
    restartPolicy: Never
    restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]
  - {name: other, image: carrack.dev/toolbox, imagePullPolicy: IfNotPresent, command: [sleep, '100000']}
";
    machine.apply(pod).ok();
    for name in ["main", "other"] {
        let path = format!("{{.status.containerStatuses[?(@.name==\"{name}\")].restartCount}}");
        machine.wait_for("pod/whole", &path, "1");
    }
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/whole", "--timeout=120s"]).ok();
    let begun = machine.kubectl(&["exec", "whole", "-c", "main", "--", "cat", "/count/begun"]).ok();
    assert_eq!(begun, "x\nx\n");
    machine.wait_for(
        "pod/whole",
        "{.status.conditions[?(@.type==\"AllContainersRestarting\")].status}",
        "False",
    );
}
