//! Signatures of JSON web tokens (RFC 7515): ServiceAccount tokens with a P-256 key, and the detached ones by which
//! bootstrap tokens vouch for `cluster-info`.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use crate::{Error, Key};

/// The id of a key in tokens: the digest of its public part, as upstream makes it.
pub fn key_id(key: &Key) -> String {
    BASE64.encode(ring::digest::digest(&ring::digest::SHA256, &key.public_info()))
}

/// A token with these claims (a JSON object), signed with ES256.
pub fn sign_token(key: &Key, claims: &str) -> Result<String, Error> {
    let head = BASE64.encode(format!("{{\"alg\":\"ES256\",\"kid\":\"{}\"}}", key_id(key)));
    let body = BASE64.encode(claims);
    let signature = BASE64.encode(key.sign_fixed(format!("{head}.{body}").as_bytes())?);
    Ok(format!("{head}.{body}.{signature}"))
}

/// The detached signature of a text by a bootstrap token (HS256, RFC 7515 appendix F). The id is of plain letters and
/// digits.
pub fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let head = BASE64.encode(format!("{{\"alg\":\"HS256\",\"kid\":\"{id}\"}}"));
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = ring::hmac::sign(&key, format!("{head}.{}", BASE64.encode(content)).as_bytes());
    format!("{head}..{}", BASE64.encode(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bootstrap_token_signs_as_upstream_does() {
        // Test vectors of upstream's `cluster-bootstrap/token/jws`.
        let head = "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..";
        let check = |content: &str, expect: &str| {
            let made = detached_signature(content, "joshua", "my voice is my passcode");
            assert_eq!(made, format!("{head}{expect}"));
        };
        let text = "Hello from the other side. I must have called a thousand times.";
        check(text, "VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8");
        check("", "7Ui1ALizW4jXphVUB7xUqC9vLYLL9RZeOFfVLoB7Tgk");
    }
}
