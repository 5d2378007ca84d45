//! The keys of a token issuer (JWKS, RFC 7517), and signatures checked with them (RFC 7518).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use p521::ecdsa::signature::Verifier as _;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512,
    RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::Value;

use crate::read::Read;

/// Keys that are kept of one issuer.
const MOST: usize = 64;

enum Key {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// The uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    P521(Box<p521::ecdsa::VerifyingKey>),
}

/// The signing keys of an issuer.
#[derive(Default)]
pub struct KeySet(Vec<(String, Key)>);

impl KeySet {
    /// Reads the document; keys of other kinds and for other uses are left out.
    pub fn parse(document: &Value) -> Self {
        let read = |key: &Value| -> Option<(String, Key)> {
            if !matches!(key.text("use"), "" | "sig") {
                return None;
            }
            let bytes = |name: &str| {
                BASE64.decode(key.text(name).trim_end_matches('=')).ok().filter(|b| !b.is_empty())
            };
            let point = |size: usize| {
                let mut point = vec![4];
                for name in ["x", "y"] {
                    let part = bytes(name).filter(|p| p.len() <= size)?;
                    point.extend(std::iter::repeat_n(0, size - part.len()));
                    point.extend(part);
                }
                Some(point)
            };
            let made = match (key.text("kty"), key.text("crv")) {
                ("RSA", _) => Key::Rsa { n: bytes("n")?, e: bytes("e")? },
                ("EC", "P-256") => Key::P256(point(32)?),
                ("EC", "P-384") => Key::P384(point(48)?),
                ("EC", "P-521") => {
                    Key::P521(Box::new(p521::ecdsa::VerifyingKey::from_sec1_bytes(&point(66)?).ok()?))
                }
                _ => return None,
            };
            Some((key.text("kid").to_owned(), made))
        };
        Self(document.items("keys").iter().filter_map(read).take(MOST).collect())
    }

    /// Whether one of the keys made this signature. `kid` may be empty: then every key is tried.
    pub fn verify(&self, algorithm: &str, kid: &str, signed: &[u8], signature: &[u8]) -> bool {
        self.0
            .iter()
            .filter(|(id, _)| kid.is_empty() || id == kid)
            .any(|(_, key)| key.verify(algorithm, signed, signature))
    }
}

impl Key {
    /// The algorithm must be one for keys of this kind: a token cannot choose how it is checked.
    fn verify(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> bool {
        let rsa: &RsaParameters = match (self, algorithm) {
            (Self::P256(point), "ES256") => {
                return UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
                    .verify(signed, signature)
                    .is_ok();
            }
            (Self::P384(point), "ES384") => {
                return UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point)
                    .verify(signed, signature)
                    .is_ok();
            }
            (Self::P521(key), "ES512") => {
                let signature = p521::ecdsa::Signature::from_slice(signature);
                return signature.is_ok_and(|signature| key.verify(signed, &signature).is_ok());
            }
            (Self::Rsa { .. }, "RS256") => &RSA_PKCS1_2048_8192_SHA256,
            (Self::Rsa { .. }, "RS384") => &RSA_PKCS1_2048_8192_SHA384,
            (Self::Rsa { .. }, "RS512") => &RSA_PKCS1_2048_8192_SHA512,
            (Self::Rsa { .. }, "PS256") => &RSA_PSS_2048_8192_SHA256,
            (Self::Rsa { .. }, "PS384") => &RSA_PSS_2048_8192_SHA384,
            (Self::Rsa { .. }, "PS512") => &RSA_PSS_2048_8192_SHA512,
            _ => return false,
        };
        let Self::Rsa { n, e } = self else { return false };
        RsaPublicKeyComponents { n, e }.verify(rsa, signed, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_key_decides_on_the_algorithm() {
        let key = pki::Key::generate().expect("a key");
        let point = key.public_point();
        let set = KeySet::parse(&json!({"keys": [
            {"kty": "oct", "k": "c2VjcmV0", "kid": "a"},
            {"kty": "EC", "crv": "P-256", "use": "enc", "kid": "a", "x": "AA", "y": "AA"},
            {"kty": "EC", "crv": "P-256", "kid": "a", "x": BASE64.encode(&point[1..33]), "y": BASE64.encode(&point[33..])},
        ]}));
        let signature = key.sign_fixed(b"text").expect("signed");
        assert!(set.verify("ES256", "a", b"text", &signature));
        assert!(set.verify("ES256", "", b"text", &signature));
        assert!(!set.verify("ES256", "b", b"text", &signature), "another key");
        assert!(!set.verify("ES256", "a", b"texT", &signature));
        for algorithm in ["none", "ES512", "HS256", "RS256", "ES384", ""] {
            assert!(!set.verify(algorithm, "a", b"text", &signature), "{algorithm}");
        }
    }

    #[test]
    fn a_key_on_p521_signs_es512() {
        use p521::ecdsa::signature::Signer as _;
        let key = p521::ecdsa::SigningKey::from_slice(&[&[0u8; 2][..], &[7; 64]].concat()).expect("a key");
        let point = p521::ecdsa::VerifyingKey::from(&key).to_encoded_point(false);
        let text = |part: Option<&p521::FieldBytes>| BASE64.encode(part.expect("a coordinate"));
        let set = KeySet::parse(&json!({"keys": [
            {"kty": "EC", "crv": "P-521", "kid": "a", "x": text(point.x()), "y": text(point.y())},
        ]}));
        let signature: p521::ecdsa::Signature = key.sign(b"text");
        let signature = signature.to_bytes();
        assert!(set.verify("ES512", "a", b"text", &signature));
        assert!(!set.verify("ES512", "a", b"texT", &signature));
        assert!(!set.verify("ES384", "a", b"text", &signature));
        assert!(!set.verify("ES512", "a", b"text", &signature[1..]));
    }
}
