//! Measures failover in the lab, with the routerd beside this program: 20 trials of each fault, with lines of
//! different subnets and with lines that all have the same. `failover 5` makes 5 trials. Needs root.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::time::Duration;

use anyhow::{Context, Result};
use tests::failover::{Trial, lab, trial};
use tests::link::Fault;

fn main() -> Result<()> {
    let trials = match std::env::args().nth(1) {
        Some(number) => number.parse().context("how many trials?")?,
        None => TRIALS,
    };
    println!("{}", bench::machine());
    println!(
        "{LINES} lines, probes every 100 ms, down after 3 lost; {trials} trials each, lines in turn. A TCP connection \
         every 10 ms, a 1 kHz UDP flow\non every line, a UDP flow born every 5 ms. Milliseconds, min / median / worst \
         of the trials.\n"
    );
    println!(
        "| fault | slowest connection opened since | flow goes on | unluckiest flow born since waits | others lost | control lost |"
    );
    println!("|---|---|---|---|---|---|");
    for same_gateway in [false, true] {
        for (fault, watch) in [(Fault::Carrier, 700), (Fault::Blackhole, 1500)] {
            let mut lab = lab(LINES, same_gateway)?;
            let results = (1..=LINES)
                .cycle()
                .take(trials)
                .map(|number| trial(&mut lab, number, fault, Duration::from_millis(watch)))
                .collect::<Result<Vec<_>>>()?;
            let lost = |of: fn(&Trial) -> usize| results.iter().map(of).sum::<usize>();
            let others = match results.iter().map(|trial| trial.worst_other).max() {
                None | Some(0) => "0".to_owned(),
                Some(worst) => format!("{} (at most {worst} of one flow in a trial)", lost(|trial| trial.others_lost)),
            };
            println!(
                "| {fault}{} | {} | {} | {} | {others} | {} |",
                if same_gateway { ", same gateway" } else { "" },
                spread(&results, |trial| trial.slowest),
                spread(&results, |trial| Some(trial.flow)),
                spread(&results, |trial| trial.born),
                lost(|trial| trial.control_lost),
            );
        }
    }
    Ok(())
}

fn spread(trials: &[Trial], of: impl Fn(&Trial) -> Option<Duration>) -> String {
    let mut times: Vec<_> = trials.iter().map(of).collect();
    // What never worked again is the worst.
    times.sort_by_key(|time| (time.is_none(), *time));
    let tell = |index: usize| match times.get(index) {
        Some(Some(time)) => format!("{:.0}", time.as_secs_f64() * 1000.0),
        Some(None) => "never".to_owned(),
        None => "-".to_owned(),
    };
    format!("{} / {} / {}", tell(0), tell(times.len() / 2), tell(times.len().saturating_sub(1)))
}

const LINES: u8 = 4;
const TRIALS: usize = 20;
