//! One config on both routers: what takes effect on one, for good, is fetched and applied by the other.
//!
//! Each router counts the changes that were made on it, and both counts together are the version of a config: a version
//! vector (Parker et al., Detection of Mutual Inconsistency in Distributed Systems, 1983). A version that has all that ours
//! has, and more, is followed. Where each router has a change that the other has not, nobody can know which shall be: that is
//! told, and ends when the same file is applied on both.
//!
//! ```text
//!   heartbeat: digest and version of what is in force for good
//!   TCP, same port:  ◀── 32 random bytes    want, HMAC ──▶    ◀── text, HMAC      each HMAC is over the random bytes, too
//! ```

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mwan::pair::HEARTBEAT_PORT;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::heartbeat::Key;
use crate::ask::{ApplyReport, Ask, Author, How, Refusal, View};
use crate::history;

/// Changes by the router that they were made on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Version(BTreeMap<String, u64>);

/// How one version is to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Same,
    Newer,
    Older,
    /// Each has what the other has not.
    Apart,
}

impl Version {
    fn to(&self, other: &Self) -> Order {
        let covers = |one: &Self, other: &Self| other.0.iter().all(|(node, count)| one.0.get(node) >= Some(count));
        match (covers(self, other), covers(other, self)) {
            (true, true) => Order::Same,
            (true, false) => Order::Newer,
            (false, true) => Order::Older,
            (false, false) => Order::Apart,
        }
    }

    /// Whether there was more in the other one.
    fn merge(&mut self, other: &Self) -> bool {
        let before = self.clone();
        for (node, count) in &other.0 {
            let own = self.0.entry(node.clone()).or_default();
            *own = (*own).max(*count);
        }
        *self != before
    }
}

/// A config that is in force for good: it waits for no confirmation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Settled {
    pub(super) digest: String,
    pub(super) version: Version,
}

/// What this router has, what the other one has, and what is to be done about it. Pure, but for the file.
#[derive(Debug)]
struct Replica {
    file: PathBuf,
    own: Settled,
    theirs: Option<Settled>,
    /// What is being applied: when it is in force, it is no change of this router's.
    following: Option<Settled>,
    /// What was not to be had or was refused, and why. It is not tried again.
    refused: Option<(Settled, String)>,
    /// In force, for good or not.
    in_force: String,
    ends: Option<Ends>,
}

/// Who speaks to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) node: String,
    pub(super) peer: String,
    pub(super) own: Ipv4Addr,
    pub(super) other: Ipv4Addr,
    pub(super) secret: PathBuf,
}

impl Replica {
    /// This is in force for good.
    fn settled(&mut self, node: &str, digest: &str) {
        if self.own.digest == digest {
            return;
        }
        match self.following.take().filter(|followed| followed.digest == digest) {
            Some(followed) => {
                self.own.version.merge(&followed.version);
            }
            None => *self.own.version.0.entry(node.to_owned()).or_default() += 1,
        }
        digest.clone_into(&mut self.own.digest);
        self.keep();
    }

    /// The other one has this for good.
    fn hear(&mut self, theirs: Settled) {
        if theirs.digest == self.own.digest && self.own.version.merge(&theirs.version) {
            self.keep();
        }
        self.theirs = Some(theirs);
    }

    /// What is to be fetched.
    fn wanted(&self) -> Option<&Settled> {
        let theirs = self.theirs.as_ref()?;
        let tried = self.refused.as_ref().is_some_and(|(refused, _)| refused == theirs);
        // A change of our own that is not the last word yet is not taken away from whoever tries it.
        let quiet = self.in_force == self.own.digest;
        (!tried && quiet && self.is_another(theirs) && theirs.version.to(&self.own.version) == Order::Newer)
            .then_some(theirs)
    }

    fn is_another(&self, theirs: &Settled) -> bool {
        theirs.digest != self.own.digest && !theirs.digest.is_empty() && !self.own.digest.is_empty()
    }

    /// Why the two have different configs, told to a person.
    fn why(&self) -> Option<String> {
        let (theirs, peer) = (self.theirs.as_ref()?, &self.ends.as_ref()?.peer);
        if !self.is_another(theirs) {
            return None;
        }
        let refused = self.refused.as_ref().filter(|(refused, _)| refused == theirs);
        Some(match (refused, theirs.version.to(&self.own.version)) {
            (Some((_, why)), _) => format!("it could not be taken over: {why}"),
            (None, Order::Newer) => "it is being taken over".to_owned(),
            (None, Order::Older) => format!("{peer} has not taken this one over"),
            (None, Order::Apart | Order::Same) => {
                "both were changed while they did not hear each other: apply on both the one that shall be".to_owned()
            }
        })
    }

    /// Without it a start counts as a change, if the config is another then: two routers that say so are told apart.
    fn keep(&self) {
        let written = serde_json::to_vec(&self.own).map_err(io::Error::other);
        if let Err(error) = written.and_then(|bytes| history::replace(&self.file, &bytes)) {
            warn!(file = %self.file.display(), %error, "it is not kept which changes of the pair's config this one has");
        }
    }
}

/// Shared by the thread's heartbeats and the task that fetches.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Replica>>);

impl Shared {
    pub(super) fn new(state: &Path) -> Self {
        let file = state.join(FILE);
        let own = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                warn!(file = %file.display(), %error, "it is not known which changes of the pair's config this one has");
                Settled::default()
            }),
            Err(_not_yet) => Settled::default(),
        };
        let nothing = (None, None, None, None);
        let (theirs, following, refused, ends) = nothing;
        Self(Arc::new(Mutex::new(Replica { file, own, theirs, following, refused, in_force: String::new(), ends })))
    }

    fn replica(&self) -> MutexGuard<'_, Replica> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn settled(&self) -> Settled {
        self.replica().own.clone()
    }

    pub(super) fn hear(&self, theirs: Settled) {
        self.replica().hear(theirs);
    }

    pub(super) fn why(&self) -> Option<String> {
        self.replica().why()
    }

    pub(super) fn at(&self, in_force: &str, ends: Option<Ends>) {
        let mut replica = self.replica();
        if replica.ends != ends {
            replica.theirs = None;
        }
        in_force.clone_into(&mut replica.in_force);
        replica.ends = ends;
    }
}

/// Keeps the two alike, until the loop is gone.
pub(super) async fn run(shared: Shared, asks: mpsc::Sender<Ask>) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listener: Option<(Ipv4Addr, TcpListener)> = None;
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            stream = accepted(listener.as_ref()) => {
                let Some(ends) = shared.replica().ends.clone() else { continue };
                let asks = asks.clone();
                tokio::spawn(async move {
                    match timeout(PATIENCE, serve(stream, &ends, &asks)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "the other router was not given the config"),
                        Err(_elapsed) => debug!("the other router took its time"),
                    }
                });
                continue;
            }
        }
        if asks.is_closed() {
            return;
        }
        let Some(ends) = shared.replica().ends.clone() else {
            listener = None;
            continue;
        };
        if listener.as_ref().is_none_or(|(at, _)| *at != ends.own) {
            // The address may come later.
            listener = listen(ends.own).ok().map(|listener| (ends.own, listener));
        }
        look(&shared, &asks, &ends).await;
    }
}

/// One look at what is in force for good, and at what is to be followed.
async fn look(shared: &Shared, asks: &mpsc::Sender<Ask>, ends: &Ends) {
    let changed = {
        let replica = shared.replica();
        !replica.in_force.is_empty() && replica.in_force != replica.own.digest
    };
    if changed && let Some(text) = for_good(asks).await {
        shared.replica().settled(&ends.node, &history::digest(&*text));
    }
    let Some(wanted) = shared.replica().wanted().cloned() else { return };
    let fetched = timeout(PATIENCE, fetch(ends, &wanted.digest)).await;
    let text = match fetched.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into())) {
        Ok(text) => text,
        // It is asked again at the next look: it may have changed its mind, or be on its way down.
        Err(error) => return debug!(%error, "the other router's config is not to be had"),
    };
    info!(from = ends.peer, digest = wanted.digest, "the other router's config is taken over");
    shared.replica().following = Some(wanted.clone());
    match apply(asks, text, &ends.peer).await {
        Some(Ok(_report)) => shared.replica().settled(&ends.node, &wanted.digest),
        Some(Err(refusal)) if TEMPORARY.contains(&refusal.code.as_str()) => shared.replica().following = None,
        Some(Err(refusal)) => {
            warn!(from = ends.peer, why = %refusal, "the other router's config cannot be taken over");
            let mut replica = shared.replica();
            (replica.following, replica.refused) = (None, Some((wanted, refusal.to_string())));
        }
        None => {}
    }
}

/// The text in force, if nothing may take it back.
async fn for_good(asks: &mpsc::Sender<Ask>) -> Option<Arc<str>> {
    let (reply, answer) = oneshot::channel::<View>();
    asks.send(Ask::View(reply)).await.ok()?;
    let view = timeout(PATIENCE, answer).await.ok()?.ok()?;
    (view.applies.pending.is_none() && view.config.is_some()).then_some(view.text)
}

async fn apply(asks: &mpsc::Sender<Ask>, text: String, peer: &str) -> Option<Result<ApplyReport, Refusal>> {
    let (reply, answer) = oneshot::channel();
    let how = How { message: Some(format!("as on {peer}")), ..How::default() };
    let author = Author { name: format!("pair {peer}"), uid: None };
    asks.send(Ask::Apply { text, how, author, past: None, reply }).await.ok()?;
    answer.await.ok()
}

fn listen(own: Ipv4Addr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddrV4::new(own, HEARTBEAT_PORT).into())?;
    socket.listen(4)
}

async fn accepted(listener: Option<&(Ipv4Addr, TcpListener)>) -> TcpStream {
    let Some((_, listener)) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                debug!(%error, "the other router cannot ask for the config");
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Want {
    digest: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Have {
    /// `None`: there is another one in force meanwhile.
    text: Option<String>,
}

async fn serve(stream: TcpStream, ends: &Ends, asks: &mpsc::Sender<Ask>) -> io::Result<()> {
    let key = super::secret(&ends.secret).map_err(io::Error::other)?;
    give(stream, &key, async |want| {
        let text = for_good(asks).await.filter(|text| history::digest(&**text) == want);
        text.map(|text| text.to_string())
    })
    .await
}

async fn give(mut stream: TcpStream, key: &Key, text: impl AsyncFnOnce(String) -> Option<String>) -> io::Result<()> {
    let mut drawn = [0; DRAWN];
    SystemRandom::new().fill(&mut drawn).map_err(|_none| io::Error::other("there are no random numbers"))?;
    stream.write_all(&drawn).await?;
    let want: Want = read(&mut stream, key, &drawn, Side::Asks, LONGEST_WANT).await?;
    let have = Have { text: text(want.digest).await };
    write(&mut stream, key, &drawn, Side::Answers, &have).await
}

async fn fetch(ends: &Ends, digest: &str) -> io::Result<String> {
    let key = super::secret(&ends.secret).map_err(io::Error::other)?;
    let socket = TcpSocket::new_v4()?;
    // From the address that the other one's table lets in.
    socket.bind(SocketAddrV4::new(ends.own, 0).into())?;
    take(socket.connect(SocketAddr::from((ends.other, HEARTBEAT_PORT))).await?, &key, digest).await
}

async fn take(mut stream: TcpStream, key: &Key, digest: &str) -> io::Result<String> {
    let mut drawn = [0; DRAWN];
    stream.read_exact(&mut drawn).await?;
    write(&mut stream, key, &drawn, Side::Asks, &Want { digest: digest.to_owned() }).await?;
    let have: Have = read(&mut stream, key, &drawn, Side::Answers, LONGEST_TEXT).await?;
    let text = have.text.ok_or_else(|| io::Error::other("it has another one by now"))?;
    if history::digest(&text) != digest {
        return Err(io::Error::other("it is another one than was said"));
    }
    Ok(text)
}

/// So that no answer is taken for a question.
#[derive(Debug, Clone, Copy)]
enum Side {
    Asks,
    Answers,
}

impl Side {
    fn about(self, drawn: &[u8], text: &[u8]) -> Vec<u8> {
        let word: &[u8] = match self {
            Self::Asks => b"want",
            Self::Answers => b"have",
        };
        [word, drawn, text].concat()
    }
}

async fn write(stream: &mut TcpStream, key: &Key, drawn: &[u8], side: Side, what: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(what)?;
    let tag = key.tag(&side.about(drawn, &text));
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], &text, &tag].concat()).await
}

async fn read<T: for<'a> Deserialize<'a>>(
    stream: &mut TcpStream,
    key: &Key,
    drawn: &[u8],
    side: Side,
    longest: u32,
) -> io::Result<T> {
    let length = stream.read_u32().await?;
    if length > longest {
        return Err(io::Error::other("too long"));
    }
    let mut text = vec![0; length as usize];
    stream.read_exact(&mut text).await?;
    let mut tag = [0; super::heartbeat::TAG];
    stream.read_exact(&mut tag).await?;
    if !key.is_tag(&side.about(drawn, &text), &tag) {
        return Err(io::Error::other("it has another secret"));
    }
    Ok(serde_json::from_slice(&text)?)
}

const FILE: &str = "pair.json";
const DRAWN: usize = 32;
const LONGEST_WANT: u32 = 1024;
const LONGEST_TEXT: u32 = 8 << 20;
const LOOK: Duration = Duration::from_millis(500);
const PATIENCE: Duration = Duration::from_secs(5);
/// Refusals that another moment has not.
const TEMPORARY: [&str; 2] = ["busy", "pending"];

#[cfg(test)]
mod tests {
    use super::*;

    fn version(left: u64, right: u64) -> Version {
        Version([("left".to_owned(), left), ("right".to_owned(), right)].into())
    }

    fn replica(folder: &tempfile::TempDir, node: &str) -> Replica {
        let shared = Shared::new(folder.path());
        let peer = if node == "left" { "right" } else { "left" };
        let address = Ipv4Addr::LOCALHOST;
        let ends = Ends {
            node: node.to_owned(),
            peer: peer.to_owned(),
            own: address,
            other: address,
            secret: folder.path().join("secret"),
        };
        shared.at("", Some(ends));
        Arc::into_inner(shared.0).unwrap().into_inner().unwrap()
    }

    /// Both have `digest` in force, and for good.
    fn take_effect(replica: &mut Replica, node: &str, digest: &str) {
        digest.clone_into(&mut replica.in_force);
        replica.settled(node, digest);
    }

    #[test]
    fn a_version_is_newer_where_it_has_all_of_the_other_and_more() {
        assert_eq!(version(1, 1).to(&version(1, 1)), Order::Same);
        assert_eq!(version(2, 1).to(&version(1, 1)), Order::Newer);
        assert_eq!(version(1, 1).to(&version(1, 3)), Order::Older);
        assert_eq!(version(2, 1).to(&version(1, 2)), Order::Apart);
        assert_eq!(Version::default().to(&version(0, 1)), Order::Older);
        let mut merged = version(2, 1);
        assert!(merged.merge(&version(1, 2)) && !merged.merge(&version(2, 2)));
        assert_eq!(merged, version(2, 2));
    }

    #[test]
    fn what_one_changes_the_other_follows_and_a_change_on_each_is_told() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (mut left, mut right) = (replica(&folders[0], "left"), replica(&folders[1], "right"));
        take_effect(&mut left, "left", "one");
        take_effect(&mut right, "right", "one");
        left.hear(right.own.clone());
        right.hear(left.own.clone());
        left.hear(right.own.clone());
        assert_eq!((left.own.version.clone(), left.why()), (right.own.version.clone(), None));
        assert_eq!((left.wanted(), right.wanted()), (None, None));

        // It is tried, and not said yet.
        "two".clone_into(&mut left.in_force);
        right.hear(left.own.clone());
        assert_eq!(right.wanted(), None);
        left.settled("left", "two");
        right.hear(left.own.clone());
        left.hear(right.own.clone());
        assert_eq!(right.wanted(), Some(&left.own));
        assert_eq!(left.wanted(), None);
        assert_eq!(left.why().unwrap(), "right has not taken this one over");
        // Whoever tries something is left alone.
        "mine".clone_into(&mut right.in_force);
        assert_eq!(right.wanted(), None);
        "one".clone_into(&mut right.in_force);
        right.following = right.wanted().cloned();
        take_effect(&mut right, "right", "two");
        assert_eq!(right.own, left.own, "that was no change of its own");
        assert_eq!(right.wanted(), None);

        // Back to the first is a change, too.
        take_effect(&mut right, "right", "one");
        left.hear(right.own.clone());
        assert_eq!(left.wanted(), Some(&right.own));

        // One on each, unheard.
        take_effect(&mut left, "left", "three");
        left.hear(right.own.clone());
        right.hear(left.own.clone());
        assert_eq!((left.wanted(), right.wanted()), (None, None));
        assert!(left.why().unwrap().contains("apply on both"), "{:?}", left.why());
        take_effect(&mut right, "right", "three");
        left.hear(right.own.clone());
        right.hear(left.own.clone());
        assert_eq!((left.why(), right.why()), (None, None));
        assert_eq!(left.own.version, right.own.version);
    }

    #[test]
    fn a_restart_is_no_change_and_what_was_refused_is_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut left = replica(&folder, "left");
        take_effect(&mut left, "left", "one");
        let mut left = replica(&folder, "left");
        let before = left.own.clone();
        take_effect(&mut left, "left", "one");
        assert_eq!(left.own, before);
        let theirs = Settled { digest: "two".to_owned(), version: version(1, 1) };
        left.hear(theirs.clone());
        assert_eq!(left.wanted(), Some(&theirs));
        left.refused = Some((theirs, "no such port".to_owned()));
        assert_eq!(left.wanted(), None);
        assert!(left.why().unwrap().contains("no such port"));
        left.hear(Settled { digest: "three".to_owned(), version: version(1, 2) });
        assert!(left.wanted().is_some());
    }

    #[tokio::test]
    async fn a_text_goes_over_between_two_who_know_the_secret_and_to_nobody_else() {
        let said = async |server: &'static [u8], client: &'static [u8], have: Option<&'static str>| {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let gives = async {
                let (stream, _) = listener.accept().await.unwrap();
                give(stream, &Key::new(server), async |_| have.map(str::to_owned)).await
            };
            let wanted = history::digest("[site]");
            let (_, taken) = tokio::join!(gives, async { take(stream, &Key::new(client), &wanted).await });
            taken.map_err(|error| error.to_string())
        };
        assert_eq!(said(b"secret", b"secret", Some("[site]")).await.unwrap(), "[site]");
        assert!(said(b"secret", b"other", Some("[site]")).await.is_err());
        assert!(said(b"secret", b"secret", Some("[other]")).await.unwrap_err().contains("another one than was said"));
        assert!(said(b"secret", b"secret", None).await.unwrap_err().contains("by now"));
    }

    #[tokio::test]
    async fn who_begins_and_says_nothing_or_too_much_is_given_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for bytes in [&[][..], &[0xff; 8], &[0, 0, 0, 2, b'{', b'}']] {
            let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (served, _) = listener.accept().await.unwrap();
            let client = async {
                stream.write_all(bytes).await.unwrap();
                stream.shutdown().await.unwrap();
                let mut all = Vec::new();
                // A reset is as good.
                stream.read_to_end(&mut all).await.ok();
                all.len()
            };
            let key = Key::new(b"secret");
            let (given, told) = tokio::join!(give(served, &key, async |_| None), client);
            assert!(given.is_err());
            assert_eq!(told, DRAWN);
        }
    }
}
