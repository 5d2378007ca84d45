//! How a schema tells its parts; the caller implements it for what it keeps schemas in. [`JsonSchema`] reads
//! OpenAPI v3 as JSON, which is what CustomResourceDefinitions hold.

use serde_json::Value as Json;

/// A schema of OpenAPI v3 with Kubernetes' extensions.
pub trait Schema<'s> {
    /// `type`, or "" if there is none.
    fn kind(&self) -> &str;
    /// `format`, or "".
    fn format(&self) -> &str;
    fn items(&self) -> Option<Box<dyn Schema<'s> + 's>>;
    fn properties(&self) -> Vec<(&'s str, Box<dyn Schema<'s> + 's>)>;
    /// The schema of `additionalProperties`; `None` if it is absent, true or false.
    fn additional_properties(&self) -> Option<Box<dyn Schema<'s> + 's>>;
    /// Whether a property must be present.
    fn requires(&self, property: &str) -> bool;
    fn has_default(&self) -> bool;
    fn nullable(&self) -> bool;
    fn max_items(&self) -> Option<i64>;
    fn max_length(&self) -> Option<i64>;
    fn max_properties(&self) -> Option<i64>;
    /// The length in bytes of the longest string of `enum`, if there is an `enum`.
    fn longest_enum(&self) -> Option<i64>;
    /// `x-kubernetes-int-or-string`
    fn int_or_string(&self) -> bool;
    /// `x-kubernetes-embedded-resource`
    fn embedded_resource(&self) -> bool;
    /// `x-kubernetes-list-type`, or "".
    fn list_type(&self) -> &str;
    /// `x-kubernetes-list-map-keys`
    fn list_map_keys(&self) -> Vec<String>;
}

/// A schema that is JSON.
#[derive(Clone, Copy, Debug)]
pub struct JsonSchema<'s>(pub &'s Json);

impl<'s> JsonSchema<'s> {
    fn text(&self, name: &str) -> &'s str {
        self.0.get(name).and_then(Json::as_str).unwrap_or_default()
    }

    fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Json::as_bool).unwrap_or_default()
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.0.get(name).and_then(Json::as_i64)
    }
}

impl<'s> Schema<'s> for JsonSchema<'s> {
    fn kind(&self) -> &str {
        self.text("type")
    }

    fn format(&self) -> &str {
        self.text("format")
    }

    fn items(&self) -> Option<Box<dyn Schema<'s> + 's>> {
        self.0.get("items").filter(|items| items.is_object()).map(|items| Box::new(Self(items)) as _)
    }

    fn properties(&self) -> Vec<(&'s str, Box<dyn Schema<'s> + 's>)> {
        let properties = self.0.get("properties").and_then(Json::as_object);
        let each = properties.into_iter().flatten();
        each.map(|(name, of)| (name.as_str(), Box::new(Self(of)) as _)).collect()
    }

    fn additional_properties(&self) -> Option<Box<dyn Schema<'s> + 's>> {
        let of = self.0.get("additionalProperties").filter(|of| of.is_object());
        of.map(|of| Box::new(Self(of)) as _)
    }

    fn requires(&self, property: &str) -> bool {
        let required = self.0.get("required").and_then(Json::as_array);
        required.is_some_and(|names| names.iter().any(|name| name.as_str() == Some(property)))
    }

    fn has_default(&self) -> bool {
        self.0.get("default").is_some_and(|value| !value.is_null())
    }

    fn nullable(&self) -> bool {
        self.flag("nullable")
    }

    fn max_items(&self) -> Option<i64> {
        self.number("maxItems")
    }

    fn max_length(&self) -> Option<i64> {
        self.number("maxLength")
    }

    fn max_properties(&self) -> Option<i64> {
        self.number("maxProperties")
    }

    fn longest_enum(&self) -> Option<i64> {
        let values = self.0.get("enum").and_then(Json::as_array).filter(|values| !values.is_empty())?;
        let lengths = values.iter().filter_map(Json::as_str).map(|text| text.len() as i64);
        Some(lengths.max().unwrap_or(0))
    }

    fn int_or_string(&self) -> bool {
        self.flag("x-kubernetes-int-or-string") || self.text("format") == "int-or-string"
    }

    fn embedded_resource(&self) -> bool {
        self.flag("x-kubernetes-embedded-resource")
    }

    fn list_type(&self) -> &str {
        self.text("x-kubernetes-list-type")
    }

    fn list_map_keys(&self) -> Vec<String> {
        let keys = self.0.get("x-kubernetes-list-map-keys").and_then(Json::as_array);
        keys.into_iter().flatten().filter_map(|key| Some(key.as_str()?.to_owned())).collect()
    }
}
