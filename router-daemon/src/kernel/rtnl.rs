//! Links, addresses, rules and routes are asked for and changed through the `rtnetlink` crate. This is the one
//! connection to it, `links` and `routing` say what; nothing else knows the crate's messages.

use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use netlink_sys::AsyncSocket;
use nix::errno::Errno;
use rtnetlink::Handle;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::netlink::{DUMP_TRIES, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, Refused};

/// The value of the first attribute of this variant.
macro_rules! find {
    ($attributes:expr, $variant:path) => {
        $attributes.iter().find_map(|attribute| if let $variant(value) = attribute { Some(value) } else { None })
    };
}
pub(crate) use find;

/// Lives in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Rtnl {
    handle: Handle,
    /// What reads and writes the socket. It ends with this value.
    connection: JoinSet<()>,
}

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        // Strict: dumps of routes then honour the protocol in their header, instead of walking foreign tables
        // through us.
        let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        // Without its last word, an answer that broke off looks like one that is complete.
        connection.set_forward_ack(true);
        connection.set_forward_done(true);
        let socket = connection.socket_mut().socket_mut();
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { handle, connection: JoinSet::from_iter([connection]) })
    }

    pub(crate) async fn change(&mut self, flags: u16, change: RouteNetlinkMessage) -> io::Result<()> {
        self.ask(flags | NLM_F_ACK, change).await.map(drop)
    }

    /// Everything of a kind. Asked again where the kernel says the answer mixes two states.
    pub(crate) async fn dump(&mut self, question: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_TRIES {
            if let (all, true) = self.ask(NLM_F_DUMP, question.clone()).await? {
                return Ok(all);
            }
        }
        Err(Refused { errno: Errno::EINTR as i32, words: "the dump kept changing".to_owned() }.into())
    }

    /// The answer, and whether it is of one state.
    async fn ask(&mut self, flags: u16, message: RouteNetlinkMessage) -> io::Result<(Vec<RouteNetlinkMessage>, bool)> {
        if self.connection.try_join_next().is_some() {
            *self = Self::open()?;
        }
        let mut request = NetlinkMessage::from(message);
        request.header.flags = flags | NLM_F_REQUEST;
        let mut answers = self.handle.request(request).map_err(io::Error::other)?;
        let (mut all, mut consistent) = (Vec::new(), true);
        while let Some(answer) = match timeout(PATIENCE, answers.next()).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                // Whatever answers late would be taken for the answer to something else.
                *self = Self::open()?;
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel did not answer over netlink"));
            }
        } {
            consistent &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(found) => all.push(found),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(Refused::new(error.raw_code(), &error.header).into());
                }
                NetlinkPayload::Done(done) if done.code < 0 => return Err(Refused::new(done.code, &[]).into()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok((all, consistent)),
                NetlinkPayload::Noop | NetlinkPayload::Overrun(_) | _ => {}
            }
        }
        Err(io::Error::other("the netlink connection broke"))
    }
}

/// The kernel answers in milliseconds, or its answer was lost.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    #[tokio::test]
    async fn a_connection_that_broke_is_opened_again() {
        let mut rtnl = Rtnl::open().unwrap();
        rtnl.connection.abort_all();
        tokio::task::yield_now().await;
        let links = rtnl.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await.unwrap();
        assert!(!links.is_empty());
    }
}
