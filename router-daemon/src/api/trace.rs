//! `trace`: asks the kernel to tell of some packets for a while, and tells it on. Runs in the task of whoever asked; the
//! event loop is asked for a view as any reader asks for one.
//!
//! Cancelling it takes the table of the trace away. What was taken out of the fast path comes back by itself.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mwan::explain::{Explanation, Question, explain};
use tokio::sync::broadcast;
use tokio::time::{Instant, MissedTickBehavior};

use super::protocol::{Answer, ok};
use super::server::{Core, Lines};
use crate::ask::{Refusal, View};
use crate::kernel::trace::{Followed, Told, Trace, Tracer, Wanted};
use crate::trace::{Circumstances, Following, Story, TraceLine, flows};

/// What was asked for.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    pub(super) service: Option<&'a str>,
    pub(super) span: Duration,
    pub(super) packets: u32,
    pub(super) through_rules: bool,
}

/// All that is there when packets begin to be followed.
struct Begun {
    tracer: Tracer,
    trace: Trace,
    wanted: Wanted,
    view: View,
    story: Story,
    before: Vec<Followed>,
    following: Following,
}

pub(super) async fn trace(peer: &mut impl Lines, core: &Core, asked: Asked<'_>) -> io::Result<()> {
    let mut logged = core.denied.follow();
    let begun = match begin(core, &asked).await {
        Ok(begun) => begun,
        Err(refusal) => return peer.send(&Answer::Error(refusal)).await,
    };
    let Begun { tracer, trace, wanted, view, mut story, before, following } = begun;
    peer.send(&ok(&TraceLine::Following(following))).await?;
    let over = tokio::time::sleep(asked.span);
    let mut over = std::pin::pin!(over);
    let mut full = false;
    let taking = asked.through_rules.then(|| tracer.taking());
    let mut again = tokio::time::interval(CALLED_BACK_EVERY);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let steps: Vec<_> = tokio::select! {
            () = &mut over => break,
            told = trace.next() => match told {
                Ok(Told::Met(met)) => {
                    let now = SystemTime::now();
                    met.iter().filter_map(|met| story.met(met, now)).collect()
                }
                Ok(Told::Missed) => {
                    story.missed();
                    continue;
                }
                Err(error) => return peer.send(&Answer::Error(kernel(&error))).await,
            },
            denied = logged.recv() => match denied {
                Ok(denied) => story.denied(&denied).into_iter().collect(),
                Err(broadcast::error::RecvError::Lagged(_)) => continue,
                Err(broadcast::error::RecvError::Closed) => break,
            },
            // The feeder may have put them in again.
            _ = again.tick(), if taking.is_some() => {
                let Some(taking) = &taking else { continue };
                let flows = before.iter().map(|flow| flow.tracked).collect();
                if let Err(error) = taking.call_back(flows).await {
                    return peer.send(&Answer::Error(kernel(&error))).await;
                }
                continue;
            }
            () = peer.gone() => return Ok(()),
        };
        for step in steps {
            peer.send(&ok(&TraceLine::Step(step))).await?;
        }
        if story.is_full() && !full {
            full = true;
            over.as_mut().reset(Instant::now() + LAST_WORDS);
        }
    }
    if let Err(error) = trace.end().await {
        return peer.send(&Answer::Error(kernel(&error))).await;
    }
    let after = match tracer.flows(wanted).await {
        Ok(after) => after,
        Err(error) => return peer.send(&Answer::Error(kernel(&error))).await,
    };
    let digest = |view: &View| view.config.as_ref().map(|config| config.digest.clone());
    let changed = core.view().await.is_ok_and(|now| digest(&now) != digest(&view));
    let report = {
        let Asked { span, through_rules, .. } = asked;
        let port = |index| tracer.port(index);
        story.report(&before, &after, &Circumstances { span, through_rules, changed, port: &port })
    };
    peer.send(&ok(&TraceLine::Report(report))).await?;
    peer.send(&Answer::End).await
}

async fn begin(core: &Core, asked: &Asked<'_>) -> Result<Begun, Refusal> {
    if asked.span < Duration::from_millis(100) || asked.span > LONGEST {
        return Err(Refusal::new("trace", "packets are followed for a tenth of a second to ten minutes"));
    }
    if asked.packets == 0 || asked.packets > MOST_PACKETS {
        return Err(Refusal::new("trace", format!("1 to {MOST_PACKETS} packets are followed")));
    }
    let Some(tracer) = core.tracer.clone() else {
        return Err(Refusal::new("unavailable", "this routerd follows no packets"));
    };
    let (config, view) = core.configured().await?;
    let question = Question::read(&config, asked.source, asked.destination, asked.service.unwrap_or("ping"), None)
        .map_err(|unclear| Refusal::new("unclear", unclear.to_string()))?;
    let wanted = Wanted {
        source: question.source,
        destination: question.destination,
        service: asked.service.map(|_| question.protocol),
    };
    let before = tracer.flows(wanted).await.map_err(|error| kernel(&error))?;
    let explained = asked.service.map(|_| {
        let Explanation { allowed, because, .. } = explain(&config, &view.decision, &question);
        format!("{}: {because}", if allowed { "allowed" } else { "denied" })
    });
    let following = Following {
        source: question.source,
        destination: question.destination,
        service: asked.service.map(|_| question.protocol.to_string()),
        milliseconds: u64::try_from(asked.span.as_millis()).unwrap_or(u64::MAX),
        packets: asked.packets,
        explained,
        flows: flows(&config, &before, &|index| tracer.port(index)),
        through_rules: asked.through_rules,
    };
    let story = Story::new(Arc::clone(&config), view.decision.clone(), wanted, asked.packets);
    let trace = tracer.begin(wanted, asked.packets).await.map_err(|error| kernel(&error))?;
    let Some(trace) = trace else {
        return Err(Refusal::new("trace", "another trace is under way: wait for its end"));
    };
    Ok(Begun { tracer, trace, wanted, view, story, before, following })
}

fn kernel(error: &io::Error) -> Refusal {
    Refusal::new("kernel", format!("packets cannot be followed: {error}"))
}

const LONGEST: Duration = Duration::from_mins(10);
const MOST_PACKETS: u32 = 100;
/// How long the last packet may take through the rules, and the log of what is dropped at the ports.
const LAST_WORDS: Duration = Duration::from_millis(200);
const CALLED_BACK_EVERY: Duration = Duration::from_millis(500);
