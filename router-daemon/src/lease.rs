//! What a client of DHCP tells of the lease of a line, on its way to the loop.

use config::units::{Family, WanName};
use mwan::Time;
use mwan::event::Event;
use mwan::lease::{Gone, Grant, Lease};
use tokio::time::Instant;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub wan: WanName,
    pub family: Family,
    pub news: News,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Until then; `None` is for ever.
    Held {
        lease: Lease,
        until: Option<Instant>,
    },
    Gone(Gone),
}

impl Told {
    /// `zero` is the loop's own.
    pub(crate) fn event(self, zero: Instant) -> Event {
        let grant = match self.news {
            News::Held { lease, until } => {
                let until = until.map_or(Time::NEVER, |until| Time::ZERO + until.saturating_duration_since(zero));
                Grant::Held { lease, until }
            }
            News::Gone(why) => Grant::Gone(why),
        };
        Event::Lease { wan: self.wan, family: self.family, grant }
    }
}
