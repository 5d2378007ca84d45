//! Private keys: ECDSA on P-256 with SHA-256, the one algorithm that Carrack itself makes.

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};

use crate::{Error, der};

/// A P-256 key, kept in its PKCS #8 form.
#[derive(Clone)]
pub struct Key {
    pkcs8: Vec<u8>,
    public: Vec<u8>,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A new random key.
    pub fn generate() -> Result<Self, Error> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| Error::Random)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads a PKCS #8 document in DER.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, Error> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &SystemRandom::new())
            .map_err(|e| Error::invalid("P-256 private key", e))?;
        Ok(Self { pkcs8: der.to_vec(), public: pair.public_key().as_ref().to_vec() })
    }

    /// Reads a `PRIVATE KEY` PEM block.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let block = pem::parse(text).map_err(|e| Error::invalid("private key PEM", e))?;
        if block.tag() != "PRIVATE KEY" {
            return Err(Error::invalid("private key PEM", format!("the block is a {}", block.tag())));
        }
        Self::from_pkcs8(block.contents())
    }

    /// The `PRIVATE KEY` PEM block.
    pub fn to_pem(&self) -> String {
        crate::pem_block("PRIVATE KEY", &self.pkcs8)
    }

    /// The `PUBLIC KEY` PEM block.
    pub fn public_pem(&self) -> String {
        crate::pem_block("PUBLIC KEY", &self.public_info())
    }

    /// The PKCS #8 document in DER.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The uncompressed public point: 0x04, then x and y of 32 bytes each.
    pub fn public_point(&self) -> &[u8] {
        &self.public
    }

    /// The SubjectPublicKeyInfo in DER.
    pub fn public_info(&self) -> Vec<u8> {
        let algorithm =
            der::sequence(&[&der::oid(&[1, 2, 840, 10045, 2, 1]), &der::oid(&[1, 2, 840, 10045, 3, 1, 7])]);
        der::sequence(&[&algorithm, &der::bits(0, &self.public)])
    }

    /// An ASN.1 signature, as certificates carry it.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.sign_as(&ECDSA_P256_SHA256_ASN1_SIGNING, message)
    }

    /// A fixed-length signature (r, then s), as JSON web tokens carry it (RFC 7518, 3.4).
    pub fn sign_fixed(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.sign_as(&ECDSA_P256_SHA256_FIXED_SIGNING, message)
    }

    fn sign_as(
        &self,
        algorithm: &'static ring::signature::EcdsaSigningAlgorithm,
        message: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &self.pkcs8, &random).map_err(|_| Error::Sign)?;
        Ok(pair.sign(&random, message).map_err(|_| Error::Sign)?.as_ref().to_vec())
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}
