//! `orchestratord cluster init`, `renew` and `revoke`: an authority for the nodes of a cluster, what it signs, and what
//! of that does not count any more. All of it are files in one folder, which belongs on no node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::RootCertStore;
use rustls::pki_types::TrustAnchor;

use crate::certificates::{certificates, revocation_lists, roots};
use crate::cluster::transport::x509::{CertificateFacts, common_name, revoked};
use crate::core::cluster::node::NodeName;
use crate::core::fairness::hash::hex;
use crate::core::text::line::quoted;
use crate::service::access::unix_s;
use crate::service::cli::output::say;
use crate::service::host::file_write::{self, Place};
use crate::service::host::folder::Folder;

/// Bytes of a new cookie, before they are written in hexadecimal.
const COOKIE_BYTES: usize = 32;
const DAY_S: u64 = 24 * 60 * 60;
/// How long an authority lasts.
const AUTHORITY_DAYS: u64 = 3_650;
/// How long a node's certificate lasts unless something else is said.
const NODE_DAYS: u32 = 365;
/// Clocks of nodes may be so far apart when a certificate is made.
const SKEW_S: u64 = 60 * 60;
/// What each authority is called, and a number by chance behind it: a revocation list is told from another by who has
/// signed it.
const AUTHORITY: &str = "orchestratord cluster";
/// The authority's files, beside those of the nodes.
const CA: &str = "ca.pem";
const CA_KEY: &str = "ca.key";
const CRL: &str = "crl.pem";
/// Bytes of the longest serial number that a certificate may have.
const SERIAL_BYTES_MAX: usize = 20;
/// First port of nodes without an address, and of their HTTP APIs.
const PORTS: (u16, u16) = (7711, 7701);

/// A moment as certificates have it, by its seconds since 1970. The type of such moments has no name here.
macro_rules! moment {
    ($unix_s:expr) => {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs($unix_s)
    };
}

/// What a first cluster is made of.
#[derive(Debug, clap::Args)]
pub(crate) struct InitArguments {
    /// The folder to make; it must not be there.
    folder: PathBuf,
    /// The nodes, by commas: `NAME` or `NAME=ADDRESS:PORT`. Without an address they are on this machine, from port 7711
    /// on.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c")]
    nodes: Vec<String>,
    /// How long the nodes' certificates last, in days; the authority's lasts ten years.
    #[arg(long, default_value_t = NODE_DAYS, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: u32,
}

/// Whose certificates are made anew.
#[derive(Debug, clap::Args)]
pub(crate) struct RenewArguments {
    /// The folder that `init` has made, with the authority's key.
    folder: PathBuf,
    /// The nodes, by commas; left out, all that have a certificate there. One that has none yet gets one.
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<String>,
    /// How long the new certificates last, in days.
    #[arg(long, default_value_t = NODE_DAYS, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    days: u32,
}

/// What does not count any more.
#[derive(Debug, clap::Args)]
pub(crate) struct RevokeArguments {
    /// The folder that `init` has made, with the authority's key.
    folder: PathBuf,
    /// The nodes whose certificates there are revoked.
    nodes: Vec<String>,
    /// Serial numbers of other certificates, by commas, as `openssl x509 -serial` says them: such as that of one that
    /// has been renewed.
    #[arg(long, value_delimiter = ',')]
    serials: Vec<String>,
}

fn fault(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Who signs.
struct Authority {
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// Nothing that it signs lasts longer, in seconds since 1970.
    ends_at_s: u64,
}

/// What the certificate of an authority of this name says, but for how long.
fn authority_params(name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)); // It signs nodes, and no other authority.
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Whether an authority of this name with this key is the one that is meant: then both vouch for the same.
fn vouches_as(params: &CertificateParams, key: &KeyPair, meant: &TrustAnchor<'_>) -> Result<bool, rcgen::Error> {
    let mut same = RootCertStore::empty();
    let is_authority = same.add(params.self_signed(key)?.der().clone()).is_ok();
    Ok(is_authority && same.roots.first().is_some_and(|anchor| anchor == meant))
}

impl Authority {
    /// A new one, its certificate and its key.
    fn make(name: &str, now_s: u64) -> Result<(Self, String, String), rcgen::Error> {
        let ends_at_s = now_s + AUTHORITY_DAYS * DAY_S;
        let mut params = authority_params(name)?;
        params.not_before = moment!(now_s.saturating_sub(SKEW_S));
        params.not_after = moment!(ends_at_s);
        let key = KeyPair::generate()?;
        let (certificate, key_text) = (params.self_signed(&key)?.pem(), key.serialize_pem());
        Ok((Authority { issuer: rcgen::Issuer::new(params, key), ends_at_s }, certificate, key_text))
    }

    /// The one of a folder.
    fn open(folder: &Path) -> Result<Self, String> {
        let (ca, key_file) = (folder.join(CA), folder.join(CA_KEY));
        let text = std::fs::read_to_string(&key_file).map_err(|error| fault(&key_file, &error))?;
        let key = KeyPair::from_pem(&text).map_err(|error| fault(&key_file, &error))?;
        let path = ca.display().to_string();
        let (anchors, files) = (roots(&path)?, certificates(&path)?);
        let named = anchors
            .roots
            .iter()
            .zip(&files)
            .filter_map(|(anchor, own)| Some((common_name(&anchor.subject)?, anchor, own)));
        for (name, anchor, own) in named {
            let params = authority_params(&name).map_err(|error| fault(&ca, &error))?;
            if !vouches_as(&params, &key, anchor).map_err(|error| fault(&key_file, &error))? {
                continue;
            }
            let ends_at_s = CertificateFacts::read(own).and_then(|facts| u64::try_from(facts.ends_at_s).ok());
            let ends_at_s = ends_at_s.ok_or_else(|| format!("{path}: a certificate that cannot be read"))?;
            if ends_at_s <= unix_s() {
                return Err(format!("{path}: the authority's certificate has ended; make a new one with `init`"));
            }
            return Ok(Authority { issuer: rcgen::Issuer::new(params, key), ends_at_s });
        }
        let key_file = key_file.display();
        Err(format!(
            "{key_file}: it is not the key of an authority of {path} that `orchestratord cluster init` has made"
        ))
    }

    /// A certificate for a node, and its new key.
    fn sign(&self, node: &NodeName, days: u32, now_s: u64) -> Result<(String, String), rcgen::Error> {
        let mut params = CertificateParams::new(vec![node.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, node.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // A node dials and is dialled with the same certificate.
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = moment!(now_s.saturating_sub(SKEW_S));
        params.not_after = moment!(self.ends_at_s.min(now_s + u64::from(days) * DAY_S));
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// A list of what does not count any more: serial numbers, and since when.
    fn list(&self, revoked: &[(Vec<u8>, i64)], now_s: u64) -> Result<String, rcgen::Error> {
        let entry = |(serial, since_s): &(Vec<u8>, i64)| rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(serial),
            revocation_time: moment!(u64::try_from(*since_s).unwrap_or(0)),
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: moment!(now_s.saturating_sub(SKEW_S)),
            // A list counts until another takes its place.
            next_update: moment!(self.ends_at_s.max(now_s + 1)),
            // It has to rise.
            crl_number: rcgen::SerialNumber::from(now_s),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer)?.pem()
    }
}

/// Makes the files of a first cluster.
///
/// # Errors
/// One line that says what is wrong.
pub(crate) fn init(arguments: &InitArguments) -> Result<(), String> {
    let nodes = nodes(&arguments.nodes)?;
    let folder = &arguments.folder;
    Folder::make(folder)?;
    let folder = folder.canonicalize().map_err(|error| fault(folder, &error))?;
    let (mut secret, mut number) = ([0; COOKIE_BYTES], [0; 4]);
    getrandom::fill(&mut secret)
        .and_then(|()| getrandom::fill(&mut number))
        .map_err(|error| format!("the system has no chance for us: {error}"))?;
    write_secret(&folder.join("cookie"), &hex(&secret))?;
    let (name, now_s) = (format!("{AUTHORITY} {}", hex(&number)), unix_s());
    let (authority, certificate, key) = Authority::make(&name, now_s).map_err(|error| error.to_string())?;
    write(&folder.join(CA), &certificate)?;
    write_secret(&folder.join(CA_KEY), &key)?;
    write(&folder.join(CRL), &authority.list(&[], now_s).map_err(|error| error.to_string())?)?;
    for (index, (name, _)) in nodes.iter().enumerate() {
        let (certificate, key) = authority.sign(name, arguments.days, now_s).map_err(|error| error.to_string())?;
        write(&folder.join(format!("{name}.pem")), &certificate)?;
        write_secret(&folder.join(format!("{name}.key")), &key)?;
        write(&folder.join(format!("{name}.yaml")), &configuration(&folder, &nodes, index))?;
    }
    say(&format!("{}: an authority, a cookie, and for each node a certificate and a configuration", folder.display()));
    for (name, _) in &nodes {
        say(&format!("  orchestratord serve --config {}", folder.join(format!("{name}.yaml")).display()));
    }
    say("keep ca.key where no node is: whoever has it can make nodes");
    say(&format!("the certificates last {} days: `orchestratord cluster renew` makes new ones", arguments.days));
    Ok(())
}

/// The nodes of a new cluster, and where they are.
fn nodes(texts: &[String]) -> Result<Vec<(NodeName, String)>, String> {
    let mut nodes: Vec<(NodeName, String)> = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (name, address.to_owned()),
            None => (text.as_str(), format!("127.0.0.1:{}", PORTS.0 + index as u16)),
        };
        let name = node(name)?;
        if nodes.iter().any(|(known, _)| *known == name) {
            return Err(format!("--nodes: {name} is named twice"));
        }
        nodes.push((name, address));
    }
    Ok(nodes)
}

/// The name of a node whose files do not take the authority's names.
fn node(text: &str) -> Result<NodeName, String> {
    let name = NodeName::parse(text).map_err(|error| format!("--nodes: {error}"))?;
    let is_taken = [CA, CRL].contains(&format!("{name}.pem").as_str());
    if is_taken {
        Err(format!("--nodes: {name}.pem is a file of the authority; call the node otherwise"))
    } else {
        Ok(name)
    }
}

/// What a node may begin with.
fn configuration(folder: &Path, nodes: &[(NodeName, String)], index: usize) -> String {
    let (name, address) = &nodes[index];
    let peers = nodes.iter().filter(|(peer, _)| peer != name);
    let peers: String = peers.map(|(peer, address)| format!("\n    {peer}: \"{address}\"")).collect();
    let peers = if peers.is_empty() { " {}" } else { &peers };
    let at = |file: &str| folder.join(file).display().to_string();
    format!(
        "# Node {name}. The pool is simulated: put your own in its place.\nhttp:\n  listen: 127.0.0.1:{}\ncluster:\n  name: {name}\n  \
         listen: {address}\n  peers:{peers}\n  tls:\n    ca_file: {}\n    certificate_file: {}\n    key_file: {}\n  crl_file: {}\n  \
         cookie_file: {}\npools:\n  - id: demo\n    engine: sim\n    model: tiny\n    slots: 2\n",
        PORTS.1 + index as u16,
        at(CA),
        at(&format!("{name}.pem")),
        at(&format!("{name}.key")),
        at(CRL),
        at("cookie"),
    )
}

/// Makes new certificates and keys for nodes, in the place of those that there are.
///
/// # Errors
/// One line that says what is wrong. Nodes that were named before it have new ones.
pub(crate) fn renew(arguments: &RenewArguments) -> Result<(), String> {
    let folder = &arguments.folder;
    let authority = Authority::open(folder)?;
    let named: Vec<NodeName> = arguments.nodes.iter().map(|text| node(text)).collect::<Result<_, _>>()?;
    let nodes = if named.is_empty() { nodes_of(folder)? } else { named };
    if nodes.is_empty() {
        return Err(format!("{}: there are no certificates of nodes; name some with --nodes", folder.display()));
    }
    for name in &nodes {
        let signed = authority.sign(name, arguments.days, unix_s());
        let (certificate, key) = signed.map_err(|error| format!("{name}: {error}"))?;
        // A node that looks between the two finds that they do not fit, and goes on with what it has.
        replace(&folder.join(format!("{name}.key")), &key, write_secret)?;
        replace(&folder.join(format!("{name}.pem")), &certificate, write)?;
        say(&format!("{name}: a new certificate for {} days", arguments.days));
    }
    say("give each node its own two files; a running one takes them up by itself");
    Ok(())
}

/// The nodes that have a certificate and a key in this folder, in the order of their names.
fn nodes_of(folder: &Path) -> Result<Vec<NodeName>, String> {
    let entries = std::fs::read_dir(folder).map_err(|error| fault(folder, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| fault(folder, &error))?.path();
        let is_certificate = path.extension().is_some_and(|extension| extension == "pem");
        let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| node(stem).ok());
        found.extend(name.filter(|_| is_certificate && path.with_extension("key").exists()));
    }
    found.sort();
    Ok(found)
}

/// Adds certificates to the authority's revocation list.
///
/// # Errors
/// One line that says what is wrong; the list is as it was.
pub(crate) fn revoke(arguments: &RevokeArguments) -> Result<(), String> {
    let folder = &arguments.folder;
    let mut serials = arguments.serials.iter().map(|text| serial(text)).collect::<Result<Vec<_>, _>>()?;
    for text in &arguments.nodes {
        let path = folder.join(format!("{}.pem", node(text)?)).display().to_string();
        let own = certificates(&path)?.first().and_then(|own| CertificateFacts::read(own));
        let own = own.ok_or_else(|| format!("{path}: a certificate that cannot be read"))?;
        serials.push(serial(own.id.serial())?);
    }
    if serials.is_empty() {
        return Err("nothing is named: say which nodes, or --serials".into());
    }
    let authority = Authority::open(folder)?;
    let (path, now_s) = (folder.join(CRL), unix_s());
    let mut list = known(&path)?;
    for serial in serials {
        if list.iter().all(|(known, _)| significant(known) != significant(&serial)) {
            list.push((serial, i64::try_from(now_s).unwrap_or(i64::MAX)));
        }
    }
    replace(&path, &authority.list(&list, now_s).map_err(|error| fault(&path, &error))?, write)?;
    say(&format!("{}: {} certificates do not count any more", path.display(), list.len()));
    say("give this file to every node, as its cluster.crl_file; a running one takes it up by itself");
    Ok(())
}

/// What the list of this file names; nothing without a file.
fn known(path: &Path) -> Result<Vec<(Vec<u8>, i64)>, String> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lists = revocation_lists(&path.display().to_string())?;
    let [list] = lists.as_slice() else {
        return Err(format!("{}: there are {} lists in it, and one is extended", path.display(), lists.len()));
    };
    revoked(list).ok_or_else(|| format!("{}: a list that cannot be read", path.display()))
}

/// The bytes of a serial number that tell it from others.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

/// The bytes of a serial number in hexadecimal digits, with colons or without.
fn serial(text: &str) -> Result<Vec<u8>, String> {
    let mut digits = text.replace(':', "");
    if digits.len() % 2 == 1 {
        digits.insert(0, '0');
    }
    let pairs = digits.as_bytes().chunks(2).map(|pair| {
        let digit = |at: usize| pair.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        let byte = digit(0)? << 4 | digit(1)?;
        u8::try_from(byte).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    bytes.filter(|bytes| (1..=SERIAL_BYTES_MAX).contains(&bytes.len())).ok_or_else(|| {
        format!("--serials: {} is no serial number: 1 to {} hexadecimal digits", quoted(text), 2 * SERIAL_BYTES_MAX)
    })
}

/// Gives a file another text in one step, or makes it by `create`.
fn replace(path: &Path, text: &str, create: fn(&Path, &str) -> Result<(), String>) -> Result<(), String> {
    let place = Place::find(path)?;
    match place.about().map_err(|error| fault(path, &error))? {
        Some(_) => place.replace(text.as_bytes()),
        None => create(path, text),
    }
}

/// A new file for everybody to read.
fn write(path: &Path, text: &str) -> Result<(), String> {
    file_write::make(path, text.as_bytes(), 0o644)
}

/// A new file that only its owner reads, from its first moment.
fn write_secret(path: &Path, text: &str) -> Result<(), String> {
    file_write::make(path, text.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn serial_numbers_are_read_with_colons_and_without() {
        assert_eq!(serial("0A:1b"), Ok(vec![0x0a, 0x1b]));
        assert_eq!((serial("a1b"), serial("5")), (Ok(vec![0x0a, 0x1b]), Ok(vec![5])));
        assert_eq!(significant(&[0, 0, 7, 0]), [7, 0]);
        for bad in ["", "xyz", "+1", "1 ", "é", &"11".repeat(21)] {
            assert!(serial(bad).expect_err("none").contains("hexadecimal digits"), "{bad}");
        }
    }

    #[test]
    fn no_node_has_the_name_of_the_authoritys_files() {
        assert!(node("ca").expect_err("taken").contains("ca.pem is a file of the authority"));
        assert!(node("crl").is_err() && node("cb").is_ok() && node("No Name").is_err());
        let twice = nodes(&["a".into(), "a=10.0.0.1:1".into()]).expect_err("twice");
        assert!(twice.contains("a is named twice"), "{twice}");
    }

    #[test]
    fn a_first_cluster_has_secrets_that_their_owner_alone_reads_in_a_folder_that_was_not_there() {
        let folder = std::env::temp_dir().join(format!("oc-cluster-init-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder); // Of an earlier run.
        let arguments = InitArguments { folder: folder.clone(), nodes: vec!["a".into(), "b".into()], days: 1 };
        init(&arguments).unwrap();
        let mode = |name: &str| std::fs::metadata(folder.join(name)).unwrap().permissions().mode() & 0o777;
        for secret in ["cookie", CA_KEY, "a.key", "b.key"] {
            assert_eq!(mode(secret), 0o600, "{secret}");
        }
        assert_eq!(mode("") & 0o022, 0);
        let text = std::fs::read_to_string(folder.join("b.yaml")).unwrap();
        assert!(text.contains(&folder.canonicalize().unwrap().join("b.key").display().to_string()), "{text}");
        let error = init(&arguments).unwrap_err();
        assert!(error.contains("File exists"), "{error}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
