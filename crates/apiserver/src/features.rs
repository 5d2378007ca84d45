//! Feature gates, by upstream's names and with its defaults for this version, and which versions of the API are switched on.

use std::str::FromStr;
use std::sync::Arc;

use api::{Gated, Resource};

/// The gates that change what the server does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `CBORServingAndStorage` (alpha, off): CBOR in requests and answers. What is stored stays JSON.
    pub cbor: bool,
    /// `StorageVersionMigrator` (beta, off): StorageVersionMigrations, and the controller that performs them.
    pub storage_version_migrator: bool,
}

/// A setting that does not name a gate or say what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    #[error("{0:?}: give it as NAME=true or NAME=false")]
    Malformed(String),
    #[error("unrecognized feature gate {0:?}; known are: CBORServingAndStorage, StorageVersionMigrator")]
    Unknown(String),
    #[error("{0:?} is no version of the API that this server has")]
    UnknownVersion(String),
    #[error("{0:?} cannot be switched off: this server always serves it")]
    Fixed(String),
}

/// Reads `A=true,B=false`.
fn settings(text: &str) -> impl Iterator<Item = Result<(&str, Option<bool>), FeatureError>> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|setting| match setting.split_once('=') {
        None => Ok((setting, None)),
        Some((name, value)) => {
            let value = value.trim().parse().map_err(|_| FeatureError::Malformed(setting.to_owned()))?;
            Ok((name.trim(), Some(value)))
        }
    })
}

impl FromStr for Features {
    type Err = FeatureError;

    /// Reads `A=true,B=false`.
    fn from_str(text: &str) -> Result<Self, FeatureError> {
        let mut features = Self::default();
        for setting in settings(text) {
            let (name, value) = setting?;
            let value = value.ok_or_else(|| FeatureError::Malformed(name.to_owned()))?;
            match name {
                "CBORServingAndStorage" => features.cbor = value,
                "StorageVersionMigrator" => features.storage_version_migrator = value,
                other => return Err(FeatureError::Unknown(other.to_owned())),
            }
        }
        Ok(features)
    }
}

impl Features {
    /// Whether the gate of this name is on.
    fn enabled(self, gate: &str) -> bool {
        match gate {
            "StorageVersionMigrator" => self.storage_version_migrator,
            _ => false,
        }
    }

    /// What belongs to the gates that are on.
    pub(crate) fn gated(self) -> impl Iterator<Item = &'static Gated> {
        api::gated().iter().filter(move |gated| self.enabled(&gated.gate))
    }
}

/// `--runtime-config`: which versions of the API are served beside those that are on by default. The more particular
/// setting goes first: `GROUP/VERSION/RESOURCE`, `GROUP/VERSION`, `api/beta` or `api/alpha`, `api/all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeConfig(Vec<(String, bool)>);

impl FromStr for RuntimeConfig {
    type Err = FeatureError;

    /// Reads `A=true,B=false`; a name alone means true.
    fn from_str(text: &str) -> Result<Self, FeatureError> {
        let gated = || api::gated().iter().flat_map(|gated| &gated.resources);
        let mut all = Vec::new();
        for setting in settings(text) {
            let (name, value) = setting?;
            let value = value.unwrap_or(true);
            let names = |row: &Arc<Resource>| row.api_version() == name || key(row) == name;
            match name {
                "api/beta" | "api/alpha" => {}
                _ if gated().any(names) => {}
                name if ["api/all", "api/ga"].contains(&name) || api::resources().iter().any(names) => {
                    if !value {
                        return Err(FeatureError::Fixed(name.to_owned()));
                    }
                }
                other => return Err(FeatureError::UnknownVersion(other.to_owned())),
            }
            all.push((name.to_owned(), value));
        }
        Ok(Self(all))
    }
}

/// `GROUP/VERSION/RESOURCE`.
fn key(row: &Resource) -> String {
    format!("{}/{}", row.api_version(), row.plural)
}

impl RuntimeConfig {
    /// Whether a resource is served that is off by default.
    pub(crate) fn serves(&self, row: &Resource) -> bool {
        let level = if row.version.contains("alpha") { "api/alpha" } else { "api/beta" };
        let names = [key(row), row.api_version(), level.to_owned(), "api/all".to_owned()];
        // The last setting of a name counts.
        let said = |name: &String| self.0.iter().rfind(|(key, _)| key == name).map(|(_, value)| *value);
        names.iter().find_map(said).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates() {
        assert_eq!("".parse(), Ok(Features::default()));
        let cbor = Features { cbor: true, ..Features::default() };
        assert_eq!("CBORServingAndStorage=true".parse(), Ok(cbor));
        assert_eq!("StorageVersionMigrator=true".parse::<Features>().map(|f| f.gated().count()), Ok(1));
        assert_eq!("X=true".parse::<Features>(), Err(FeatureError::Unknown("X".into())));
        assert_eq!(
            "CBORServingAndStorage".parse::<Features>(),
            Err(FeatureError::Malformed("CBORServingAndStorage".into()))
        );
    }

    #[test]
    fn versions() {
        let row = &api::gated()[0].resources[0];
        let check = |text: &str, expect: Result<bool, FeatureError>| {
            assert_eq!(text.parse::<RuntimeConfig>().map(|config| config.serves(row)), expect, "{text}");
        };
        check("", Ok(false));
        check("storagemigration.k8s.io/v1beta1", Ok(true));
        check("storagemigration.k8s.io/v1beta1=true", Ok(true));
        check("api/beta=true", Ok(true));
        check("api/alpha=true", Ok(false));
        check("api/all=true,storagemigration.k8s.io/v1beta1=false", Ok(false));
        check("api/all,storagemigration.k8s.io/v1beta1/storageversionmigrations=false", Ok(false));
        check("apps/v1=true", Ok(false));
        check("apps/v1=false", Err(FeatureError::Fixed("apps/v1".into())));
        check("apps/v9", Err(FeatureError::UnknownVersion("apps/v9".into())));
        check("api/beta=maybe", Err(FeatureError::Malformed("api/beta=maybe".into())));
    }
}
