//! JSON web tokens signed with ES256 (RFC 7519, RFC 7518): the form of ServiceAccount tokens, and the key set that others
//! check them with.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::read::Read;

/// The longest token that is looked at.
const MAX_TOKEN: usize = 16 * 1024;

/// Signs tokens, and checks those that it signed.
pub struct Signer {
    key: pki::Key,
    id: String,
}

/// Why a token is not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum JwtError {
    /// It is no token of this issuer.
    #[error("not a token of this issuer")]
    Foreign,
    /// The key that it names is not ours.
    #[error("invalid signature, no keys found")]
    UnknownKey,
    /// The signature does not fit.
    #[error("error in cryptographic primitive")]
    Signature,
}

impl Signer {
    /// A signer with this key; its id is the digest of the public key, as upstream makes it.
    pub fn new(key: pki::Key) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, &key.public_info());
        Self { id: BASE64.encode(digest), key }
    }

    /// The token with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String, pki::Error> {
        let header = json!({"alg": "ES256", "kid": self.id});
        let head = BASE64.encode(header.to_string());
        let body = BASE64.encode(claims.to_string());
        let signature = BASE64.encode(self.key.sign_fixed(format!("{head}.{body}").as_bytes())?);
        Ok(format!("{head}.{body}.{signature}"))
    }

    /// The claims of a token that one of `issuers` says to have signed, once the signature is checked. Nothing else about the
    /// claims is.
    pub fn verify(&self, token: &str, issuers: &[&str]) -> Result<Value, JwtError> {
        let parts: Vec<&str> = token.split('.').collect();
        let [head, body, signature] = parts.as_slice() else { return Err(JwtError::Foreign) };
        if token.len() > MAX_TOKEN {
            return Err(JwtError::Foreign);
        }
        let claims = decode(body).ok_or(JwtError::Foreign)?;
        if !issuers.contains(&claims.text("iss")) {
            return Err(JwtError::Foreign);
        }
        let header = decode(head).ok_or(JwtError::Foreign)?;
        // The algorithm is the key's, never the token's: a token that names another one is not ours.
        if header.text("alg") != "ES256" || header.has("crit") {
            return Err(JwtError::Signature);
        }
        if !header.text("kid").is_empty() && header.text("kid") != self.id {
            return Err(JwtError::UnknownKey);
        }
        let signature = BASE64.decode(signature).map_err(|_| JwtError::Signature)?;
        let signed = &token[..head.len() + 1 + body.len()];
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_point())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| JwtError::Signature)?;
        Ok(claims)
    }

    /// The document at `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let point = self.key.public_point();
        json!({"keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.id,
            "crv": "P-256",
            "alg": "ES256",
            "x": BASE64.encode(&point[1..33]),
            "y": BASE64.encode(&point[33..65]),
        }]})
    }
}

fn decode(part: &str) -> Option<Value> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

/// The document at `/.well-known/openid-configuration`.
pub fn discovery(issuer: &str, key_set_url: &str) -> Value {
    json!({
        "issuer": issuer,
        "jwks_uri": key_set_url,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}
