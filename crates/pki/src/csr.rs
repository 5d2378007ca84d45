//! Certificate signing requests (PKCS #10, RFC 2986): reading one, with its proof of possession checked.

use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::certificate::{extension, subject};
use crate::{AltNames, Error, der};

/// What a request asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// CN of the subject.
    pub common_name: String,
    /// O of the subject.
    pub organizations: Vec<String>,
    /// Alternative names.
    pub names: AltNames,
    /// The SubjectPublicKeyInfo in DER.
    pub public_info: Vec<u8>,
}

impl Request {
    /// Makes a `CERTIFICATE REQUEST` PEM block that is signed by `key`.
    pub fn create(
        key: &crate::Key,
        common_name: &str,
        organizations: &[String],
        names: &AltNames,
    ) -> Result<String, Error> {
        let mut attributes = Vec::new();
        if !names.is_empty() {
            // extensionRequest of PKCS #9, with the alternative names as the one extension.
            let extension = extension(&[2, 5, 29, 17], false, &names.to_der());
            let extensions = der::set(&[&der::sequence(&[&extension])]);
            attributes = der::sequence(&[&der::oid(&[1, 2, 840, 113_549, 1, 9, 14]), &extensions]);
        }
        let info = der::sequence(&[
            &der::integer(&[0]),
            &subject(common_name, organizations),
            &key.public_info(),
            &der::context(0, &attributes),
        ]);
        let ecdsa_with_sha256 = der::sequence(&[&der::oid(&[1, 2, 840, 10_045, 4, 3, 2])]);
        let signature = der::bits(0, &key.sign(&info)?);
        let request = der::sequence(&[&info, &ecdsa_with_sha256, &signature]);
        Ok(crate::pem_block("CERTIFICATE REQUEST", &request))
    }

    /// Reads a `CERTIFICATE REQUEST` PEM block and checks that it is signed by the key that it names.
    pub fn from_pem(text: &str) -> Result<Self, Error> {
        let what = "certificate request";
        let block = pem::parse(text).map_err(|e| Error::invalid(what, e))?;
        if block.tag() != "CERTIFICATE REQUEST" {
            return Err(Error::invalid(what, "PEM block type must be CERTIFICATE REQUEST"));
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(block.contents()).map_err(|e| Error::invalid(what, e))?;
        if !rest.is_empty() {
            return Err(Error::invalid(what, "trailing data"));
        }
        csr.verify_signature().map_err(|e| Error::invalid(what, e))?;
        let info = &csr.certification_request_info;
        let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            value.as_str().map(str::to_owned).map_err(|e| Error::invalid(what, e))
        };
        let mut common_name = String::new();
        for value in info.subject.iter_common_name() {
            common_name = text(value)?;
        }
        let organizations = info.subject.iter_organization().map(text).collect::<Result<_, _>>()?;
        let mut names = AltNames::default();
        for extension in csr.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(san) = extension {
                for name in &san.general_names {
                    read_name(name, &mut names)?;
                }
            }
        }
        Ok(Self { common_name, organizations, names, public_info: info.subject_pki.raw.to_vec() })
    }
}

fn read_name(name: &GeneralName<'_>, names: &mut AltNames) -> Result<(), Error> {
    match name {
        GeneralName::DNSName(s) => names.dns.push((*s).to_owned()),
        GeneralName::RFC822Name(s) => names.emails.push((*s).to_owned()),
        GeneralName::URI(s) => names.uris.push((*s).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let ip = match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).map(IpAddr::from).ok(),
                16 => <[u8; 16]>::try_from(*bytes).map(IpAddr::from).ok(),
                _ => None,
            };
            names.ips.push(ip.ok_or_else(|| Error::invalid("certificate request", "bad IP address"))?);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_it_was_made_with() {
        let key = crate::Key::generate().unwrap();
        let names = AltNames {
            dns: vec!["node-1".into()],
            ips: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
            ..AltNames::default()
        };
        let text = Request::create(&key, "system:node:node-1", &["system:nodes".into()], &names).unwrap();
        let read = Request::from_pem(&text).unwrap();
        assert_eq!(
            (read.common_name.as_str(), read.organizations),
            ("system:node:node-1", vec!["system:nodes".into()])
        );
        assert_eq!((read.names.dns, read.names.ips), (names.dns, names.ips));
        assert_eq!(read.public_info, key.public_info());
        let bare = Request::create(&key, "a", &[], &AltNames::default()).unwrap();
        assert!(Request::from_pem(&bare).unwrap().names.dns.is_empty());
    }
}
