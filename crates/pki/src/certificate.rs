//! X.509 certificates (RFC 5280): what one shall say, and an authority that says it.

use std::net::IpAddr;

use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, Key, der, key};

/// How long before the present a certificate begins, so that a peer whose clock is behind accepts it.
const BACKDATE: Duration = Duration::minutes(5);
/// A life below this is short.
const SHORT: Duration = Duration::hours(8);

/// A certificate and its private key, both in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// The PKCS #8 private key.
    pub key_pem: String,
}

/// What a certificate may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Signing of content and handshakes.
    DigitalSignature,
    /// Encryption of keys (RSA key exchange).
    KeyEncipherment,
    /// TLS server.
    ServerAuth,
    /// TLS client.
    ClientAuth,
    /// Another usage: a bit of the key usage (RFC 5280, 4.2.1.3).
    Bit(u8),
    /// Another usage: an identifier of the extended key usage.
    Extended(&'static [u64]),
}

impl Usage {
    /// A usage by its name in `certificates.k8s.io` (upstream: `authority/policies.go`).
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "signing" | "digital signature" => Self::DigitalSignature,
            "content commitment" => Self::Bit(1),
            "key encipherment" => Self::KeyEncipherment,
            "data encipherment" => Self::Bit(3),
            "key agreement" => Self::Bit(4),
            "cert sign" => Self::Bit(5),
            "crl sign" => Self::Bit(6),
            "encipher only" => Self::Bit(7),
            "decipher only" => Self::Bit(8),
            "any" => Self::Extended(&[2, 5, 29, 37, 0]),
            "server auth" => Self::ServerAuth,
            "client auth" => Self::ClientAuth,
            "code signing" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 3]),
            "email protection" | "s/mime" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 4]),
            "ipsec end system" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 5]),
            "ipsec tunnel" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 6]),
            "ipsec user" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 7]),
            "timestamping" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 8]),
            "ocsp signing" => Self::Extended(&[1, 3, 6, 1, 5, 5, 7, 3, 9]),
            "microsoft sgc" => Self::Extended(&[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
            "netscape sgc" => Self::Extended(&[2, 16, 840, 1, 113_730, 4, 1]),
            _ => return None,
        })
    }
}

/// The alternative names of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AltNames {
    /// Host names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

impl AltNames {
    pub(crate) fn is_empty(&self) -> bool {
        self.dns.is_empty() && self.ips.is_empty() && self.emails.is_empty() && self.uris.is_empty()
    }

    pub(crate) fn to_der(&self) -> Vec<u8> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        names.extend(self.emails.iter().map(|s| der::implicit(1, s.as_bytes())));
        names.extend(self.dns.iter().map(|s| der::implicit(2, s.as_bytes())));
        names.extend(self.uris.iter().map(|s| der::implicit(6, s.as_bytes())));
        names.extend(self.ips.iter().map(|ip| match ip {
            IpAddr::V4(v4) => der::implicit(7, &v4.octets()),
            IpAddr::V6(v6) => der::implicit(7, &v6.octets()),
        }));
        der::element(der::SEQUENCE, &names.concat())
    }
}

/// What a leaf certificate shall say.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    /// CN of the subject: the user name of a client.
    pub common_name: &'a str,
    /// O of the subject: the groups of a client.
    pub organizations: &'a [String],
    /// Alternative names.
    pub names: &'a AltNames,
    /// Key usages.
    pub usages: &'a [Usage],
    /// How long it is valid.
    pub lifetime: Duration,
}

/// A certificate authority: a key, its own certificate, and its name.
#[derive(Clone, Debug)]
pub struct Authority {
    key: Key,
    cert_der: Vec<u8>,
    name: Vec<u8>,
    not_after: OffsetDateTime,
}

impl Authority {
    /// A new self-signed authority named `common_name`.
    pub fn generate(common_name: &str, lifetime: Duration, now: OffsetDateTime) -> Result<Self, Error> {
        let key = Key::generate()?;
        let name = subject(common_name, &[]);
        let info = key.public_info();
        let extensions = [
            // keyCertSign, cRLSign, digitalSignature and keyEncipherment, as upstream's own authorities have.
            extension(&[2, 5, 29, 15], true, &der::bits(1, &[0b1010_0110])),
            extension(&[2, 5, 29, 19], true, &der::sequence(&[&der::boolean(true)])),
            extension(&[2, 5, 29, 14], false, &der::octets(&key_id(key.public_point()))),
        ];
        let not_after = now + lifetime;
        let cert_der = build(&key, &name, &name, &info, now - BACKDATE, not_after, &extensions)?;
        Ok(Self { key, cert_der, name, not_after })
    }

    /// An authority from its certificate and key, which must belong together.
    pub fn from_pem(cert: &str, key: &str) -> Result<Self, Error> {
        let key = Key::from_pem(key)?;
        let cert_der = certificate_der(cert)?;
        let (name, not_after) = {
            let parsed = parse(&cert_der)?;
            if parsed.public_key().subject_public_key.data.as_ref() != key.public_point() {
                return Err(Error::invalid("authority", "the key does not belong to the certificate"));
            }
            (parsed.subject().as_raw().to_vec(), parsed.validity().not_after.to_datetime())
        };
        Ok(Self { key, cert_der, name, not_after })
    }

    /// The authority's certificate in PEM.
    pub fn cert_pem(&self) -> String {
        crate::pem_block("CERTIFICATE", &self.cert_der)
    }

    /// The authority's certificate in DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert_der
    }

    /// The authority's key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// When the authority's certificate ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Makes a key and a certificate for it.
    pub fn issue(&self, leaf: &Leaf<'_>, now: OffsetDateTime) -> Result<Identity, Error> {
        let key = Key::generate()?;
        let cert = self.certify(leaf, &key.public_info(), now)?;
        Ok(Identity { cert_pem: crate::pem_block("CERTIFICATE", &cert), key_pem: key.to_pem() })
    }

    /// Signs a request, in PEM: with the usages of these names (`client auth`), for so many seconds from now. Whether it
    /// deserves it was decided before.
    pub fn sign(&self, request: &crate::Request, usages: &[&str], seconds: i64) -> Result<String, Error> {
        let named = |name: &&str| {
            Usage::named(name)
                .ok_or_else(|| Error::invalid("key usage", format!("unrecognized usage {name:?}")))
        };
        let usages = usages.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let leaf = Leaf {
            common_name: &request.common_name,
            organizations: &request.organizations,
            names: &request.names,
            usages: &usages,
            lifetime: Duration::seconds(seconds),
        };
        let der = self.certify(&leaf, &request.public_info, OffsetDateTime::now_utc())?;
        Ok(crate::pem_block("CERTIFICATE", &der))
    }

    /// A certificate in DER for somebody else's public key (a SubjectPublicKeyInfo). It never outlives the authority.
    pub fn certify(
        &self,
        leaf: &Leaf<'_>,
        public_info: &[u8],
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Error> {
        let mut extensions = usage_extensions(leaf.usages)?;
        extensions.push(extension(&[2, 5, 29, 19], true, &der::sequence(&[])));
        let authority_id = der::implicit(0, &key_id(self.key.public_point()));
        extensions.push(extension(&[2, 5, 29, 35], false, &der::sequence(&[&authority_id])));
        if !leaf.names.is_empty() {
            extensions.push(extension(&[2, 5, 29, 17], false, &leaf.names.to_der()));
        }
        let subject = subject(leaf.common_name, leaf.organizations);
        // A long life counts from the backdated beginning, a short one from now (upstream: `PermissiveSigningPolicy`).
        let start = if leaf.lifetime < SHORT { now } else { now - BACKDATE };
        let not_after = (start + leaf.lifetime).min(self.not_after);
        build(&self.key, &self.name, &subject, public_info, now - BACKDATE, not_after, &extensions)
    }
}

/// The extensions for the key usage and the extended key usage.
fn usage_extensions(usages: &[Usage]) -> Result<Vec<Vec<u8>>, Error> {
    let mut bits = 0u16;
    let mut extended: Vec<&[u64]> = Vec::new();
    for usage in usages {
        match usage {
            Usage::DigitalSignature => bits |= 0x8000,
            Usage::KeyEncipherment => bits |= 0x8000 >> 2,
            Usage::Bit(bit) if *bit < 9 => bits |= 0x8000 >> bit,
            Usage::Bit(_) => return Err(Error::invalid("key usage", "there is no such bit")),
            Usage::ServerAuth => extended.push(&[1, 3, 6, 1, 5, 5, 7, 3, 1]),
            Usage::ClientAuth => extended.push(&[1, 3, 6, 1, 5, 5, 7, 3, 2]),
            Usage::Extended(id) => extended.push(id),
        }
    }
    let mut extensions = Vec::new();
    if bits != 0 {
        let bytes = bits.to_be_bytes();
        let bytes: &[u8] = if bytes[1] == 0 { &bytes[..1] } else { &bytes };
        let unused = bytes[bytes.len() - 1].trailing_zeros() as u8;
        extensions.push(extension(&[2, 5, 29, 15], true, &der::bits(unused, bytes)));
    }
    let mut seen: Vec<&[u64]> = Vec::new();
    for id in extended {
        if !seen.contains(&id) {
            seen.push(id);
        }
    }
    if !seen.is_empty() {
        let ids: Vec<u8> = seen.iter().flat_map(|id| der::oid(id)).collect();
        extensions.push(extension(&[2, 5, 29, 37], false, &der::element(der::SEQUENCE, &ids)));
    }
    Ok(extensions)
}

/// When the first certificate of a PEM text ends, in seconds since 1970.
pub fn not_after(text: &str) -> Result<i64, Error> {
    let der = certificate_der(text)?;
    Ok(parse(&der)?.validity().not_after.timestamp())
}

/// The first certificate of a PEM text, in DER.
pub fn certificate_der(text: &str) -> Result<Vec<u8>, Error> {
    let block = pem::parse(text).map_err(|e| Error::invalid("certificate PEM", e))?;
    if block.tag() != "CERTIFICATE" {
        return Err(Error::invalid("certificate PEM", format!("the block is a {}", block.tag())));
    }
    Ok(block.into_contents())
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    let (_, parsed) = X509Certificate::from_der(der).map_err(|e| Error::invalid("certificate", e))?;
    Ok(parsed)
}

/// O before CN, each O its own relative name: the order in which Go writes a subject.
pub(crate) fn subject(common_name: &str, organizations: &[String]) -> Vec<u8> {
    let attribute =
        |arcs: &[u64], text: &str| der::set(&[&der::sequence(&[&der::oid(arcs), &der::utf8(text)])]);
    let mut names = Vec::new();
    for organization in organizations {
        names.extend(attribute(&[2, 5, 4, 10], organization));
    }
    if !common_name.is_empty() {
        names.extend(attribute(&[2, 5, 4, 3], common_name));
    }
    der::element(der::SEQUENCE, &names)
}

pub(crate) fn extension(arcs: &[u64], critical: bool, value: &[u8]) -> Vec<u8> {
    let value = der::octets(value);
    if critical {
        der::sequence(&[&der::oid(arcs), &der::boolean(true), &value])
    } else {
        der::sequence(&[&der::oid(arcs), &value])
    }
}

/// Method 1 of RFC 7093: the leftmost 160 bits of the SHA-256 of the public key.
fn key_id(point: &[u8]) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, point).as_ref()[..20].to_vec()
}

fn build(
    signer: &Key,
    issuer: &[u8],
    subject: &[u8],
    public_info: &[u8],
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    extensions: &[Vec<u8>],
) -> Result<Vec<u8>, Error> {
    let algorithm = der::sequence(&[&der::oid(&[1, 2, 840, 10045, 4, 3, 2])]);
    let mut serial: [u8; 16] = key::random()?;
    serial[0] = (serial[0] & 0x7f) | 0x40;
    let body = der::sequence(&[
        &der::context(0, &der::integer(&[2])),
        &der::integer(&serial),
        &algorithm,
        issuer,
        &der::sequence(&[&der::time(not_before), &der::time(not_after)]),
        subject,
        public_info,
        &der::context(3, &der::element(der::SEQUENCE, &extensions.concat())),
    ]);
    let signature = signer.sign(&body)?;
    Ok(der::sequence(&[&body, &algorithm, &der::bits(0, &signature)]))
}
