//! Encryption at rest. Unless a configuration file says otherwise Secrets lie in the store sealed with AES-256-GCM, bound to
//! their store key. Each value has a key of its own, derived from the file's key and a random salt, so that the number of
//! writes under one file key has no bound. The key file holds one key per line, `<id> <base64>`: the first seals, all open, so
//! that a key can be exchanged.

mod cipher;
mod config;
mod configured;
mod envelope;
mod kms;

pub use configured::{Encryption, EncryptionError};

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};

use crate::{Status, Transform};

const MAGIC: &[u8] = b"carrack:aesgcm:v1:";
const SALT_LEN: usize = 16;
/// The resources that are sealed.
const SEALED: [(&str, &str); 1] = [("", "secrets")];

/// Errors of the key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] pki::Error),
    #[error("line {line} of the encryption key file is not '<id> <32 bytes in base64>'")]
    Malformed { line: usize },
    #[error("the encryption key file holds no key")]
    Empty,
    #[error("the system gave no random bytes")]
    Random,
}

struct Key {
    id: String,
    secret: [u8; 32],
}

/// The keys, the sealing one first.
pub struct AtRest {
    keys: Vec<Key>,
    random: SystemRandom,
}

impl AtRest {
    /// Reads the key file; makes one with a new key if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let text = match pki::files::read(path)? {
            Some(text) => text,
            None => {
                let (mut secret, mut id) = ([0; 32], [0; 4]);
                random.fill(&mut secret).map_err(|_| KeyError::Random)?;
                random.fill(&mut id).map_err(|_| KeyError::Random)?;
                let text = format!("{:08x} {}\n", u32::from_be_bytes(id), STANDARD.encode(secret));
                pki::files::write(path, text.as_bytes())?;
                text
            }
        };
        let mut keys = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            let malformed = KeyError::Malformed { line: number + 1 };
            let Some((id, encoded)) = line.trim().split_once(' ') else { return Err(malformed) };
            let secret = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| bytes.try_into().ok());
            match secret {
                Some(secret) if !id.is_empty() && !id.contains(':') => {
                    keys.push(Key { id: id.to_owned(), secret });
                }
                _ => return Err(malformed),
            }
        }
        if keys.is_empty() { Err(KeyError::Empty) } else { Ok(Self { keys, random }) }
    }
}

impl AtRest {
    /// Whether a value was sealed here.
    pub fn is_sealed(value: &[u8]) -> bool {
        value.starts_with(MAGIC)
    }
}

impl Transform for AtRest {
    fn covers(&self, group: &str, resource: &str) -> bool {
        SEALED.contains(&(group, resource))
    }

    fn stale(&self, group: &str, resource: &str, sealed: &[u8]) -> bool {
        let own = [MAGIC, self.keys[0].id.as_bytes(), b":"].concat();
        self.covers(group, resource) && !sealed.starts_with(&own)
    }

    fn seal(&self, group: &str, resource: &str, context: &[u8], plain: Bytes) -> Result<Bytes, Status> {
        if !SEALED.contains(&(group, resource)) {
            return Ok(plain);
        }
        let key = &self.keys[0];
        let mut fresh = [0; SALT_LEN + NONCE_LEN];
        self.random.fill(&mut fresh).map_err(|_| Status::internal("no random bytes to encrypt with"))?;
        let (salt, nonce) = fresh.split_at(SALT_LEN);
        let mut body = plain.to_vec();
        derive(key, salt)
            .seal_in_place_append_tag(unique(nonce), Aad::from(context), &mut body)
            .map_err(|_| Status::internal("encryption failed"))?;
        Ok([MAGIC, key.id.as_bytes(), b":", &fresh, &body].concat().into())
    }

    fn open(&self, group: &str, resource: &str, context: &[u8], sealed: Bytes) -> Result<Bytes, Status> {
        // Plain values are what was stored before encryption was on, and what is not sealed at all.
        let Some(rest) = sealed.strip_prefix(MAGIC) else { return Ok(sealed) };
        let fail = |why: &str| Status::internal(format!("cannot decrypt a stored {resource}.{group}: {why}"));
        let colon = rest.iter().position(|b| *b == b':').ok_or_else(|| fail("malformed"))?;
        let (id, body) = (&rest[..colon], &rest[colon + 1..]);
        let key = self
            .keys
            .iter()
            .find(|key| key.id.as_bytes() == id)
            .ok_or_else(|| fail("its key is not in the encryption key file"))?;
        if body.len() < SALT_LEN + NONCE_LEN {
            return Err(fail("truncated"));
        }
        let (salt, body) = body.split_at(SALT_LEN);
        let (nonce, body) = body.split_at(NONCE_LEN);
        let mut body = body.to_vec();
        let length = derive(key, salt)
            .open_in_place(unique(nonce), Aad::from(context), &mut body)
            .map_err(|_| fail("it was altered or belongs to another place"))?
            .len();
        body.truncate(length);
        Ok(body.into())
    }
}

fn derive(key: &Key, salt: &[u8]) -> LessSafeKey {
    let derived: Prk = Salt::new(HKDF_SHA256, salt).extract(&key.secret);
    let material = derived.expand(&[MAGIC], &AES_256_GCM).expect("a key is shorter than HKDF's bound");
    LessSafeKey::new(UnboundKey::from(material))
}

fn unique(nonce: &[u8]) -> Nonce {
    Nonce::try_assume_unique_for_key(nonce).expect("cut to the length of a nonce")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_sealed_and_bound_to_their_place() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("encryption.key");
        let keys = AtRest::load_or_create(&path).expect("keys");
        let plain = Bytes::from_static(b"{\"data\":\"c2VjcmV0\"}");
        let sealed = keys.seal("", "secrets", b"/a", plain.clone()).expect("seal");
        assert!(!sealed.windows(6).any(|w| w == b"c2VjcmV0"[..6].as_ref()));
        assert_eq!(keys.open("", "secrets", b"/a", sealed.clone()).expect("open"), plain);
        assert!(keys.open("", "secrets", b"/b", sealed.clone()).is_err(), "moved");
        let mut altered = sealed.to_vec();
        *altered.last_mut().expect("a byte") ^= 1;
        assert!(keys.open("", "secrets", b"/a", altered.into()).is_err(), "altered");
        assert!(keys.open("", "secrets", b"/a", sealed.slice(..30)).is_err(), "cut");
        // Another start, then another key before it.
        let again = AtRest::load_or_create(&path).expect("again");
        assert_eq!(again.open("", "secrets", b"/a", sealed.clone()).expect("open"), plain);
        let old = std::fs::read_to_string(&path).expect("read");
        let new = format!("newer {}\n{old}", STANDARD.encode([7; 32]));
        std::fs::write(&path, new).expect("write");
        let rotated = AtRest::load_or_create(&path).expect("rotated");
        assert_eq!(rotated.open("", "secrets", b"/a", sealed).expect("open"), plain);
        let resealed = rotated.seal("", "secrets", b"/a", plain.clone()).expect("seal");
        assert!(again.open("", "secrets", b"/a", resealed).is_err(), "key unknown");
    }

    #[test]
    fn other_resources_and_older_values_are_plain() {
        let dir = tempfile::tempdir().expect("dir");
        let keys = AtRest::load_or_create(&dir.path().join("k")).expect("keys");
        let plain = Bytes::from_static(b"{}");
        assert_eq!(keys.seal("", "configmaps", b"/a", plain.clone()).expect("seal"), plain);
        assert_eq!(keys.open("", "secrets", b"/a", plain.clone()).expect("open"), plain);
    }
}
