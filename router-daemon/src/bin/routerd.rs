//! The daemon: finds its files, opens the kernel, starts the parts and hands them to the event loop.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use config::Config;
use mwan::state::RulesetState;
use mwan::{KernelState, Step};
use router_daemon::alarm::Alarm;
use router_daemon::apart::Spreads;
use router_daemon::api::https;
use router_daemon::api::server::{self, Access, Core};
use router_daemon::counters::{CounterSource, Counters, DenialSource};
use router_daemon::crypto::Crypto;
use router_daemon::crypto::qat_kernel::{self, QatKernel, Troubles};
use router_daemon::event_log::{self, EventLog};
use router_daemon::event_loop::{self, Flows, JournalFile, Parts, Site};
use router_daemon::happening::{self, Happenings};
use router_daemon::history::History;
use router_daemon::journald::Journald;
use router_daemon::kernel::foreign::Foreign;
use router_daemon::kernel::nflog::PacketLog;
use router_daemon::kernel::trace::Tracer;
use router_daemon::kernel::watch::Watch;
use router_daemon::kernel::{self, Kernel, LinuxKernel, apart, doomed_flows, fast_path, feeder};
use router_daemon::outside::{self, Ending, Outlets, Surroundings};
use router_daemon::passive;
use router_daemon::reconcile::Reconciler;
use router_daemon::service;
use router_daemon::service::component::{Components, Supervisor, Timing};
use router_daemon::service::dns;
use router_daemon::service::ipsec;
use router_daemon::service::pair;
use router_daemon::service::tls_offload::{self, Offloads};
use router_daemon::service::wan_dhcp;
use router_daemon::service::wireguard;
use router_daemon::shell::RouterdArguments as Arguments;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};
use tracing_appender::non_blocking::NonBlockingBuilder;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

fn main() -> ExitCode {
    if let Some(code) = wan_dhcp::called() {
        return code;
    }
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever reads our log may be slow (a disk that stands still); the loop does not wait for it. What is still on its
    // way when we end is written as the guards go.
    let stream = std::env::var("JOURNAL_STREAM").ok();
    let _guards = if let Some((journal, flush)) = Journald::open(stream.as_deref()) {
        tracing_subscriber::registry().with(filter).with(journal).init();
        (Some(flush), None)
    } else {
        let appender = NonBlockingBuilder::default().buffered_lines_limit(LINES);
        let (writer, guard) = appender.finish(io::stderr());
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_target(false);
        // journald adds the time itself; a terminal wants it.
        if stream.is_some() {
            log.with_ansi(false).without_time().init();
        } else {
            log.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init();
        }
        (None, Some(guard))
    };
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop { code, error }) => {
            error!("{error:#}");
            ExitCode::from(code)
        }
    }
}

/// Why we end, and the exit code for it.
struct Stop {
    code: u8,
    error: anyhow::Error,
}

impl Stop {
    fn with(code: u8) -> impl Fn(anyhow::Error) -> Self {
        move |error| Self { code, error }
    }
}

fn start(arguments: &Arguments) -> Result<(), Stop> {
    let _lock = lock(&arguments.run)?;
    // One thread: the whole work of an idle router is a few hundred small packets a second.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot start the runtime").map_err(Stop::with(FAILED))?;
    runtime.block_on(async {
        let kernel = open(&arguments.run).await.map_err(Stop::with(UNFIT))?;
        let kernel = kernel.with_fast_path(fast_path(arguments).map_err(Stop::with(FAILED))?);
        let foreign = Foreign::default();
        foreign.look().await.map_err(|error| Stop { code: UNFIT, error: error.into() })?;
        run(arguments, kernel, foreign).await.map_err(Stop::with(FAILED))
    })
}

/// Held until the process ends, however it ends.
fn lock(run: &Path) -> Result<File, Stop> {
    let path = run.join("routerd.lock");
    let opened = fs::create_dir_all(run).and_then(|()| File::create(&path));
    let file = opened.with_context(|| format!("cannot open {}", path.display())).map_err(Stop::with(FAILED))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Stop { code: OTHER, error: anyhow!("another routerd runs here: it holds {}", path.display()) })
        }
        Err(TryLockError::Error(error)) => {
            Err(Stop { code: FAILED, error: anyhow!(error).context(format!("cannot lock {}", path.display())) })
        }
    }
}

async fn open(run: &Path) -> Result<LinuxKernel> {
    // A raw socket with a mark needs what everything here needs: CAP_NET_RAW and CAP_NET_ADMIN.
    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(socket2::Protocol::ICMPV4))
        .and_then(|socket| socket.set_mark(1))
        .context("routerd must run as root, or with CAP_NET_ADMIN and CAP_NET_RAW")?;
    LinuxKernel::open(run).await.context("cannot use nftables")
}

fn fast_path(arguments: &Arguments) -> Result<fast_path::Source> {
    let object = match std::env::var_os("QUADWAY_FAST_PATH_OBJECT") {
        Some(file) => fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?.into(),
        None => ebpf::OBJECT.into(),
    };
    Ok(fast_path::Source { object, pins: arguments.bpf_dir.clone() })
}

async fn run(arguments: &Arguments, mut kernel: LinuxKernel, foreign: Foreign) -> Result<()> {
    // Nothing passes a router that has not been told what may. A table of ours from before stays: it is adopted.
    let found = kernel.observe(&KernelState::default()).await?;
    if found.ruleset == RulesetState::Absent {
        kernel.apply(&Step::CloseDoor).await?;
        info!("closed: everything is denied until the site file is in force");
    }

    let mut tasks = JoinSet::new();
    let (changes_tx, changes) = mpsc::channel(64);
    let mut watch_kernel = Watch::open().context("cannot watch the kernel")?;
    tasks.spawn(async move {
        loop {
            match watch_kernel.next().await {
                Ok(change) => {
                    if changes_tx.send(change).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    error!(%error, "the watch on the kernel failed");
                    return;
                }
            }
        }
    });

    let (config, config_in_force) = watch::channel(None);
    let denied = EventLog::default();
    match PacketLog::open() {
        Ok(mut log) => {
            let (packets_tx, packets) = mpsc::channel(256);
            tasks.spawn(async move {
                loop {
                    match log.next().await {
                        Ok(packet) => {
                            if packets_tx.send(packet).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            error!(%error, "denials are counted and not told: reading the packet log failed");
                            return;
                        }
                    }
                }
            });
            tasks.spawn(event_log::run(packets, config_in_force.clone(), denied.clone()));
        }
        Err(error) => warn!(%error, "denials are counted and not told: the packet log cannot be opened"),
    }

    let audits = denied.audits.clone();
    let (fast_path, ledger) = (kernel.fast_path(), kernel.ledger());
    tasks.spawn(event_log::run_early(fast_path.clone(), config_in_force.clone(), denied.clone()));
    tasks.spawn(fast_path.clone().tell_logs());
    let happenings = Happenings::default();
    let outlets = Outlets::default();
    let (alive, last_words) = Ending::new();
    let surroundings =
        Surroundings { state: arguments.state.clone(), denied: denied.clone(), outlets: outlets.clone() };
    tasks.spawn(outside::run(config_in_force.clone(), happenings.follow(), surroundings, alive));
    let (offloads, crypto) = (Offloads::default(), Crypto::default());
    tls_offload::start(config_in_force.clone(), offloads.clone(), crypto.clone())
        .context("cannot start the thread of TLS offload")?;
    let components = Components::default();
    let supervisor = Supervisor {
        run: arguments.run.clone(),
        components: components.clone(),
        happenings: happenings.clone(),
        timing: Timing::default(),
    };
    let places = service::Places { run: arguments.run.clone(), state: arguments.state.clone() };
    let tunnel_places = places.clone();
    let told_of_components = service::Told::default();
    let told_there = told_of_components.clone();
    let (noticed_tx, noticed) = mpsc::channel(64);
    let (asks_tx, asks) = mpsc::channel(32);
    let pair = pair::Surroundings {
        places: places.clone(),
        node: arguments.node.clone().unwrap_or_else(pair::own_name),
        standing: told_of_components.pair.clone(),
        happenings: happenings.clone(),
        events: noticed_tx.clone(),
        asks: asks_tx.clone(),
    };
    pair::start(pair, config_in_force.clone()).context("cannot start the thread of the pair")?;
    let kept_leases = wan_dhcp::kept(&places);
    let (leases_tx, leases) = mpsc::channel(64);
    wan_dhcp::start(places.clone(), config_in_force.clone(), leases_tx).context("cannot start the thread of leases")?;
    let (for_components, config_of_components) = watch::channel(None);
    let prefixes = told_of_components.prefixes.clone();
    tasks.spawn(prefixes.follow(happenings.follow(), config_in_force.clone(), for_components));
    let last_component = supervisor
        .start(config_of_components, move |config| service::components(config, &places, &told_there))
        .context("cannot start the thread of the components")?;
    let kernel_crypto = Troubles::default();
    tasks.spawn(happening::tell_fast_path(fast_path.state(), happenings.clone()));
    let tracer = Tracer::new(fast_path.clone());
    feeder::start(fast_path.clone(), config_in_force.clone()).context("cannot start the thread of the flows")?;
    tasks.spawn(passive::watch(fast_path.clone(), config_in_force.clone(), noticed_tx));

    let resolver = denied.resolver.clone();
    dns::start(config_in_force.clone(), happenings.follow(), kernel.lineage(), &arguments.state, resolver.clone())
        .context("cannot start the thread of the resolver")?;
    let spreads = Spreads::default();
    apart::start(kernel.lineage(), config_in_force.clone(), spreads.clone())
        .context("cannot start the thread of what is kept apart")?;
    let (reconciler, handle) = Reconciler::new(kernel);
    let rekey = ipsec::start(
        &tunnel_places,
        config_in_force.clone(),
        handle.wanted.subscribe(),
        told_of_components.tunnels.clone(),
    )
    .context("cannot start the thread of the tunnels")?;
    let card = QatKernel::default();
    let rekey = Arc::new(move || rekey.clone().all());
    tasks.spawn(qat_kernel::run(card, config_in_force.clone(), kernel_crypto.clone(), rekey));
    wireguard::start(config_in_force.clone(), handle.wanted.subscribe(), told_of_components.tunnels.clone())
        .context("cannot start the thread of the tunnels")?;
    tasks.spawn(reconciler.run());

    let journals = arguments.state.join("journal");
    let journal = JournalFile::begin(&journals).inspect_err(|error| warn!(%error, "no journal is kept")).ok();
    let (told, listener) = watch::channel(None);
    let refused = fast_path.clone();
    let denials = DenialSource::new(move || {
        let fast_path = refused.clone();
        async move { Ok(fast_path.denials().await? + kernel::denials().await?) }
    });
    let counters = CounterSource::new(move || {
        let fast_path = fast_path.clone();
        async move { Ok(Counters { fast_path: fast_path.read().await?, ..kernel::counters().await? }) }
    })
    .with_talkers(kernel::talkers);
    let core = Core {
        denied,
        tracer: Some(tracer),
        journal: journal.is_some().then(|| journals.join("journal.jsonl")),
        ledger,
        foreign: Some(foreign),
        happenings: happenings.clone(),
        https: listener,
        outlets,
        tls_offload: offloads,
        resolver,
        components,
        spreads,
        told: told_of_components,
        crypto,
        kernel_crypto,
        ..Core::new(asks_tx, counters, History::of(&arguments.state))
    };
    let access = Access::of_system();
    let socket = arguments.run.join("api.sock");
    let listener = server::bind(&socket, &access).with_context(|| format!("cannot open {}", socket.display()))?;
    tasks.spawn(server::serve(listener, core.clone(), access));
    tasks.spawn(https::serve(config_in_force.clone(), core.clone(), told));
    tasks.spawn(metrics(config_in_force, core));
    let parts = Parts {
        alarm: Alarm::open().context("cannot have a timer")?,
        changes,
        asks,
        noticed,
        leases,
        kept_leases,
        reconciler: handle,
        flows: Flows::new(doomed_flows),
        config,
        denials,
        happenings,
        audits,
        site: Site { file: arguments.config.clone(), state: arguments.state.clone() },
        journal,
        tasks,
    };
    // As a task: what wakes the future that is blocked on costs a system call each time.
    let ended = tokio::spawn(event_loop::run(parts)).await;
    last_words.wait();
    last_component.wait();
    ended??;
    Ok(())
}

/// Serves metrics where the config in force says, until the config's sender is gone.
async fn metrics(mut config: watch::Receiver<Option<Arc<Config>>>, core: Core) {
    let (address, wanted) = watch::channel(None);
    let follow = async move {
        loop {
            let now = config.borrow_and_update().as_ref().and_then(|config| config.router.metrics);
            address.send_if_modified(|before| std::mem::replace(before, now) != now);
            if config.changed().await.is_err() {
                return;
            }
        }
    };
    let status = move || {
        let core = core.clone();
        async move { core.status().await.ok() }
    };
    tokio::join!(follow, router_daemon::metrics::serve(wanted, status));
}

/// Of our log, that wait to be written. Each takes 32 bytes from the start.
const LINES: usize = 4096;
const FAILED: u8 = 1;
const OTHER: u8 = 3;
const UNFIT: u8 = 4;
