//! The file of keys: where the commands write it, whose links they follow, how long they wait for another, and that
//! keys and what is said of clients count together or not at all.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use super::{file, guarded, key, keys, orchestratord, with_key};
use crate::support::{exchange, owners_alone};

/// A user of nobody's, who owns what a test gives them.
const ANOTHER: u32 = 1500;

/// A directory of one test's own.
fn folder(name: &str) -> PathBuf {
    let folder = file(name);
    let _ = std::fs::remove_dir_all(&folder); // Of an earlier run.
    std::fs::create_dir(&folder).unwrap();
    owners_alone(&folder);
    folder
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// What the command says when it makes no key there.
fn refused(keys: &Path, more: &[&str]) -> String {
    let name = keys.display().to_string();
    let arguments = [&["key", "new", "--file", name.as_str(), "--client", "alice"], more].concat();
    let (ok, out, err) = orchestratord(&arguments);
    assert!(!ok && out.is_empty(), "{arguments:?} is refused, and shows no key: {out}{err}");
    err
}

#[test]
fn what_lies_beside_the_keys_is_neither_used_nor_followed() {
    let (folder, elsewhere) = (folder("keys-beside"), folder("keys-elsewhere"));
    let precious = elsewhere.join("precious");
    std::fs::write(&precious, "as it was").unwrap();
    for name in ["keys.json.new", ".keys.json.new"] {
        symlink(&precious, folder.join(name)).unwrap();
    }
    std::fs::write(folder.join("keys.new"), "anybody's").unwrap();
    set_mode(&folder.join("keys.new"), 0o666);
    let path = folder.join("keys.json");
    key(&path.display().to_string(), "alice", "submit", &[]);
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(std::fs::metadata(folder.join("keys.json.lock")).unwrap().mode() & 0o7777, 0o600);
    assert_eq!((text(&precious).as_str(), text(&folder.join("keys.new")).as_str()), ("as it was", "anybody's"));
    assert_eq!(names(&folder), [".keys.json.new", "keys.json", "keys.json.lock", "keys.json.new", "keys.new"]);
    // A lock that leads elsewhere is none.
    std::fs::remove_file(folder.join("keys.json.lock")).unwrap();
    symlink(elsewhere.join("lock"), folder.join("keys.json.lock")).unwrap();
    let (before, err) = (text(&path), refused(&path, &[]));
    assert!(err.contains("keys.json.lock: it is a symbolic link"), "{err}");
    assert_eq!((text(&path), names(&elsewhere)), (before, vec!["precious".to_owned()]));
}

#[test]
fn no_key_is_kept_where_others_may_write() {
    let folder = folder("keys-shared");
    for mode in [0o775, 0o757, 0o1777] {
        set_mode(&folder, mode);
        let err = refused(&folder.join("keys.json"), &[]);
        assert!(err.contains(&format!("{mode:04o}")) && err.contains("chmod go-w"), "{err}");
        assert_eq!(err.trim().lines().count(), 1, "{err}");
    }
    assert!(names(&folder).is_empty());
    set_mode(&folder, 0o755);
    key(&folder.join("keys.json").display().to_string(), "alice", "submit", &[]);
}

#[test]
fn root_is_not_led_by_another_user() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: only root can make what belongs to another user");
        return;
    }
    let (roots, anothers) = (folder("keys-of-root"), folder("keys-of-another"));
    let target = roots.join("target.json");
    key(&target.display().to_string(), "alice", "submit", &[]);
    let before = text(&target);
    // A link in the place of the file, and one on the way to it.
    symlink("target.json", roots.join("keys.json")).unwrap();
    symlink(&roots, anothers.join("way")).unwrap();
    for (link, file) in
        [(roots.join("keys.json"), roots.join("keys.json")), (anothers.join("way"), anothers.join("way/target.json"))]
    {
        lchown(&link, Some(ANOTHER), Some(ANOTHER)).unwrap();
        let err = refused(&file, &[]);
        assert!(err.contains("symbolic link of uid 1500"), "{err}");
        lchown(&link, Some(0), Some(0)).unwrap();
    }
    // A directory of another, who may put anything there.
    std::fs::write(anothers.join("keys.json"), &before).unwrap();
    chown(&anothers, Some(ANOTHER), Some(ANOTHER)).unwrap();
    let err = refused(&anothers.join("keys.json"), &[]);
    assert!(err.contains("belongs to uid 1500") && err.contains("run this as that user"), "{err}");
    assert_eq!((text(&target), names(&anothers)), (before, vec!["keys.json".to_owned(), "way".to_owned()]));
    // Root's own link leads root, and the file stays the service's.
    chown(&target, Some(ANOTHER), Some(ANOTHER)).unwrap();
    set_mode(&target, 0o640);
    key(&anothers.join("way/keys.json").display().to_string(), "bob", "submit", &[]);
    let about = std::fs::metadata(&target).unwrap();
    assert!(text(&target).contains("bob") && roots.join("keys.json").is_symlink());
    assert_eq!((about.uid(), about.gid(), about.mode() & 0o7777), (ANOTHER, ANOTHER, 0o640));
}

#[test]
fn whoever_waits_for_the_lock_in_vain_is_told_who_has_it() {
    let path = folder("keys-held").join("keys.json");
    let name = path.display().to_string();
    let made = key(&name, "alice", "submit", &[]);
    let before = text(&path);
    let lock = std::fs::File::open(path.with_extension("json.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let begin = std::time::Instant::now();
    let (ok, out, err) = orchestratord(&["key", "revoke", &made, "--file", &name]);
    assert!(!ok && out.is_empty() && err.contains("keys.json.lock: ") && err.contains("for 5 s"), "{out}{err}");
    assert!(begin.elapsed() >= std::time::Duration::from_secs(4), "{:?}", begin.elapsed());
    let us = std::process::id();
    let is_listed = std::fs::read_to_string("/proc/locks").is_ok_and(|locks| locks.contains(&format!(" {us} ")));
    let ours = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(err.contains(&format!("process {us} ({:?})", ours.trim_end())), is_listed, "{err}");
    assert_eq!(text(&path), before);
    drop(lock);
    let (ok, _, err) = orchestratord(&["key", "revoke", &made, "--file", &name]);
    assert!(ok && text(&path).contains("revoked_at"), "{err}");
}

#[test]
fn terms_that_a_service_would_refuse_are_refused_by_the_command() {
    let path = folder("keys-terms").join("keys.json");
    for (option, values) in [
        ("--weight", &["0", "1000001"][..]),
        ("--quota-running", &["0"][..]),
        ("--requests-per-s", &["nan", "inf", "-inf", "-1", "0", "1e10"][..]),
    ] {
        for value in values {
            let err = refused(&path, &[&format!("{option}={value}")]);
            assert!(err.starts_with(&format!("{option}: it must be from ")), "{option}={value}: {err}");
        }
    }
    assert!(!path.exists());
    let name = path.display().to_string();
    let made =
        key(&name, "alice", "submit", &["--weight", "1000000", "--quota-queued", "0", "--requests-per-s", "0.5"]);
    // What was written by other means is no better: it is corrected, or nothing is revoked.
    let wrong = text(&path).replace("\"weight\": 1000000", "\"weight\": 0");
    std::fs::write(&path, &wrong).unwrap();
    let (ok, _, err) = orchestratord(&["key", "revoke", &made, "--file", &name]);
    assert!(!ok && err.contains("clients.alice.weight: it must be from 1") && err.contains("nothing was"), "{err}");
    assert_eq!(text(&path), wrong);
    let config = file("keys-terms.yaml");
    std::fs::write(&config, format!("pools: [{{id: a, engine: sim, model: m}}]\naccess: {{keys_file: {name:?}}}\n"))
        .unwrap();
    let (ok, _, err) = orchestratord(&["serve", "--config", &config.display().to_string(), "--listen", "127.0.0.1:0"]);
    assert!(!ok && err.contains(&format!("{name}: clients.alice.weight: ")), "{err}");
    key(&name, "alice", "submit", &["--weight", "2"]);
    assert!(orchestratord(&["key", "revoke", &made, "--file", &name]).0);
}

#[test]
fn keys_and_what_is_said_of_clients_count_together_or_not_at_all() {
    let path = keys("together.json");
    let alice = key(&path, "alice", "read", &["--weight", "3"]);
    let admin = key(&path, "root", "admin", &[]);
    let service = guarded("together.yaml", &path, "");
    let mut file: serde_json::Value = serde_json::from_str(&text(Path::new(&path))).unwrap();
    file["keys"][0]["revoked_at"] = 1.into();
    file["clients"]["alice"]["weight"] = 0.into();
    std::fs::write(&path, file.to_string()).unwrap();
    while !service.log().contains("what the file of keys says of clients is wrong") {}
    assert!(service.log().contains("config_rejected"), "{}", service.log());
    assert_eq!(with_key(service.port, &alice, "GET", "/v1/pools", "").0, 200, "the revocation counts with the rest");
    file["clients"]["alice"]["weight"] = 5.into();
    std::fs::write(&path, file.to_string()).unwrap();
    while with_key(service.port, &alice, "GET", "/v1/pools", "").0 != 401 {}
    let (_, _, config) = with_key(service.port, &admin, "GET", "/v1/config", "");
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["config"]["clients"]["alice"]["weight"], 5);
    assert_eq!(exchange(service.port, "GET", "/healthz", &[], b"").0, 200);
}
