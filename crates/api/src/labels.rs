//! Label selectors: the string form of queries and the LabelSelector of objects.

mod parse;

use serde_json::Value;

use crate::kinds::json::Read;
use crate::names;

/// How a requirement compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `in`, `=`, `==`: the label is there and has one of the values.
    In,
    /// `notin`, `!=`: the label is absent or has none of the values.
    NotIn,
    Exists,
    DoesNotExist,
    /// The label is a number greater than the value.
    GreaterThan,
    LessThan,
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

/// Requirements that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl Selector {
    /// Chooses every object.
    pub fn everything() -> Self {
        Self { requirements: Vec::new(), nothing: false }
    }

    /// Chooses no object.
    pub fn nothing() -> Self {
        Self { requirements: Vec::new(), nothing: true }
    }

    /// Reads the string form, `a=b,c in (d,e),!f`. The error is upstream's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { requirements: parse::requirements(text)?, nothing: false })
    }

    /// The selector of a LabelSelector in JSON: null chooses nothing, an empty one everything. The error is upstream's text.
    pub fn from_json(selector: &Value) -> Result<Self, String> {
        if selector.is_null() {
            return Ok(Self::nothing());
        }
        let mut all = Self::from_map(selector.at("matchLabels"));
        for requirement in &all.requirements {
            parse::check(requirement)?;
        }
        for expression in selector.items("matchExpressions") {
            let operator = match expression.text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values =
                expression.items("values").iter().filter_map(Value::as_str).map(str::to_owned).collect();
            let requirement = Requirement { key: expression.text("key").to_owned(), operator, values };
            parse::check(&requirement)?;
            all.requirements.push(requirement);
        }
        Ok(all)
    }

    /// The selector of a map of labels that must all be there.
    pub fn from_map(labels: &Value) -> Self {
        let requirements = labels
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| Requirement {
                key: key.clone(),
                operator: Operator::In,
                values: vec![value.as_str().unwrap_or_default().to_owned()],
            })
            .collect();
        Self { requirements, nothing: false }
    }

    /// Whether every object is chosen.
    pub fn is_everything(&self) -> bool {
        !self.nothing && self.requirements.is_empty()
    }

    /// What must hold.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether an object with these labels is chosen.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.holds(label(&r.key)))
    }

    /// Whether an object with these labels (a JSON object, or null) is chosen.
    pub fn matches_labels(&self, labels: &Value) -> bool {
        self.matches(|key| labels.get(key).and_then(Value::as_str))
    }
}

impl Requirement {
    fn holds(&self, label: Option<&str>) -> bool {
        let listed = |label: &str| self.values.iter().any(|value| value == label);
        let number = |text: &str| text.parse::<i64>().ok();
        let compare = |label: &str| {
            let value = self.values.first().and_then(|value| number(value))?;
            Some(number(label)?.cmp(&value))
        };
        match self.operator {
            Operator::In => label.is_some_and(listed),
            Operator::NotIn => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => label.and_then(compare).is_some_and(|order| order.is_gt()),
            Operator::LessThan => label.and_then(compare).is_some_and(|order| order.is_lt()),
        }
    }
}

/// The string form.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut sorted: Vec<&Requirement> = self.requirements.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        for (at, requirement) in sorted.into_iter().enumerate() {
            let Requirement { key, operator, values } = requirement;
            let comma = if at > 0 { "," } else { "" };
            let list = values.join(",");
            match (operator, values.len()) {
                (Operator::In, 1) => write!(f, "{comma}{key}={list}")?,
                (Operator::NotIn, 1) => write!(f, "{comma}{key}!={list}")?,
                (Operator::In, _) => write!(f, "{comma}{key} in ({list})")?,
                (Operator::NotIn, _) => write!(f, "{comma}{key} notin ({list})")?,
                (Operator::Exists, _) => write!(f, "{comma}{key}")?,
                (Operator::DoesNotExist, _) => write!(f, "{comma}!{key}")?,
                (Operator::GreaterThan, _) => write!(f, "{comma}{key}>{list}")?,
                (Operator::LessThan, _) => write!(f, "{comma}{key}<{list}")?,
            }
        }
        Ok(())
    }
}

/// The first wrong thing about a key, as a selector's error tells it.
fn key_error(path: &str, key: &str) -> Option<String> {
    let wrong = names::qualified_name(key);
    (!wrong.is_empty()).then(|| format!("{path}: Invalid value: {key:?}: {}", wrong.join("; ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_choose() {
        let labels = json!({"a": "b", "n": "5", "e": ""});
        for (text, chosen) in [
            ("", true),
            ("a", true),
            ("!a", false),
            ("!x", true),
            ("a=b", true),
            ("a==b", true),
            ("a != b", false),
            ("x!=b", true),
            ("a in (b,c)", true),
            ("a notin (b , c)", false),
            ("x notin (b)", true),
            ("n>4,n<6", true),
            ("n>5", false),
            ("e=", true),
            ("e in ()", true),
            ("a=b,x", false),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert_eq!(selector.matches_labels(&labels), chosen, "{text}");
        }
    }

    #[test]
    fn wrong_selectors_are_told() {
        for (text, error) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(Selector::parse(text).expect_err(text), error);
        }
    }

    #[test]
    fn objects_have_selectors() {
        let selector = Selector::from_json(&json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}]}))
        .expect("a selector");
        assert!(selector.matches_labels(&json!({"a": "b", "c": "e"})));
        assert_eq!(selector.to_string(), "a=b,c in (d,e)");
        assert!(!Selector::from_json(&Value::Null).expect("null").matches_labels(&json!({})));
        assert!(Selector::from_json(&json!({})).expect("empty").matches_labels(&json!({})));
        assert!(Selector::from_json(&json!({"matchExpressions": [{"key": "a", "operator": "?"}]})).is_err());
    }
}
