//! Answers the socket. Who may ask what:
//!
//! | peer | may |
//! |---|---|
//! | root, the user routerd runs as, or a member of the group `quadway` | everything: [`Role::Operator`] |
//! | a member of the group `quadway-read` | ask, and change nothing: [`Role::Reader`] |
//! | anybody else | nothing, and is told so |
//!
//! What needs which role says [`Call::needs`]. The kernel names the peer (`SO_PEERCRED`); supplementary groups are
//! looked up by its user. The socket's mode keeps strangers out before that: 0660, group `quadway`; 0666 only where the
//! group `quadway-read` exists, since one mode cannot name two groups.
//!
//! [`serve`] owns its connections; cancelling it closes them. An order already handed to the event loop is carried
//! out whether or not somebody waits for the answer.

use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use config::Config;
use mwan::audit::{self, Pair};
use mwan::event::Request;
use mwan::explain::{Question, explain_by_names};
use mwan::state::NamedKey;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use ring::signature::KeyPair;
use serde::Serialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, UCred};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::https::Listener;
use super::journal::Tail;
use super::line;
use super::protocol::{Answer, Call, MAX_LINE, Role, VERSION, decode_call, encode_answer, ok};
use super::trace::{Asked, trace};
use crate::accept;
use crate::apart::Spreads;
use crate::ask::{ApplyReport, Ask, Author, How, PlanReport, Refusal, View, aside};
use crate::audits::AuditReport;
use crate::bundle::key::BoxKey;
use crate::bundle::{self, Bundle, Contents, RestoreReport, SaveReport, Unfit};
use crate::counters::{CounterSource, Counters};
use crate::crypto::Crypto;
use crate::crypto::qat_kernel::Troubles;
use crate::difference::{self, Difference, TextDifference};
use crate::event_log::{EventLog, Kind};
use crate::happening::{Happenings, What};
use crate::history::{self, ConfigText, History, Past};
use crate::kernel::Ledger;
use crate::kernel::foreign::Foreign;
use crate::kernel::trace::Tracer;
use crate::outside::Outlets;
use crate::service::Told;
use crate::service::component::Components;
use crate::service::dns::Resolver;
use crate::service::tls_offload::Offloads;
use crate::status::{self, Status};
use crate::talkers::MOST_TOLD;

/// Where answers come from.
#[derive(Debug, Clone)]
pub struct Core {
    pub asks: mpsc::Sender<Ask>,
    pub counters: CounterSource,
    pub denied: EventLog,
    pub happenings: Happenings,
    /// The journal's file, if one is kept.
    pub journal: Option<PathBuf>,
    /// What became of the flows of lines that were lost.
    pub ledger: Ledger,
    pub history: History,
    /// Signs bundles.
    pub key: BoxKey,
    /// `None` does not look at what others do with marks.
    pub foreign: Option<Foreign>,
    /// How the listener for HTTPS stands.
    pub https: watch::Receiver<Option<Listener>>,
    pub outlets: Outlets,
    /// `None` follows no packets.
    pub tracer: Option<Tracer>,
    pub tls_offload: Offloads,
    pub resolver: Resolver,
    pub components: Components,
    pub spreads: Spreads,
    /// What they were last asked.
    pub told: Told,
    pub crypto: Crypto,
    pub kernel_crypto: Troubles,
}

impl Core {
    /// With what can be left out left out.
    pub fn new(asks: mpsc::Sender<Ask>, counters: CounterSource, history: History) -> Self {
        Self {
            asks,
            counters,
            denied: EventLog::default(),
            happenings: Happenings::default(),
            journal: None,
            ledger: Ledger::default(),
            key: BoxKey::of(history.state()),
            history,
            foreign: None,
            https: watch::channel(None).1,
            outlets: Outlets::default(),
            tracer: None,
            tls_offload: Offloads::default(),
            resolver: Resolver::default(),
            components: Components::default(),
            spreads: Spreads::default(),
            told: Told::default(),
            crypto: Crypto::default(),
            kernel_crypto: Troubles::default(),
        }
    }
}

/// Whom the socket is open to, besides root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Access {
    /// The socket's own: whoever routerd runs as has all it has.
    pub owner: Option<Uid>,
    pub operators: Option<Gid>,
    pub readers: Option<Gid>,
}

impl Access {
    /// Looks the groups up in the system's database.
    pub fn of_system() -> Self {
        let group = |name| Group::from_name(name).ok().flatten().map(|group| group.gid);
        Self { owner: Some(Uid::effective()), operators: group("quadway"), readers: group("quadway-read") }
    }

    /// The role of somebody with these ids.
    pub fn role(&self, uid: Uid, groups: &[Gid]) -> Option<Role> {
        let member = |of: Option<Gid>| of.is_some_and(|group| groups.contains(&group));
        if uid.is_root() || self.owner == Some(uid) || member(self.operators) {
            Some(Role::Operator)
        } else if member(self.readers) {
            Some(Role::Reader)
        } else {
            None
        }
    }

    fn mode(&self) -> u32 {
        if self.readers.is_some() { 0o666 } else { 0o660 }
    }
}

/// Opens the socket. A socket left over at `path` is replaced: the daemon's lock says that nobody listens there.
pub fn bind(path: &Path, access: &Access) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    if let Some(group) = access.operators {
        chown(path, None, Some(group.as_raw()))?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(access.mode()))?;
    Ok(listener)
}

/// Answers until cancelled.
pub async fn serve(listener: UnixListener, core: Core, access: Access) {
    let (operators, readers) = (Arc::new(Semaphore::new(OPERATORS)), Arc::new(Semaphore::new(READERS)));
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = accept::next(&mut connections, "the API", || listener.accept()).await;
        if connections.len() >= CONNECTIONS {
            continue;
        }
        let (core, operators, readers) = (core.clone(), Arc::clone(&operators), Arc::clone(&readers));
        connections.spawn(async move {
            let credentials = stream.peer_cred();
            let (reader, writer) = stream.into_split();
            let mut peer = Connection { reader: BufReader::new(reader), writer };
            let known = match credentials {
                Ok(credentials) => role_of(access, credentials).await,
                Err(_) => None,
            };
            let Some((role, author)) = known else {
                let text = "only root and members of the group `quadway` may ask here (`quadway-read` to read)";
                peer.send(&Answer::Error(Refusal::new("permission", text))).await.ok();
                return;
            };
            let places = match role {
                Role::Operator => operators,
                Role::Reader => readers,
            };
            if let Err(error) = converse(&mut peer, &core, role, &author, &places).await {
                tracing::debug!(%error, "a client went away");
            }
        });
    }
}

/// The user database may ask a network: not on the daemon's own thread.
async fn role_of(access: Access, credentials: UCred) -> Option<(Role, Author)> {
    let (uid, gid) = (Uid::from_raw(credentials.uid()), Gid::from_raw(credentials.gid()));
    if uid.is_root() {
        return Some((Role::Operator, Author { name: "root".to_owned(), uid: Some(0) }));
    }
    let lookup = tokio::task::spawn_blocking(move || {
        let mut groups = vec![gid];
        let mut author = Author { name: "somebody".to_owned(), uid: Some(uid.as_raw()) };
        if let Ok(Some(user)) = User::from_uid(uid) {
            author.name.clone_from(&user.name);
            if let Ok(name) = std::ffi::CString::new(user.name) {
                groups.extend(getgrouplist(&name, user.gid).unwrap_or_default());
            }
        }
        access.role(uid, &groups).map(|role| (role, author))
    });
    tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await.ok()?.ok()?
}

/// A client that asks nothing holds no place: it costs a task and a small buffer.
async fn converse(
    peer: &mut Connection,
    core: &Core,
    role: Role,
    author: &Author,
    places: &Semaphore,
) -> io::Result<()> {
    while peer.asks().await? {
        let Ok(Ok(place)) = tokio::time::timeout(PLACE_TIMEOUT, places.acquire()).await else {
            return peer.send(&Answer::Error(Refusal::new("busy", BUSY))).await;
        };
        let call = match peer.line().await?.and_then(|line| decode_call(&line)) {
            Ok(call) => call,
            Err(refusal) => {
                let fatal = refusal.code == "too-large";
                peer.send(&Answer::Error(refusal)).await?;
                if fatal {
                    return Ok(());
                }
                continue;
            }
        };
        if let Err(mut refusal) = role.admits(&call) {
            refusal.message.push_str("; root and members of the group `quadway` are operators");
            peer.send(&Answer::Error(refusal)).await?;
            continue;
        }
        let last = matches!(call, Call::Denied { follow: true } | Call::Events);
        let place = Some(place).filter(|_| !call.follows());
        core.carry_out(peer, call, author, place).await?;
        if last {
            return Ok(());
        }
    }
    Ok(())
}

impl Core {
    /// The router at this moment; the source of metrics too.
    pub async fn status(&self) -> Result<Status, Refusal> {
        let counters = self.counted().await;
        let mut status = status::of(&self.view().await?, &counters);
        status.https.clone_from(&self.https.borrow());
        status.outlets = self.outlets.lines();
        status.tls_offload = self.tls_offload.lines();
        status.dns = self.resolver.line();
        status.components = self.components.lines();
        status.spreads = self.spreads.lines();
        status.dhcp = self.told.leases.lines();
        status.clock = self.told.clock.status();
        status.tunnels = self.told.tunnels.lines();
        status.pair = self.told.pair.line();
        status.crypto = self.crypto.status();
        (status.kernel_crypto, status.kernel_devices) = self.kernel_crypto.told();
        status.foreign_marks = self.foreign.as_ref().map(Foreign::warnings).unwrap_or_default();
        Ok(status)
    }

    async fn counted(&self) -> Result<Counters, String> {
        match tokio::time::timeout(VIEW_TIMEOUT, self.counters.read()).await {
            Ok(counters) => counters.map_err(|error| error.to_string()),
            Err(_) => Err("the kernel did not answer in time".to_owned()),
        }
    }

    async fn apply(&self, text: String, how: How, author: Author, past: Option<Past>) -> Result<ApplyReport, Refusal> {
        if let Some(foreign) = &self.foreign {
            foreign.look().await.map_err(|error| Refusal::new("kernel", error.to_string()))?;
        }
        // Where a change is guarded, the answer is what the guard found.
        let guarded = Duration::from_millis(how.guard_milliseconds.unwrap_or_default()).min(MOST_GUARDED);
        self.ask(APPLY_TIMEOUT + guarded, |reply| Ask::Apply { text, how, author, past, reply }).await?
    }

    async fn roll_back(&self, number: Option<u64>, mut how: How, author: Author) -> Result<ApplyReport, Refusal> {
        let Some(number) = number else {
            return self.ask(APPLY_TIMEOUT, |reply| Ask::RollBack { author, reply }).await?;
        };
        let text = self.of_history(number).await?;
        how.message.get_or_insert_with(|| format!("rollback to {number}"));
        self.apply(text, how, author, None).await
    }

    async fn save(&self) -> Result<SaveReport, Refusal> {
        let view = self.view().await?;
        if view.applies.pending.is_some() {
            let text = "a change waits: it is not known yet which config is to be saved; `routerctl confirm` keeps it, \
                        `routerctl rollback` takes it back; then try again";
            return Err(Refusal::new("pending", text));
        }
        let config = view.config.ok_or_else(Refusal::not_configured)?;
        let (history, key) = (self.history.clone(), self.key.clone());
        aside(move || {
            let unread = |error| Refusal::new("unavailable", format!("the history cannot be read: {error}"));
            let key = key.open().map_err(|why| Refusal::new("key", why))?;
            let past = history.all().map_err(unread)?;
            let contents =
                Contents { text: &view.text, config: &config, history: &past, host: &host(), now: SystemTime::now() };
            let (bytes, manifest) =
                bundle::make(&contents, &key).map_err(|unfit| Refusal::new("bundle", unfit.to_string()))?;
            Ok(SaveReport {
                manifest,
                fingerprint: bundle::fingerprint(&key),
                public_key: BASE64_STANDARD.encode(key.public_key()),
                bundle: BASE64_STANDARD.encode(bytes),
            })
        })
        .await
    }

    async fn restore(
        &self,
        packed: String,
        trust: Option<String>,
        mut how: How,
        author: Author,
    ) -> Result<RestoreReport, Refusal> {
        let key = self.key.clone();
        let read = aside(move || {
            let unfit = |unfit: Unfit| match &unfit {
                Unfit::Untrusted { .. } => Refusal::new("untrusted", unfit.to_string()),
                Unfit::TooLarge(_) | Unfit::NoArchive(_) | Unfit::Member { .. } => {
                    Refusal::new("bundle", format!("nothing of the bundle was taken: {unfit}"))
                }
            };
            let bytes = BASE64_STANDARD
                .decode(packed)
                .map_err(|error| Refusal::new("bundle", format!("the bundle is not in base64: {error}")))?;
            let bundle = bundle::read(&bytes).map_err(unfit)?;
            let own = key.open().map_err(|why| Refusal::new("key", why))?;
            bundle.trusted(&bundle::fingerprint(&own), trust.as_deref()).map_err(unfit)?;
            Ok((bundle, Arc::<[u8]>::from(bytes)))
        });
        let (bundle, bytes) =
            read.await.inspect_err(|refusal| self.happenings.tell(What::refused(&author, refusal)))?;
        let title = bundle.title();
        how.message = Some(how.message.map_or_else(|| title.clone(), |why| format!("{why} ({title})")));
        let Bundle { manifest, text, history, fingerprint, digest } = bundle;
        let name = format!("{}.tar", digest.get(..12).unwrap_or(&digest));
        let past = Past { entries: history, name, bundle: bytes };
        let apply = self.apply(text, how, author, Some(past)).await?;
        let missing = tokio::task::spawn_blocking(move || bundle::missing(&manifest.files)).await.unwrap_or_default();
        Ok(RestoreReport { apply, bundle: digest, fingerprint, host: manifest.host, time: manifest.time, missing })
    }

    async fn of_history(&self, number: u64) -> Result<String, Refusal> {
        let history = self.history.clone();
        let text =
            tokio::task::spawn_blocking(move || history.text(number)).await.unwrap_or_else(|error| Err(error.into()));
        text.map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                let text = format!("the history has no {number}; `routerctl history` lists what it has");
                Refusal::new("unknown-number", text)
            } else {
                Refusal::new("unavailable", format!("{number} of the history cannot be read: {error}"))
            }
        })
    }

    async fn diff(&self, from: u64, to: Option<u64>) -> Result<TextDifference, Refusal> {
        let old = self.of_history(from).await?;
        let (new, name) = match to {
            Some(to) => (self.of_history(to).await?, to.to_string()),
            None => (self.view().await?.text.to_string(), "in force".to_owned()),
        };
        aside(move || {
            Ok(TextDifference {
                changes: difference::between(Some(&parsed(&old)?), &parsed(&new)?),
                text: history::text_difference(&old, &new, (&from.to_string(), &name)),
            })
        })
        .await
    }

    async fn config(&self, number: Option<u64>) -> Result<ConfigText, Refusal> {
        if let Some(number) = number {
            return Ok(ConfigText { text: self.of_history(number).await? });
        }
        let (_, view) = self.configured().await?;
        Ok(ConfigText { text: view.text.to_string() })
    }

    /// The config in force, and how the router is.
    pub(super) async fn configured(&self) -> Result<(Arc<Config>, View), Refusal> {
        let view = self.view().await?;
        let config = view.config.clone().ok_or_else(Refusal::not_configured)?;
        Ok((config, view))
    }

    pub(super) async fn view(&self) -> Result<View, Refusal> {
        self.ask(VIEW_TIMEOUT, Ask::View).await
    }

    /// Answers what was admitted, with as many lines as it takes. `place` is kept meanwhile: who only listens comes
    /// without one, and keeps nobody from asking.
    pub(super) async fn carry_out<P: Send>(
        &self,
        peer: &mut impl Lines,
        call: Call,
        author: &Author,
        place: Option<P>,
    ) -> io::Result<()> {
        let done = match call {
            Call::Denied { follow: true } => follow(peer, self.denied.follow()).await,
            Call::Events => follow(peer, self.happenings.follow()).await,
            Call::Journal { follow, all } => journal(peer, self.journal.as_deref(), follow, all).await,
            Call::Audit { cell, milliseconds, isolated } => {
                audit(peer, self, &cell, Duration::from_millis(milliseconds), isolated).await
            }
            Call::Trace { source, destination, service, milliseconds, packets, through_rules } => {
                let asked = Asked {
                    source: &source,
                    destination: &destination,
                    service: service.as_deref(),
                    span: Duration::from_millis(milliseconds),
                    packets,
                    through_rules,
                };
                trace(peer, self, asked).await
            }
            call @ (Call::Status
            | Call::Version
            | Call::Plan { .. }
            | Call::Apply { .. }
            | Call::Confirm
            | Call::Rollback { .. }
            | Call::History
            | Call::Config { .. }
            | Call::Save
            | Call::Restore { .. }
            | Call::Diff { .. }
            | Call::Explain { .. }
            | Call::ExplainWan { .. }
            | Call::Denied { .. }
            | Call::Flows { .. }
            | Call::Drain { .. }
            | Call::Undrain { .. }
            | Call::FailTest { .. }
            | Call::Handover { .. }
            | Call::EndAudit { .. }) => {
                let answer = self.answer(call, author).await.unwrap_or_else(Answer::Error);
                peer.send(&answer).await
            }
        };
        drop(place);
        done
    }

    pub(super) async fn answer(&self, call: Call, author: &Author) -> Result<Answer, Refusal> {
        Ok(match call {
            Call::Status => ok(&self.status().await?),
            Call::Version => ok(&json!({
                "version": env!("CARGO_PKG_VERSION"),
                "protocol": VERSION,
                "fast_path_sha256": ebpf::digest(ebpf::OBJECT),
            })),
            Call::Plan { text } => ok(&self.plan(text).await?),
            Call::Apply { text, how } => ok(&self.apply(text, how, author.clone(), None).await?),
            Call::Confirm => {
                let author = author.clone();
                ok(&self.ask(VIEW_TIMEOUT, |reply| Ask::Confirm { author, reply }).await??)
            }
            Call::Rollback { number, how } => ok(&self.roll_back(number, how, author.clone()).await?),
            Call::History => {
                let history = self.history.clone();
                let entries = tokio::task::spawn_blocking(move || history.entries()).await;
                let entries = entries.unwrap_or_else(|error| Err(error.into()));
                let unread = |error| Refusal::new("unavailable", format!("the history cannot be read: {error}"));
                ok(&json!({"entries": entries.map_err(unread)?}))
            }
            Call::Config { number } => ok(&self.config(number).await?),
            Call::Save => ok(&self.save().await?),
            Call::Restore { bundle, trust, how } => ok(&self.restore(bundle, trust, how, author.clone()).await?),
            Call::Diff { from, to } => ok(&self.diff(from, to).await?),
            Call::Explain { source, destination, service } => self.explain(&source, &destination, &service).await?,
            Call::ExplainWan { wan } => self.explain_wan(&wan).await?,
            Call::Denied { .. } => ok(&json!({"groups": self.denied.groups()})),
            Call::Flows { most } => self.flows(most).await?,
            Call::Drain { wan } => self.operate(Request::Drain { wan: wan_name(&wan)? }).await?,
            Call::Undrain { wan } => self.operate(Request::Undrain { wan: wan_name(&wan)? }).await?,
            Call::FailTest { wan, milliseconds } => {
                let span = Duration::from_millis(milliseconds);
                self.operate(Request::FailTest { wan: wan_name(&wan)?, span }).await?
            }
            Call::Handover { milliseconds } => ok(&self.hand_over(Duration::from_millis(milliseconds))?),
            Call::EndAudit { cell } => ok(&self.end_audit(&cell).await?),
            Call::Journal { .. } | Call::Events | Call::Audit { .. } | Call::Trace { .. } => Answer::End,
        })
    }

    /// Zero takes it back.
    fn hand_over(&self, span: Duration) -> Result<serde_json::Value, Refusal> {
        let pair = &self.told.pair;
        let refused = |why: String| Refusal::new("pair", why);
        if span.is_zero() {
            pair.come_back().map_err(refused)?;
            return Ok(json!({}));
        }
        let peer = pair.hand_over(span.min(MOST_AWAY)).map_err(refused)?;
        Ok(json!({ "peer": peer }))
    }

    /// The cell, which must be one of the config in force.
    async fn cell(&self, cell: &str) -> Result<(Pair, Arc<Config>), Refusal> {
        let pair: Pair = cell.parse().map_err(|unfit: audit::Unfit| Refusal::new("audit", unfit.to_string()))?;
        let (config, _) = self.configured().await?;
        audit::known(&config, &pair).map_err(|unfit| Refusal::new("audit", unfit.to_string()))?;
        Ok((pair, config))
    }

    async fn end_audit(&self, cell: &str) -> Result<AuditReport, Refusal> {
        let (pair, config) = self.cell(cell).await?;
        if self.denied.audits.until(&pair).is_some() {
            self.operate(Request::EndAudit { pair: pair.clone() }).await?;
            tokio::time::sleep(LAST_WORDS).await;
        }
        self.denied
            .audits
            .report(&config, &pair)
            .ok_or_else(|| Refusal::new("audit", format!("{pair} is not audited, and was not since routerd started")))
    }

    async fn plan(&self, text: String) -> Result<Difference, Refusal> {
        let old = self.view().await?.config;
        let (text, new) = aside(move || parsed(&text).map(|config| (text, config))).await?;
        let PlanReport { steps, flows_that_die, warnings } =
            self.ask(PLAN_TIMEOUT, |reply| Ask::Plan { text, reply }).await??;
        aside(move || {
            Ok(Difference {
                changes: difference::between(old.as_deref(), &new),
                kernel: difference::kernel(&steps),
                steps: steps.iter().map(ToString::to_string).collect(),
                flows_that_die,
                warnings,
            })
        })
        .await
    }

    async fn flows(&self, most: usize) -> Result<Answer, Refusal> {
        let (config, _) = self.configured().await?;
        match tokio::time::timeout(VIEW_TIMEOUT, self.counters.talkers()).await {
            Ok(Ok(tally)) => Ok(ok(&tally.told(&config, most.min(MOST_TOLD)))),
            Ok(Err(error)) => Err(Refusal::new("kernel", format!("the flows cannot be read: {error}"))),
            Err(_) => Err(Refusal::new("timeout", "the kernel did not list its flows in time")),
        }
    }

    async fn operate(&self, request: Request) -> Result<Answer, Refusal> {
        self.ask(VIEW_TIMEOUT, |reply| Ask::Operator { request, reply }).await??;
        Ok(ok(&json!({})))
    }

    async fn ask<T>(&self, limit: Duration, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, Refusal> {
        let gone = || Refusal::new("unavailable", "routerd is stopping");
        let (reply, answer) = oneshot::channel();
        let asked = async {
            self.asks.send(ask(reply)).await.map_err(|_closed| gone())?;
            answer.await.map_err(|_closed| gone())
        };
        tokio::time::timeout(limit, asked).await.unwrap_or_else(|_| {
            Err(Refusal::new("timeout", format!("no answer within {}", humantime::format_duration(limit))))
        })
    }

    async fn explain(&self, source: &str, destination: &str, service: &str) -> Result<Answer, Refusal> {
        let (config, view) = self.configured().await?;
        let question = Question::read(&config, source, destination, service, None)
            .map_err(|unclear| Refusal::new("unclear", unclear.to_string()))?;
        let named = |key: &NamedKey, address| self.resolver.is_named(key, address);
        let mut explanation = explain_by_names(&config, &view.decision, &question, &named);
        explanation.names = self.resolver.sentences(&config, &explanation.source.zone, question.destination);
        let until = explanation.denied_by().and_then(|pair| self.denied.audits.until(&pair));
        explanation.audited_until = until.map(|until| humantime::format_rfc3339_seconds(until).to_string());
        Ok(ok(&json!({"text": explanation.to_string(), "explanation": explanation})))
    }

    async fn explain_wan(&self, wan: &str) -> Result<Answer, Refusal> {
        let counters = self.counted().await.ok();
        let (config, view) = self.configured().await?;
        let moment = (Instant::now(), SystemTime::now());
        let answer = line::explain(&view, wan, counters.as_ref(), &self.ledger, moment)
            .ok_or_else(|| Refusal::unknown_wan(wan, &config))?;
        Ok(ok(&json!({"text": answer.to_string(), "line": answer})))
    }
}

fn parsed(text: &str) -> Result<config::Config, Refusal> {
    match config::parse("site file", text) {
        Ok(parsed) => Ok(parsed.config),
        Err(problems) => Err(Refusal::new("config", problems.to_string())),
    }
}

/// What this machine is called; a name where it has none, since a bundle bears one.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "router".to_owned() } else { name }
}

fn wan_name(text: &str) -> Result<config::units::WanName, Refusal> {
    text.parse().map_err(|error| Refusal::new("unknown-wan", format!("{text:?} is no name of a WAN: {error}")))
}

/// Begins an audit and follows it to its end.
async fn audit(peer: &mut impl Lines, core: &Core, cell: &str, span: Duration, isolated: bool) -> io::Result<()> {
    let mut logged = core.denied.follow();
    let begun = async {
        let (pair, _) = core.cell(cell).await?;
        core.ask(VIEW_TIMEOUT, |reply| Ask::Audit { pair: pair.clone(), span, isolated, reply }).await??;
        Ok::<_, Refusal>(pair)
    };
    let pair = match begun.await {
        Ok(pair) => pair,
        Err(refusal) => return peer.send(&Answer::Error(refusal)).await,
    };
    let until = core.denied.audits.until(&pair).map(|until| humantime::format_rfc3339_seconds(until).to_string());
    peer.send(&ok(&json!({"cell": pair, "until": until}))).await?;
    let cell = pair.to_string();
    let mut last_words = None;
    loop {
        // What passed before the end may still be on its way from the packet log.
        if last_words.is_none() && core.denied.audits.until(&pair).is_none() {
            last_words = Some(Instant::now() + LAST_WORDS);
        }
        if last_words.is_some_and(|over| over <= Instant::now()) {
            break;
        }
        let answer = tokio::select! {
            denied = logged.recv() => match denied {
                Ok(denied) if denied.kind == Kind::Audit && denied.cell == cell => ok(&*denied),
                Ok(_) => continue,
                Err(broadcast::error::RecvError::Lagged(missed)) => ok(&json!({"missed": missed})),
                Err(broadcast::error::RecvError::Closed) => break,
            },
            () = tokio::time::sleep(AUDIT_INTERVAL) => continue,
            () = peer.gone() => return Ok(()),
        };
        peer.send(&answer).await?;
    }
    let report = core.end_audit(&cell).await.map_or_else(Answer::Error, |report| ok(&json!({"report": report})));
    peer.send(&report).await?;
    peer.send(&Answer::End).await
}

/// Each thing as it is told, and how many were missed where there were too many.
async fn follow<T: Serialize + Send + Sync>(
    peer: &mut impl Lines,
    mut told: broadcast::Receiver<Arc<T>>,
) -> io::Result<()> {
    loop {
        let answer = tokio::select! {
            one = told.recv() => match one {
                Ok(one) => ok(&*one),
                Err(broadcast::error::RecvError::Lagged(missed)) => ok(&json!({"missed": missed})),
                Err(broadcast::error::RecvError::Closed) => return Ok(()),
            },
            () = peer.gone() => return Ok(()),
        };
        peer.send(&answer).await?;
    }
}

/// What the journal's lines tell; with `follow` those to come, across changes of file.
async fn journal(peer: &mut impl Lines, path: Option<&Path>, follow: bool, all: bool) -> io::Result<()> {
    let Some(path) = path else {
        return peer.send(&Answer::Error(Refusal::new("no-journal", "routerd keeps no journal"))).await;
    };
    let unreadable =
        |error: io::Error| Answer::Error(Refusal::new("no-journal", format!("the journal cannot be read: {error}")));
    let mut tail = match Tail::open(path).await {
        Ok(tail) => tail,
        Err(error) => return peer.send(&unreadable(error)).await,
    };
    loop {
        match tail.next().await {
            Ok(Some(line)) if all || line.told.is_news() => peer.send(&ok(&line)).await?,
            Ok(Some(_)) => {}
            Ok(None) if !follow => return peer.send(&Answer::End).await,
            Ok(None) => tokio::select! {
                () = tokio::time::sleep(JOURNAL_INTERVAL) => {}
                () = peer.gone() => return Ok(()),
            },
            Err(error) => return peer.send(&unreadable(error)).await,
        }
    }
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Connection {
    /// Waits for the beginning of a request; false when the peer is done.
    async fn asks(&mut self) -> io::Result<bool> {
        Ok(!within(IDLE, self.reader.fill_buf()).await?.is_empty())
    }

    /// The request that began. A peer that begins a line must end it in time.
    async fn line(&mut self) -> io::Result<Result<Vec<u8>, Refusal>> {
        let mut line = Vec::new();
        let mut bounded = (&mut self.reader).take(MAX_LINE as u64 + 1);
        within(LINE_TIMEOUT, bounded.read_until(b'\n', &mut line)).await?;
        Ok(if line.len() > MAX_LINE {
            Err(Refusal::new("too-large", format!("a line has at most {MAX_LINE} bytes")))
        } else {
            Ok(line)
        })
    }
}

/// Where the lines of an answer go.
pub(super) trait Lines: Send {
    fn send(&mut self, answer: &Answer) -> impl Future<Output = io::Result<()>> + Send;

    /// Waits until nobody hears them any more.
    fn gone(&mut self) -> impl Future<Output = ()> + Send;
}

impl Lines for Connection {
    async fn send(&mut self, answer: &Answer) -> io::Result<()> {
        within(SEND_TIMEOUT, self.writer.write_all(encode_answer(answer).as_bytes())).await
    }

    /// Who says anything meanwhile is gone, too: a stream does not expect that.
    async fn gone(&mut self) {
        drop(self.reader.fill_buf().await);
    }
}

/// What takes longer failed.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// Who is served at a time; each may hold a line of [`MAX_LINE`].
pub(super) const OPERATORS: usize = 16;
pub(super) const READERS: usize = 32;
const CONNECTIONS: usize = 512;
pub(super) const BUSY: &str = "too many clients ask at once; try again later";
/// How long a client waits for a place.
pub(super) const PLACE_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_mins(1);
pub(super) const LINE_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const SEND_TIMEOUT: Duration = Duration::from_secs(10);
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
const VIEW_TIMEOUT: Duration = Duration::from_secs(5);
const PLAN_TIMEOUT: Duration = Duration::from_secs(30);
const APPLY_TIMEOUT: Duration = Duration::from_mins(2);
/// A longer one is refused at once.
/// A router that left the work to the other one comes back by itself.
const MOST_AWAY: Duration = Duration::from_hours(24);
const MOST_GUARDED: Duration = Duration::from_hours(1);
/// How long the packet log may take to tell what has passed.
const LAST_WORDS: Duration = Duration::from_millis(300);
const AUDIT_INTERVAL: Duration = Duration::from_millis(200);
const JOURNAL_INTERVAL: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::Value;
    use tokio::io::{Lines, split};
    use tokio::net::UnixStream;

    use super::*;
    use crate::ask::ApplyReport;
    use crate::fixture;
    use crate::talkers::Tally;

    #[test]
    fn the_groups_make_the_role() {
        let (operators, readers, other) = (Gid::from_raw(900), Gid::from_raw(901), Gid::from_raw(902));
        let owner = Uid::from_raw(900);
        let access = Access { owner: Some(owner), operators: Some(operators), readers: Some(readers) };
        let user = Uid::from_raw(1000);
        assert_eq!(access.role(Uid::from_raw(0), &[]), Some(Role::Operator));
        assert_eq!(access.role(owner, &[]), Some(Role::Operator));
        assert_eq!(access.role(user, &[other, operators]), Some(Role::Operator));
        assert_eq!(access.role(user, &[readers]), Some(Role::Reader));
        assert_eq!(access.role(user, &[other]), None);
        assert_eq!(Access::default().role(user, &[operators]), None);
    }

    #[tokio::test]
    async fn the_socket_is_closed_to_strangers_and_replaces_a_stale_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        for (readers, mode) in [(None, 0o660), (Some(Gid::current()), 0o666)] {
            drop(bind(&path, &Access { readers, ..Access::default() }).unwrap());
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[tokio::test]
    async fn clients_that_say_nothing_keep_nobody_from_asking() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api.sock");
        let access = Access { operators: Some(Gid::current()), ..Access::default() };
        let _server = tokio::spawn(serve(bind(&path, &access).unwrap(), core(), access));
        let mut silent = Vec::new();
        for number in 0..200 {
            let mut client = UnixStream::connect(&path).await.unwrap();
            if number % 2 == 0 {
                client.write_all(b"{\"v\":1,\"call\":\"denied\",\"follow\":true}\n").await.unwrap();
            }
            silent.push(client);
        }
        let mut client = BufReader::new(UnixStream::connect(&path).await.unwrap());
        client.write_all(b"{\"v\":1,\"call\":\"version\"}\n").await.unwrap();
        let mut answer = String::new();
        client.read_line(&mut answer).await.unwrap();
        assert!(answer.contains("\"protocol\":1"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_carries_many_calls() {
        let mut client = Peer::of(Role::Operator, core());
        let status = client.ask(r#"{"v":1,"call":"status"}"#).await;
        assert_eq!(status["ok"]["site"], "spectrum");
        assert_eq!(status["ok"]["wans"][0]["flows"], 118);
        let applied = client.ask(r#"{"v":1,"call":"apply","text":"x"}"#).await;
        assert_eq!(applied["ok"]["digest"], "x");
        assert_eq!(client.ask(r#"{"v":1,"call":"drain","wan":"wan1"}"#).await, json!({"v": 1, "ok": {}}));
        let refused = client.ask(r#"{"v":1,"call":"drain","wan":"wan9"}"#).await;
        assert_eq!(refused["error"]["code"], "unknown-wan");
        assert_eq!(client.ask(r#"{"v":1,"call":"denied"}"#).await["ok"]["groups"], json!([]));
    }

    #[tokio::test]
    async fn a_reader_reads_and_changes_nothing() {
        let mut client = Peer::of(Role::Reader, core());
        for call in [
            r#"{"v":1,"call":"apply","text":"x"}"#,
            r#"{"v":1,"call":"confirm"}"#,
            r#"{"v":1,"call":"rollback"}"#,
            r#"{"v":1,"call":"rollback","number":1}"#,
            r#"{"v":1,"call":"drain","wan":"wan1"}"#,
            r#"{"v":1,"call":"undrain","wan":"wan1"}"#,
            r#"{"v":1,"call":"fail-test","wan":"wan1","milliseconds":1}"#,
        ] {
            assert_eq!(client.ask(call).await["error"]["code"], "permission", "{call}");
        }
        assert_eq!(client.ask(r#"{"v":1,"call":"status"}"#).await["ok"]["site"], "spectrum");
        assert_eq!(client.ask(r#"{"v":1,"call":"version"}"#).await["ok"]["protocol"], 1);
    }

    #[tokio::test]
    async fn a_reader_compares_what_took_effect_and_an_operator_goes_back_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let history = History::of(folder.path());
        let old = include_str!("../../../config/examples/minimal.toml");
        let new = old.replace("tcp/631", "tcp/632");
        for text in [old, new.as_str()] {
            history.record(text, Author::start(), None, history::Outcome::Applied).unwrap();
        }
        let core = || Core { history: history.clone(), ..core() };
        let mut reader = Peer::of(Role::Reader, core());
        let entries = reader.ask(r#"{"v":1,"call":"history"}"#).await["ok"]["entries"].clone();
        assert_eq!((&entries[0]["number"], &entries[1]["outcome"]["outcome"]), (&json!(1), &json!("applied")));
        let diff = reader.ask(r#"{"v":1,"call":"diff","from":1,"to":2}"#).await["ok"].clone();
        assert!(diff["changes"].as_array().unwrap().iter().any(|change| change["kind"] == "cell"), "{diff}");
        assert!(diff["text"].as_str().unwrap().contains("\n-services = [\"tcp/631\""), "{diff}");
        let second = reader.ask(r#"{"v":1,"call":"config","number":2}"#).await["ok"]["text"].clone();
        assert_eq!(second, new);
        let in_force = reader.ask(r#"{"v":1,"call":"config"}"#).await["ok"]["text"].clone();
        assert!(in_force.as_str().is_some_and(|text| text.contains("[site]")), "{in_force}");
        let unknown = reader.ask(r#"{"v":1,"call":"diff","from":1,"to":9}"#).await;
        assert_eq!(unknown["error"]["code"], "unknown-number");

        let mut operator = Peer::of(Role::Operator, core());
        let back = operator.ask(r#"{"v":1,"call":"rollback","number":1}"#).await["ok"].clone();
        assert_eq!(
            (back["digest"].as_str(), &back["warnings"]),
            (Some(old), &json!(["alice (uid 1000)", "rollback to 1"]))
        );
        let confirmed = operator.ask(r#"{"v":1,"call":"confirm"}"#).await["ok"].clone();
        assert_eq!(confirmed["warnings"], json!(["alice (uid 1000)"]));
    }

    #[tokio::test]
    async fn a_reader_saves_a_bundle_and_an_operator_restores_it_where_its_key_counts() {
        let [folder, other] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let history = History::of(folder.path());
        for text in ["one", "two"] {
            history.record(text, Author::start(), None, history::Outcome::Applied).unwrap();
        }
        let on = |state: &Path| Core { history: history.clone(), key: BoxKey::of(state), ..core() };
        let mut reader = Peer::of(Role::Reader, on(folder.path()));
        let saved = reader.ask(r#"{"v":1,"call":"save"}"#).await["ok"].clone();
        let restore = |bundle: &Value, trust: Option<&str>| {
            let call = Call::Restore {
                bundle: bundle.as_str().unwrap().to_owned(),
                trust: trust.map(str::to_owned),
                how: How::default(),
            };
            super::super::protocol::encode_call(&call).trim_end().to_owned()
        };
        assert_eq!(saved["manifest"]["members"].as_object().unwrap().len(), 3, "{saved}");
        let refused = reader.ask(&restore(&saved["bundle"], None)).await;
        assert_eq!(refused["error"]["code"], "permission");

        let mut operator = Peer::of(Role::Operator, on(folder.path()));
        let restored = operator.ask(&restore(&saved["bundle"], None)).await["ok"].clone();
        assert_eq!(restored["digest"], fixture::view().text.to_string());
        let told = restored["warnings"].as_array().unwrap();
        assert_eq!(told[0], "alice (uid 1000)");
        assert!(told[1].as_str().unwrap().starts_with("restored from bundle "), "{told:?}");
        assert!(told[2].as_str().unwrap().starts_with("2 entries, "), "{told:?}");

        let core = on(other.path());
        let mut told = core.happenings.follow();
        let mut operator = Peer::of(Role::Operator, core);
        let fingerprint = saved["fingerprint"].as_str().unwrap();
        for trust in [None, Some("00")] {
            let refused = operator.ask(&restore(&saved["bundle"], trust)).await["error"].clone();
            assert_eq!(refused["code"], "untrusted");
            assert!(refused["message"].as_str().unwrap().contains(&format!("--trust {fingerprint}")), "{refused}");
            let told = told.recv().await.unwrap();
            assert!(matches!(&told.what, What::Refused { code, .. } if code == "untrusted"), "{told:?}");
        }
        let restored = operator.ask(&restore(&saved["bundle"], Some(fingerprint))).await["ok"].clone();
        assert_eq!(restored["fingerprint"], fingerprint);
        for (bundle, said) in [("!", "not in base64"), ("YQ==", "nothing of the bundle was taken: this is no bundle")] {
            let refused = operator.ask(&restore(&json!(bundle), None)).await["error"].clone();
            assert_eq!(refused["code"], "bundle");
            assert!(refused["message"].as_str().unwrap().contains(said), "{refused}");
        }
    }

    #[tokio::test]
    async fn a_malformed_line_is_answered_and_the_connection_goes_on() {
        let mut client = Peer::of(Role::Operator, core());
        assert_eq!(client.ask("{").await["error"]["code"], "malformed");
        assert_eq!(client.ask("\0\u{7f}").await["error"]["code"], "malformed");
        assert_eq!(client.ask(r#"{"v":1,"call":"version"}"#).await["ok"]["protocol"], 1);
    }

    #[tokio::test]
    async fn a_line_too_long_ends_the_connection() {
        let mut client = Peer::of(Role::Operator, core());
        let long = "x".repeat(MAX_LINE + 10);
        assert_eq!(client.ask(&long).await["error"]["code"], "too-large");
    }

    #[tokio::test]
    async fn a_packet_is_explained_by_names() {
        let mut client = Peer::of(Role::Reader, core());
        let answer =
            client.ask(r#"{"v":1,"call":"explain","source":"dev1","destination":"worker3","service":"tcp/22"}"#).await;
        assert!(!answer["ok"]["text"].as_str().unwrap().is_empty(), "{answer}");
        let unclear =
            client.ask(r#"{"v":1,"call":"explain","source":"dev9","destination":"worker3","service":"ping"}"#).await;
        assert_eq!(unclear["error"]["code"], "unclear");
    }

    #[tokio::test]
    async fn a_line_is_explained_and_an_unknown_one_is_told_the_others() {
        let mut client = Peer::of(Role::Reader, core());
        let answer = client.ask(r#"{"v":1,"call":"explain-wan","wan":"wan1"}"#).await;
        assert_eq!(answer["ok"]["line"]["families"][0]["state"], "up", "{answer}");
        assert!(answer["ok"]["text"].as_str().unwrap().contains("118 flows on it"), "{answer}");
        let unknown = client.ask(r#"{"v":1,"call":"explain-wan","wan":"wan9"}"#).await;
        assert_eq!(unknown["error"]["message"], "there is no wan `wan9`; there are: wan1, wan2");
    }

    #[tokio::test]
    async fn a_plan_of_a_broken_file_tells_its_problems() {
        let mut client = Peer::of(Role::Reader, core());
        let answer = client.ask(r#"{"v":1,"call":"plan","text":"[sit]"}"#).await;
        assert_eq!(answer["error"]["code"], "config");
    }

    #[tokio::test]
    async fn denials_are_followed_as_they_happen() {
        let core = core();
        let mut client = Peer::of(Role::Reader, core.clone());
        client.say(r#"{"v":1,"call":"denied","follow":true}"#).await;
        while core.denied.followers() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        core.denied.push(fixture::denied());
        assert_eq!(client.hear().await["ok"]["service"], "tcp/22");
        drop(client);
        while core.denied.followers() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn events_are_told_as_they_happen() {
        let core = core();
        let mut client = Peer::of(Role::Reader, core.clone());
        client.say(r#"{"v":1,"call":"events"}"#).await;
        while core.happenings.followers() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for repair in ["one", "two"] {
            core.happenings.tell(What::Drift { repairs: vec![repair.to_owned()] });
            let told = client.hear().await["ok"].clone();
            assert_eq!((&told["event"], &told["repairs"]), (&json!("drift"), &json!([repair])));
        }
        drop(client);
        while core.happenings.followers() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn the_journal_is_told_without_probes_unless_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.jsonl");
        let drain = r#"{"t":2,"e":{"request":{"drain":{"wan":"wan1"}}}}"#;
        std::fs::write(&path, format!("{{\"t\":1,\"r\":[1,0,7,1000]}}\n{drain}\n{{\"t\":")).unwrap();
        let mut client = Peer::of(Role::Reader, Core { journal: Some(path.clone()), ..core() });
        client.say(r#"{"v":1,"call":"journal"}"#).await;
        assert_eq!(client.hear().await["ok"]["what"]["request"]["drain"]["wan"], "wan1");
        assert_eq!(client.hear().await["end"], true);
        client.say(r#"{"v":1,"call":"journal","all":true,"follow":true}"#).await;
        assert_eq!(client.hear().await["ok"]["what"]["reply"]["seq"], 7);
        client.hear().await;
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"3}\n").unwrap();
        assert_eq!(client.hear().await["ok"]["t"], 3);
    }

    #[tokio::test]
    async fn flows_are_told_by_line_and_host() {
        let mut client = Peer::of(Role::Reader, core());
        let told = client.ask(r#"{"v":1,"call":"flows"}"#).await;
        assert_eq!(told["ok"]["groups"][0]["host"], "dev1", "{told}");
        let none = client.ask(r#"{"v":1,"call":"flows","most":0}"#).await;
        assert_eq!(none["ok"]["flows_left_out"], 1, "{none}");
    }

    #[tokio::test]
    async fn a_stopping_daemon_says_so() {
        let core = Core { asks: mpsc::channel(1).0, ..core() };
        let mut client = Peer::of(Role::Reader, core);
        assert_eq!(client.ask(r#"{"v":1,"call":"status"}"#).await["error"]["code"], "unavailable");
    }

    /// A core that answers like an event loop would.
    fn core() -> Core {
        let (asks, mut asked) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(ask) = asked.recv().await {
                match ask {
                    Ask::View(reply) => drop(reply.send(fixture::view())),
                    Ask::Plan { reply, .. } => {
                        let report = PlanReport { steps: vec![], flows_that_die: 0, warnings: vec![] };
                        drop(reply.send(Ok(report)));
                    }
                    // Tells what it was asked.
                    Ask::Apply { text, how, author, past, reply } => {
                        let past = past.map(|past| format!("{} entries, {}", past.entries.len(), past.name));
                        let warnings = [Some(author.to_string()), how.message, past].into_iter().flatten().collect();
                        drop(reply.send(Ok(ApplyReport { digest: text, warnings, ..ApplyReport::default() })));
                    }
                    Ask::Confirm { author, reply } | Ask::RollBack { author, reply } => {
                        let warnings = vec![author.to_string()];
                        drop(reply.send(Ok(ApplyReport { warnings, ..ApplyReport::default() })));
                    }
                    Ask::Operator { request: Request::Drain { wan }, reply } if wan.as_str() == "wan9" => {
                        drop(reply.send(Err(Refusal::new("unknown-wan", "there is no wan9"))));
                    }
                    Ask::Operator { reply, .. } | Ask::Audit { reply, .. } => drop(reply.send(Ok(()))),
                }
            }
        });
        let counters = CounterSource::fixed(fixture::counters()).with_talkers(|| {
            let mut tally = Tally::default();
            tally.add(config::units::WanId::new(1), "10.10.50.7".parse().unwrap(), None);
            std::future::ready(Ok(tally))
        });
        Core::new(asks, counters, History::of(Path::new("/nonexistent")))
    }

    struct Peer {
        lines: Lines<BufReader<tokio::io::ReadHalf<UnixStream>>>,
        writer: tokio::io::WriteHalf<UnixStream>,
    }

    impl Peer {
        fn of(role: Role, core: Core) -> Self {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (reader, writer) = theirs.into_split();
            tokio::spawn(async move {
                let mut peer = Connection { reader: BufReader::new(reader), writer };
                let author = Author { name: "alice".to_owned(), uid: Some(1000) };
                converse(&mut peer, &core, role, &author, &Semaphore::new(1)).await.ok();
            });
            let (reader, writer) = split(ours);
            Self { lines: BufReader::new(reader).lines(), writer }
        }

        async fn ask(&mut self, line: &str) -> Value {
            self.say(line).await;
            self.hear().await
        }

        async fn say(&mut self, line: &str) {
            // A daemon that has refused already may have closed its end.
            self.writer.write_all(format!("{line}\n").as_bytes()).await.ok();
        }

        async fn hear(&mut self) -> Value {
            let line = tokio::time::timeout(Duration::from_secs(10), self.lines.next_line()).await;
            serde_json::from_str(&line.unwrap().unwrap().unwrap()).unwrap()
        }
    }
}
