//! CEL: text through parser, checker, cost estimate and evaluation, over data with and without a schema.

use std::sync::{Arc, LazyLock};

use cel::{Activation, Budget, Decl, Env, JsonSchema, Program, Type, Value};
use serde_json::json;

/// What one evaluation may cost here.
const LIMIT: u64 = 10_000;
/// The most that the step over the limit may add: the cost of one operation on the data below.
const SLACK: u64 = 1_000_000;

static DECL: LazyLock<Arc<Decl>> = LazyLock::new(|| {
    let schema = json!({"type": "object", "properties": {
        "s": {"type": "string", "maxLength": 10}, "n": {"type": "integer"}, "d": {"type": "string", "format": "date-time"},
        "l": {"type": "array", "maxItems": 5, "items": {"type": "object", "properties": {"k": {"type": "string"}}}},
        "m": {"type": "object", "additionalProperties": {"type": "number"}},
        "x": {"x-kubernetes-int-or-string": true}}});
    Arc::new(Decl::new(&JsonSchema(&schema), "selfType", true))
});

fn evaluate(program: &Program, activation: &Activation<'_>) {
    let mut budget = Budget::new(LIMIT);
    if let Ok(value) = program.eval(activation, &mut budget) {
        drop(value.to_json());
    }
    assert!(budget.spent < LIMIT + SLACK, "an evaluation goes on after its limit: {}", budget.spent);
}

/// An expression as rules of custom resources have it, and as policies and device selectors do.
pub fn cel(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let rules = Env::new().with_data("self", DECL.clone()).with_data("oldSelf", DECL.clone());
    match rules.compile(text) {
        Ok(program) => {
            program.max_cost();
            let object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "a"}, "s": "abc", "n": 3,
                "d": "2020-01-01T00:00:00Z", "l": [{"k": "v"}, {}], "m": {"a": 1.5}, "x": "50%"});
            let value = Value::typed(&object, &DECL).expect("data of the schema");
            evaluate(&program, &Activation::new().with("self", value.clone()).with("oldSelf", value));
        }
        Err(why) => drop(why.detail()),
    }
    let loose = Env::new().with("object", Type::Dyn).with("number", Type::Int).with_bind().with_json_patch();
    if let Ok(program) = loose.compile(text) {
        program.max_cost();
        let object = json!({"a": [1, "b", null, {"c": 2.5}], "d": true});
        evaluate(
            &program,
            &Activation::new().with("object", Value::json(&object)).with("number", Value::Int(7)),
        );
    }
}

pub const CEL: &[&[u8]] = &[
    b"self.l.all(e, has(e.k) && e.k.matches('^v+$')) || self.m['a'] > 1.0 ? self.s.size() < 5 : oldSelf == self",
    b"self.l.map(e, has(e.k), e.k + '-' + string(self.n)).join(', ').split(',')[0].upperAscii().replace('V', \"\\u00e4\\x41\")",
    b"self.d + duration('1h30m') < timestamp('2021-01-01T00:00:00Z') && self.d.getFullYear('Europe/Berlin') == 2020",
    b"self.l.transformList(i, e, i > 0, e).size() == 1 && {'a': 1}.transformMap(k, v, v + 1)['a'] == 2",
    b"object.?a[3].?c.orValue(0.0) + double(number) * -1.5e3 != 0x1Fu && [1, 2u, 3.0].exists(x, x == number)",
    b"cel.bind(x, object.a, x + x + x).sortBy(e, string(e)).distinct().slice(0, 1)",
    b"quantity('1Gi').isGreaterThan(quantity('5k')) && ip('::1').isLoopback() && cidr('10.0.0.0/8').containsIP('10.1.2.3')",
    b"semver('1.2.3-a').isLessThan(semver('1.2.3')) || url('https://a.b:80/c?d=e').getPort() == '80' || isURL('x')",
    b"Object{spec: Object.spec{a: [JSONPatch{op: 'add', path: '/a' + jsonpatch.escapeKey('b/c'), value: {'x': [1]}}]}}",
    b"'%s %d %.2f %x %e %b %o'.format([self.s, self.n, 1.5, 255, 1e10, 5, 8]) in ['a'] && b'\\377' == bytes('\xc3\xbf')",
    b"format.dns1123Label().validate(self.s).hasValue() || sets.contains([1, 2], [2]) || lists.range(3).flatten() == []",
    b"!(-(-1) == 1) && r'\\d' != '''a\nb''' // comment\n|| type(self.x) == string || int(self.x) == 3",
];
