//! Feature gates, by upstream's names and with its defaults for this version.

/// The gates that change what the server does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `CBORServingAndStorage` (alpha, off): CBOR in requests and answers. What is stored stays JSON.
    pub cbor: bool,
}

/// A setting that does not name a gate or say what it is to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    #[error("feature gate {0:?}: give it as NAME=true or NAME=false")]
    Malformed(String),
    #[error("unrecognized feature gate {0:?}; known are: CBORServingAndStorage")]
    Unknown(String),
}

impl std::str::FromStr for Features {
    type Err = FeatureError;

    /// Reads `A=true,B=false`.
    fn from_str(text: &str) -> Result<Self, FeatureError> {
        let mut features = Self::default();
        for setting in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let malformed = || FeatureError::Malformed(setting.to_owned());
            let (name, value) = setting.split_once('=').ok_or_else(malformed)?;
            let value = value.trim().parse().map_err(|_| malformed())?;
            match name.trim() {
                "CBORServingAndStorage" => features.cbor = value,
                other => return Err(FeatureError::Unknown(other.to_owned())),
            }
        }
        Ok(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings() {
        assert_eq!("".parse(), Ok(Features::default()));
        assert_eq!("CBORServingAndStorage=true".parse(), Ok(Features { cbor: true }));
        assert_eq!("X=true".parse::<Features>(), Err(FeatureError::Unknown("X".into())));
        assert_eq!(
            "CBORServingAndStorage".parse::<Features>(),
            Err(FeatureError::Malformed("CBORServingAndStorage".into()))
        );
    }
}
