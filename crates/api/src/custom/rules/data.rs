//! A structural schema as `cel` asks for it.

use schema::structural::{Additional, Schema};
use serde_json::Value;

/// A structural schema.
pub(super) struct Of<'s>(pub &'s Schema);

impl<'s> cel::Schema<'s> for Of<'s> {
    fn kind(&self) -> &str {
        &self.0.kind
    }

    fn format(&self) -> &str {
        &self.0.format
    }

    fn items(&self) -> Option<Box<dyn cel::Schema<'s> + 's>> {
        self.0.items.as_deref().map(|items| Box::new(Of(items)) as _)
    }

    fn properties(&self) -> Vec<(&'s str, Box<dyn cel::Schema<'s> + 's>)> {
        self.0.properties.iter().map(|(name, of)| (name.as_str(), Box::new(Of(of)) as _)).collect()
    }

    fn additional_properties(&self) -> Option<Box<dyn cel::Schema<'s> + 's>> {
        self.0.additional.as_ref().and_then(Additional::schema).map(|of| Box::new(Of(of)) as _)
    }

    fn requires(&self, property: &str) -> bool {
        self.0.required.iter().any(|name| name == property)
    }

    fn has_default(&self) -> bool {
        self.0.default.as_ref().is_some_and(|value| !value.is_null())
    }

    fn nullable(&self) -> bool {
        self.0.nullable
    }

    fn max_items(&self) -> Option<i64> {
        self.0.max_items
    }

    fn max_length(&self) -> Option<i64> {
        self.0.max_length
    }

    fn max_properties(&self) -> Option<i64> {
        self.0.max_properties
    }

    fn longest_enum(&self) -> Option<i64> {
        if self.0.enumeration.is_empty() {
            return None;
        }
        let lengths = self.0.enumeration.iter().filter_map(Value::as_str).map(str::len);
        Some(i64::try_from(lengths.max().unwrap_or(0)).unwrap_or(i64::MAX))
    }

    fn int_or_string(&self) -> bool {
        self.0.int_or_string
    }

    fn embedded_resource(&self) -> bool {
        self.0.embedded
    }

    fn list_type(&self) -> &str {
        self.0.list_type.as_deref().unwrap_or_default()
    }

    fn list_map_keys(&self) -> Vec<String> {
        self.0.list_keys.clone()
    }
}
