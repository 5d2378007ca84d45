//! JSON in the reference's order: kind and version first, then the fields as their Go struct lists them, which is the order
//! of their protobuf numbers. JSON gives order no meaning, but people read it, and some tools compare it.

use serde::ser::{Error as _, Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::{Map, Value};

use crate::types::{Field, Shape, TypeId, Types};

/// A value of a type, to be written in order. Without a type the order is that of the value.
pub struct Ordered<'a> {
    types: &'a Types,
    id: Option<TypeId>,
    value: &'a Value,
}

impl<'a> Ordered<'a> {
    pub fn new(types: &'a Types, id: Option<TypeId>, value: &'a Value) -> Self {
        Self { types, id, value }
    }

    fn object<S: Serializer>(&self, map: &'a Map<String, Value>, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_map(Some(map.len()))?;
        let shape = self.id.map(|id| self.types.shape(id));
        let Some(Shape::Object(fields)) = shape else {
            let id = match shape {
                Some(Shape::Map(element)) => Some(*element),
                Some(Shape::Either(object, _)) => return Self { id: Some(*object), ..*self }.rest(map, out),
                _ => None,
            };
            for (key, value) in map {
                out.serialize_entry(key, &Self { id, value, ..*self })?;
            }
            return out.end();
        };
        let mut sorted: Vec<(u32, &Field, &Value)> = fields
            .iter()
            .filter_map(|field| Some((rank(field), field, map.get(field.name.as_ref())?)))
            .collect();
        sorted.sort_by_key(|(rank, ..)| *rank);
        for (_, field, value) in sorted {
            out.serialize_entry(field.name.as_ref(), &Self { id: Some(field.ty), value, ..*self })?;
        }
        for (key, value) in map.iter().filter(|(key, _)| self.types.field(self.id_of(), key).is_none()) {
            out.serialize_entry(key, &Self { id: None, value, ..*self })?;
        }
        out.end()
    }

    fn id_of(&self) -> TypeId {
        self.id.unwrap_or(TypeId(0))
    }

    /// The members of a map that is open already.
    fn rest<M: SerializeMap>(&self, map: &'a Map<String, Value>, mut out: M) -> Result<M::Ok, M::Error> {
        for (key, value) in map {
            let id = self.id.and_then(|id| self.types.field(id, key)).map(|field| field.ty);
            out.serialize_entry(key, &Self { id, value, ..*self })?;
        }
        out.end()
    }
}

/// Where a field stands: the kind and version are inlined at the top.
fn rank(field: &Field) -> u32 {
    match (&*field.name, field.proto_via.first().copied().unwrap_or(field.proto)) {
        ("kind", 0) => 0,
        ("apiVersion", 0) => 1,
        (_, 0) => u32::MAX,
        (_, number) => number.saturating_add(1),
    }
}

impl Serialize for Ordered<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.value {
            Value::Object(_) if self.id.is_some_and(|id| matches!(self.types.shape(id), Shape::FieldsV1)) => {
                let text = crate::managed::fields_text(self.value);
                serde_json::value::RawValue::from_string(text)
                    .map_err(S::Error::custom)?
                    .serialize(serializer)
            }
            Value::Object(map) => self.object(map, serializer),
            Value::Array(items) => {
                let id = match self.id.map(|id| self.types.shape(id)) {
                    Some(Shape::List(element)) => Some(*element),
                    Some(Shape::Either(_, other)) => self.types.element(*other),
                    _ => None,
                };
                let mut out = serializer.serialize_seq(Some(items.len()))?;
                for value in items {
                    out.serialize_element(&Self { id, value, ..*self })?;
                }
                out.end()
            }
            other => other.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sample::table;

    #[test]
    fn fields_stand_as_in_their_struct() {
        let (types, id) = table();
        let value = json!({"apiVersion": "v1", "kind": "Box", "metadata": {"labels": {"b": "1", "a": "2"}, "name": "n"},
            "spec": {"containers": [{"command": ["x"], "image": "i", "name": "c"}], "args": ["a"], "x": 1}});
        let text = serde_json::to_string(&Ordered::new(&types, Some(id), &value)).expect("JSON");
        assert_eq!(
            text,
            r#"{"kind":"Box","apiVersion":"v1","metadata":{"name":"n","labels":{"a":"2","b":"1"}},"spec":{"args":["a"],"containers":[{"name":"c","image":"i","command":["x"]}],"x":1}}"#
        );
        assert_eq!(serde_json::from_str::<Value>(&text).expect("JSON"), value);
    }
}
