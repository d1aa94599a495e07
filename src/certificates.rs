//! Certificates and keys from files in PEM format. Each error is one line that names the file.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateRevocationListDer;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// The certificates of a file, in its order; at least one.
///
/// # Errors
/// The file cannot be read, or has none.
pub(crate) fn certificates(path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let fault = |error: &dyn std::fmt::Display| format!("{path}: no certificates in PEM format: {error}");
    let found = CertificateDer::pem_file_iter(Path::new(path)).map_err(|error| fault(&error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| fault(&error))?;
    if found.is_empty() { Err(fault(&"there is none")) } else { Ok(found) }
}

/// The private key of a file.
///
/// # Errors
/// The file cannot be read, or has none.
pub(crate) fn private_key(path: &str) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_file(Path::new(path))
        .map_err(|error| format!("{path}: no private key in PEM format: {error}"))
}

/// Those who vouch: the certificates of a file.
///
/// # Errors
/// As [`certificates`], or one of them cannot vouch for anybody.
pub(crate) fn roots(path: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(roots)
}

/// The certificate revocation lists of a file; at least one.
///
/// # Errors
/// The file cannot be read, or has none.
pub(crate) fn revocation_lists(path: &str) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let fault = |error: &dyn std::fmt::Display| format!("{path}: no revocation lists in PEM format: {error}");
    let found = CertificateRevocationListDer::pem_file_iter(Path::new(path)).map_err(|error| fault(&error))?;
    let found = found.collect::<Result<Vec<_>, _>>().map_err(|error| fault(&error))?;
    if found.is_empty() { Err(fault(&"there is none")) } else { Ok(found) }
}
