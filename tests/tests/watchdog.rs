//! A line whose traffic is answered by nothing is found out before its probes notice.

use std::time::Duration;

use tests::failover::{rarely_probed, trial};
use tests::lab::binary;
use tests::link::Fault;
use tests::netns::run;

#[test]
fn traffic_that_nothing_answers_moves_long_before_a_probe_is_due() {
    if let Err(reason) = tests::can_run().and_then(|()| binary("routerd").and(binary("routerctl")).map(drop)) {
        println!("SKIP: {reason:#}");
        return;
    }
    let mut lab = rarely_probed(4).unwrap();
    for number in [2, 4] {
        let trial = trial(&mut lab, number, Fault::Blackhole, Duration::from_secs(2)).unwrap();
        println!("{trial:?}");
        // Three lost probes would take four seconds at least.
        assert!(trial.flow < Duration::from_millis(1500), "{trial:?}");
    }
    let journal = run(lab.routerctl().unwrap().arg("journal")).unwrap();
    assert!(journal.contains("brought nothing back to") && journal.contains("nothing came back for"), "{journal}");
}
