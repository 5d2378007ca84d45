//! No text makes the engine panic, overflow its stack, or work without end.

use cel::{Activation, Budget, Env, EvalError, Type, Value};
use proptest::prelude::*;

const WORDS: [&str; 60] = [
    "object",
    "number",
    "x",
    "a",
    "1",
    "2u",
    "3.5",
    "'s'",
    "b'b'",
    "r'\\d'",
    "true",
    "false",
    "null",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ".",
    ",",
    ":",
    "?",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "<",
    "<=",
    "==",
    "!=",
    "&&",
    "||",
    " in ",
    ".?",
    "[?",
    ".all(x,",
    ".map(x,",
    ".filter(x,",
    ".exists(x,y,",
    "has(",
    "size(",
    ".matches(",
    ".split(",
    "duration('1h')",
    "timestamp(0)",
    "dyn(",
    "type(",
    "optional.of(",
    ".optMap(x,",
    ".sortBy(x,",
    "lists.range(",
    "'%s'.format([",
    "int(",
    "string(",
    "cel.bind(x,",
    "ip('::1')",
    "quantity('1')",
];

/// Compiles a text, and evaluates it within a small budget.
fn any(text: &str) {
    let env = Env::new().with("object", Type::Dyn).with("number", Type::Int).with_bind();
    if let Ok(program) = env.compile(text) {
        let json = serde_json::json!({"a": [1, "b", null, {"c": 2.5}], "d": true});
        let activation = Activation::new().with("object", Value::json(&json)).with("number", Value::Int(7));
        let mut budget = Budget::new(10_000);
        let _ = program.eval(&activation, &mut budget);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in ".{0,80}") {
        any(&text);
    }

    #[test]
    fn any_tokens(words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..25)) {
        any(&words.concat());
    }
}

fn compile_error(text: &str) -> String {
    match Env::new().with("x", Type::Dyn).compile(text) {
        Ok(_) => String::new(),
        Err(why) => why.to_string(),
    }
}

#[test]
fn nesting_is_limited() {
    for (open, close) in
        [("(", ")"), ("[", "]"), ("{1: ", "}"), ("!(", ")"), ("x[", "]"), ("size(", ")"), ("x.f(", ")")]
    {
        let deep = |count: usize| format!("{}1{}", open.repeat(count), close.repeat(count));
        let error = compile_error(&deep(300));
        assert!(error.contains("recursion") && error.contains("ERROR: <input>:-1:0:"), "{open}: {error}");
        let error = compile_error(&deep(100));
        assert!(!error.contains("recursion"), "{open}: {error}");
    }
    for chain in ["+1", ".a", "[0]", "==1", "*1"] {
        assert!(compile_error(&format!("x{}", chain.repeat(300))).contains("recursion"), "{chain}");
    }
    // These are no deeper for being longer.
    for chain in ["&&x", "||x", "-1"] {
        let text = format!("x{}", chain.repeat(if chain == "-1" { 200 } else { 2000 }));
        assert_eq!(compile_error(&text), "", "{chain}");
    }
    assert!(compile_error(&"x".repeat(100_001)).contains("expression code point size exceeds limit"));
    assert!(compile_error(&format!("x{}", ".optMap(y, y)".repeat(60))).contains("nodes"));
}

#[test]
fn what_is_deep_enough_can_be_evaluated() {
    let env = Env::new().with("x", Type::Dyn).with_bind();
    let json = serde_json::json!([1]);
    let activation = Activation::new().with("x", Value::json(&json));
    for (open, close) in [("x.map(a, ", ")"), ("[", "]"), ("true ? ", " : 1"), ("(1 + ", ")"), ("dyn(", ")")]
    {
        let text = format!("{}1{}", open.repeat(80), close.repeat(80));
        if let Ok(program) = env.compile(&text) {
            let _ = program.eval(&activation, &mut Budget::per_call());
        }
    }
}

#[test]
fn work_without_end_is_cut() {
    let env = Env::new().with("x", Type::Dyn).with_bind();
    let json: serde_json::Value = (0..1000).collect();
    let activation = Activation::new().with("x", Value::json(&json));
    let mut doubling = "x".to_owned();
    for _ in 0..40 {
        doubling = format!("cel.bind(x, {doubling}, x + x)");
    }
    for text in [
        "x.all(a, x.all(b, x.all(c, a + b + c >= 0)))".to_owned(),
        "lists.range(1000000000).size() > 0".into(),
        "x.map(a, x.map(b, x)).flatten(2).size() > 0".into(),
        format!("{doubling} == {doubling}"),
        format!("{doubling}.sum() > 0"),
        format!("-7 in {doubling}"),
        format!("{doubling}.all(a, a >= 0)"),
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'.matches('(a{1,900}){1,900}$')".into(),
    ] {
        let Ok(program) = env.compile(&text) else { continue };
        let result = program.eval(&activation, &mut Budget::per_call());
        assert!(matches!(result, Err(EvalError::CostExceeded)), "{text}: {result:?}");
    }
}

#[test]
fn interruption_ends_a_loop() {
    let program = Env::new().with("x", Type::Dyn).compile("x.all(a, a >= 0) || true").expect("an expression");
    let json = serde_json::json!([1, 2]);
    let activation = Activation::new().with("x", Value::json(&json));
    let mut budget = Budget::per_call().with_interrupt(&|| true);
    assert!(matches!(program.eval(&activation, &mut budget), Err(EvalError::Interrupted)));
}
