//! A CustomResourceDefinition as data.

use schema::structural::{Schema, SchemaError};
use serde_json::Value;

use crate::kinds::json::Read;
use crate::{Column, ScalePaths};

/// Why a stored definition cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("the schema of version {version} cannot be used")]
    Schema {
        version: String,
        #[source]
        source: SchemaError,
    },
}

/// The names of a kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Names {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub list_kind: String,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
}

impl Names {
    /// Reads `spec.names` or `status.acceptedNames`.
    pub fn read(value: &Value) -> Self {
        let text = |key: &str| value.text(key).to_owned();
        let texts = |key: &str| -> Vec<String> {
            value.items(key).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        Self {
            plural: text("plural"),
            singular: text("singular"),
            kind: text("kind"),
            list_kind: text("listKind"),
            short_names: texts("shortNames"),
            categories: texts("categories"),
        }
    }
}

/// How objects get from one version to another.
#[derive(Clone, Debug, PartialEq)]
pub enum Conversion {
    /// The apiVersion is changed, nothing else.
    None,
    Webhook {
        client_config: Value,
        /// In the order of preference.
        review_versions: Vec<String>,
    },
}

/// One version of a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Version {
    pub name: String,
    pub served: bool,
    pub storage: bool,
    /// The warning that every use of a deprecated version gives.
    pub deprecation: Option<String>,
    /// `openAPIV3Schema` as it stands, or null.
    pub raw: Value,
    pub schema: Option<Schema>,
    pub status: bool,
    pub scale: Option<ScalePaths>,
    /// Printer columns with their paths.
    pub columns: Vec<(Column, String)>,
    /// The paths of selectable fields.
    pub selectable: Vec<String>,
}

/// A definition.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub name: String,
    pub uid: String,
    pub group: String,
    pub names: Names,
    pub accepted: Names,
    pub namespaced: bool,
    pub preserve: bool,
    pub versions: Vec<Version>,
    pub conversion: Conversion,
    pub established: bool,
    pub names_accepted: bool,
    pub terminating: bool,
}

/// A condition of a definition or any other object is true.
fn is_true(object: &Value, kind: &str) -> bool {
    let conditions = object.at("status").items("conditions");
    conditions.iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

/// `.spec.replicas` as a JSON pointer.
fn pointer(path: &str) -> String {
    path.replace('.', "/")
}

impl Definition {
    /// Reads the JSON form of a stored definition.
    pub fn read(object: &Value) -> Result<Self, DefinitionError> {
        let (meta, spec) = (object.at("metadata"), object.at("spec"));
        let versions = spec.items("versions").iter().map(|v| Version::read(v, spec));
        let conversion = match spec.at("conversion") {
            conversion if conversion.text("strategy") == "Webhook" => {
                let webhook = conversion.at("webhook");
                let versions = webhook.items("conversionReviewVersions").iter();
                Conversion::Webhook {
                    client_config: webhook.at("clientConfig").clone(),
                    review_versions: versions.filter_map(|v| v.as_str().map(str::to_owned)).collect(),
                }
            }
            _ => Conversion::None,
        };
        Ok(Self {
            name: meta.text("name").to_owned(),
            uid: meta.text("uid").to_owned(),
            group: spec.text("group").to_owned(),
            names: Names::read(spec.at("names")),
            accepted: Names::read(object.at("status").at("acceptedNames")),
            namespaced: spec.text("scope") == "Namespaced",
            preserve: spec.flag("preserveUnknownFields"),
            versions: versions.collect::<Result<_, _>>()?,
            conversion,
            established: is_true(object, "Established"),
            names_accepted: is_true(object, "NamesAccepted"),
            terminating: is_true(object, "Terminating"),
        })
    }

    /// The version in which objects are stored.
    pub fn storage(&self) -> Option<&Version> {
        self.versions.iter().find(|v| v.storage)
    }

    /// A version by name.
    pub fn version(&self, name: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.name == name)
    }
}

impl Version {
    fn read(value: &Value, spec: &Value) -> Result<Self, DefinitionError> {
        let name = value.text("name").to_owned();
        let raw = value.at("schema").at("openAPIV3Schema").clone();
        let schema = match raw.is_object() {
            true => {
                let schema = Schema::read(&raw).and_then(|schema| schema.unsupported().map(|()| schema));
                let wrong = |source| DefinitionError::Schema { version: name.clone(), source };
                Some(schema.map_err(wrong)?)
            }
            false => None,
        };
        let subresources = value.at("subresources");
        let scale = subresources.at("scale");
        let group = spec.text("group");
        let kind = spec.at("names").text("kind");
        let deprecation = value.flag("deprecated").then(|| match value.text("deprecationWarning") {
            "" => format!("{group}/{name} {kind} is deprecated"),
            warning => warning.to_owned(),
        });
        let columns = value.items("additionalPrinterColumns").iter().map(column).collect();
        let selectable = value.items("selectableFields").iter();
        Ok(Self {
            served: value.flag("served"),
            storage: value.flag("storage"),
            deprecation,
            raw,
            schema,
            status: subresources.has("status"),
            scale: scale.is_object().then(|| ScalePaths {
                spec_replicas: pointer(scale.text("specReplicasPath")).into(),
                status_replicas: pointer(scale.text("statusReplicasPath")).into(),
                selector: pointer(scale.text("labelSelectorPath")).into(),
            }),
            columns,
            selectable: selectable.map(|field| field.text("jsonPath").to_owned()).collect(),
            name,
        })
    }
}

fn column(value: &Value) -> (Column, String) {
    let path = value.text("jsonPath");
    let description = match value.text("description") {
        "" => format!("What {path} of the object holds."),
        description => description.to_owned(),
    };
    let column = Column {
        name: value.text("name").to_owned().into(),
        kind: value.text("type").to_owned().into(),
        format: value.text("format").to_owned().into(),
        description: description.into(),
        priority: value.at("priority").as_i64().and_then(|p| p.try_into().ok()).unwrap_or(0),
    };
    (column, path.to_owned())
}
