//! What a KMS v2 provider stores: the sealed value with the sealed seed that its key is derived from, as upstream has it
//! (`kmsv2/v2/api.proto`, KEP-3299). Each value has a key of its own: HKDF of the seed and 32 random bytes.

use std::collections::BTreeMap;

use prost::Message;
use ring::hkdf::{HKDF_SHA256, KeyType, Prk};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};

use super::cipher::{Cipher, CipherError};

const INFO: usize = 32;
pub const SEED: usize = 32;
const LONGEST_ID: usize = 1 << 10;
const LONGEST_SOURCE: usize = 1 << 10;
const LARGEST_ANNOTATIONS: usize = 32 << 10;

/// How the key follows from the plain text of `source`.
const KEY_ITSELF: i32 = 0;
const SEED_OF_KEYS: i32 = 1;

/// The stored form.
#[derive(Clone, PartialEq, Message)]
pub struct Envelope {
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    #[prost(string, tag = "2")]
    pub key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    pub source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    pub annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    pub source_type: i32,
}

/// Checks an id that a plug-in names: the word of the metrics and the reason if it is unusable.
pub fn check_key_id(id: &str) -> Result<(), (&'static str, String)> {
    if id.is_empty() {
        return Err(("empty", "the key id is empty".to_owned()));
    }
    if id.len() > LONGEST_ID {
        return Err(("too_long", format!("the key id has {} bytes, more than {LONGEST_ID}", id.len())));
    }
    Ok(())
}

impl Envelope {
    /// What a plug-in's answer to `Encrypt` becomes; `data` is filled in for each value.
    pub fn new(key_id: String, source: Vec<u8>, annotations: BTreeMap<String, Vec<u8>>) -> Self {
        Self { data: Vec::new(), key_id, source, annotations, source_type: SEED_OF_KEYS }
    }

    /// Whether everything but the data can be stored.
    pub fn check(&self) -> Result<(), String> {
        if !matches!(self.source_type, KEY_ITSELF | SEED_OF_KEYS) {
            return Err(format!("unknown type {} of the sealed key", self.source_type));
        }
        if self.source.is_empty() || self.source.len() > LONGEST_SOURCE {
            return Err(format!("the sealed key has {} bytes, not 1 to {LONGEST_SOURCE}", self.source.len()));
        }
        check_key_id(&self.key_id).map_err(|(_, why)| why)?;
        let mut size = 0;
        for (key, value) in &self.annotations {
            let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
            if !key.contains('.') || !key.chars().all(valid) {
                return Err(format!("the annotation {key:?} is no fully qualified domain name"));
            }
            size += key.len() + value.len();
        }
        if size > LARGEST_ANNOTATIONS {
            return Err(format!("the annotations have {size} bytes, more than {LARGEST_ANNOTATIONS}"));
        }
        Ok(())
    }

    /// Reads the stored form.
    pub fn read(stored: &[u8]) -> Result<Self, String> {
        let envelope = Self::decode(stored).map_err(|error| error.to_string())?;
        if envelope.data.is_empty() {
            return Err("it holds no data".to_owned());
        }
        envelope.check()?;
        Ok(envelope)
    }

    /// Names the key: what the plug-in must be asked for to open it.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let mut add = |bytes: &[u8]| {
            digest.update((bytes.len() as u64).to_le_bytes());
            digest.update(bytes);
        };
        add(&self.source_type.to_le_bytes());
        add(&self.source);
        add(self.key_id.as_bytes());
        for (key, value) in &self.annotations {
            add(key.as_bytes());
            add(value);
        }
        digest.finalize().into()
    }

    /// The key that the plug-in's answer to `Decrypt` is.
    pub fn key(&self, plain: &[u8]) -> Result<Key, CipherError> {
        match self.source_type {
            SEED_OF_KEYS if plain.len() >= SEED => Ok(Key::Seed(plain.to_vec())),
            SEED_OF_KEYS => Err(CipherError::KeySize(plain.len())),
            _ => Cipher::gcm(plain).map(Key::Whole),
        }
    }
}

/// What opens and seals values.
pub enum Key {
    Seed(Vec<u8>),
    /// Values that older servers wrote.
    Whole(Cipher),
}

struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        SEED
    }
}

fn derive(seed: &[u8], info: &[u8]) -> Result<Cipher, CipherError> {
    let mut key = [0; SEED];
    let info = [info];
    let expanded = Prk::new_less_safe(HKDF_SHA256, seed);
    let expanded = expanded.expand(&info, Length).and_then(|okm| okm.fill(&mut key));
    expanded.map_err(|_| CipherError::Random)?;
    Cipher::gcm(&key)
}

impl Key {
    /// A new seed.
    pub fn generate() -> Result<Vec<u8>, CipherError> {
        let mut seed = vec![0; SEED];
        SystemRandom::new().fill(&mut seed).map_err(|_| CipherError::Random)?;
        Ok(seed)
    }

    /// The data of a value.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        match self {
            Self::Whole(cipher) => cipher.seal(context, plain),
            Self::Seed(seed) => {
                let mut info = [0; INFO];
                SystemRandom::new().fill(&mut info).map_err(|_| CipherError::Random)?;
                Ok([&info[..], &derive(seed, &info)?.seal(context, plain)?].concat())
            }
        }
    }

    /// The value of data.
    pub fn open(&self, context: &[u8], data: &[u8]) -> Result<Vec<u8>, CipherError> {
        match self {
            Self::Whole(cipher) => cipher.open(context, data),
            Self::Seed(_) if data.len() < INFO => Err(CipherError::Short),
            Self::Seed(seed) => {
                let (info, data) = data.split_at(INFO);
                derive(seed, info)?.open(context, data)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_sealed_with_keys_of_their_own() {
        let key = Key::Seed(Key::generate().expect("random"));
        let sealed = key.seal(b"/a", b"plain").expect("sealed");
        assert_ne!(sealed[..INFO], key.seal(b"/a", b"plain").expect("sealed")[..INFO]);
        assert_eq!(key.open(b"/a", &sealed).expect("opened"), b"plain");
        assert_eq!(key.open(b"/b", &sealed), Err(CipherError::Altered));
        assert_eq!(key.open(b"/a", &sealed[..20]), Err(CipherError::Short));
    }

    #[test]
    fn what_a_plug_in_may_not_answer_is_refused() {
        let good = Envelope::new("id".to_owned(), vec![1], [("a.b".to_owned(), vec![1])].into());
        assert_eq!(good.check(), Ok(()));
        let check = |change: fn(&mut Envelope), expect: &str| {
            let mut bad = good.clone();
            change(&mut bad);
            let error = bad.check().expect_err("bad");
            assert!(error.contains(expect), "{error}");
            assert_ne!(bad.fingerprint(), good.fingerprint());
        };
        check(|e| e.key_id.clear(), "key id is empty");
        check(|e| e.key_id = "x".repeat(2000), "2000 bytes");
        check(|e| e.source.clear(), "sealed key has 0 bytes");
        check(|e| e.source_type = 7, "unknown type 7");
        check(|e| drop(e.annotations.insert("plain".to_owned(), vec![])), "\"plain\"");
        check(|e| drop(e.annotations.insert("a.c".to_owned(), vec![0; 40_000])), "annotations have");
        assert!(Envelope::read(&good.encode_to_vec()).is_err(), "no data");
        assert!(Envelope::read(b"\xff\xff").is_err());
    }
}
