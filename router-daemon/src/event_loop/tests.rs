//! The loop over a fake kernel: an apply is a transaction.

mod leases;

use std::fs;
use std::io;
use std::sync::Mutex;

use mwan::Step;
use mwan::links::{LinkFacts, Links};

use super::*;
use crate::ask::{ApplyReport, Author, How, PlanReport};
use crate::happening::Happening;
use crate::history::Outcome;
use crate::kernel::fake::FakeKernel;
use crate::reconcile::Reconciler;
use crate::session::Session;

#[test]
fn an_answer_is_told_at_the_time_when_it_came() {
    let at = |ms: u64| Time::from_micros(ms * 1_000);
    let ms = Duration::from_millis;
    assert_eq!(came(at(100), at(0), Some(ms(99))), at(1));
    assert_eq!(came(at(100), at(50), Some(ms(99))), at(50), "time does not go back");
    assert_eq!(came(at(100), at(50), Some(ms(0))), at(100));
    assert_eq!(came(at(100), at(50), Some(Duration::MAX)), at(50));
    assert_eq!(came(at(100), at(50), None), at(50), "the clock was set: what came is not lost by that");
}

#[tokio::test]
async fn an_apply_is_kept_and_ends_the_flows_it_dooms() {
    let bench = Bench::start(None);
    let report = bench.apply(MINIMAL).await.unwrap();
    assert_eq!(report.flows_ended, DOOMED);
    assert!(report.warnings.iter().any(|warning| warning.contains("differs from")), "{:?}", report.warnings);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    assert_eq!(bench.view().await.config.unwrap().digest, report.digest);
    assert_eq!(bench.ended(), std::slice::from_ref(&report.digest));
    // The same again has nothing to do.
    assert_eq!(bench.apply(MINIMAL).await.unwrap().steps, 0);
}

#[tokio::test]
async fn what_breaks_an_assert_changes_nothing() {
    let bench = Bench::start(None);
    bench.apply(MINIMAL).await.unwrap();
    bench.kernel.take_applied();
    let refusal = bench.apply(&MINIMAL.replace("guests -> office deny", "guests -> office allow")).await.unwrap_err();
    assert_eq!(refusal.code, "assert");
    assert!(refusal.message.contains("guests -> office allow"), "{refusal}");
    assert_eq!(bench.apply("[site").await.unwrap_err().code, "config");
    assert_eq!(bench.kernel.take_applied(), []);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
}

#[tokio::test]
async fn what_the_kernel_refuses_gives_way_to_the_previous_config() {
    for refused in ["ruleset", "address"] {
        let bench = Bench::start(None);
        let before = bench.apply(MINIMAL).await.unwrap();
        let state = bench.kernel.state();
        bench.kernel.refuse(move |step| {
            let ruleset = matches!(step, Step::LoadRuleset { .. });
            let address = matches!(step, Step::AddAddress(address) if address.net.to_string() == "10.0.30.1/24");
            let mine = if refused == "ruleset" { ruleset } else { address };
            mine.then_some(io::ErrorKind::OutOfMemory)
        });
        let refusal = bench.apply(&narrowed()).await.unwrap_err();
        assert_eq!(refusal.code, "kernel");
        assert!(refusal.message.contains("out of memory"), "{refusal}");
        assert!(refusal.message.contains("the previous configuration is in force"), "{refusal}");
        assert_eq!(bench.kernel.state(), state, "{refused}");
        assert_eq!(bench.view().await.config.unwrap().digest, before.digest);
        assert_eq!(bench.running().as_deref(), Some(MINIMAL));
        assert_eq!(bench.ended(), [before.digest], "no flow is judged by what was refused");
    }
}

#[tokio::test]
async fn a_first_apply_that_fails_leaves_everything_denied() {
    let bench = Bench::start(None);
    bench.kernel.refuse(|step| matches!(step, Step::AddAddress(_)).then_some(io::ErrorKind::OutOfMemory));
    let refusal = bench.apply(MINIMAL).await.unwrap_err();
    assert!(refusal.message.contains("everything is denied"), "{refusal}");
    let nothing = Accepted::new("nothing", apply::NOTHING).unwrap();
    let closed = mwan::compile::compile(&nothing.config, &mwan::decide::Decision::default(), &links());
    let state = bench.kernel.state();
    assert_eq!(state.ruleset, closed.ruleset);
    assert!(state.addresses.is_empty() && state.routes.is_empty() && state.buckets.is_empty());
    let view = bench.view().await;
    assert!(view.config.is_none());
    assert!(view.applies.failing.unwrap().contains("everything is denied"));
    assert_eq!(bench.running(), None);
    // It is no dead end.
    bench.kernel.heal();
    bench.apply(MINIMAL).await.unwrap();
    assert!(bench.view().await.applies.failing.is_none());
}

#[tokio::test]
async fn one_apply_at_a_time() {
    let bench = Bench::start(None);
    bench.kernel.delay_steps(Duration::from_millis(20));
    let narrowed = narrowed();
    let (first, second) = tokio::join!(bench.apply(MINIMAL), bench.apply(&narrowed));
    assert_eq!(second.unwrap_err().code, "busy");
    assert_eq!(bench.view().await.config.unwrap().digest, first.unwrap().digest);
}

#[tokio::test]
async fn the_loop_goes_on_while_a_text_is_parsed() {
    let mut bench = Bench::start(None);
    bench.apply(MINIMAL).await.unwrap();
    // A long text, refused for its last words.
    let long = format!("{MINIMAL}{}[wan", "[[assert]]\nthat = \"guests -> office deny\"\n".repeat(20_000));
    let (reply, mut refused) = oneshot::channel();
    let apply = Ask::Apply { text: long.clone(), how: How::default(), author: alice(), past: None, reply };
    bench.asks.send(apply).await.unwrap();
    let (reply, mut planned) = oneshot::channel();
    bench.asks.send(Ask::Plan { text: long, reply }).await.unwrap();

    assert_eq!(bench.view().await.applies.waiting, Vec::<String>::new());
    let mut links = links();
    links.0.retain(|name, _| name.as_str() != "eth3");
    bench.changes.send(Change::Links(links)).await.unwrap();
    let begun = Instant::now();
    while bench.view().await.applies.waiting.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    assert_eq!(bench.apply(MINIMAL).await.unwrap_err().code, "busy", "one apply at a time");
    assert!(refused.try_recv().is_err() && planned.try_recv().is_err(), "it answered and stepped meanwhile");

    assert_eq!(refused.await.unwrap().unwrap_err().code, "config");
    assert_eq!(planned.await.unwrap().unwrap_err().code, "config");
    bench.apply(&narrowed()).await.unwrap();
    assert_eq!(bench.running(), Some(narrowed()));
    assert_eq!(bench.told().await.unwrap(), "refused: config by start");
}

#[tokio::test]
async fn a_port_that_is_not_there_is_waited_for_once_and_in_words() {
    let bench = Bench::start(None);
    bench.apply(MINIMAL).await.unwrap();
    assert_eq!(bench.view().await.applies.waiting, Vec::<String>::new());
    let mut links = links();
    links.0.retain(|name, _| !["eth0", "eth3"].contains(&name.as_str()));
    bench.changes.send(Change::Links(links)).await.unwrap();
    while bench.view().await.applies.waiting.is_empty() {
        tokio::task::yield_now().await;
    }
    let waiting = bench.view().await.applies.waiting;
    assert_eq!(
        waiting,
        ["port eth0 (line 9): there is no interface eth0", "port eth3 (line 33): there is no interface eth3"]
    );
}

#[tokio::test]
async fn a_plan_counts_and_changes_nothing() {
    let bench = Bench::start(None);
    bench.apply(MINIMAL).await.unwrap();
    bench.kernel.take_applied();
    let plan = bench.plan(&narrowed()).await.unwrap();
    assert_eq!(plan.flows_that_die, DOOMED);
    assert!(plan.steps.iter().any(|step| matches!(step, Step::LoadRuleset { .. })));
    assert_eq!(bench.kernel.take_applied(), []);
    assert_eq!(bench.ended().len(), 1, "only by the apply");
}

#[tokio::test]
async fn a_restart_begins_with_the_last_word_and_judges_the_flows_it_finds() {
    let mut bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let narrowed = narrowed();
    let applied = bench.apply(&narrowed).await.unwrap();
    bench.restart().await;
    bench.ready().await;
    assert_eq!(bench.kernel.take_applied(), [], "the kernel is found as it was left");
    let view = bench.view().await;
    assert_eq!(view.config.unwrap().digest, applied.digest);
    assert!(view.applies.unlike_file.unwrap().contains("differs from"));
    assert_eq!(bench.ended().last(), Some(&applied.digest));

    fs::write(&bench.site.file, MINIMAL.replace("\"minimal\"", "\"edited\"")).unwrap();
    assert!(bench.view().await.applies.unlike_file.unwrap().contains("edited since"));
    bench.restart().await;
    bench.ready().await;
    let view = bench.view().await;
    assert_eq!(view.config.unwrap().site, "edited");
    assert_eq!(view.applies.unlike_file, None);
}

#[tokio::test]
async fn every_file_of_the_journal_replays() {
    let bench = Bench::start(None);
    let narrowed = narrowed();
    for number in 0..40 {
        bench.apply(if number % 2 == 0 { MINIMAL } else { &narrowed }).await.unwrap();
    }
    let folder = bench.stop().await;
    let journal = folder.path().join("journal/journal.jsonl");
    let mut files = 0;
    for number in 0..FILES {
        let text = fs::read_to_string(numbered(&journal, number)).unwrap();
        let report = match mwan::journal::replay(text.lines(), None) {
            Ok(report) => report,
            // Begun a moment before the end.
            Err(mwan::journal::JournalError::NoConfig) => continue,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(report.first_difference, None);
        files += 1;
    }
    assert!(files >= 3);
}

#[tokio::test]
async fn an_unconfirmed_change_is_taken_back_and_is_no_word() {
    let mut bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let (before, state) = (bench.view().await.config.unwrap().digest.clone(), bench.kernel.state());
    // As it usually is: the file is edited, and that is applied.
    fs::write(&bench.site.file, narrowed()).unwrap();
    let report = bench.apply_as(&narrowed(), within(1)).await.unwrap();
    assert!(report.confirm_milliseconds.unwrap() <= 1000);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL), "it is no word yet");
    let pending = bench.view().await.applies.pending.unwrap();
    assert_eq!((pending.author, pending.window_seconds), (alice(), 1));
    let refusal = bench.apply(MINIMAL).await.unwrap_err();
    assert_eq!(refusal.code, "pending");
    assert!(refusal.message.contains("routerctl confirm") && refusal.message.contains("routerctl rollback"));

    bench.back(&before).await;
    assert_eq!(bench.kernel.state(), state);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    assert_eq!(bench.view().await.applies.rollbacks["unconfirmed"], 1);
    let history = bench.history();
    assert_eq!(history.iter().map(|entry| entry.author.name.as_str()).collect::<Vec<_>>(), ["start", "alice"]);
    assert_eq!(history[1].outcome, Outcome::RolledBack("nobody confirmed it within 1s".to_owned()));
    assert_eq!(bench.confirm().await.unwrap_err().code, "nothing-pending");
    assert_eq!(bench.take_back().await.unwrap_err().code, "nothing-pending");
    bench.restart().await;
    bench.ready().await;
    assert_eq!(bench.view().await.config.unwrap().digest, before, "a rollback is the last word over the file");
}

#[tokio::test]
async fn a_confirmed_change_is_the_last_word() {
    let mut bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let applied = bench.apply_as(&narrowed(), within(600)).await.unwrap();
    assert_eq!(bench.confirm().await.unwrap().digest, applied.digest);
    assert_eq!(bench.running(), Some(narrowed()));
    assert_eq!(bench.view().await.applies.pending, None);
    assert_eq!(bench.history()[1].outcome, Outcome::Confirmed("alice (uid 1000)".to_owned()));
    bench.restart().await;
    bench.ready().await;
    assert_eq!(bench.view().await.config.unwrap().digest, applied.digest);
}

#[tokio::test]
async fn an_operator_takes_a_change_back_at_once() {
    let bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let (before, state) = (bench.view().await.config.unwrap().digest.clone(), bench.kernel.state());
    bench.apply_as(&narrowed(), within(600)).await.unwrap();
    assert_eq!(bench.take_back().await.unwrap().digest, before);
    assert_eq!(bench.kernel.state(), state);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    assert_eq!(bench.history()[1].outcome, Outcome::RolledBack("alice (uid 1000) took it back".to_owned()));
    // What nothing was before goes back to nothing.
    let bench = Bench::start(None);
    bench.apply_as(MINIMAL, within(600)).await.unwrap();
    bench.take_back().await.unwrap();
    assert!(bench.view().await.config.is_none());
}

#[tokio::test]
async fn a_window_outlives_the_daemon() {
    let mut bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let (before, state) = (bench.view().await.config.unwrap().digest.clone(), bench.kernel.state());
    let applied = bench.apply_as(&narrowed(), within(2)).await.unwrap();
    bench.restart().await;
    bench.ready().await;
    let view = bench.view().await;
    assert_eq!(view.config.unwrap().digest, applied.digest, "time is left");
    assert_eq!(view.applies.pending.unwrap().author, alice());
    assert_eq!(bench.kernel.take_applied(), []);
    bench.back(&before).await;
    assert_eq!(bench.kernel.state(), state);

    bench.apply_as(&narrowed(), within(1)).await.unwrap();
    bench.restart_after(Duration::from_millis(1100)).await;
    bench.ready().await;
    let view = bench.view().await;
    assert_eq!(view.config.unwrap().digest, before, "time was up");
    assert_eq!((view.applies.pending, view.applies.rollbacks["restart"]), (None, 1));
    assert_eq!(bench.kernel.state(), state);
    assert_eq!(bench.history().len(), 3);
}

#[tokio::test]
async fn a_rollback_that_the_kernel_refuses_goes_on() {
    let bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let (before, state) = (bench.view().await.config.unwrap().digest.clone(), bench.kernel.state());
    bench.apply_as(&narrowed(), within(1)).await.unwrap();
    bench.kernel.refuse(|step| matches!(step, Step::LoadRuleset { .. }).then_some(io::ErrorKind::OutOfMemory));
    while bench.view().await.applies.failing.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.view().await.applies.failing.unwrap().contains("out of memory"));
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    bench.kernel.heal();
    bench.back(&before).await;
    assert_eq!(bench.kernel.state(), state);
}

#[tokio::test]
async fn what_the_kernel_refuses_waits_for_nothing() {
    let bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    bench.kernel.refuse(|step| matches!(step, Step::LoadRuleset { .. }).then_some(io::ErrorKind::OutOfMemory));
    let refusal = bench.apply_as(&narrowed(), within(600)).await.unwrap_err();
    assert_eq!(refusal.code, "kernel");
    assert_eq!(bench.view().await.applies.pending, None);
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    let begun = Instant::now();
    while bench.site.state.join("pending.json").exists() {
        assert!(begun.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_keeps_a_change_that_makes_nothing_worse() {
    let mut bench = Bench::measured().await;
    bench.denied.set_rate(3);
    let begun = Instant::now();
    let report = bench.apply_as(&narrowed(), guarded(120)).await.unwrap();
    let window = begun.elapsed().as_secs();
    assert!((120..130).contains(&window), "{window} s");
    let measured = report.measured.unwrap();
    assert_eq!(measured, "no line got worse; 3.0 packets a second are denied, 0.0 before");
    assert_eq!((report.number, report.confirm_milliseconds), (Some(2), None));
    assert_eq!(bench.running(), Some(narrowed()));
    assert_eq!(bench.history()[1].outcome, Outcome::Confirmed(measured));
    assert_eq!(bench.view().await.applies.pending, None);
    bench.restart().await;
    bench.ready().await;
    assert_eq!(bench.view().await.config.unwrap().digest, report.digest);
}

#[tokio::test(start_paused = true)]
async fn a_guard_takes_back_what_makes_denials_explode_or_segments_be_lost() {
    for (storm, why) in [(true, "1000.0 packets a second are denied"), (false, "50.0 % of the segments are sent again")]
    {
        let bench = Bench::measured().await;
        let (before, state) = (bench.view().await.config.unwrap().digest.clone(), bench.kernel.state());
        let begun = Instant::now();
        let narrowed = narrowed();
        let meanwhile = async {
            let pending = bench.pending().await;
            assert!(pending.guard && pending.to_string().contains("is measured"), "{pending}");
            assert_eq!(bench.running().as_deref(), Some(MINIMAL), "it is no word yet");
            let refusal = bench.apply(MINIMAL).await.unwrap_err();
            assert_eq!(refusal.code, "pending");
            assert!(refusal.message.contains("is measured"), "{refusal}");
            if storm {
                bench.denied.set_rate(1000);
            } else {
                bench.resend().await;
            }
        };
        let (refused, ()) = tokio::join!(bench.apply_as(&narrowed, guarded(120)), meanwhile);
        let refusal = refused.unwrap_err();
        assert_eq!(refusal.code, "guard");
        assert!(refusal.message.contains(why), "{refusal}");
        assert!(begun.elapsed() < Duration::from_mins(1), "long before the end of the window");
        bench.back(&before).await;
        assert_eq!(bench.kernel.state(), state);
        let view = bench.view().await;
        assert_eq!(view.applies.rollbacks["guard"], 1);
        assert!(view.applies.rolled_back.unwrap().contains(why));
        assert_eq!(bench.running().as_deref(), Some(MINIMAL));
        assert!(matches!(&bench.history()[1].outcome, Outcome::RolledBack(told) if told.contains(why)));
        // And the journal says why the previous config came.
        let folder = bench.stop().await;
        let journal = fs::read_to_string(folder.path().join("journal/journal.jsonl")).unwrap();
        let mut teller = mwan::journal::Teller::default();
        let told = journal.lines().filter_map(|line| teller.tell(line)?.why).collect::<Vec<_>>();
        assert!(matches!(told.as_slice(), [one] if one.starts_with("rolled back: ") && one.contains(why)), "{told:?}");
        assert_eq!(mwan::journal::replay(journal.lines(), None).unwrap().first_difference, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_guard_gives_way_to_a_person() {
    let bench = Bench::measured().await;
    let narrowed = narrowed();
    let confirmed = async {
        bench.pending().await;
        bench.decided(|reply| Ask::Confirm { author: alice(), reply }).await.unwrap()
    };
    let (applied, confirmed) = tokio::join!(bench.apply_as(&narrowed, guarded(120)), confirmed);
    let applied = applied.unwrap();
    assert_eq!(applied.digest, confirmed.digest);
    assert_eq!(applied.measured.unwrap(), "alice (uid 1000) confirmed it");
    assert_eq!(bench.running(), Some(narrowed));

    tokio::time::sleep(Duration::from_secs(20)).await;
    let back = async {
        bench.pending().await;
        bench.decided(|reply| Ask::RollBack { author: alice(), reply }).await.unwrap()
    };
    let (refused, _) = tokio::join!(bench.apply_as(MINIMAL, guarded(120)), back);
    let refusal = refused.unwrap_err();
    assert_eq!(refusal.code, "guard");
    assert!(refusal.message.contains("alice (uid 1000) took it back"), "{refusal}");
    assert_eq!(bench.view().await.applies.rolled_back, None, "he knows");
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_measurement_a_restart_ends_is_taken_back() {
    let mut bench = Bench::measured().await;
    let before = bench.view().await.config.unwrap().digest.clone();
    let (reply, answer) = oneshot::channel();
    let apply = Ask::Apply { text: narrowed(), how: guarded(600), author: alice(), past: None, reply };
    bench.asks.send(apply).await.unwrap();
    bench.pending().await;
    bench.restart().await;
    answer.await.unwrap_err();
    bench.ready().await;
    let view = bench.view().await;
    assert_eq!((view.config.unwrap().digest.clone(), view.applies.pending), (before, None));
    assert_eq!(view.applies.rollbacks["restart"], 1);
    assert!(view.applies.rolled_back.unwrap().contains("before the measurement ended"));
}

#[tokio::test(start_paused = true)]
async fn a_guard_needs_something_to_compare_and_a_time_of_its_own() {
    let bench = Bench::start(None);
    assert_eq!(bench.apply_as(MINIMAL, guarded(120)).await.unwrap_err().code, "not-configured");
    bench.apply(MINIMAL).await.unwrap();
    assert_eq!(bench.apply_as(&narrowed(), guarded(120)).await.unwrap_err().code, "busy");
    tokio::time::sleep(Duration::from_secs(20)).await;
    let both = How { confirm_milliseconds: Some(60_000), ..guarded(120) };
    for (how, told) in [(both, "not by both"), (guarded(1), "ten seconds"), (guarded(100_000), "one hour")] {
        let refusal = bench.apply_as(&narrowed(), how).await.unwrap_err();
        assert_eq!(refusal.code, "window");
        assert!(refusal.message.contains(told), "{refusal}");
    }
    assert_eq!(bench.running().as_deref(), Some(MINIMAL));
    // What the kernel does not tell keeps nothing.
    bench.denied.stop_telling();
    let refusal = bench.apply_as(&narrowed(), guarded(10)).await.unwrap_err();
    assert!(refusal.message.contains("the kernel did not tell what it denied"), "{refusal}");
}

#[tokio::test]
async fn a_change_that_cuts_its_session_needs_more_than_an_apply() {
    let bench = Bench::start(Some(MINIMAL));
    bench.ready().await;
    let closed = MINIMAL.replace(r#""ping", "ssh"]"#, r#""ping"]"#);
    let session = Session::of_ssh("10.0.10.7 50000 10.0.10.1 22");
    let over = How { session, ..How::default() };
    bench.kernel.take_applied();
    let refusal = bench.apply_as(&closed, over.clone()).await.unwrap_err();
    assert_eq!(refusal.code, "cuts-session");
    assert!(refusal.message.contains("input of office: default deny"), "{refusal}");
    assert!(refusal.message.contains("--confirm") && refusal.message.contains("--force"), "{refusal}");
    assert_eq!(bench.kernel.take_applied(), []);
    bench.apply_as(&closed, How { confirm_milliseconds: Some(600_000), ..over.clone() }).await.unwrap();
    bench.take_back().await.unwrap();
    bench.apply_as(&closed, How { force: true, ..over }).await.unwrap();
}

#[tokio::test]
async fn what_becomes_of_changes_is_told() {
    let mut bench = Bench::start(None);
    let digest = bench.apply(MINIMAL).await.unwrap().digest;
    bench.apply("[site").await.unwrap_err();
    bench.apply(&MINIMAL.replace("guests -> office deny", "guests -> office allow")).await.unwrap_err();
    bench.apply_as(&narrowed(), within(600)).await.unwrap();
    bench.take_back().await.unwrap();
    let narrow = bench.apply_as(&narrowed(), within(600)).await.unwrap().digest;
    bench.confirm().await.unwrap();
    bench.kernel.refuse(|step| matches!(step, Step::LoadRuleset { .. }).then_some(io::ErrorKind::OutOfMemory));
    bench.apply(MINIMAL).await.unwrap_err();
    bench.kernel.heal();
    bench.apply(&narrowed()).await.unwrap();
    bench.kernel.tamper(|state| state.rules.clear());
    bench.changes.send(Change::Drift).await.unwrap();

    let alice = alice().to_string();
    let refused = |code: &str| format!("refused: {code} by {alice}");
    let wanted = [
        "refused: config by start".to_owned(),
        format!("applied: {digest}, confirm within None"),
        refused("config"),
        refused("assert"),
        format!("applied: {narrow}, confirm within Some(600)"),
        "rolled-back: operator".to_owned(),
        format!("applied: {narrow}, confirm within Some(600)"),
        format!("confirmed: {narrow} by {alice}"),
        refused("kernel"),
        format!("applied: {narrow}, confirm within None"),
        "drift: repaired".to_owned(),
    ];
    for (place, wanted) in wanted.iter().enumerate() {
        let told = bench.told().await;
        assert_eq!(told.as_ref(), Some(wanted), "{place}");
    }
}

const MINIMAL: &str = include_str!("../../../config/examples/minimal.toml");
/// What the fake judge of flows finds each time.
const DOOMED: u64 = 3;

/// Another address of a segment, and a service less.
fn narrowed() -> String {
    MINIMAL
        .replace(r#"services = ["tcp/631", "ping"]"#, r#"services = ["ping"]"#)
        .replace("10.0.20.1/24", "10.0.30.1/24")
        .replace("10.0.20.5", "10.0.30.5")
}

fn alice() -> Author {
    Author { name: "alice".to_owned(), uid: Some(1000) }
}

fn within(seconds: u64) -> How {
    How { confirm_milliseconds: Some(seconds * 1000), ..How::default() }
}

fn guarded(seconds: u64) -> How {
    How { guard_milliseconds: Some(seconds * 1000), ..How::default() }
}

/// What the firewall refuses, at so many packets a second; clones are the same.
#[derive(Clone)]
struct Refused(Arc<Mutex<(u64, u64, Instant, bool)>>);

impl Refused {
    fn new() -> Self {
        Self(Arc::new(Mutex::new((0, 0, Instant::now(), true))))
    }

    fn set_rate(&self, rate: u64) {
        self.read().unwrap();
        self.0.lock().unwrap().1 = rate;
    }

    fn stop_telling(&self) {
        self.0.lock().unwrap().3 = false;
    }

    fn read(&self) -> io::Result<u64> {
        let (packets, rate, last, tells) = &mut *self.0.lock().unwrap();
        let before = std::mem::replace(last, Instant::now());
        let span = u64::try_from((*last - before).as_millis()).unwrap();
        *packets += *rate * span / 1000;
        tells.then_some(*packets).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

/// A loop, its kernel and its files. The lines have no carrier: nothing is probed.
struct Bench {
    folder: tempfile::TempDir,
    site: Site,
    kernel: FakeKernel,
    asks: mpsc::Sender<Ask>,
    changes: mpsc::Sender<Change>,
    ended: Arc<Mutex<Vec<String>>>,
    denied: Refused,
    noticed: mpsc::Sender<Event>,
    leases: mpsc::Sender<Told>,
    happenings: Happenings,
    told: tokio::sync::broadcast::Receiver<Arc<Happening>>,
    running: tokio::task::JoinHandle<io::Result<()>>,
}

impl Bench {
    fn start(file: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Site { file: folder.path().join("site.toml"), state: folder.path().join("state") };
        if let Some(text) = file {
            fs::write(&site.file, text).unwrap();
        }
        let (kernel, ended, denied) = (FakeKernel::default(), Arc::default(), Refused::new());
        let happenings = Happenings::default();
        let begun = begin(&site, &kernel, &ended, &denied, &happenings, folder.path(), Vec::new());
        let (asks, changes, noticed, leases, running) = begun;
        let told = happenings.follow();
        Self { folder, site, kernel, asks, changes, ended, denied, noticed, leases, happenings, told, running }
    }

    /// One that has been up for some time.
    async fn measured() -> Self {
        let bench = Self::start(Some(MINIMAL));
        bench.ready().await;
        for _ in 0..40 {
            bench.carry(0).await;
        }
        bench
    }

    /// Half a second of traffic, of which so much is sent again.
    async fn carry(&self, resent: u64) {
        let traffic = mwan::passive::Traffic {
            wan: config::units::WanId::new(1).unwrap(),
            family: Family::V4,
            segments: 100,
            resent,
            servers: 0,
            rtt: None,
            sent: 0,
            received: 0,
            span: Duration::from_millis(500),
        };
        self.noticed.send(Event::Traffic(vec![traffic])).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }

    /// Half of the traffic is sent again, until the change is taken back.
    async fn resend(&self) {
        while self.view().await.applies.pending.is_some() {
            self.carry(50).await;
        }
    }

    /// What waits, once it does and the kernel has it.
    async fn pending(&self) -> crate::ask::PendingChange {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(20));
            if let Applies { pending: Some(pending), current: true, .. } = self.view().await.applies {
                return pending;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks again while the loop is busy.
    async fn decided(
        &self,
        ask: impl Fn(oneshot::Sender<Result<ApplyReport, Refusal>>) -> Ask,
    ) -> Result<ApplyReport, Refusal> {
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_secs(20));
            match self.ask(&ask).await {
                Err(refusal) if refusal.code == "busy" => tokio::time::sleep(Duration::from_millis(5)).await,
                done => return done,
            }
        }
    }

    async fn restart(&mut self) {
        self.restart_after(Duration::ZERO).await;
    }

    async fn restart_after(&mut self, pause: Duration) {
        self.restart_with(pause, Vec::new()).await;
    }

    async fn restart_with(&mut self, pause: Duration, kept: Vec<Told>) {
        self.running.abort();
        (&mut self.running).await.unwrap_err();
        tokio::time::sleep(pause).await;
        self.kernel.take_applied();
        let Self { site, kernel, ended, denied, happenings, folder, .. } = &*self;
        let begun = begin(site, kernel, ended, denied, happenings, folder.path(), kept);
        (self.asks, self.changes, self.noticed, self.leases, self.running) = begun;
    }

    /// Ends as a daemon does that lost a part; what is left is its folder.
    async fn stop(self) -> tempfile::TempDir {
        drop(self.changes);
        self.running.await.unwrap().unwrap_err();
        self.folder
    }

    /// The config of the start is in the kernel, and the flows have been judged.
    async fn ready(&self) {
        let before = self.ended().len();
        while self.ended().len() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn apply(&self, text: &str) -> Result<ApplyReport, Refusal> {
        self.apply_as(text, How::default()).await
    }

    async fn apply_as(&self, text: &str, how: How) -> Result<ApplyReport, Refusal> {
        self.ask(|reply| Ask::Apply { text: text.to_owned(), how, author: alice(), past: None, reply }).await
    }

    async fn confirm(&self) -> Result<ApplyReport, Refusal> {
        self.ask(|reply| Ask::Confirm { author: alice(), reply }).await
    }

    async fn take_back(&self) -> Result<ApplyReport, Refusal> {
        self.ask(|reply| Ask::RollBack { author: alice(), reply }).await
    }

    /// Until the config in force is this one again, in the kernel and on the disk.
    async fn back(&self, digest: &str) {
        let begun = Instant::now();
        while self.view().await.applies.pending.is_some() || self.ended().last().is_none_or(|last| last != digest) {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn history(&self) -> Vec<crate::history::Entry> {
        self.site.history().entries().unwrap()
    }

    async fn plan(&self, text: &str) -> Result<PlanReport, Refusal> {
        self.ask(|reply| Ask::Plan { text: text.to_owned(), reply }).await
    }

    async fn view(&self) -> View {
        self.ask(Ask::View).await
    }

    /// What is told of applies and the kernel, in short.
    async fn told(&mut self) -> Option<String> {
        loop {
            let told = tokio::time::timeout(Duration::from_secs(20), self.told.recv()).await.ok()?.unwrap();
            match &told.what {
                What::Applied { digest, confirm_seconds, .. } => {
                    return Some(format!("applied: {digest}, confirm within {confirm_seconds:?}"));
                }
                What::Refused { code, author, .. } => return Some(format!("refused: {code} by {author}")),
                What::Confirmed { digest, author } => return Some(format!("confirmed: {digest} by {author}")),
                What::RolledBack { cause, .. } => return Some(format!("rolled-back: {cause}")),
                What::Drift { repairs } if !repairs.is_empty() => return Some("drift: repaired".to_owned()),
                What::Drift { .. }
                | What::Health { .. }
                | What::Policy { .. }
                | What::Target { .. }
                | What::Outage { .. }
                | What::Gateway { .. }
                | What::FastPath { .. }
                | What::Audit { .. }
                | What::Component { .. }
                | What::Lease { .. }
                | What::Pair { .. } => {}
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> T {
        let (reply, answer) = oneshot::channel();
        self.asks.send(ask(reply)).await.unwrap();
        tokio::time::timeout(Duration::from_mins(5), answer).await.unwrap().unwrap()
    }

    fn running(&self) -> Option<String> {
        fs::read_to_string(self.site.state.join("running.toml")).ok()
    }

    /// The digests of the configs that flows were ended by.
    fn ended(&self) -> Vec<String> {
        self.ended.lock().unwrap().clone()
    }
}

type Begun = (
    mpsc::Sender<Ask>,
    mpsc::Sender<Change>,
    mpsc::Sender<Event>,
    mpsc::Sender<Told>,
    tokio::task::JoinHandle<io::Result<()>>,
);

fn begin(
    site: &Site,
    kernel: &FakeKernel,
    ended: &Arc<Mutex<Vec<String>>>,
    denied: &Refused,
    happenings: &Happenings,
    folder: &std::path::Path,
    kept_leases: Vec<Told>,
) -> Begun {
    let (asks_tx, asks) = mpsc::channel(8);
    let (changes_tx, changes) = mpsc::channel(8);
    let (noticed_tx, noticed) = mpsc::channel(8);
    let (leases_tx, leases) = mpsc::channel(8);
    changes_tx.try_send(Change::Links(links())).unwrap();
    let (reconciler, handle) = Reconciler::new(kernel.clone());
    let mut tasks = JoinSet::new();
    tasks.spawn(reconciler.run());
    let ended = Arc::clone(ended);
    let flows = Flows::new(move |config: Arc<Config>, end| {
        if end {
            ended.lock().unwrap().push(config.digest.clone());
        }
        async { Ok(DOOMED) }
    });
    let denied = denied.clone();
    let denials = DenialSource::new(move || std::future::ready(denied.read()));
    let parts = Parts {
        alarm: Alarm::of_tokio(),
        noticed,
        leases,
        kept_leases,
        changes,
        asks,
        reconciler: handle,
        flows,
        config: watch::channel(None).0,
        denials,
        audits: Audits::default(),
        happenings: happenings.clone(),
        site: site.clone(),
        journal: Some(JournalFile::with_limit(&folder.join("journal"), 10_000).unwrap()),
        tasks,
    };
    (asks_tx, changes_tx, noticed_tx, leases_tx, tokio::spawn(run(parts)))
}

fn links() -> Links {
    let facts = |index| LinkFacts {
        index,
        admin_up: true,
        carrier: false,
        mac: None,
        mtu: 1500,
        master: None,
        driver: None,
        pci: None,
        ours: false,
    };
    Links((0..4).map(|port| (format!("eth{port}").parse().unwrap(), facts(port + 2))).collect())
}
