//! Wrong input gets an answer that tells what is wrong.

use crate::machine::Machine;

const WRONG_KIND: &str = "apiVersion: v1\nkind: Deployment\nmetadata: {name: x}\n";
const WRONG_FIELD: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\nspec:\n  replica: 3\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: b}}\n    spec: {containers: [{name: c, image: i}]}\n";

#[test]
fn manifests_that_are_wrong_are_refused_with_the_place() {
    let machine = Machine::up();
    let said = machine.apply(WRONG_KIND).failed();
    assert!(said.contains("no matches for kind \"Deployment\" in version \"v1\""), "{said}");
    let said = machine
        .run_with_input(env!("CARGO_BIN_EXE_carrack"), &["kubectl", "apply", "-f", "-"], WRONG_KIND)
        .failed();
    assert!(said.contains("no matches for kind") && said.contains("did you mean apps/v1?"), "{said}");

    let own = |args: &[&str], input: &str| {
        machine.run_with_input(env!("CARGO_BIN_EXE_carrack"), &[&["kubectl"], args].concat(), input)
    };
    let said = own(&["create", "--validate=strict", "-f", "-"], WRONG_FIELD).failed();
    assert!(said.contains("unknown field \"spec.replica\""), "{said}");
    own(&["create", "--validate=ignore", "-f", "-"], WRONG_FIELD).ok();
    let said =
        own(&["apply", "-f", "-"], "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n wrong: 1\n").failed();
    assert!(said.contains("line 5"), "{said}");

    let bomb = std::iter::once("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned())
        .chain((1..12).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "))))
        .collect::<String>();
    own(&["apply", "-f", "-"], &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: bomb}}\n{bomb}"))
        .failed();
    machine.kubectl(&["get", "nodes"]).ok();
}
