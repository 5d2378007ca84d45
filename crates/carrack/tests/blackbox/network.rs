//! Services, names, ways in and out.

use crate::machine::Machine;

const CLIENT: &str = "apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: carrack.dev/toolbox, imagePullPolicy: IfNotPresent, command: [sleep, \"100000\"]}
";

#[test]
fn services_are_reached_by_address_name_and_port() {
    let machine = Machine::up();
    machine.example("04-deployment.yaml");
    machine.apply(CLIENT).ok();
    machine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]).ok();
    let addresses = machine.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"]).ok();
    let addresses: Vec<String> = addresses.split(' ').map(str::to_owned).collect();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let bracketed =
        |address: &str| if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let from_pod = ["exec", "client", "--", "toolbox", "http"];
    for host in ["web", "web.default", "web.default.svc.cluster.local"]
        .map(str::to_owned)
        .into_iter()
        .chain(addresses.iter().map(|address| bracketed(address)))
    {
        let url = format!("http://{host}/");
        let args = [&from_pod[..], &[&url]].concat();
        machine.eventually(&url, "/usr/bin/kubectl", &args, |answer| answer.code == Some(0));
    }
    for address in &addresses {
        let url = format!("http://{}/", bracketed(address));
        machine.http(&url).ok();
    }
    machine.http("http://127.0.0.1:30080/").ok();
    machine.http("http://198.51.100.2:30080/").ok();

    // Names have both kinds of address.
    for kind in ["A", "AAAA"] {
        let answer = machine
            .kubectl(&["exec", "client", "--", "toolbox", "dns", "-t", kind, "web.default.svc.cluster.local"])
            .ok();
        assert!(addresses.iter().any(|address| answer.contains(address)), "{kind}: {answer}");
    }
}

#[test]
fn readiness_takes_an_address_out_of_a_service() {
    let machine = Machine::up();
    machine.example("04-deployment.yaml");
    machine.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"]).ok();
    let count = |answer: &crate::machine::Answer| answer.out.split_whitespace().count();
    let args = ["get", "endpoints", "web", "-o", "jsonpath={.subsets[*].addresses[*].ip}"];
    machine.eventually("three addresses", "/usr/bin/kubectl", &args, |answer| count(answer) == 3);
    machine.kubectl(&["scale", "deployment/web", "--replicas=1"]).ok();
    machine.eventually("one address", "/usr/bin/kubectl", &args, |answer| count(answer) == 1);
    machine.kubectl(&["scale", "deployment/web", "--replicas=0"]).ok();
    machine.eventually("no address", "/usr/bin/kubectl", &args, |answer| count(answer) == 0);
    let carrack = env!("CARGO_BIN_EXE_carrack");
    machine.eventually("no answer", carrack, &["toolbox", "http", "http://127.0.0.1:30080/"], |answer| {
        answer.code != Some(0)
    });
}

#[test]
fn pods_reach_the_outside_as_the_node() {
    let machine = Machine::up();
    machine.apply(CLIENT).ok();
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/client", "--timeout=120s"]).ok();
    let carrack = env!("CARGO_BIN_EXE_carrack");
    let mut server =
        machine.command("ip", &["netns", "exec", "outside", carrack, "toolbox", "http-echo", "-p", "8090"]);
    let mut server = server.stdout(std::process::Stdio::null()).spawn().expect("ip starts");
    for (url, seen) in
        [("http://198.51.100.1:8090/", "198.51.100.2"), ("http://[2001:db8:51::1]:8090/", "2001:db8:51::2")]
    {
        let args = ["exec", "client", "--", "toolbox", "http", url];
        let answer = machine.eventually(url, "/usr/bin/kubectl", &args, |answer| answer.code == Some(0));
        assert!(answer.contains(seen), "{answer}");
    }
    let _ = server.kill();
    let _ = server.wait();
}

#[test]
fn streams_reach_into_pods() {
    let machine = Machine::up();
    machine.example("01-pod.yaml");
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/hello", "--timeout=120s"]).ok();
    let echoed = machine.run_with_input(
        "/usr/bin/kubectl",
        &["exec", "-i", "hello", "--", "cat"],
        "through and back\n",
    );
    assert_eq!(echoed.ok(), "through and back\n");
    let failed = machine.kubectl(&["exec", "hello", "--", "sh", "-c", "exit 7"]);
    assert_eq!(failed.code, Some(7), "{failed:?}");
    let own = machine.own_kubectl(&["exec", "hello", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_eq!((own.code, own.out.as_str()), (Some(3), "out\n"), "{own:?}");

    let file = machine.folder().join("file");
    std::fs::write(&file, "copied\n").expect("a folder of ours");
    machine.kubectl(&["cp", &file.to_string_lossy(), "hello:/tmp/file"]).ok();
    assert_eq!(machine.kubectl(&["exec", "hello", "--", "cat", "/tmp/file"]).ok(), "copied\n");

    let mut forward = machine.command("/usr/bin/kubectl", &["port-forward", "pod/hello", "18080:8080"]);
    let mut forward = forward.stdout(std::process::Stdio::null()).spawn().expect("kubectl starts");
    let carrack = env!("CARGO_BIN_EXE_carrack");
    machine.eventually(
        "the forwarded port",
        carrack,
        &["toolbox", "http", "http://127.0.0.1:18080/"],
        |answer| answer.code == Some(0),
    );
    let _ = forward.kill();
    let _ = forward.wait();
}
