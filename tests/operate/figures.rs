//! `/metrics` beside its contract, a real Prometheus, and the raw log of the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};

use super::{file, write};
use crate::support::{Service, alone_blocking, exchange};

fn root() -> &'static std::path::Path {
    crate::support::root()
}

/// A row of the contract: type and labels.
fn contract() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let text = std::fs::read_to_string(root().join(".specs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let row = |line: &str| {
        let cells: Vec<String> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        let labels = cells[3].split(',').map(|label| label.trim().to_owned()).filter(|label| label.len() > 1);
        (cells[1].clone(), (cells[2].clone(), labels.collect()))
    };
    rows.map(row).collect()
}

/// Every series: name, labels, value.
fn series(text: &str) -> Vec<(String, BTreeSet<String>, f64)> {
    let parse = |line: &str| {
        let (head, value) = line.rsplit_once(' ')?;
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        let names = labels
            .trim_end_matches('}')
            .split(',')
            .filter_map(|pair| pair.split_once('=').map(|(name, _)| name.to_owned()));
        Some((name.to_owned(), names.collect(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(parse).collect()
}

#[test]
fn the_exposition_is_what_the_contract_says() {
    let service = Service::start(&[]);
    while exchange(service.port, "GET", "/readyz", &[], b"").0 != 200 {}
    for class in ["interactive", "batch"] {
        let body = format!("{{\"prompt\":\"x\",\"max_tokens\":3,\"priority\":\"{class}\"}}");
        exchange(service.port, "POST", "/v1/tasks", &[("accept", "text/event-stream")], body.as_bytes());
    }
    let complete =
        |text: &str| text.matches("latency_total_quantile_ms{").count() >= 18 && text.contains("kv_cache_usage_ratio{");
    let mut text = String::new();
    while !complete(&text) {
        text = exchange(service.port, "GET", "/metrics", &[], b"").2;
    }
    let contract = contract();
    assert!(contract.len() > 50, "{}", contract.len());
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut seen = BTreeSet::new();
    for (name, labels, value) in series(&text) {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .filter(|name| contract.contains_key(*name));
        let family = family.unwrap_or(&name);
        let (kind, wanted) = contract.get(family).unwrap_or_else(|| panic!("{family} is not in .specs/metrics.md"));
        let labels: BTreeSet<String> = labels.into_iter().filter(|label| label != "le").collect();
        assert_eq!(&labels, wanted, "{family}");
        let declared = types.get(family.trim_end_matches("_total")).or_else(|| types.get(family));
        assert_eq!(declared, Some(&kind.as_str()), "{family}");
        assert!(value.is_finite(), "{name}");
        seen.insert(family.to_owned());
    }
    let text = std::fs::read_to_string(root().join(".specs/metrics.md")).unwrap();
    let may_be_absent = |name: &str| {
        let row = text.lines().find(|line| line.starts_with(&format!("| `{name}`"))).unwrap();
        row.contains("device") || row.contains("happened") || row.contains("known")
    };
    let absent = contract.keys().find(|name| !seen.contains(*name) && !may_be_absent(name));
    assert_eq!(absent, None, "it is in the contract and not exported");
    println!("{} families as the contract has them", seen.len());
}

#[test]
fn rules_and_dashboard_name_only_what_is_exported() {
    let known: BTreeSet<String> = contract().into_keys().collect();
    let rules = std::fs::read_to_string(root().join("ops/prometheus/rules.yml")).unwrap();
    let recorded: BTreeSet<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: ").or(line.trim().strip_prefix("record: ")))
        .collect();
    let board = std::fs::read_to_string(root().join("ops/grafana/dashboard.json")).unwrap();
    let board: serde_json::Value = serde_json::from_str(&board).unwrap();
    let mut expressions = Vec::new();
    collect(&board, &mut expressions);
    assert!(expressions.len() > 40, "{}", expressions.len());
    for expression in expressions {
        let strange = names(&expression).into_iter().find(|name| {
            let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            !known.contains(name.as_str())
                && !known.contains(plain)
                && !recorded.contains(name.as_str())
                && name != "up"
        });
        assert_eq!(strange, None, "in {expression}");
    }
}

fn collect(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            found.extend(map.get("expr").and_then(|expr| expr.as_str()).map(str::to_owned));
            map.values().for_each(|value| collect(value, found));
        }
        serde_json::Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

/// Names of series in an expression: a word that a brace or a bracket follows.
fn names(expression: &str) -> Vec<String> {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':';
    let bytes = expression.as_bytes();
    let ends = (1..bytes.len()).filter(|at| [b'{', b'['].contains(&bytes[*at]) && is_name(bytes[at - 1]));
    let name = |end: usize| {
        let begin = (0..end).rev().take_while(|at| is_name(bytes[*at])).last().unwrap_or(end);
        expression[begin..end].to_owned()
    };
    ends.map(name).collect()
}

#[test]
fn a_real_prometheus_scrapes_it_and_its_alert_fires_in_an_outage() {
    let _alone = alone_blocking();
    let rules = root().join("ops/prometheus");
    for arguments in
        [["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"], ["check", "config", "prometheus.yml"]]
    {
        let output = Command::new("promtool").args(arguments).current_dir(&rules).output();
        let Ok(output) = output else {
            assert!(std::env::var_os("REQUIRE_PROMETHEUS").is_none(), "promtool must be there");
            println!("SKIPPED: there is no Prometheus on this machine (Debian: prometheus)");
            return;
        };
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
    let text = "pools: [{id: frail, engine: sim, model: m, self_test: false, restart: {intensity: 1, backoff_ms: 10, backoff_max_ms: 10},\n  \
                sim: {preload_us: 0, faults: {die_ppm: 1000000}}}]\n";
    let service = Service::start(&["--config", &write("outage.yaml", text)]);
    let alert =
        "groups: [{name: now, rules: [{alert: BreakerOpen, expr: 'breaker_open == 1', labels: {severity: page}}]}]\n";
    let alert = write("outage-rules.yml", alert);
    let config = write(
        "outage-prometheus.yml",
        &format!(
            "global: {{scrape_interval: 200ms, evaluation_interval: 200ms}}\nrule_files: [{alert:?}, {:?}]\nscrape_configs:\n  - job_name: \
             orchestratord\n    static_configs: [{{targets: ['127.0.0.1:{}']}}]\n",
            rules.join("rules.yml").display().to_string(),
            service.port
        ),
    );
    let data = file("outage-data");
    let _ = std::fs::remove_dir_all(&data);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut prometheus = Command::new("prometheus")
        .args(["--config.file", &config, "--web.listen-address", &format!("127.0.0.1:{port}"), "--storage.tsdb.path"])
        .arg(&data)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ask = |path: &str| match std::net::TcpStream::connect(("127.0.0.1", port)) {
        Ok(_) => exchange(port, "GET", path, &[], b"").2,
        Err(_) => String::new(),
    };
    while !ask("/api/v1/targets").contains("\"health\":\"up\"") {
        assert!(prometheus.try_wait().unwrap().is_none(), "Prometheus runs");
    }
    assert!(!ask("/api/v1/alerts").contains("BreakerOpen"));
    for _ in 0..3 {
        exchange(service.port, "POST", "/v1/tasks", &[("accept", "text/event-stream")], b"{\"prompt\":\"x\"}");
    }
    while !ask("/api/v1/alerts").contains("\"alertname\":\"BreakerOpen\"") {}
    while !ask("/api/v1/query?query=histogram_quantile(0.5,latency_first_token_ms_bucket)").contains("success") {}
    prometheus.kill().unwrap();
    prometheus.wait().unwrap();
}
