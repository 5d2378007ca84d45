//! Kinds that a CustomResourceDefinition defines: the definition as data, and the rules of its versions.

mod definition;
mod meta;
pub mod rules;
mod version;

pub use definition::{Conversion, Definition, DefinitionError, Names, Version};
pub use meta::object_meta;
pub use version::{Served, Shape, serve};

#[cfg(test)]
mod tests;
