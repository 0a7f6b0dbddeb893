//! Compiled rulesets on the real kernel, from the smallest file to one of 5,000 entries. As in `kernel.rs`, each test
//! has network namespaces of its own, and says `SKIP` where it cannot have them or has no nft.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test may stop at what it did not expect"
)]

#[path = "kernel/netns.rs"]
mod netns;

use std::path::Path;
use std::time::{Duration, Instant};

use config::Config;
use mwan::decide::Decision;
use mwan::state::{Ruleset, RulesetState};
use mwan::{KernelState, Links, Step};
use router_daemon::counters::Count;
use router_daemon::kernel::{Kernel, LinuxKernel, counters};

use netns::{alone, nft};

const MINIMAL: &str = include_str!("../../config/examples/minimal.toml");
const CUSTOMER: &str = include_str!("../../config/examples/spectrum-site.toml");

#[test]
fn the_small_site_is_loaded_once() {
    is_loaded_once(MINIMAL.to_owned(), Duration::from_millis(500));
}

#[test]
fn the_customers_site_is_loaded_once() {
    is_loaded_once(CUSTOMER.to_owned(), Duration::from_millis(1500));
}

#[test]
fn a_site_of_5000_entries_is_loaded_once() {
    is_loaded_once(bench::site(200, 4, 5000), Duration::from_secs(3));
}

/// Loads, finds it loaded, and finds it loaded after a restart too. `patience` is generous: it is there to see that
/// nothing takes ten times as long as it did.
fn is_loaded_once(text: String, patience: Duration) {
    alone(move |run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let want = ruleset_of(&parsed(&text));
        let rules: usize = want_rules(&want);
        let started = Instant::now();
        converge(&mut kernel, &want).await;
        let took = started.elapsed();
        println!("{rules} rules: closed, loaded and read back in {took:?}");
        assert!(took < patience, "{took:?}");

        let started = Instant::now();
        assert_eq!(plan(&mut kernel, &want).await, vec![]);
        println!("found unchanged in {:?}", started.elapsed());
        let mut restarted = LinuxKernel::open(&run).await.unwrap();
        let started = Instant::now();
        assert_eq!(plan(&mut restarted, &want).await, vec![]);
        println!("adopted in {:?}", started.elapsed());
    });
}

/// Whoever else changes the table is seen, whatever they change, and the next plan loads it again.
#[test]
fn every_kind_of_drift_is_seen() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let want = ruleset_of(&parsed(MINIMAL));
        converge(&mut kernel, &want).await;
        for damage in [
            "insert rule inet quadway deny accept",
            "flush chain inet quadway deny_in",
            "add chain inet quadway stranger",
            "add chain inet quadway hook_forward { policy accept; }",
            "add chain inet quadway other { type filter hook forward priority -400; policy accept; }",
            "add set inet quadway strange { type ipv4_addr; }",
            "add map inet quadway strange { type mark : verdict; }",
            "add table inet quadway { flags dormant; }",
            "delete table inet quadway",
        ] {
            is_seen(&mut kernel, &want, damage).await;
        }
        let gone = format!("delete rule inet quadway hook_input handle {}", handle("hook_input", "deny_in"));
        is_seen(&mut kernel, &want, &gone).await;
        // The same rule with another set in it.
        let homes = handle("from_vlan", "vlan10");
        let fewer = r#"iifname . ip saddr { "vlan10" . 10.0.10.0/24 } accept"#;
        is_seen(&mut kernel, &want, &format!("replace rule inet quadway from_vlan handle {homes} {fewer}")).await;
    });
}

async fn is_seen(kernel: &mut LinuxKernel, want: &KernelState, damage: &str) {
    nft(damage);
    assert_ne!(kernel.observe(want).await.unwrap().ruleset, want.ruleset, "{damage}");
    converge(kernel, want).await;
}

/// The number of the rule of a chain that holds these words.
fn handle(chain: &str, words: &str) -> String {
    let listing = nft(&format!("-a list chain inet quadway {chain}"));
    let line = listing.lines().rfind(|line| line.contains(words)).expect("the rule is there");
    line.rsplit(' ').next().expect("a handle").to_owned()
}

#[test]
fn a_changed_cell_is_loaded_and_what_was_counted_stays() {
    alone(|run| async move {
        let Some(mut kernel) = kernel(&run).await else { return };
        let (before, after) =
            (ruleset_of(&parsed(MINIMAL)), ruleset_of(&parsed(&MINIMAL.replace("tcp/631", "tcp/632"))));
        converge(&mut kernel, &before).await;
        nft(r#"add element inet quadway denied { "vlan20" . "vlan10" counter packets 7 bytes 420 }"#);
        assert_eq!(plan(&mut kernel, &before).await, vec![], "counting is no drift");
        let steps = plan(&mut kernel, &after).await;
        assert!(matches!(steps.as_slice(), [Step::LoadRuleset { .. }]), "{steps:?}");
        converge(&mut kernel, &after).await;
        let counted: Vec<_> = counters().await.unwrap().denied.into_values().collect();
        assert_eq!(counted, [Count { packets: 7, bytes: 420 }]);
        assert!(nft("list chain inet quadway hook_forward").contains("632"));
    });
}

async fn converge(kernel: &mut LinuxKernel, want: &KernelState) {
    for step in plan(kernel, want).await {
        let started = Instant::now();
        kernel.apply(&step).await.unwrap();
        println!("{:?} for {step}", started.elapsed());
    }
    assert_eq!(plan(kernel, want).await, vec![], "one plan is enough");
}

async fn plan(kernel: &mut LinuxKernel, want: &KernelState) -> Vec<Step> {
    kernel.observe(want).await.unwrap().plan_to(want)
}

/// The nft side of what a config compiles to: it needs no link to be there.
fn ruleset_of(config: &Config) -> KernelState {
    let whole = mwan::compile::compile(config, &Decision::default(), &Links::default());
    KernelState { ruleset: whole.ruleset, buckets: whole.buckets, dead: whole.dead, ..KernelState::default() }
}

fn installed(state: &KernelState) -> &Ruleset {
    let RulesetState::Installed(ruleset) = &state.ruleset else { panic!("compile installs a ruleset") };
    ruleset
}

fn want_rules(state: &KernelState) -> usize {
    installed(state).chains.values().map(Vec::len).sum()
}

fn parsed(text: &str) -> Config {
    config::parse("site.toml", text).unwrap_or_else(|problems| panic!("{problems}")).config
}

async fn kernel(run: &Path) -> Option<LinuxKernel> {
    LinuxKernel::open(run).await.inspect_err(|error| println!("SKIP: {error}")).ok()
}
