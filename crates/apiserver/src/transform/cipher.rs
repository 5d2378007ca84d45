//! The ciphers that an encryption configuration can name, in upstream's stored forms (`apiserver/pkg/storage/value`): what
//! one server wrote the other reads. `context` is bound as additional data where the cipher has such.

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::generic_array::GenericArray;
use aes::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm};
use ring::rand::{SecureRandom, SystemRandom};

const GCM_NONCE: usize = 12;
const BLOCK: usize = 16;
const SECRETBOX_NONCE: usize = 24;

/// Why a value cannot be sealed or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CipherError {
    #[error("the stored value is too short")]
    Short,
    #[error("the stored value was altered, belongs to another place, or its key is wrong")]
    Altered,
    #[error("the system gave no random bytes")]
    Random,
    #[error("a key of {0} bytes does not fit the cipher")]
    KeySize(usize),
}

fn random<const N: usize>() -> Result<[u8; N], CipherError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| CipherError::Random)?;
    Ok(bytes)
}

/// A cipher with its key.
#[derive(Clone)]
pub enum Cipher {
    Gcm128(Box<Aes128Gcm>),
    Gcm192(Box<AesGcm<Aes192, aes::cipher::consts::U12>>),
    Gcm256(Box<Aes256Gcm>),
    /// The key of 16, 24 or 32 bytes.
    Cbc(Vec<u8>),
    Secretbox(Box<crypto_secretbox::XSalsa20Poly1305>),
}

impl Cipher {
    /// AES-GCM; the key has 16, 24 or 32 bytes.
    pub fn gcm(key: &[u8]) -> Result<Self, CipherError> {
        let wrong = |_| CipherError::KeySize(key.len());
        Ok(match key.len() {
            16 => Self::Gcm128(Box::new(Aes128Gcm::new_from_slice(key).map_err(wrong)?)),
            24 => Self::Gcm192(Box::new(AesGcm::new_from_slice(key).map_err(wrong)?)),
            _ => Self::Gcm256(Box::new(Aes256Gcm::new_from_slice(key).map_err(wrong)?)),
        })
    }

    /// AES-CBC with PKCS #7 padding, which does not notice every alteration.
    pub fn cbc(key: &[u8]) -> Result<Self, CipherError> {
        match key.len() {
            16 | 24 | 32 => Ok(Self::Cbc(key.to_vec())),
            size => Err(CipherError::KeySize(size)),
        }
    }

    /// XSalsa20 and Poly1305.
    pub fn secretbox(key: &[u8]) -> Result<Self, CipherError> {
        let cipher = crypto_secretbox::XSalsa20Poly1305::new_from_slice(key);
        Ok(Self::Secretbox(Box::new(cipher.map_err(|_| CipherError::KeySize(key.len()))?)))
    }

    /// What is stored of a value.
    pub fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        let failed = |_| CipherError::Altered;
        let payload = Payload { msg: plain, aad: context };
        match self {
            Self::Gcm128(_) | Self::Gcm192(_) | Self::Gcm256(_) => {
                let nonce = random::<GCM_NONCE>()?;
                let own = GenericArray::from_slice(&nonce);
                let sealed = match self {
                    Self::Gcm128(gcm) => gcm.encrypt(own, payload),
                    Self::Gcm192(gcm) => gcm.encrypt(own, payload),
                    Self::Gcm256(gcm) => gcm.encrypt(own, payload),
                    _ => Err(aes_gcm::Error),
                };
                Ok([&nonce[..], &sealed.map_err(failed)?].concat())
            }
            Self::Cbc(key) => {
                let iv = random::<BLOCK>()?;
                Ok([&iv[..], &encrypt_cbc(key, &iv, plain)?].concat())
            }
            Self::Secretbox(secretbox) => {
                let nonce = random::<SECRETBOX_NONCE>()?;
                let sealed = secretbox.encrypt(GenericArray::from_slice(&nonce), plain);
                Ok([&nonce[..], &sealed.map_err(failed)?].concat())
            }
        }
    }

    /// The value that was stored.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CipherError> {
        let size = match self {
            Self::Cbc(_) => BLOCK,
            Self::Secretbox(_) => SECRETBOX_NONCE,
            _ => GCM_NONCE,
        };
        if sealed.len() < size {
            return Err(CipherError::Short);
        }
        let (nonce, body) = sealed.split_at(size);
        let payload = Payload { msg: body, aad: context };
        let opened = match self {
            Self::Gcm128(gcm) => gcm.decrypt(GenericArray::from_slice(nonce), payload),
            Self::Gcm192(gcm) => gcm.decrypt(GenericArray::from_slice(nonce), payload),
            Self::Gcm256(gcm) => gcm.decrypt(GenericArray::from_slice(nonce), payload),
            Self::Cbc(key) => return decrypt_cbc(key, nonce, body),
            Self::Secretbox(secretbox) => secretbox.decrypt(GenericArray::from_slice(nonce), body),
        };
        opened.map_err(|_| CipherError::Altered)
    }
}

fn encrypt_cbc(key: &[u8], iv: &[u8], plain: &[u8]) -> Result<Vec<u8>, CipherError> {
    let wrong = |_| CipherError::KeySize(key.len());
    Ok(match key.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(key, iv)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(key, iv)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(key, iv)
            .map_err(wrong)?
            .encrypt_padded_vec_mut::<Pkcs7>(plain),
    })
}

fn decrypt_cbc(key: &[u8], iv: &[u8], body: &[u8]) -> Result<Vec<u8>, CipherError> {
    let wrong = |_| CipherError::KeySize(key.len());
    let opened = match key.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(key, iv)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(body),
        24 => cbc::Decryptor::<Aes192>::new_from_slices(key, iv)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(body),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(key, iv)
            .map_err(wrong)?
            .decrypt_padded_vec_mut::<Pkcs7>(body),
    };
    opened.map_err(|_| CipherError::Altered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_gives_back_what_it_took_and_notices_alterations() {
        let ciphers = [16, 24, 32]
            .into_iter()
            .flat_map(|size| [Cipher::gcm(&vec![7; size]), Cipher::cbc(&vec![7; size])])
            .chain([Cipher::secretbox(&[7; 32])]);
        for cipher in ciphers {
            let cipher = cipher.expect("a cipher");
            for plain in [&b""[..], b"x", &[b'y'; 16], &[b'z'; 1000]] {
                let sealed = cipher.seal(b"/a", plain).expect("sealed");
                assert_ne!(sealed, cipher.seal(b"/a", plain).expect("sealed"), "no nonce is used twice");
                assert_eq!(cipher.open(b"/a", &sealed).expect("opened"), plain);
                assert_eq!(cipher.open(b"/a", &sealed[..5]), Err(CipherError::Short));
                if !matches!(cipher, Cipher::Cbc(_)) {
                    let mut altered = sealed.clone();
                    *altered.last_mut().expect("a byte") ^= 1;
                    assert_eq!(cipher.open(b"/a", &altered), Err(CipherError::Altered));
                }
                if matches!(cipher, Cipher::Gcm128(_) | Cipher::Gcm192(_) | Cipher::Gcm256(_)) {
                    assert_eq!(cipher.open(b"/b", &sealed), Err(CipherError::Altered), "moved");
                }
            }
        }
        for size in [0, 15, 33] {
            assert!(Cipher::gcm(&vec![0; size]).is_err() && Cipher::cbc(&vec![0; size]).is_err());
        }
        assert!(Cipher::secretbox(&[0; 16]).is_err());
    }
}
