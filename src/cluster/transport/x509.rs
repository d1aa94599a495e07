//! What is read from certificates and revocation lists beside what the TLS library verifies: serial numbers, digests,
//! ends, and what a list names.
//!
//! Nothing is trusted and nothing is copied: a field that is not as it should be makes the whole `None`. Whether a
//! signature is right is asked elsewhere.

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};

use crate::cluster::transport::handshake::Role;
use crate::core::cluster::membership::CertificateId;
use crate::core::fairness::hash::hex;

const INTEGER: u8 = 0x02;
#[cfg(any(feature = "service", test))]
const OBJECT: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
#[cfg(any(feature = "service", test))]
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// The version of a certificate, where it has one.
const VERSION: u8 = 0xa0;
/// The object that a common name is known by: 2.5.4.3.
#[cfg(any(feature = "service", test))]
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// Bytes of a length behind its first one; longer values would not fit in memory.
const LENGTH_BYTES_MAX: usize = 4;

/// Values of DER, one behind the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The tag and the content of the next value.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let count = usize::from(first & 0x7f);
            if !(1..=LENGTH_BYTES_MAX).contains(&count) {
                return None;
            }
            let (bytes, rest) = rest.split_at_checked(count)?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next value, if it has this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }

    /// What is inside the next value, if that is a sequence.
    fn enter(&mut self) -> Option<Der<'a>> {
        self.take(SEQUENCE).map(Der)
    }
}

/// Seconds since 1970 of a time as certificates have it: `YYMMDDHHMMSSZ`, or with four digits of the year.
fn seconds(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |part: &str| part.parse::<i64>().ok();
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = text.split_at(2);
            let year = number(year)?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest) // RFC 5280, 4.1.2.5.1.
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = text.split_at(4);
            (number(year)?, rest)
        }
        _ => return None,
    };
    let field = |at: usize| rest.get(at..at + 2).and_then(number);
    let (month, day, hour, minute, second) = (field(0)?, field(2)?, field(4)?, field(6)?, field(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, whose years begin in March here: so the leap day is the
/// last of a year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // The first of March of the year 0 is 719,468 days before 1970.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// What is read from one certificate.
pub(crate) struct CertificateFacts {
    pub(crate) id: CertificateId,
    /// Its last moment, in seconds since 1970.
    pub(crate) ends_at_s: i64,
}

impl CertificateFacts {
    /// Reads a certificate; `None` when it is none.
    pub(crate) fn read(certificate: &[u8]) -> Option<Self> {
        let mut inside = Der(certificate).enter()?.enter()?;
        let (tag, first) = inside.next()?;
        let serial = if tag == VERSION { inside.take(INTEGER)? } else { (tag == INTEGER).then_some(first)? };
        inside.take(SEQUENCE)?; // How it is signed.
        inside.take(SEQUENCE)?; // By whom.
        let mut validity = inside.enter()?;
        validity.next()?; // Its first moment.
        let (tag, text) = validity.next()?;
        let id = CertificateId::new(&hex(serial), &hex(&Sha256::digest(certificate)));
        Some(CertificateFacts { id, ends_at_s: seconds(tag, text)? })
    }
}

/// The common name of whoever is called by nothing else, by the inside of its name; `None` for every other name.
#[cfg(any(feature = "service", test))]
pub(crate) fn common_name(name: &[u8]) -> Option<String> {
    let mut names = Der(name);
    let mut attribute = Der(names.take(SET)?).enter()?;
    let is_common_name = attribute.take(OBJECT)? == COMMON_NAME && names.0.is_empty();
    let (_, text) = attribute.next()?;
    String::from_utf8(text.to_vec()).ok().filter(|_| is_common_name)
}

/// What a revocation list names: serial numbers, and since when each does not count, in seconds since 1970. `None` when
/// it is no list.
#[cfg(any(feature = "service", test))]
pub(crate) fn revoked(list: &[u8]) -> Option<Vec<(Vec<u8>, i64)>> {
    let mut inside = Der(list).enter()?.enter()?;
    let (tag, _) = inside.next()?;
    if tag == INTEGER {
        inside.take(SEQUENCE)?; // It had a version: now how it is signed.
    }
    inside.take(SEQUENCE)?; // By whom.
    let is_time = |(tag, _): &(u8, &[u8])| matches!(*tag, UTC_TIME | GENERALIZED_TIME);
    inside.next().filter(is_time)?; // Since when it is in force.
    let mut next = inside.next();
    if next.as_ref().is_some_and(is_time) {
        next = inside.next(); // When the next one comes.
    }
    let Some((SEQUENCE, entries)) = next else { return Some(Vec::new()) }; // It names none.
    let (mut entries, mut found) = (Der(entries), Vec::new());
    while !entries.0.is_empty() {
        let mut entry = entries.enter()?;
        let serial = entry.take(INTEGER)?.to_vec();
        let (tag, text) = entry.next()?;
        found.push((serial, seconds(tag, text)?));
    }
    Some(found)
}

/// The certificate that a peer has shown, and those behind it, as the handshake has found them good.
#[derive(Debug)]
pub struct Shown {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) id: CertificateId,
    /// Which side this node was.
    pub(crate) role: Role,
    /// When that was: a certificate that ends later does not end a link.
    pub(crate) at: UnixTime,
}

impl Shown {
    /// What a peer has shown just now; `None` for no certificate, or one that cannot be read.
    pub(crate) fn new(chain: &[CertificateDer<'static>], role: Role) -> Option<Self> {
        let facts = CertificateFacts::read(chain.first()?)?;
        Some(Shown { chain: chain.to_vec(), id: facts.id, role, at: UnixTime::now() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_certificates_are_seconds() {
        let utc = |text: &str| seconds(UTC_TIME, text.as_bytes());
        let general = |text: &str| seconds(GENERALIZED_TIME, text.as_bytes());
        assert_eq!((utc("700101000000Z"), general("19700101000000Z")), (Some(0), Some(0)));
        assert_eq!((utc("491231235959Z"), utc("500101000000Z")), (Some(2_524_607_999), Some(-631_152_000)));
        assert_eq!((general("20000229120000Z"), general("20240301000000Z")), (Some(951_825_600), Some(1_709_251_200)));
        assert_eq!(general("40960101000000Z"), Some(67_090_118_400));
        for bad in [
            "",
            "Z",
            "700101000000",
            "7001010000000Z",
            "701301000000Z",
            "70010124000Z",
            "70é101000000Z",
            "-70101000000Z",
        ] {
            assert_eq!(utc(bad), None, "{bad}");
        }
    }

    fn signed() -> (rcgen::Certificate, rcgen::Issuer<'static, rcgen::KeyPair>) {
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("a name");
        params.not_after = rcgen::date_time_ymd(2030, 2, 3);
        params.serial_number = Some(rcgen::SerialNumber::from(0xab_cdef_u64));
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate, rcgen::Issuer::new(params, key))
    }

    #[test]
    fn a_certificate_says_its_number_its_digest_and_its_end() {
        let (certificate, _) = signed();
        let facts = CertificateFacts::read(certificate.der()).expect("it is one");
        assert_eq!((facts.id.serial(), facts.ends_at_s), ("abcdef", 1_896_307_200));
        assert_eq!(facts.id, CertificateId::new("ABCDEF", &hex(&Sha256::digest(certificate.der()))));
    }

    #[test]
    fn a_name_that_is_one_common_name_is_read() {
        let called = |kinds: &[(rcgen::DnType, &str)]| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
            params.distinguished_name = rcgen::DistinguishedName::new();
            kinds.iter().for_each(|(kind, text)| params.distinguished_name.push(kind.clone(), *text));
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
            let signed = params.self_signed(&rcgen::KeyPair::generate().expect("a key")).expect("signed");
            let mut roots = rustls::RootCertStore::empty();
            roots.add(signed.der().clone()).expect("an authority");
            common_name(&roots.roots[0].subject)
        };
        use rcgen::DnType::{CommonName, OrganizationName};
        assert_eq!(called(&[(CommonName, "one cluster")]).as_deref(), Some("one cluster"));
        assert_eq!(called(&[(OrganizationName, "one")]), None);
        assert_eq!(called(&[(CommonName, "one"), (OrganizationName, "two")]), None);
        assert_eq!((common_name(&[]), common_name(&[0x31, 0x05, 0x30])), (None, None));
    }

    #[test]
    fn a_list_says_what_it_names() {
        let (_, issuer) = signed();
        let list = |serials: &[u64]| {
            let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
                serial_number: rcgen::SerialNumber::from(*serial),
                revocation_time: rcgen::date_time_ymd(2000, 2, 29),
                reason_code: Some(rcgen::RevocationReason::KeyCompromise),
                invalidity_date: None,
            });
            let list = rcgen::CertificateRevocationListParams {
                this_update: rcgen::date_time_ymd(2026, 1, 1),
                next_update: rcgen::date_time_ymd(2060, 1, 1),
                crl_number: rcgen::SerialNumber::from(1_u64),
                issuing_distribution_point: None,
                revoked_certs: revoked.collect(),
                key_identifier_method: rcgen::KeyIdMethod::Sha256,
            };
            list.signed_by(&issuer).expect("signed")
        };
        assert_eq!(revoked(list(&[]).der()), Some(Vec::new()));
        let named = vec![(vec![5], 951_782_400), (vec![1, 0], 951_782_400)];
        assert_eq!(revoked(list(&[5, 256]).der()), Some(named));
    }

    #[test]
    fn what_is_cut_or_changed_anywhere_is_no_fault_of_ours() {
        let (certificate, _) = signed();
        let whole = certificate.der().to_vec();
        for end in 0..whole.len() {
            assert!(CertificateFacts::read(&whole[..end]).is_none(), "cut at {end}");
        }
        for at in 0..whole.len() {
            for value in [0, 0x30, 0x7f, 0x80, 0x84, 0xff] {
                let mut changed = whole.clone();
                changed[at] = value;
                let _ = (CertificateFacts::read(&changed), revoked(&changed)); // Whatever they say, they say it.
            }
        }
        assert!(revoked(&whole).is_none() && CertificateFacts::read(&[]).is_none());
    }
}
