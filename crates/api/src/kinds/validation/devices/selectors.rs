//! The selectors of devices: expressions over the variable `device`.

use std::sync::LazyLock;

use crate::field::{Errors, Path};

/// The longest expression of a selector, in bytes, and the most that it may cost.
const MAX_EXPRESSION: usize = 10 * 1024;
const MAX_COST: u64 = 1_000_000;

/// What selectors of devices are compiled in: the variable `device`, and `cel.bind`.
static SELECTORS: LazyLock<cel::Env> = LazyLock::new(|| {
    use cel::{Decl, Type};
    let by_domain = |values: Decl| Decl::map(values.at_most(32)).at_most(32);
    let quantity = Decl::plain(Type::object("kubernetes.Quantity"));
    let device = Decl::object(
        "kubernetes.DRADevice",
        [
            ("driver", Decl::plain(Type::String).at_most(63)),
            ("allowMultipleAllocations", Decl::plain(Type::Bool).at_most(1)),
            ("attributes", by_domain(Decl::map(Decl::dynamic().at_most(64)).selecting_values())),
            ("capacity", by_domain(Decl::map(quantity))),
        ],
    );
    cel::Env::new().with_bind().with_data("device", device.into())
});

/// The environment of device selectors, in which whoever allocates compiles them.
pub fn selector_env() -> &'static cel::Env {
    &SELECTORS
}

pub(super) fn expression(errors: &mut Errors, text: &str, path: &Path<'_>) {
    if text.len() > MAX_EXPRESSION {
        errors.too_long(path, MAX_EXPRESSION);
        return;
    }
    match SELECTORS.compile(text) {
        Err(why) => errors.invalid(path, text, why.detail()),
        Ok(program) if !matches!(program.result_type(), cel::Type::Bool | cel::Type::Dyn) => {
            let detail = format!("must evaluate to bool or the unknown type, not {}", program.result_type());
            errors.invalid(path, text, detail);
        }
        Ok(program) if program.max_cost() > MAX_COST => {
            errors.forbidden(path, "too complex, exceeds cost limit");
        }
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_compiled() {
        let check = |text: &str, wanted: &str| {
            let mut errors = Errors::new();
            expression(&mut errors, text, &Path::new("e"));
            let found =
                errors.0.first().map(|one| format!("{:?} {}", one.kind, one.detail)).unwrap_or_default();
            assert!(found.starts_with(wanted) && found.is_empty() == wanted.is_empty(), "{text}: {found}");
        };
        check("device.driver == 'a.example.com'", "");
        check(
            "device.attributes['a.example.com'].model == 'x' && device.capacity['a.example.com'].memory.compareTo(quantity('1Gi')) >= 0",
            "",
        );
        check("cel.bind(dra, device.attributes['a.example.com'], dra.one && dra.other)", "");
        check("device.attributes['a.example.com'].ok", "");
        check("device.attributes['a.example.com'].x == device.attributes['b.example.com'].y", "");
        check("'model' in device.attributes['a.example.com']", "");
        check("device.driver", "Invalid must evaluate to bool or the unknown type, not string");
        check("device.foo", "Invalid compilation failed: ERROR: <input>:1:7: undefined field 'foo'");
        check("", "Invalid compilation failed: ERROR: <input>:1:1: Syntax error: mismatched input '<EOF>'");
        check(&format!("'{}' == ''", "x".repeat(MAX_EXPRESSION)), "TooLong");
        let all = "device.attributes['a'].map(a, device.attributes['a'].map(b, device.attributes['a'].map(c, a + b + c)))";
        check(&format!("{all}.size() == {all}.map(x, {all}).size()"), "Forbidden too complex");
    }
}
