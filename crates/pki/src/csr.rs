//! Certificate signing requests (PKCS #10, RFC 2986): reading one, with its proof of possession checked.

use std::net::IpAddr;

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use crate::{AltNames, Error};

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
