//! A real Prometheus reads a real routerd: the page, the alert rules and the dashboards that ship with it.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::{feed, run};
use tests::watch::wait;

#[test]
fn the_alert_rules_do_what_their_tests_say() {
    let Some(promtool) = program("promtool") else { return };
    let rules = |what: &str, file: &str| {
        run(Command::new(&promtool).current_dir(shipped("")).args([what, "rules", file])).unwrap();
    };
    rules("check", "alerts.yml");
    rules("test", "alerts.test.yml");
}

#[test]
fn rules_and_dashboards_use_metrics_that_are_documented() {
    let documented: BTreeSet<_> = names(&read("../METRICS.md")).into_iter().collect();
    for (place, query) in queries() {
        let strange: Vec<_> = names(&query).into_iter().filter(|name| !documented.contains(name)).collect();
        assert!(strange.is_empty(), "{place}: {strange:?} in {query}");
    }
}

#[test]
fn prometheus_scrapes_the_router_and_tells_that_a_line_is_down() {
    let (Some(prometheus), Some(promtool)) = (program("prometheus"), program("promtool")) else { return };
    let Some(mut lab) = Temporary::routed(SITE, 2, false).unwrap() else { return };
    let page = get(&lab, 9790, "/metrics").unwrap();
    feed(Command::new(promtool).args(["check", "metrics"]), &page).unwrap();

    let folder = lab.state_directory().join("prometheus");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(shipped("alerts.yml"), folder.join("alerts.yml")).unwrap();
    std::fs::write(folder.join("prometheus.yml"), CONFIG).unwrap();
    let mut server = lab.router().command(prometheus);
    server.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
    server.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    server.arg("--web.listen-address=127.0.0.1:9791");
    let _server = Server(server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());

    // Until then it may not even listen.
    let scraped = || Ok(holds(&lab, "up == 1 and on () quadway_wan_up{wan=\"wan2\"} == 1").unwrap_or(false));
    wait("the router is scraped", scraped).unwrap();
    for (place, query) in queries() {
        ask(&lab, &query).with_context(|| place).unwrap();
    }
    let health = get(&lab, 9791, "/api/v1/rules").unwrap();
    assert!(health.contains("\"health\":\"ok\"") && !health.contains("\"health\":\"err\""), "{health}");

    lab.fail(2, Fault::Carrier).unwrap();
    let alert = "ALERTS{alertname=\"WANDown\", wan=\"wan2\"}";
    wait("the line's alert is on its way", || holds(&lab, alert)).unwrap();
    assert!(!holds(&lab, "ALERTS{alertname=\"WANDown\", wan=\"wan1\"}").unwrap());
    assert!(!holds(&lab, "ALERTS{alertname=\"AllWANsDown\"}").unwrap());
    assert!(holds(&lab, "quadway_wan_failovers_total{wan=\"wan2\"} == 1").unwrap());
}

/// Every query that ships: where it stands, and itself as Grafana would ask it.
fn queries() -> Vec<(String, String)> {
    let rules = read("alerts.yml");
    let mut queries = Vec::new();
    // `check rules` has read the YAML whole; here one expression stands in a line, or in the deeper lines below `|`.
    let mut lines = rules.lines().peekable();
    while let Some(line) = lines.next() {
        let Some(expression) = line.trim().strip_prefix("expr: ") else { continue };
        let mut query = expression.trim_start_matches('|').to_owned();
        while expression == "|" && lines.peek().is_some_and(|line| line.starts_with("          ")) {
            query += lines.next().unwrap();
        }
        queries.push(("alerts.yml".to_owned(), query));
    }
    assert!(queries.len() > 9, "{queries:?}");
    for file in ["grafana/overview.json", "grafana/lines-and-matrix.json"] {
        let board: Value = serde_json::from_str(&read(file)).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
        let notes = board["annotations"]["list"].as_array().unwrap().iter();
        for asked in targets.chain(notes) {
            let query = asked["expr"].as_str().unwrap();
            let filled = [("$__rate_interval", "1m"), ("$__range", "5m"), ("$instance", ".*"), ("$wan", ".*")]
                .iter()
                .fold(query.to_owned(), |query, (variable, value)| query.replace(variable, value));
            assert!(!filled.contains('$'), "{file}: {query}");
            queries.push((file.to_owned(), filled));
        }
    }
    queries
}

/// The metrics of ours that a text names.
fn names(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("quadway_") || word.starts_with("node_mwan3_")).map(str::to_owned).collect()
}

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../router-daemon/contrib").join(file)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(shipped(file)).unwrap()
}

/// What `make prometheus` fetched.
fn program(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/prometheus").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "{name} is missing: `make prometheus` fetches it");
    println!("SKIP: {name} is missing: `make prometheus` fetches it");
    None
}

/// Whether a query finds anything.
fn holds(lab: &Lab, query: &str) -> Result<bool> {
    Ok(ask(lab, query)?.as_array().is_some_and(|found| !found.is_empty()))
}

/// The result of a query.
fn ask(lab: &Lab, query: &str) -> Result<Value> {
    let encoded = query.bytes().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
    let text = get(lab, 9791, &format!("/api/v1/query?query={encoded}"))?;
    let mut answer: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(answer["status"] == "success", "{query}: {text}");
    Ok(answer["data"]["result"].take())
}

/// A page of somebody on the router's loopback.
fn get(lab: &Lab, port: u16, path: &str) -> Result<String> {
    let mut stream = lab.router().enter(|| TcpStream::connect(("127.0.0.1", port)))??;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.contains(" 200 ") || body.starts_with('{'), "{path}: {head}\n{body}");
    Ok(body.to_owned())
}

/// Ends with this value.
struct Server(std::process::Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

const CONFIG: &str = r#"
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [alerts.yml]
scrape_configs:
  - job_name: quadway
    static_configs: [{targets: ["127.0.0.1:9790"]}]
"#;

const SITE: &str = include_str!("../../config/examples/minimal.toml");
