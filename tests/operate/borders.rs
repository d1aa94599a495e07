//! The border between the service and its engines: what an engine sees of the service, and of another engine.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::guest::{Guest, until};
use super::{file, orchestratord, write};
use crate::support::{Service, exchange};

/// What looks around in an engine's place, and writes down what it found.
const PROBE: &str = r#"
folder=$1 own=$2 other=$3 keys=$4
echo $$ > "$folder/$own.pid"
(ls -l /proc/$$/fd > "$folder/$own.fd") # In a shell of its own: what is redirected here is open for a moment.
while [ ! -s "$folder/$other.pid" ]; do sleep 0.02; done
opens() { (: < "$1") 2> /dev/null; }
{
    echo "service $PPID"
    echo "user $(id -u) $(id -G)"
    tr '\0' '\n' < /proc/$$/environ | sed 's/^/environment /'
    for name in environ maps mem auxv io; do
        opens /proc/$PPID/$name && echo "proc $name"
        opens "/proc/$(cat "$folder/$other.pid")/$name" && echo "other $name"
    done
    ls /proc/$PPID/fd > /dev/null 2>&1 && echo "proc fd"
    readlink /proc/$PPID/exe > /dev/null 2>&1 && echo "proc exe"
    opens "$keys" && echo "file read"
    (: >> "$keys") 2> /dev/null && echo "file write"
    grep -- '->' "$folder/$own.fd" | sed 's/^/fd /'
} > "$folder/$own.part"
mv "$folder/$own.part" "$folder/$own"
exec sleep 1000
"#;

/// What the service has in its environment and no engine is to see.
const SECRETS: [(&str, &str); 7] = [
    ("ENGINE_B_KEY", "s3cr3t-1"),
    ("ORCHESTRATORD_KEY", "s3cr3t-2"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cr3t-3"),
    ("HF_TOKEN", "s3cr3t-4"),
    ("VLLM_API_KEY", "s3cr3t-5"),
    ("NOTIFY_SOCKET", "@s3cr3t-6"),
    ("SOMETHING_ELSE", "s3cr3t-7"),
];

/// Somebody who owns nothing.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A folder of a test's own that every user may look into, with the program, a file of keys, and a place for reports.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let place = Place(std::env::temp_dir().join(format!("oc-borders-{name}-{}", std::process::id())));
        for (folder, mode) in [("", 0o755), ("reports", 0o777), ("etc", 0o750)] {
            std::fs::create_dir(place.0.join(folder)).unwrap();
            std::fs::set_permissions(place.0.join(folder), PermissionsExt::from_mode(mode)).unwrap();
        }
        // Not copied by this process: while another thread starts a program, the copy would be busy.
        let copy = Command::new("cp").arg(crate::support::orchestratord()).arg(place.program()).status();
        assert!(copy.unwrap().success());
        std::fs::set_permissions(place.program(), PermissionsExt::from_mode(0o755)).unwrap();
        let (ok, _, err) = orchestratord(&["key", "new", "--file", &place.keys(), "--client", "alice"]);
        assert!(ok, "{err}");
        place
    }

    fn program(&self) -> PathBuf {
        self.0.join("orchestratord")
    }

    fn keys(&self) -> String {
        self.0.join("etc/keys.json").display().to_string()
    }

    /// A configuration of two pools whose engines look around, as these users where there are some.
    fn configuration(&self, users: Option<[&str; 2]>) -> PathBuf {
        let (reports, keys) = (self.0.join("reports").display().to_string(), self.keys());
        let command = |own: &str, other: &str| {
            format!("command: [sh, -c, {PROBE:?}, probe, {reports:?}, {own}, {other}, {keys:?}, --port, '{{port}}']")
        };
        let user = |index: usize| users.map_or(String::new(), |users| format!(", user: {}", users[index]));
        let (a, b) = (command("a", "b"), command("b", "a"));
        let (user_a, user_b) = (user(0), user(1));
        let text = format!(
            "access: {{keys_file: {keys:?}}}\ngpu: {{driver: 'off'}}\npools:\n\
             - {{id: a, engine: llamacpp, model: m, {a}, process: {{env_inherit: [FOR_A]{user_a}}}}}\n\
             - {{id: b, engine: llamacpp, model: n, {b}, api_key_env: ENGINE_B_KEY, replicas: [{{devices: [1]}}], \
             process: {{env: {{FOR_B: for-b}}{user_b}}}}}\n"
        );
        let path = self.0.join("config.yaml");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        path
    }

    /// The service as this user, with secrets in its environment.
    fn start(&self, config: &Path, user: Option<u32>, more: &[&str]) -> Guest {
        let mut command = Command::new(self.program());
        command.args(["serve", "--listen", "127.0.0.1:0", "--config"]).arg(config).args(more);
        command.envs(SECRETS).env("FOR_A", "for-a").current_dir(&self.0);
        command.stdout(Stdio::null()).stderr(std::fs::File::create(self.0.join("log")).unwrap());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        Guest { child: command.spawn().unwrap(), port: 0 }
    }

    /// What both engines have found, when they have.
    fn reports(&self) -> [Report; 2] {
        let paths = ["a", "b"].map(|name| self.0.join("reports").join(name));
        until("both engines have looked around", || paths.iter().all(|path| path.exists()));
        paths.map(|path| Report(std::fs::read_to_string(path).unwrap()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Open files of this process that every program gets which is started by it or by a child of it: a harness leaves some
/// open. The standard ones are not among them.
fn left_open() -> Vec<String> {
    const CLOSED_BY_EXEC: u32 = 0o2_000_000;
    let files = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_left = |name: &String| {
        let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{name}")).unwrap_or_default();
        let flags = about.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
        !["0", "1", "2"].contains(&name.as_str()) && flags.is_some_and(|flags| flags & CLOSED_BY_EXEC == 0)
    };
    names.filter(is_left).collect()
}

/// What an engine has found.
struct Report(String);

impl Report {
    fn lines(&self, kind: &str) -> Vec<&str> {
        self.0.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')).collect()
    }

    /// Its open files, by their numbers, that were not open before the service began.
    fn files(&self) -> Vec<(&str, &str)> {
        let left = left_open();
        let open = self.lines("fd").into_iter().filter_map(|line| line.split_once(" -> "));
        let open = open.filter_map(|(line, target)| Some((line.rsplit(' ').next()?, target)));
        let mut files: Vec<(&str, &str)> = open.filter(|(number, _)| !left.iter().any(|name| name == number)).collect();
        files.sort_unstable();
        files
    }

    /// A line of the table: each kind of thing that it could see, and how much of that it does.
    fn show(&self, name: &str) {
        let files = self.files();
        let sockets = files.iter().filter(|(_, target)| target.starts_with("socket:")).count();
        println!(
            "{name:24} | {:3} variables, {} secrets | service's /proc: {:?} | other engine's /proc: {:?} | keys: {:?} | \
             {} descriptors | {sockets} sockets",
            self.lines("environment").len(),
            self.0.matches("s3cr3t").count(),
            self.lines("proc"),
            self.lines("other"),
            self.lines("file"),
            files.len(),
        );
    }

    /// Fails when it saw anything in its environment or its open files that is the service's, or the other engine's.
    fn is_kept_apart(&self, own: &str, other: &str, service: u32) {
        assert_eq!(self.lines("service"), [service.to_string()], "it looked at the service");
        let environment = self.lines("environment");
        assert!(!self.0.contains("s3cr3t"), "{environment:?}");
        assert!(environment.contains(&own) && !environment.contains(&other), "{environment:?}");
        assert!(environment.iter().any(|line| line.starts_with("CUDA_VISIBLE_DEVICES=")), "{environment:?}");
        let (numbers, targets): (Vec<&str>, Vec<&str>) = self.files().into_iter().unzip();
        assert_eq!(numbers, ["0", "1", "2"], "{targets:?}");
        assert!(!targets.iter().any(|target| target.starts_with("socket:")), "{targets:?}");
    }
}

fn check(name: &str, [a, b]: &[Report; 2], service: u32) {
    a.show(&format!("{name}, engine a"));
    b.show(&format!("{name}, engine b"));
    a.is_kept_apart("FOR_A=for-a", "FOR_B=for-b", service);
    b.is_kept_apart("FOR_B=for-b", "FOR_A=for-a", service);
}

/// Whether the user `nobody` can run the program of this place.
fn nobody_can_run(place: &Place) -> bool {
    let output = Command::new(place.program()).arg("--version").uid(NOBODY).gid(NOBODY).output();
    let can = output.is_ok_and(|output| output.status.success());
    if !can {
        println!("SKIPPED: no other user can run programs in {}", place.0.display());
    }
    can
}

#[test]
fn engines_of_the_services_user_see_neither_its_memory_nor_its_environment_and_write_no_file_of_roots() {
    let place = Place::new("same");
    let config = place.configuration(None);
    let user = is_root().then_some(NOBODY);
    if user.is_some() {
        if !nobody_can_run(&place) {
            return;
        }
        // As the documents say: root's, and the service's group may read it.
        for (path, mode) in [(place.0.join("etc"), 0o750), (place.keys().into(), 0o640)] {
            chown(&path, None, user).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        }
    }
    let service = place.start(&config, user, &[]);
    let reports = place.reports();
    check("same user", &reports, service.child.id());
    for report in &reports {
        assert!(report.lines("proc").is_empty(), "{:?}", report.lines("proc"));
        assert!(user.is_none() || report.lines("file") == ["read"], "{:?}", report.lines("file"));
    }
}

#[test]
fn a_service_that_may_be_dumped_is_open_to_engines_of_its_user() {
    let place = Place::new("dumpable");
    let config = place.configuration(None);
    let user = is_root().then_some(NOBODY);
    if user.is_some() {
        if !nobody_can_run(&place) {
            return;
        }
        for path in [place.0.join("etc"), place.keys().into()] {
            chown(&path, user, user).unwrap();
        }
    }
    let service = place.start(&config, user, &["--dumpable"]);
    let reports = place.reports();
    check("same user, --dumpable", &reports, service.child.id());
    for report in &reports {
        for name in ["environ", "fd"] {
            assert!(
                report.lines("proc").contains(&name),
                "a probe that finds what is open: {:?}",
                report.lines("proc")
            );
        }
    }
}

/// Users of this host that are not root, and nobody else's service as far as a test can know.
fn others() -> Option<[String; 2]> {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let is_there = |name: &&str| users.lines().any(|line| line.split(':').next() == Some(*name));
    let mut found = ["nobody", "daemon", "bin", "games"].into_iter().filter(is_there).map(str::to_owned);
    Some([found.next()?, found.next()?])
}

#[test]
fn engines_of_users_of_their_own_see_no_file_and_no_other_engine() {
    let Some(users) = others().filter(|_| is_root()) else {
        println!("SKIPPED: only root runs engines as other users");
        return;
    };
    let place = Place::new("others");
    if !nobody_can_run(&place) {
        return;
    }
    let config = place.configuration(Some(users.each_ref().map(String::as_str)));
    let service = place.start(&config, None, &[]);
    let reports = place.reports();
    check("users of their own", &reports, service.child.id());
    for (report, user) in reports.iter().zip(&users) {
        let ids = report.lines("user")[0].split(' ').collect::<Vec<_>>();
        assert!(ids.len() == 2 && !ids.contains(&"0"), "{user} and its group alone: {ids:?}");
        for kind in ["proc", "other", "file"] {
            assert!(report.lines(kind).is_empty(), "{user} {kind}: {:?}", report.lines(kind));
        }
        let environment = report.lines("environment");
        assert!(environment.contains(&format!("USER={user}").as_str()), "{environment:?}");
        assert!(environment.iter().filter(|line| line.starts_with("HOME=")).count() == 1, "{environment:?}");
    }
}

#[test]
fn a_user_that_engines_cannot_run_as_is_the_reason_of_the_pool() {
    let pool = "{id: a, engine: llamacpp, model: m, command: [sleep, '1000', '{port}'], process: {user: no-such-user}}";
    let service = Service::start(&["--config", &write("borders-user.yaml", &format!("pools: [{pool}]\n"))]);
    let said = || exchange(service.port, "GET", "/v1/pools", &[], b"").2;
    until("the reason is said", || said().contains("no-such-user") && said().contains("/etc/passwd"));
}

#[test]
fn a_model_that_would_be_an_option_or_several_lines_is_refused_by_a_reload_with_any_key() {
    let keys = file("borders-keys.json").display().to_string();
    let _ = std::fs::remove_file(&keys); // Of an earlier run.
    let (ok, key, err) = orchestratord(&["key", "new", "--file", &keys, "--client", "root", "--scopes", "admin"]);
    assert!(ok, "{err}");
    let pool = "{id: a, engine: llamacpp, model: m, command: [/nowhere/x, '{port}', '{model}']}";
    let text = format!("access: {{keys_file: {keys:?}}}\npools: [{pool}]\n");
    let service = Service::start(&["--config", &write("borders-model.yaml", &text)]);
    let (bearer, long) = (format!("Bearer {}", key.trim()), "x".repeat(257));
    let reload = |model: &str| {
        let body = serde_json::json!({ "model": model }).to_string();
        exchange(service.port, "POST", "/v1/pools/a/reload", &[("authorization", bearer.as_str())], body.as_bytes())
    };
    for (model, words) in [
        ("--trust-remote-code", "field 'model': it begins with '-'"),
        ("-m", "field 'model': it begins with '-'"),
        ("a\nb", "field 'model': it must not have control characters"),
        ("\u{1b}[31m", "field 'model': it must not have control characters"),
        (long.as_str(), "field 'model': it must have at most 256 characters"),
        (" ", "field 'model': it must not be empty"),
    ] {
        let (status, _, body) = reload(model);
        assert!(status == 400 && body.contains("INVALID_PARAMS") && body.contains(words), "{model:?}: {status} {body}");
    }
    let (status, _, body) = reload("{slots}");
    assert_eq!(status, 202, "what looks like a placeholder is a name like others: {body}");
}

#[test]
fn doctor_names_the_files_that_engines_may_write() {
    let keys = file("borders-doctor.json").display().to_string();
    let _ = std::fs::remove_file(&keys); // Of an earlier run.
    assert!(orchestratord(&["key", "new", "--file", &keys, "--client", "alice"]).0);
    let doctor = |process: &str| {
        let pool = format!("{{id: a, engine: llamacpp, model: m, command: [sh, '{{port}}'], process: {{{process}}}}}");
        let text = format!("http: {{listen: '127.0.0.1:0'}}\naccess: {{keys_file: {keys:?}}}\npools: [{pool}]\n");
        orchestratord(&["doctor", "--config", &write("borders-doctor.yaml", &text)])
    };
    let (ok, out, err) = doctor("");
    let note = out.lines().find(|line| line.starts_with("note") && line.contains("run as this user"));
    assert!(ok && note.is_some_and(|note| note.contains(&keys) && note.contains("borders-doctor.yaml")), "{out}{err}");
    let (ok, out, _) = doctor("user: no-such-user");
    assert!(!ok && out.contains("there is no user \"no-such-user\"") && !out.contains("run as this user"), "{out}");
}
