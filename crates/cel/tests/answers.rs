//! Expressions against recorded answers of Kubernetes v1.36: messages, results, costs while running and at most.

use std::sync::Arc;

use cel::{Activation, Budget, Decl, Env, JsonSchema, Value};
use serde_json::Value as Json;

#[test]
fn expressions_answer_as_recorded() {
    let mut lines = include_str!("answers.jsonl").lines();
    let data: Json =
        serde_json::from_str(lines.next().expect("the file begins with the data")).expect("JSON");
    let decl = Arc::new(Decl::new(&JsonSchema(&data["schema"]), "selfType", false));
    let env = Env::new().with_data("self", decl.clone());
    let activation =
        Activation::new().with("self", Value::typed(&data["object"], &decl).expect("the object"));
    let mut wrong = Vec::new();
    for line in lines {
        let case: Json = serde_json::from_str(line).expect("JSON");
        let rule = case["rule"].as_str().expect("a rule");
        let mut check = |what: &str, found: Json, wanted: &Json| {
            if found != *wanted {
                wrong.push(format!("{rule}\n  {what}: {found}\n  not {wanted}"));
            }
        };
        let program = match env.compile(rule) {
            Ok(program) => program,
            Err(why) => {
                check("error", why.to_string().into(), &case["error"]);
                continue;
            }
        };
        check("error", Json::Null, &case["error"]);
        check("most", program.max_cost().into(), &case["most"]);
        let mut budget = Budget::per_call();
        match program.eval(&activation, &mut budget) {
            Err(why) => check("fails", why.to_string().into(), &case["fails"]),
            Ok(value) => {
                check("fails", Json::Null, &case["fails"]);
                if case["is"].is_string() {
                    let text = match &value {
                        Value::String(text) => text.to_string(),
                        other => other.to_json().expect("a scalar").to_string(),
                    };
                    check("is", text.into(), &case["is"]);
                }
            }
        }
        check("cost", budget.spent.into(), &case["cost"]);
    }
    assert!(wrong.is_empty(), "{} answers differ:\n{}", wrong.len(), wrong.join("\n"));
}
