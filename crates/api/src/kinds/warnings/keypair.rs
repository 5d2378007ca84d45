//! Secrets of type kubernetes.io/tls whose certificate and key do not go together.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::kinds::json::Read;
use crate::kinds::validation::pem;

pub(super) fn secret(secret: &Value) -> Vec<String> {
    if secret.text("type") != "kubernetes.io/tls" {
        return Vec::new();
    }
    let data = |key: &str| STANDARD.decode(secret.at("data").text(key)).unwrap_or_default();
    let (certificate, key) = (data("tls.crt"), data("tls.key"));
    mismatch(&certificate, &key).map(|told| vec![told.to_owned()]).unwrap_or_default()
}

/// What Go's TLS library says of a certificate and its key, as far as their encodings tell.
fn mismatch(certificate: &[u8], key: &[u8]) -> Option<&'static str> {
    let certificates = pem::blocks(certificate);
    if !certificates.iter().any(|block| block.label == "CERTIFICATE") {
        return Some(match certificates.is_empty() {
            true => "tls: failed to find any PEM data in certificate input",
            false => {
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks"
            }
        });
    }
    let keys = pem::blocks(key);
    if !keys.iter().any(|block| block.label == "PRIVATE KEY" || block.label.ends_with(" PRIVATE KEY")) {
        return Some(match keys.as_slice() {
            [] => "tls: failed to find any PEM data in key input",
            [one] if one.label == "CERTIFICATE" => {
                "tls: found a certificate rather than a key in the PEM for the private key"
            }
            _ => "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input",
        });
    }
    None
}
