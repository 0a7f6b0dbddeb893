//! All that wakes the loop, but for the clock and the replies to probes. Each source is asked only when it has
//! something: to ask all of them at each of a router's thirty wake-ups a second costs as much as to decide.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll, Stream};
use mwan::event::Event;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::Next;
use crate::ask::Ask;
use crate::kernel::watch::Change;
use crate::lease::Told;
use crate::reconcile::Progress;

pub(super) enum Input {
    Change(Change),
    /// What the packet path noticed of the lines.
    Noticed(Event),
    /// What became of the lease of a line.
    Lease(Told),
    Progress(Progress),
    Ask(Ask),
    Next(Next),
    Second,
    HangUp,
    Stop,
    /// What cannot be done without ended.
    Gone(&'static str),
}

/// Cancelling `next` loses nothing.
pub(super) type Inputs = SelectAll<BoxStream<'static, Input>>;

/// Where they come from.
pub(super) struct Sources {
    pub(super) changes: mpsc::Receiver<Change>,
    pub(super) noticed: mpsc::Receiver<Event>,
    pub(super) leases: mpsc::Receiver<Told>,
    pub(super) progress: watch::Receiver<Progress>,
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) nexts: mpsc::Receiver<Next>,
    pub(super) hang_up: Signal,
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
}

impl Sources {
    pub(super) fn merged(self) -> Inputs {
        let gone = |what| stream::iter([Input::Gone(what)]);
        let progress = stream::unfold(self.progress, async |mut progress| {
            progress.changed().await.ok()?;
            let seen = progress.borrow_and_update().clone();
            Some((Input::Progress(seen), progress))
        });
        let mut seconds = tokio::time::interval(SECOND);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        SelectAll::from_iter([
            received(self.changes, Input::Change).chain(gone("the watch on the kernel")).boxed(),
            received(self.noticed, Input::Noticed).boxed(),
            received(self.leases, Input::Lease).boxed(),
            progress.chain(gone("the reconciler")).boxed(),
            received(self.asks, Input::Ask).boxed(),
            received(self.nexts, Input::Next).boxed(),
            stream::poll_fn(move |context| seconds.poll_tick(context).map(|_| Some(Input::Second))).boxed(),
            signals(self.hang_up, || Input::HangUp).boxed(),
            signals(self.terminate, || Input::Stop).boxed(),
            signals(self.interrupt, || Input::Stop).boxed(),
        ])
    }
}

fn received<T>(mut from: mpsc::Receiver<T>, input: fn(T) -> Input) -> impl Stream<Item = Input> {
    stream::poll_fn(move |context| from.poll_recv(context).map(|received| received.map(input)))
}

fn signals(mut from: Signal, input: fn() -> Input) -> impl Stream<Item = Input> {
    stream::poll_fn(move |context| from.poll_recv(context).map(|received| received.map(|()| input())))
}

const SECOND: Duration = Duration::from_secs(1);
