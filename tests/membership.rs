//! Nodes as their operator has them: certificates that `cluster init` makes, and nodes that are put out and renewed
//! while they run.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Service, eventually, exchange};

/// The folder of a new cluster of these nodes, on ports that are free.
fn init(test: &str, nodes: &[&str], more: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder); // Of an earlier run.
    let held: Vec<TcpListener> = nodes.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let at = |(node, held): (&&str, &TcpListener)| format!("{node}={}", held.local_addr().unwrap());
    let named: Vec<String> = nodes.iter().zip(&held).map(at).collect();
    drop(held);
    let folder_text = folder.display().to_string();
    let named = named.join(",");
    run(&[&["init", folder_text.as_str(), "--nodes", named.as_str()], more].concat());
    folder
}

fn try_run(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(crate::support::orchestratord()).arg("cluster").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn run(arguments: &[&str]) -> String {
    try_run(arguments).unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
}

/// What `openssl` says and whether it is content; `None` where there is none.
fn openssl(folder: &Path, arguments: &str) -> Option<(bool, String)> {
    let Ok(output) = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output() else {
        println!("SKIPPED: there is no openssl");
        return None;
    };
    let said = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn certificates_of_init_are_what_the_standards_want_and_have_an_end() {
    let folder = init("standards", &["a", "b"], &["--days", "90"]);
    let text = |file: &str| openssl(&folder, &format!("x509 -in {file} -noout -text")).map(|(_, said)| said);
    let Some(authority) = text("ca.pem") else { return };
    for wanted in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "CN = orchestratord cluster"] {
        assert!(authority.replace("CN=", "CN = ").contains(wanted), "{wanted}: {authority}");
    }
    let node = text("a.pem").unwrap();
    for wanted in [
        "CA:FALSE",
        "Digital Signature",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "DNS:a",
        "Authority Key Identifier",
    ] {
        assert!(node.contains(wanted), "{wanted}: {node}");
    }
    let lasts = |file: &str, days: u32| {
        openssl(&folder, &format!("x509 -in {file} -noout -checkend {}", days * 86_400)).unwrap().0
    };
    assert!(lasts("a.pem", 89) && !lasts("a.pem", 91));
    assert!(lasts("ca.pem", 3_649) && !lasts("ca.pem", 3_651));
    let verify = |file: &str| {
        openssl(&folder, &format!("verify -x509_strict -crl_check -CRLfile crl.pem -CAfile ca.pem {file}")).unwrap()
    };
    assert!(verify("a.pem").0 && verify("b.pem").0, "{:?}", verify("a.pem"));

    let folder_text = folder.display().to_string();
    assert!(run(&["revoke", &folder_text, "b"]).contains("1 certificates do not count any more"));
    assert!(run(&["revoke", &folder_text, "b"]).contains("1 certificates"), "once is enough");
    assert!(verify("a.pem").0 && verify("b.pem").1.contains("revoked"), "{:?}", verify("b.pem"));
    let before = std::fs::read(folder.join("b.key")).unwrap();
    assert!(run(&["renew", &folder_text, "--days", "30"]).contains("b: a new certificate for 30 days"));
    assert!(verify("b.pem").0 && lasts("b.pem", 29) && !lasts("b.pem", 31), "{:?}", verify("b.pem"));
    assert_ne!(std::fs::read(folder.join("b.key")).unwrap(), before, "with a new key");
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(folder.join("b.key")).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    run(&["revoke", &folder_text, "--serials", "0A:1B,7"]);
    let list = openssl(&folder, "crl -in crl.pem -noout -text").unwrap().1;
    assert!(list.contains("Serial Number: 0A1B") && list.matches("Serial Number:").count() == 3, "{list}");
    run(&["renew", &folder_text, "--nodes", "d"]);
    assert!(verify("d.pem").0, "one more node");
    // Another authority is called otherwise, so that lists of both may be in one file.
    let other = init("standards-other", &["a"], &[]);
    let called = |folder: &Path| openssl(folder, "x509 -in ca.pem -noout -subject").unwrap().1;
    assert_ne!(called(&folder), called(&other));
    [folder, other].iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
}

#[test]
fn what_cannot_be_renewed_or_revoked_is_said() {
    let folder = init("unsaid", &["a"], &[]);
    let other = init("unsaid-other", &["a"], &[]);
    let text = |folder: &Path| folder.display().to_string();
    let why = |arguments: &[&str]| try_run(arguments).expect_err("it cannot be");
    assert!(why(&["revoke", &text(&folder)]).contains("nothing is named"));
    assert!(why(&["revoke", &text(&folder), "nobody"]).contains("nobody.pem"));
    assert!(why(&["revoke", &text(&folder), "--serials", "xyz"]).contains("\"xyz\" is no serial number"));
    assert!(why(&["renew", &text(&folder), "--nodes", "ca"]).contains("a file of the authority"));
    assert!(why(&["renew", &text(&folder), "--days", "0"]).contains("--days"));
    std::fs::copy(other.join("ca.key"), folder.join("ca.key")).unwrap();
    assert!(why(&["renew", &text(&folder)]).contains("ca.key: it is not the key of an authority of"));
    std::fs::remove_file(folder.join("ca.key")).unwrap();
    assert!(why(&["renew", &text(&folder)]).contains("ca.key: "));
    [folder, other].iter().for_each(|folder| drop(std::fs::remove_dir_all(folder)));
}

/// What this node says of its peer: whether there is a link, and what is wrong.
fn peer(service: &Service, name: &str) -> (bool, String) {
    let view: Value = serde_json::from_str(&exchange(service.port, "GET", "/v1/cluster", &[], b"").2).unwrap();
    let peers = view["peers"].as_array().cloned().unwrap_or_default();
    let found = peers.iter().find(|peer| peer["name"] == name).cloned().unwrap_or_default();
    (!found["link"].is_null(), found["trouble"].as_str().unwrap_or_default().to_owned())
}

fn metric(service: &Service, name: &str) -> f64 {
    let metrics = exchange(service.port, "GET", "/metrics", &[], b"").2;
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

#[tokio::test]
async fn a_node_is_put_out_and_comes_back_while_both_run() {
    let folder = init("put-out", &["a", "b"], &["--days", "10"]);
    let text = folder.display().to_string();
    let start = |name: &str| Service::start(&["--config", &folder.join(name).display().to_string()]);
    let (a, b) = (start("a.yaml"), start("b.yaml"));
    eventually("they are linked", || peer(&a, "b").0 && peer(&b, "a").0).await;
    // By its name, in the configuration.
    let given = std::fs::read_to_string(folder.join("a.yaml")).unwrap();
    std::fs::write(folder.join("a.yaml"), given.replace("  name: a\n", "  name: a\n  deny: [b]\n")).unwrap();
    a.signal("-HUP");
    eventually("it is put out", || !peer(&a, "b").0 && !peer(&b, "a").0).await;
    eventually("both say why", || peer(&a, "b").1.contains("cluster.deny (b)")).await;
    eventually("it is logged", || a.log().contains("peer_put_out")).await;
    std::fs::write(folder.join("a.yaml"), given).unwrap();
    a.signal("-HUP");
    eventually("it is let in again", || peer(&a, "b").0 && peer(&b, "a").0).await;
    // By the authority. Both read the same list here.
    run(&["revoke", &text, "b"]);
    eventually("it is put out", || !peer(&a, "b").0 && !peer(&b, "a").0).await;
    let refused = || metric(&a, "cluster_peers_refused_total{reason=\"certificate\"}");
    eventually("it is refused", || refused() > 0.0 && peer(&a, "b").1.contains("the authority has revoked it")).await;
    // With another certificate, which it takes up by itself, it is let in; the end of its certificate moves.
    let left = || metric(&b, "cluster_certificate_expires_seconds{certificate=\"node\"}");
    assert!(
        left() < 10.0 * 86_400.0
            && metric(&b, "cluster_certificate_expires_seconds{certificate=\"authority\"}") > left()
    );
    assert!(b.log().contains("a certificate of the cluster ends soon"), "{}", b.log());
    run(&["renew", &text, "--nodes", "b"]);
    eventually("it is let in with another certificate", || peer(&a, "b").0 && peer(&b, "a").0).await;
    assert!(left() > 300.0 * 86_400.0);
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn nodes_that_are_found_by_a_name_and_listed_nowhere_are_warned_of() {
    let folder = init("by-name", &["a"], &[]);
    let given = std::fs::read_to_string(folder.join("a.yaml")).unwrap();
    let found = |more: &str| {
        let text = given.replace("  peers: {}\n", &format!("  dns: localhost:9\n{more}"));
        std::fs::write(folder.join("a.yaml"), text).unwrap();
        let service = Service::start(&["--config", &folder.join("a.yaml").display().to_string()]);
        service.stop_and_log()
    };
    assert!(found("").contains("every node with a certificate of the cluster's authority may link"));
    assert!(!found("  allow: ['*']\n").contains("every node with a certificate"));
    let _ = std::fs::remove_dir_all(&folder);
}
