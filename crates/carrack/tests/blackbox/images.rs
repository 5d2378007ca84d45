//! Images: from registries with different manners, and from archives.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use crate::machine::Machine;

/// A registry on the machine's loopback.
struct Registry {
    process: Child,
    digest: String,
}

impl Registry {
    fn start(machine: &Machine) -> Registry {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/blackbox/registry.py");
        let mut command = machine.command("/usr/bin/python3", &[script, "5000"]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python3 starts");
        let mut digest = String::new();
        BufReader::new(process.stdout.take().expect("piped"))
            .read_line(&mut digest)
            .expect("it says its digest");
        Registry { process, digest: digest.trim().to_owned() }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pod(name: &str, image: &str, secret: &str) -> String {
    let secrets =
        if secret.is_empty() { String::new() } else { format!("\n  imagePullSecrets: [{{name: {secret}}}]") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:{secrets}\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: c, image: \"{image}\"}}\n"
    )
}

#[test]
fn images_come_from_registries() {
    let machine = Machine::up();
    let registry = Registry::start(&machine);
    let secret = [
        "create",
        "secret",
        "docker-registry",
        "login",
        "--docker-server=127.0.0.1:5000",
        "--docker-username=ship",
        "--docker-password=cargo",
    ];
    machine.kubectl(&secret).ok();
    // First, while no layer is here yet: layers are kept by digest and not fetched again.
    for (name, image, why) in [
        ("absent", "127.0.0.1:5000/open/app:none", "not found"),
        ("refused", "127.0.0.1:5000/basic/app:2", "401"),
        ("broken", "127.0.0.1:5000/broken/app:1", "digest"),
    ] {
        machine.apply(&pod(name, image, "")).ok();
        let args = ["get", "events", "--field-selector", &format!("involvedObject.name={name}")];
        machine.eventually(why, "/usr/bin/kubectl", &args, |answer| answer.out.contains("Failed"));
        machine.wait_for(
            &format!("pod/{name}"),
            "{.status.containerStatuses[0].state.waiting.reason}",
            "ImagePullBackOff",
        );
    }
    let digest = format!("127.0.0.1:5000/open/app@{}", registry.digest);
    for (name, image, secret) in [
        ("tagged", "127.0.0.1:5000/open/app:1", ""),
        ("pinned", digest.as_str(), ""),
        ("basic", "127.0.0.1:5000/basic/app:1", "login"),
        ("bearer", "127.0.0.1:5000/bearer/app:1", "login"),
    ] {
        machine.apply(&pod(name, image, secret)).ok();
        machine.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=120s"]).ok();
        assert_eq!(machine.kubectl(&["logs", name]).ok(), "from the registry\n");
    }
}

#[test]
fn images_come_from_archives() {
    let machine = Machine::up();
    let _registry = Registry::start(&machine);
    let data = machine.data_dir().to_string_lossy().into_owned();
    let image = |args: &[&str]| machine.carrack(&[&["image", "--data-dir", &data], args].concat());
    let archive = machine.folder().join("app.tar").to_string_lossy().into_owned();
    image(&["pull", "127.0.0.1:5000/basic/app:1", "--creds", "ship:cargo"]).ok();
    image(&["export", &archive, "127.0.0.1:5000/basic/app:1"]).ok();
    image(&["rm", "127.0.0.1:5000/basic/app:1"]).ok();
    assert!(!image(&["ls"]).ok().contains("basic/app"));
    image(&["import", &archive]).ok();
    assert!(image(&["ls"]).ok().contains("127.0.0.1:5000/basic/app:1"));
    assert!(image(&["inspect", "127.0.0.1:5000/basic/app:1"]).ok().contains("from the registry"));

    // An archive cut short is refused and leaves nothing.
    let bytes = std::fs::read(&archive).expect("it was exported");
    image(&["rm", "127.0.0.1:5000/basic/app:1"]).ok();
    std::fs::write(&archive, &bytes[..bytes.len() / 2]).expect("a folder of ours");
    image(&["import", &archive]).failed();
    assert!(!image(&["ls"]).ok().contains("basic/app"));
}

#[test]
fn an_image_is_for_those_who_may_pull_it() {
    let machine = Machine::up();
    let _registry = Registry::start(&machine);
    let secret = [
        "create",
        "secret",
        "docker-registry",
        "login",
        "--docker-server=127.0.0.1:5000",
        "--docker-username=ship",
        "--docker-password=cargo",
    ];
    machine.kubectl(&secret).ok();
    machine.apply(&pod("owner", "127.0.0.1:5000/basic/app:1", "login")).ok();
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/owner", "--timeout=120s"]).ok();
    // The image is here now, but only for those who could have pulled it.
    let present = |name: &str, secret: &str| {
        let text = pod(name, "127.0.0.1:5000/basic/app:1", secret);
        text.replace("{name: c,", "{name: c, imagePullPolicy: IfNotPresent,")
    };
    machine.apply(&present("thief", "")).ok();
    machine.apply(&present("friend", "login")).ok();
    machine.kubectl(&["wait", "--for=condition=Ready", "pod/friend", "--timeout=120s"]).ok();
    machine.wait_for("pod/thief", "{.status.containerStatuses[0].state.waiting.reason}", "ImagePullBackOff");
}
