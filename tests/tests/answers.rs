//! What `routerctl explain` answers, beside what the lab's lines and packets do.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::time::Duration;

use serde_json::Value;
use tests::failover::{PATIENCE, TO, client, one_for_each_line};
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::run;
use tests::traffic::open;
use tests::watch::wait_usable;

const SITE: &str = include_str!("../../config/examples/minimal.toml");

/// A blackhole under a few flows: whose fault it was, on what evidence, and what became of the flows.
#[test]
fn a_lost_line_is_explained_with_its_evidence_and_its_flows() {
    let Some(mut lab) = Temporary::routed(SITE, 4, false).unwrap() else { return };
    let before = explain_wan(&lab, "wan2");
    assert_eq!(before["line"]["families"][0]["state"], "up", "{before}");
    assert!(before["line"]["families"][0]["risk"]["latest"]["nanos"].as_u64() > Some(0), "{before}");
    assert!(before["text"].as_str().unwrap().contains("is lost at once with the carrier of wan2"), "{before}");

    let inside = client(&lab).unwrap();
    let _datagrams = one_for_each_line(&lab, &inside).unwrap();
    let own = lab.site().wans[1].router4.addr();
    let connections: Vec<_> = (0..40).map(|_| open(&inside, TO, PATIENCE).unwrap()).collect();
    let on_it = connections.iter().filter(|(_, greeting)| greeting.peer == own).count();
    assert!(on_it > 0, "the lines take turns");

    lab.fail(2, Fault::Blackhole).unwrap();
    wait_usable(&lab, "wan2", "v4", false).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let answer = explain_wan(&lab, "wan2");
    println!("{}", answer["text"].as_str().unwrap());
    let loss = &answer["line"]["families"][0]["lost"];
    assert_eq!(loss["evidence"]["blame"], "line", "{loss}");
    assert_eq!(loss["evidence"]["others"].as_array().unwrap().len(), 3);
    assert!(loss["flows"]["moved"].as_u64().unwrap() > on_it as u64, "{on_it} and a datagram: {loss}");
    assert_eq!(loss["flows"]["kept"], serde_json::json!([]), "{loss}");

    // With nowhere better to go nothing is moved, and that is told.
    for number in [1, 3, 4] {
        lab.fail(number, Fault::Carrier).unwrap();
    }
    wait_usable(&lab, "wan4", "v4", false).unwrap();
    let answer = explain_wan(&lab, "wan4");
    println!("{}", answer["text"].as_str().unwrap());
    let loss = &answer["line"]["families"][0]["lost"];
    assert_eq!(loss["evidence"]["ground"], "carrier", "{loss}");
    assert_ne!(loss["evidence"]["blame"], "line", "{loss}");
    let unknown = lab.routerctl().unwrap().args(["explain", "wan9"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
}

fn explain_wan(lab: &Lab, wan: &str) -> Value {
    let text = run(lab.routerctl().unwrap().args(["--json", "explain", wan])).unwrap();
    serde_json::from_str(&text).unwrap()
}
