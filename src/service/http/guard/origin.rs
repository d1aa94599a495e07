//! Whether a request may be served at all, from its head alone: before keys, before the route, before the body
//! (ORCH-3035).
//!
//! A browser sends what any page tells it to, from the host and the network of whoever looks at that page. So loopback
//! and a private network keep no page out; what tells pages apart is what browsers write into every request and pages
//! cannot change. `Host` must name this service, so a foreign name that was made to resolve to it (DNS rebinding) is
//! refused. `Origin` and `Sec-Fetch-Site`, where they are there, must say that the page is the service's own. A body
//! must be announced as what it is, so that a page cannot send one without asking first. Programs other than browsers
//! send none of these but `Host`.
//!
//! Pure: facts in, a verdict out.

use std::net::IpAddr;

use crate::service::http::rule::Audience;

/// Longest quotation of a request's word in an answer or a line of the log, in characters.
const WORD_CHARS_MAX: usize = 100;
/// Longest name of a host, in bytes (RFC 1035).
const NAME_BYTES_MAX: usize = 253;
/// What a JSON body is announced as.
const JSON: &str = "application/json";
/// What a YAML body is announced as, where one is taken.
const YAML: [&str; 4] = ["application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml"];

/// A header that should be there once at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// It is not there.
    Absent,
    /// It is there once.
    One(&'a str),
    /// It is there more than once.
    Many,
}

/// What a verdict rests on.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) method: &'a str,
    /// The authority in the request's target, where it has one: `GET http://authority/path`, `CONNECT authority`.
    pub(crate) target: Option<&'a str>,
    pub(crate) host: Field<'a>,
    pub(crate) origin: Field<'a>,
    /// `Sec-Fetch-Site`.
    pub(crate) site: Field<'a>,
    /// `Sec-Fetch-Mode`.
    pub(crate) mode: Field<'a>,
    /// `Sec-Fetch-Dest`.
    pub(crate) dest: Field<'a>,
    pub(crate) content_type: Field<'a>,
    /// Who is served by the route.
    pub(crate) face: Audience,
    /// The route takes YAML beside JSON.
    pub(crate) takes_yaml: bool,
    /// The service's address of this connection.
    pub(crate) local: IpAddr,
    /// The address that the listener is bound to.
    pub(crate) bound: IpAddr,
    /// `http.hosts`, without faults.
    pub(crate) hosts: &'a [String],
    /// Requests need keys.
    pub(crate) has_keys: bool,
}

/// Why a request is refused, for counting. One list for all refusals that no key undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// `Host` is missing, doubled, malformed, or not that of the target.
    Host,
    /// `Host` names another service.
    UnknownHost,
    /// `Origin` is another page's.
    Origin,
    /// `Sec-Fetch-Site` says that another site's page asks.
    Site,
    /// The body is announced as something that is not taken.
    ContentType,
    /// It would make the service run or load what its configuration file does not name.
    Executed,
}

impl Reason {
    /// Every name.
    pub(crate) const NAMES: [&'static str; 6] = ["host", "unknown_host", "origin", "site", "content_type", "executed"];

    /// The name.
    pub(crate) fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// A request that is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
}

fn refused<T>(reason: Reason, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// A word of a request for people: short, and without control characters.
pub(crate) fn word(text: &str) -> String {
    let printable = |char: char| if char.is_control() { '\u{fffd}' } else { char };
    text.chars().take(WORD_CHARS_MAX).map(printable).collect()
}

/// Judges a request.
///
/// # Errors
/// The first rule that it breaks.
pub(crate) fn judge(facts: &Facts<'_>) -> Result<(), Refusal> {
    if is_plain_check(facts) {
        return Ok(());
    }
    let host = authority_of(facts)?;
    if !is_ours(facts, host.host) {
        let text = format!(
            "this service is not {:?}; name it in http.hosts if it should be, or use localhost or the service's \
             address",
            word(one(facts.host))
        );
        return refused(Reason::UnknownHost, text);
    }
    let is_trusted = check_origin(facts, host)?;
    check_site(facts, is_trusted)?;
    check_content_type(facts)
}

/// Whether it is a health check as balancers send it with HTTP/1.0: without any name. Browsers always write `Host`, and
/// what is the same for everybody may be read.
fn is_plain_check(facts: &Facts<'_>) -> bool {
    let is_silent = [facts.host, facts.origin, facts.site].iter().all(|field| *field == Field::Absent);
    is_silent && facts.target.is_none() && facts.face == Audience::Open && matches!(facts.method, "GET" | "HEAD")
}

fn one(field: Field<'_>) -> &str {
    match field {
        Field::One(text) => text,
        Field::Absent | Field::Many => "",
    }
}

/// The host that a request is for: said once, and the same wherever it is said.
fn authority_of<'a>(facts: &Facts<'a>) -> Result<Authority<'a>, Refusal> {
    let Field::One(text) = facts.host else {
        return refused(Reason::Host, "a request needs one header 'Host', and only one");
    };
    let Some(host) = Authority::parse(text) else {
        return refused(Reason::Host, format!("header 'Host': {:?} is not of the form name:port", word(text)));
    };
    let Some(target) = facts.target else { return Ok(host) };
    let agrees = |target: Authority<'_>| [HTTP_PORT, HTTPS_PORT].into_iter().any(|port| host.agrees(target, port));
    match Authority::parse(target).is_some_and(agrees) {
        true => Ok(host),
        false => refused(Reason::Host, "the request's target and its header 'Host' name different hosts"),
    }
}

/// Whether the service is reached by this name or address.
fn is_ours(facts: &Facts<'_>, host: Host<'_>) -> bool {
    let bound = facts.bound.to_canonical();
    // A page knows no key, so where keys are wanted any name will do. On loopback no name but its own is expected.
    let takes_any = facts.has_keys && facts.hosts.is_empty() && !bound.is_loopback();
    takes_any
        || is_named(facts.hosts, host)
        || match host {
            // An address is no name: it cannot be made to lead elsewhere.
            Host::Ip(ip) => ip.is_loopback() || ip == facts.local.to_canonical() || bound.is_unspecified(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost") || is_below(name, "localhost"),
        }
}

/// Whether a page of another origin is trusted: one of `http.hosts`. The service's own page needs no trust.
fn check_origin(facts: &Facts<'_>, host: Authority<'_>) -> Result<bool, Refusal> {
    let text = match facts.origin {
        Field::Absent => return Ok(false),
        Field::One(text) => text,
        Field::Many => return refused(Reason::Origin, "there is more than one header 'Origin'"),
    };
    let origin = origin_of(text);
    // What was asked for by name and port says which port of that name is meant: another one is another service's page.
    let is_told = |origin: Authority<'_>| host.port.is_some() && origin.host.is(host.host);
    let is_trusted = origin.is_some_and(|(origin, _)| is_named(facts.hosts, origin.host) && !is_told(origin));
    if is_trusted || origin.is_some_and(|(origin, port)| origin.agrees(host, port)) {
        return Ok(is_trusted);
    }
    let text = format!("a page of {:?} may not use this service; http.hosts names those that may", word(text));
    refused(Reason::Origin, text)
}

/// Whether the browser says that a page of another site asks. A link to a page that is the same for everybody may be
/// followed.
fn check_site(facts: &Facts<'_>, is_trusted: bool) -> Result<(), Refusal> {
    let is_own = matches!(facts.site, Field::Absent | Field::One("same-origin" | "none"));
    let is_link = facts.face == Audience::Open
        && matches!(facts.method, "GET" | "HEAD")
        && facts.mode == Field::One("navigate")
        && facts.dest == Field::One("document");
    if is_own || is_trusted || is_link {
        return Ok(());
    }
    refused(Reason::Site, "a page of another site may not use this service; open it by its own address")
}

/// Whether a body is announced as what the route takes. One that is announced as nothing comes from a program, or from
/// a page whose `Origin` has been judged.
fn check_content_type(facts: &Facts<'_>) -> Result<(), Refusal> {
    if matches!(facts.method, "GET" | "HEAD" | "OPTIONS") || facts.content_type == Field::Absent {
        return Ok(());
    }
    let text = one(facts.content_type);
    let kind = text.split(';').next().unwrap_or_default().trim();
    let is = |known: &str| kind.eq_ignore_ascii_case(known);
    if is(JSON) || facts.takes_yaml && YAML.into_iter().any(is) {
        return Ok(());
    }
    let or_yaml = if facts.takes_yaml { " or application/yaml" } else { "" };
    let said = if facts.content_type == Field::Many { "it is there more than once".into() } else { word(text) };
    refused(
        Reason::ContentType,
        format!("header 'Content-Type': {said:?} is not taken here; send 'Content-Type: {JSON}'{or_yaml}"),
    )
}

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// A host, as requests name it.
#[derive(Clone, Copy, Debug)]
enum Host<'a> {
    /// An address, IPv4 in its own form.
    Ip(IpAddr),
    /// A name without a dot at its end, as it was written.
    Name(&'a str),
}

impl<'a> Host<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let address = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        if let Some(address) = address {
            return address.parse().ok().map(|ip: std::net::Ipv6Addr| Host::Ip(IpAddr::V6(ip).to_canonical()));
        }
        if let Ok(ip) = text.parse::<std::net::Ipv4Addr>() {
            return Some(Host::Ip(ip.into()));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_label = |label: &str| {
            !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        (name.len() <= NAME_BYTES_MAX && name.split('.').all(is_label)).then_some(Host::Name(name))
    }

    fn is(self, other: Host<'_>) -> bool {
        match (self, other) {
            (Host::Ip(one), Host::Ip(other)) => one == other,
            (Host::Name(one), Host::Name(other)) => one.eq_ignore_ascii_case(other),
            (Host::Ip(_), Host::Name(_)) | (Host::Name(_), Host::Ip(_)) => false,
        }
    }
}

/// A host with its port, where one is said.
#[derive(Clone, Copy, Debug)]
struct Authority<'a> {
    host: Host<'a>,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let end = match text.strip_prefix('[') {
            Some(rest) => rest.find(']')? + 2,
            None => text.find(':').unwrap_or(text.len()),
        };
        let (host, rest) = text.split_at(end);
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return None,
            Some("") => None,
            Some(port) => Some(port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse().ok())??),
        };
        Some(Authority { host: Host::parse(host)?, port })
    }

    /// Whether both are the same, where no port is this one.
    fn agrees(self, other: Authority<'_>, default: u16) -> bool {
        self.host.is(other.host) && self.port.unwrap_or(default) == other.port.unwrap_or(default)
    }
}

/// An `Origin`, and the port of its scheme.
fn origin_of(text: &str) -> Option<(Authority<'_>, u16)> {
    let (scheme, rest) = text.split_once("://")?;
    let port = match scheme {
        "http" => HTTP_PORT,
        "https" => HTTPS_PORT,
        _ => return None,
    };
    Some((Authority::parse(rest)?, port))
}

/// Whether `http.hosts` has this host.
fn is_named(hosts: &[String], host: Host<'_>) -> bool {
    hosts.iter().any(|known| match (known.strip_prefix("*."), host) {
        (None, _) => Host::parse(known).is_some_and(|known| known.is(host)),
        (Some(end), Host::Name(name)) => is_below(name, end.strip_suffix('.').unwrap_or(end)),
        (Some(_), Host::Ip(_)) => false,
    })
}

/// Whether a name is one or more labels before another.
fn is_below(name: &str, end: &str) -> bool {
    let cut = name.len().checked_sub(end.len());
    let parts = cut.and_then(|cut| Some((name.get(..cut)?, name.get(cut..)?)));
    parts.is_some_and(|(labels, rest)| labels.len() > 1 && labels.ends_with('.') && rest.eq_ignore_ascii_case(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A request by a program on the same host, to a listener on loopback without keys.
    fn plain() -> Facts<'static> {
        Facts {
            method: "GET",
            target: None,
            host: Field::One("127.0.0.1:7700"),
            origin: Field::Absent,
            site: Field::Absent,
            mode: Field::Absent,
            dest: Field::Absent,
            content_type: Field::Absent,
            face: Audience::Operator,
            takes_yaml: false,
            local: ip("127.0.0.1"),
            bound: ip("127.0.0.1"),
            hosts: &[],
            has_keys: false,
        }
    }

    fn verdict(facts: &Facts<'_>) -> &'static str {
        judge(facts).map_or_else(|refusal| refusal.reason.as_str(), |()| "served")
    }

    fn names(hosts: &[&str]) -> Vec<String> {
        hosts.iter().map(|host| (*host).to_owned()).collect()
    }

    #[test]
    fn loopback_is_reached_by_its_names_and_addresses_alone() {
        for (host, wanted) in [
            ("localhost", "served"),
            ("LocalHost.:7700", "served"),
            ("app.localhost:80", "served"),
            ("127.0.0.1", "served"),
            ("127.9.8.7:1", "served"),
            ("[::1]:7700", "served"),
            ("[0:0:0:0:0:0:0:1]", "served"),
            ("[::ffff:127.0.0.1]:7700", "served"),
            ("localhost:", "served"),
            ("evil.test:7700", "unknown_host"),
            ("localhost.evil.test", "unknown_host"),
            ("127.0.0.1.evil.test", "unknown_host"),
            ("notlocalhost", "unknown_host"),
            ("127.1", "unknown_host"),
            ("0.0.0.0:7700", "unknown_host"),
            ("192.168.1.5:7700", "unknown_host"),
            ("[::ffff:192.168.1.5]", "unknown_host"),
            ("", "host"),
            (":7700", "host"),
            (".localhost", "host"),
            ("local host", "host"),
            ("localhost/", "host"),
            ("localhost:7700:7700", "host"),
            ("localhost:+80", "host"),
            ("localhost:65536", "host"),
            ("user@localhost", "host"),
            ("localhost,evil.test", "host"),
            ("[::1", "host"),
            ("[::1]7700", "host"),
            ("::1", "host"),
            ("b\u{fc}cher.test", "host"),
        ] {
            assert_eq!(verdict(&Facts { host: Field::One(host), ..plain() }), wanted, "{host:?}");
            let with_key = Facts { host: Field::One(host), has_keys: true, ..plain() };
            assert_eq!(verdict(&with_key), wanted, "{host:?} with keys");
        }
        assert_eq!(verdict(&Facts { host: Field::Absent, ..plain() }), "host");
        let check = Facts { host: Field::Absent, face: Audience::Open, ..plain() };
        assert_eq!(verdict(&check), "served", "a health check of HTTP/1.0");
        assert_eq!(verdict(&Facts { site: Field::One("none"), ..check.clone() }), "host", "no browser leaves it out");
        assert_eq!(verdict(&Facts { method: "POST", ..check }), "host");
        assert_eq!(verdict(&Facts { host: Field::Many, ..plain() }), "host");
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(verdict(&Facts { host: Field::One(&long), ..plain() }), "host");
    }

    #[test]
    fn another_address_is_reached_by_itself_by_what_is_configured_and_with_keys_by_any_name() {
        let (none, some) =
            (names(&[]), names(&["llm.example.com", "*.gpu.example.com.", "203.0.113.9", "[2001:db8::9]"]));
        for (bound, has_keys, hosts, host, wanted) in [
            ("10.0.0.5", false, &none, "10.0.0.5:7700", "served"),
            ("10.0.0.5", false, &none, "10.0.0.6:7700", "unknown_host"),
            ("10.0.0.5", false, &none, "localhost:7700", "served"),
            ("10.0.0.5", false, &none, "gpu-1:7700", "unknown_host"),
            ("10.0.0.5", true, &none, "gpu-1:7700", "served"),
            ("10.0.0.5", true, &none, "10.0.0.6:7700", "served"),
            ("10.0.0.5", true, &some, "gpu-1:7700", "unknown_host"),
            ("10.0.0.5", true, &some, "10.0.0.6:7700", "unknown_host"),
            ("0.0.0.0", false, &none, "10.0.0.6:7700", "served"),
            ("0.0.0.0", false, &none, "[2001:db8::1]:7700", "served"),
            ("0.0.0.0", false, &none, "gpu-1:7700", "unknown_host"),
            ("::", false, &none, "10.0.0.6:7700", "served"),
            ("127.0.0.1", true, &none, "gpu-1:7700", "unknown_host"),
            ("127.0.0.1", false, &some, "llm.example.com", "served"),
            ("127.0.0.1", false, &some, "LLM.Example.Com.:443", "served"),
            ("127.0.0.1", false, &some, "x.llm.example.com", "unknown_host"),
            ("127.0.0.1", false, &some, "a.gpu.example.com", "served"),
            ("127.0.0.1", false, &some, "a.b.gpu.example.com", "served"),
            ("127.0.0.1", false, &some, "gpu.example.com", "unknown_host"),
            ("127.0.0.1", false, &some, "agpu.example.com", "unknown_host"),
            ("127.0.0.1", false, &some, "203.0.113.9:80", "served"),
            ("127.0.0.1", false, &some, "[2001:db8:0::9]:80", "served"),
            ("127.0.0.1", false, &some, "203.0.113.8", "unknown_host"),
        ] {
            let local = if bound == "10.0.0.5" { "::ffff:10.0.0.5" } else { "127.0.0.1" };
            let (local, bound) = (ip(local), ip(bound));
            let facts = Facts { host: Field::One(host), local, bound, hosts, has_keys, ..plain() };
            assert_eq!(verdict(&facts), wanted, "{host} on {bound}, keys {has_keys}, {hosts:?}");
        }
    }

    #[test]
    fn a_target_with_a_host_of_its_own_agrees_with_the_header() {
        for (host, target, wanted) in [
            ("localhost:7700", "localhost:7700", "served"),
            ("localhost", "localhost:80", "served"),
            ("localhost:443", "LOCALHOST", "served"),
            ("localhost:7700", "localhost", "host"),
            ("localhost:7700", "evil.test:7700", "host"),
            ("evil.test", "localhost", "host"),
            ("localhost", "user@localhost", "host"),
            ("evil.test", "evil.test", "unknown_host"),
        ] {
            let facts = Facts { host: Field::One(host), target: Some(target), ..plain() };
            assert_eq!(verdict(&facts), wanted, "{host} beside {target}");
        }
    }

    #[test]
    fn a_page_is_the_services_own_or_one_that_is_configured() {
        let hosts = names(&["llm.example.com"]);
        for (host, origin, wanted) in [
            ("127.0.0.1:7700", "http://127.0.0.1:7700", "served"),
            ("localhost:7700", "https://localhost:7700", "served"),
            ("localhost", "http://localhost:80", "served"),
            ("localhost:443", "https://localhost", "served"),
            ("localhost", "https://localhost", "served"),
            ("[::1]:7700", "http://[::1]:7700", "served"),
            ("llm.example.com", "https://llm.example.com", "served"),
            ("127.0.0.1:7700", "https://llm.example.com:8443", "served"),
            ("llm.example.com:7700", "http://llm.example.com:7700", "served"),
            ("llm.example.com:7700", "http://llm.example.com:3000", "origin"),
            ("127.0.0.1:7700", "http://127.0.0.1:3000", "origin"),
            ("127.0.0.1:7700", "http://localhost:7700", "origin"),
            ("localhost:7700", "http://localhost", "origin"),
            ("localhost:7700", "http://app.localhost:7700", "origin"),
            ("127.0.0.1:7700", "http://evil.test", "origin"),
            ("127.0.0.1:7700", "http://evil.test:7700", "origin"),
            ("127.0.0.1:7700", "https://x.llm.example.com", "origin"),
            ("127.0.0.1:7700", "null", "origin"),
            ("127.0.0.1:7700", "", "origin"),
            ("127.0.0.1:7700", "127.0.0.1:7700", "origin"),
            ("127.0.0.1:7700", "file://", "origin"),
            ("127.0.0.1:7700", "chrome-extension://127.0.0.1:7700", "origin"),
            ("127.0.0.1:7700", "http://127.0.0.1:7700/", "origin"),
            ("127.0.0.1:7700", "http://127.0.0.1:7700 http://evil.test", "origin"),
            ("evil.test:7700", "http://evil.test:7700", "unknown_host"),
        ] {
            let facts = Facts { host: Field::One(host), origin: Field::One(origin), hosts: &hosts, ..plain() };
            assert_eq!(verdict(&facts), wanted, "{origin} asks {host}");
        }
        assert_eq!(verdict(&Facts { origin: Field::Many, ..plain() }), "origin");
    }

    #[test]
    fn other_sites_may_link_to_the_pages_that_are_the_same_for_everybody() {
        let (navigate, document) = (Field::One("navigate"), Field::One("document"));
        for (method, site, mode, dest, face, wanted) in [
            ("GET", "same-origin", Field::One("cors"), Field::One("empty"), Audience::Operator, "served"),
            ("GET", "none", navigate, document, Audience::Operator, "served"),
            ("GET", "cross-site", navigate, document, Audience::Open, "served"),
            ("HEAD", "same-site", navigate, document, Audience::Open, "served"),
            ("GET", "cross-site", navigate, document, Audience::Operator, "site"),
            ("GET", "cross-site", navigate, document, Audience::Public, "site"),
            ("GET", "cross-site", navigate, Field::One("iframe"), Audience::Open, "site"),
            ("GET", "cross-site", Field::One("no-cors"), Field::One("image"), Audience::Open, "site"),
            ("GET", "cross-site", Field::Absent, Field::Absent, Audience::Open, "site"),
            ("POST", "cross-site", navigate, document, Audience::Open, "site"),
            ("GET", "same-site", Field::One("cors"), Field::One("empty"), Audience::Operator, "site"),
            ("GET", "anything", navigate, document, Audience::Operator, "site"),
        ] {
            let facts = Facts { method, site: Field::One(site), mode, dest, face, ..plain() };
            assert_eq!(verdict(&facts), wanted, "{facts:?}");
        }
        assert_eq!(verdict(&Facts { site: Field::Many, ..plain() }), "site");
        let hosts = names(&["llm.example.com"]);
        let trusted = Facts { site: Field::One("cross-site"), hosts: &hosts, ..plain() };
        assert_eq!(verdict(&trusted), "site", "without an Origin nobody knows which page asks");
        let trusted = Facts { origin: Field::One("https://llm.example.com"), ..trusted };
        assert_eq!(verdict(&trusted), "served");
    }

    #[test]
    fn a_body_is_announced_as_json_or_where_it_is_taken_as_yaml() {
        for (kind, takes_yaml, wanted) in [
            ("application/json", false, "served"),
            ("Application/JSON; charset=utf-8", false, "served"),
            ("application/yaml", true, "served"),
            ("text/x-yaml;charset=utf-8", true, "served"),
            ("application/json", true, "served"),
            ("application/yaml", false, "content_type"),
            ("text/plain", true, "content_type"),
            ("text/plain", false, "content_type"),
            ("text/plain; application/json", false, "content_type"),
            ("application/json, text/plain", false, "content_type"),
            ("application/jsonp", false, "content_type"),
            ("application/x-www-form-urlencoded", false, "content_type"),
            ("multipart/form-data; boundary=x", false, "content_type"),
            ("", false, "content_type"),
        ] {
            for method in ["POST", "PUT", "DELETE", "PATCH", "FOO"] {
                let facts = Facts { method, content_type: Field::One(kind), takes_yaml, ..plain() };
                assert_eq!(verdict(&facts), wanted, "{method} {kind:?}");
            }
            let facts = Facts { content_type: Field::One(kind), takes_yaml, ..plain() };
            assert_eq!(verdict(&facts), "served", "GET {kind:?}");
        }
        let post = Facts { method: "POST", ..plain() };
        assert_eq!(verdict(&post), "served");
        assert_eq!(verdict(&Facts { content_type: Field::Many, ..post.clone() }), "content_type");
        let refusal = judge(&Facts { content_type: Field::One("text/plain"), ..post }).expect_err("it is no JSON");
        assert!(refusal.message.contains("Content-Type: application/json"), "{}", refusal.message);
    }

    #[test]
    fn what_is_quoted_is_short_and_printable() {
        let long = "x.".repeat(120) + "test";
        let refusal = judge(&Facts { host: Field::One(&long), ..plain() }).expect_err("it is nobody's");
        assert_eq!(refusal.reason, Reason::UnknownHost);
        assert!(refusal.message.len() < 250 && refusal.message.contains("http.hosts"), "{}", refusal.message);
        assert_eq!(word("a\u{1b}[31m\nb"), "a\u{fffd}[31m\u{fffd}b");
        assert_eq!(Reason::NAMES.len(), Reason::Executed as usize + 1);
        assert_eq!(Reason::Executed.as_str(), "executed");
    }
}
