//! What an operator types. Everything but `check`, `replay`, `simulate`, `qat` and `flush` asks a running routerd over its
//! socket; those read files, or the machine, and need no privileges but for `flush`, which is for a routerd that stopped.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use mwan::asserts::{self, BrokenAssert};
use mwan::journal::simulate::{Setting, simulate};
use mwan::journal::{self, ReplayReport};
use router_daemon::api::client::{Client, ClientError};
use router_daemon::api::journal::{JournalLine, notice};
use router_daemon::api::protocol::Call;
use router_daemon::api::schema;
use router_daemon::ask::{ApplyReport, How};
use router_daemon::audits::AuditReport;
use router_daemon::bundle::{self, RestoreReport, SaveReport};
use router_daemon::crypto::command::{Qat, Told};
use router_daemon::difference::{Difference, TextDifference};
use router_daemon::event_log::{Denied, Group, Kind};
use router_daemon::happening::Happening;
use router_daemon::history::{ConfigText, Entry};
use router_daemon::session::Session;
use router_daemon::simulate::told;
use router_daemon::status::Status;
use router_daemon::trace::TraceLine;
use router_daemon::tui::{self, TopError};
use router_daemon::{import, shell};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Speaks with routerd, the router of this machine.
#[derive(Debug, Parser)]
#[command(name = "routerctl", version, after_help = EXIT_CODES)]
struct Arguments {
    /// The socket of routerd.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/quadway/api.sock")]
    socket: PathBuf,
    /// Answer in JSON: one object, or one per line where the answer is a stream.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Tell every problem of a site file. Needs no routerd and no privileges.
    Check { file: PathBuf },
    /// Tell what would change if a site file took effect, and how many live flows would end.
    Plan {
        file: PathBuf,
        /// Show each step, in order.
        #[arg(short, long)]
        verbose: bool,
    },
    /// Make a site file take effect: wholly, or not at all.
    ///
    /// It answers when the kernel has it; where the kernel refuses it, the previous one is in force again. What was
    /// applied survives a restart and a reboot, until the site file of routerd (/etc/quadway/site.toml) is edited:
    /// the start after that takes the file. The last word counts.
    ///
    /// It is refused where it would cut the ssh session it was typed in, unless --confirm or --force is given.
    Apply {
        file: PathBuf,
        #[command(flatten)]
        how: HowArguments,
    },
    /// Keep the change that `apply --confirm` made.
    Confirm,
    /// Take back what waits for its confirmation; with a number, go back to that config of the history.
    Rollback {
        /// As `routerctl history` tells it.
        number: Option<u64>,
        #[command(flatten)]
        how: HowArguments,
    },
    /// Every config that took effect: when, by whom, why, and how it ended.
    History,
    /// The site file as it is in force; with a number, that config of the history.
    Config {
        /// As `routerctl history` tells it.
        number: Option<u64>,
    },
    /// Write the config in force and the history into a file, signed with the key of this box.
    ///
    /// The file is a tar archive of texts. It holds no secret: keys, certificates and the secrets of webhooks stay in
    /// their files, which it lists. Whoever may read the router may save it.
    ///
    /// What is shown with it, the fingerprint of the key, is what another box wants to be told when it restores it:
    /// keep it apart from the file.
    Save {
        /// Left out: a file named after the box and the time, in this folder; `-` is the standard output.
        file: Option<PathBuf>,
    },
    /// Make the config of a saved file take effect: wholly, or not at all, as `apply` does.
    ///
    /// Nothing of a file that is not whole, or that is not signed by this box or by the key named with --trust, is
    /// taken. A box without a history takes over that of the file; any other keeps its own, goes on with it, and keeps
    /// the file in restored/ of its state folder. The site file (/etc/quadway/site.toml) stays as it is; `routerctl
    /// status` tells where it differs. What the config names and this box lacks (keys, certificates) is told.
    Restore {
        /// `-` is the standard input.
        file: PathBuf,
        /// Take it also if this key signed it: 64 hexadecimal digits, as `routerctl save` told on the other box.
        #[arg(long, value_name = "FINGERPRINT", value_parser = fingerprint)]
        trust: Option<String>,
        #[command(flatten)]
        how: HowArguments,
    },
    /// What differs between two configs of the history; of one, between it and what is in force.
    Diff { from: u64, to: Option<u64> },
    /// Lines, policies, segments, and what needs attention.
    Status,
    /// Tell what happens to a packet, and which line of the site file says so; or, of a WAN, how it stands and why.
    Explain {
        /// A host's name or an address; alone, the name of a WAN.
        #[arg(value_name = "SOURCE|WAN")]
        source: String,
        #[arg(requires = "service")]
        destination: Option<String>,
        /// tcp/443, udp/53, ping, or the number of an IP protocol.
        service: Option<String>,
    },
    /// Packets the firewall refused: recent ones, grouped.
    Denied {
        /// Each as it happens.
        #[arg(short, long)]
        follow: bool,
        /// Packets of no known connection too: mostly late segments of connections that have ended.
        #[arg(short, long)]
        all: bool,
        /// What the site file would have to say to allow each.
        #[arg(short, long)]
        why: bool,
    },
    /// Let pass for a time what no entry of a cell allows, tell what it is, and propose the entry that would allow it.
    ///
    /// Each flow is told as it begins. It ends after its time, with --stop, and with any configuration that takes effect;
    /// then what began in it is denied again, at once. The kernel keeps the time too: it ends though routerd dies.
    /// Closing this command does not end it.
    ///
    /// Only cells between two VLANs are audited: nothing from or to a line, and nothing to the router itself. What is
    /// spoofed, and what belongs to no known connection, stays denied. It is refused where an assert of the site file
    /// would not hold meanwhile.
    Audit {
        /// As `routerctl denied` writes it, in quotes: 'office->guests'.
        #[arg(value_name = "CELL")]
        cell: String,
        /// At most an hour.
        #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
        span: Duration,
        /// End it, and tell what came of it; also of one that has ended already.
        #[arg(long, conflicts_with_all = ["span", "isolated"])]
        stop: bool,
        /// Also from a VLAN that may open nothing to any other, as guests or a DMZ.
        #[arg(long)]
        isolated: bool,
    },
    /// Follow real packets of a flow on their way: where they come in, what lets them pass or drops them, by which line of
    /// the site file, policy, WAN and NAT they leave.
    ///
    /// Packets of both directions are followed, until the time is over or so many have come. The kernel tells each rule
    /// that they meet, also those of other programs; nothing about the packets changes. The rules that mark them stand in
    /// a table of their own that ends with this command, and with routerd.
    ///
    /// What the fast path forwards at the ports meets no rule: its packets are counted, and told. With --through-rules
    /// its flows are taken out of the fast path for the time and go through the rules, which costs the router more; the
    /// fast path takes them in again by itself, within some minutes.
    Trace {
        /// A host's name or an address: who opens the flow.
        source: String,
        destination: String,
        /// tcp/443, udp/53, ping, or the number of an IP protocol; all where none is given.
        service: Option<String>,
        /// At most ten minutes.
        #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
        span: Duration,
        /// Packets of both directions together, at most 100.
        #[arg(long, value_name = "PACKETS", default_value_t = 5)]
        count: u32,
        /// Take its flows out of the fast path for the time.
        #[arg(long)]
        through_rules: bool,
    },
    /// Of the two routers of a site: who does the work.
    Pair {
        #[command(subcommand)]
        order: PairOrder,
    },
    /// Take a line out of use, or pretend.
    Wan {
        #[command(subcommand)]
        order: WanOrder,
    },
    /// What the router was told and what it decided.
    Journal {
        /// Each as it happens.
        #[arg(short, long)]
        follow: bool,
        /// Probes and their answers too.
        #[arg(short, long)]
        all: bool,
    },
    /// What happens to the router, as it happens: health, policies, configs, drift. Until it is interrupted.
    Events,
    /// Run a journal again: as it was, or under another site file.
    Replay {
        file: PathBuf,
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// The router on one screen, live: lines, matrix, flows, denials, ports, journal, config.
    #[command(after_help = tui::help())]
    Top(tui::Options),
    /// Run a journal again under other settings, and show what would have differed: how soon each loss is noticed, false
    /// verdicts, failovers.
    Simulate {
        /// A file of the journal.
        #[arg(long, value_name = "FILE")]
        journal: PathBuf,
        /// probe.KEY=VALUE for every line, wan.NAME.probe.KEY=VALUE for one; KEY is interval, timeout, fall, rise, quorum,
        /// window or hold.
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<Setting>,
    },
    /// The crypto device of this machine, a QAT: what there is, whether it is right, how fast it is. Needs no routerd.
    ///
    /// Where there is none, it says what is missing and what to install.
    Qat(Qat),
    /// Remove what a routerd that was stopped left of its tunnels: the interfaces, of either kind, that carry its mark.
    ///
    /// Nothing else: rules, routes and the ruleset stay in force, so that what is denied stays denied.
    Flush,
    /// The versions of routerctl and of the routerd that runs.
    Version,
    /// Write the site file that the files of another router come to, and tell what was left out. Needs no routerd.
    Import {
        #[command(subcommand)]
        from: ImportFrom,
    },
    /// Print the JSON Schema of what routerctl and routerd say to each other. Needs no routerd.
    Api,
    /// Write what completes these commands in a shell. Needs no routerd.
    Completions { shell: shell::Shell },
    /// Write the man pages of routerctl and routerd into a folder.
    #[command(hide = true)]
    Man { folder: PathBuf },
}

#[derive(Debug, clap::Args)]
struct HowArguments {
    /// Why, for the history.
    #[arg(short, long, value_name = "TEXT")]
    message: Option<String>,
    /// Live at once, and taken back after this time (2m, 90s) unless `routerctl confirm` arrives: also over a
    /// restart of routerd and a reboot.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    confirm: Option<Duration>,
    /// Live at once, and kept if nothing gets worse in this time (2m where none is given), else taken back: lines lost,
    /// probes lost, packets denied, segments sent again, each against the time just before. The answer is what was
    /// found; a restart of routerd takes the change back.
    #[arg(
        long,
        value_name = "TIME",
        value_parser = humantime::parse_duration,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "2m",
        conflicts_with = "confirm"
    )]
    guard: Option<Duration>,
    /// Even if it cuts the session it is typed in.
    #[arg(long)]
    force: bool,
}

impl HowArguments {
    /// A person who waits for a guard is told so; what is refused is refused before.
    fn tell_of_waiting(&self) {
        let Some(window) = self.guard else { return };
        std::thread::spawn(move || {
            std::thread::sleep(REFUSED_BY_THEN);
            let window = humantime::format_duration(window);
            let text = format!("routerd measures for {window}, also if you stop waiting: `routerctl status` tells");
            writeln!(io::stderr(), "{text}").ok();
        });
    }

    fn how(&self) -> How {
        let milliseconds = |span: &Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        How {
            message: self.message.clone(),
            confirm_milliseconds: self.confirm.as_ref().map(milliseconds),
            guard_milliseconds: self.guard.as_ref().map(milliseconds),
            force: self.force,
            session: std::env::var("SSH_CONNECTION").ok().and_then(|connection| Session::of_ssh(&connection)),
        }
    }
}

#[derive(Debug, Subcommand)]
enum ImportFrom {
    /// OpenWrt with mwan3.
    ///
    /// The site file goes to the standard output or into a file, what could not be carried over to the standard error
    /// and, as a comment, to the head of the site file.
    Mwan3(import::command::Mwan3),
}

#[derive(Debug, Subcommand)]
enum PairOrder {
    /// Leave the work to the other router for a while: before an upgrade, a restart, a reboot.
    ///
    /// It is refused where the other router is not heard.
    Handover {
        /// 30s, 5m, 1h.
        #[arg(long = "for", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
        span: Duration,
    },
    /// Be ready to be active again, before that time is over.
    Return,
}

#[derive(Debug, Subcommand)]
enum WanOrder {
    /// No further flows; existing ones stay.
    Drain { name: String },
    /// Use it again.
    Undrain { name: String },
    /// Treat it as lost for a while, with everything that follows.
    FailTest {
        name: String,
        /// 500ms, 10s, 2m.
        #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
        span: Duration,
    },
}

/// Why there is nothing to show; each has its exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Shown already, or told by the message.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    RolledBack(String),
    #[error("{0}")]
    Unreachable(ClientError),
    #[error("{0}")]
    Daemon(String),
    #[error(transparent)]
    Top(#[from] TopError),
    #[error("cannot write: {0}\n  is there room, and may you write there?")]
    Output(#[from] io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Refused(_) | Self::Top(_) => 1,
            Self::RolledBack(_) => 5,
            Self::Unreachable(_) => 3,
            Self::Daemon(_) | Self::Output(_) => 4,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NotRunning { .. }
            | ClientError::NobodyListens { .. }
            | ClientError::NotAllowed { .. }
            | ClientError::Io { .. }
            | ClientError::Closed => Self::Unreachable(error),
            ClientError::Refused(refusal) => {
                let next = shell::remedy(&refusal.code).map(|next| format!("\n  {next}")).unwrap_or_default();
                let message = refusal.message.trim_end().to_owned() + &next;
                match refusal.code.as_str() {
                    "kernel" | "timeout" | "unavailable" | "internal" => Self::Daemon(message),
                    "guard" => Self::RolledBack(message),
                    _ => Self::Refused(message),
                }
            }
        }
    }
}

fn main() -> ExitCode {
    let matches = shell::with_examples(Arguments::command()).get_matches();
    let arguments = Arguments::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // `routerctl denied | head` is no failure.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if arguments.json {
                show(&json!({"error": {"exit": failure.code(), "message": text}})).ok();
            }
            if !text.is_empty() {
                writeln!(io::stderr(), "{}", text.trim_end()).ok();
            }
            ExitCode::from(failure.code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let json = arguments.json;
    let ask = |call: &Call| -> Result<Value, Failure> { Ok(Client::connect(&arguments.socket)?.ask(call)?) };
    match &arguments.command {
        Command::Check { file } => check(file, json),
        Command::Plan { file, verbose } => {
            let answer = ask(&Call::Plan { text: text_of(file)? })?;
            show_as(json, &answer, |difference: Difference| {
                let steps = difference.steps.iter().filter(|_| *verbose).map(|step| format!("  {step}\n"));
                format!("{difference}{}", steps.collect::<String>())
            })
        }
        Command::Apply { file, how } => {
            how.tell_of_waiting();
            let answer = ask(&Call::Apply { text: text_of(file)?, how: how.how() })?;
            show_as(json, &answer, |report: ApplyReport| applied(&report))
        }
        Command::Rollback { number, how } => {
            how.tell_of_waiting();
            let answer = ask(&Call::Rollback { number: *number, how: how.how() })?;
            show_as(json, &answer, |report: ApplyReport| applied(&report))
        }
        Command::Confirm => show_as(json, &ask(&Call::Confirm)?, |report: ApplyReport| {
            let short = report.digest.get(..12).unwrap_or(&report.digest);
            [report.warnings.as_slice(), &[format!("confirmed {short}")]].concat().join("\n")
        }),
        Command::History => show_as(json, &ask(&Call::History)?["entries"], |entries: Vec<Entry>| {
            entries.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        }),
        Command::Config { number } => {
            let answer = ask(&Call::Config { number: *number })?;
            if json {
                return show(&answer);
            }
            // To the byte: its digest is the history's.
            Ok(write!(io::stdout().lock(), "{}", read::<ConfigText>(&answer)?.text)?)
        }
        Command::Save { file } => save(&read(&ask(&Call::Save)?)?, file.as_deref(), json),
        Command::Restore { file, trust, how } => {
            let bytes = bytes_of(file)?;
            how.tell_of_waiting();
            let bundle = BASE64_STANDARD.encode(bytes);
            let answer = ask(&Call::Restore { bundle, trust: trust.clone(), how: how.how() })?;
            show_as(json, &answer, |report: RestoreReport| restored(&report))
        }
        Command::Diff { from, to } => {
            let answer = ask(&Call::Diff { from: *from, to: *to })?;
            show_as(json, &answer, |difference: TextDifference| difference.to_string())
        }
        Command::Status => show_as(json, &ask(&Call::Status)?, |status: Status| status.to_string()),
        Command::Explain { source, destination, service } => {
            let call = match (source.clone(), destination.clone(), service.clone()) {
                (source, Some(destination), Some(service)) => Call::Explain { source, destination, service },
                (wan, ..) => Call::ExplainWan { wan },
            };
            let answer = ask(&call)?;
            match answer.get("text").and_then(Value::as_str).filter(|_| !json) {
                Some(text) => say(text.trim_end()),
                None => show(&answer),
            }
        }
        Command::Denied { follow: false, all, why } => {
            let answer = ask(&Call::Denied { follow: false })?;
            show_as(json, &answer["groups"], |groups: Vec<Group>| denied(groups, *all, *why))
        }
        Command::Denied { follow: true, all, why } => {
            stream(arguments, &Call::Denied { follow: true }, |value| {
                match (value.get("missed"), read::<Denied>(value)) {
                    (Some(missed), _) => Ok(Some(format!("({missed} more were missed)"))),
                    (None, Ok(denied)) if denied.kind == Kind::Invalid && !all => Ok(None),
                    (None, denied) => denied
                        .map(|denied| Some(format!("{} {denied}{}", denied.time, advice(&denied, *why).trim_end()))),
                }
            })
        }
        Command::Audit { cell, stop: true, .. } => {
            let answer = ask(&Call::EndAudit { cell: cell.clone() })?;
            show_as(json, &answer, |report: AuditReport| report.to_string())
        }
        Command::Audit { cell, span, isolated, .. } => {
            let milliseconds = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
            let call = Call::Audit { cell: cell.clone(), milliseconds, isolated: *isolated };
            stream(arguments, &call, |value| match (value.get("until"), value.get("report"), value.get("missed")) {
                (Some(until), ..) => Ok(Some(format!(
                    "{cell} is audited until {}: what no entry of it allows passes",
                    until.as_str().unwrap_or("its end")
                ))),
                (_, Some(report), _) => read::<AuditReport>(report).map(|report| Some(report.to_string())),
                (.., Some(missed)) => Ok(Some(format!("({missed} more were missed)"))),
                _ => read::<Denied>(value).map(|seen| Some(format!("{} {seen}", seen.time))),
            })
        }
        Command::Trace { source, destination, service, span, count, through_rules } => {
            let call = Call::Trace {
                source: source.clone(),
                destination: destination.clone(),
                service: service.clone(),
                milliseconds: u64::try_from(span.as_millis()).unwrap_or(u64::MAX),
                packets: *count,
                through_rules: *through_rules,
            };
            stream(arguments, &call, |value| read::<TraceLine>(value).map(|line| Some(line.to_string())))
        }
        Command::Wan { order } => {
            let (call, done) = match order {
                WanOrder::Drain { name } => {
                    (Call::Drain { wan: name.clone() }, format!("{name} gets no further flows; existing ones stay"))
                }
                WanOrder::Undrain { name } => (Call::Undrain { wan: name.clone() }, format!("{name} is used again")),
                WanOrder::FailTest { name, span } => (
                    Call::FailTest {
                        wan: name.clone(),
                        milliseconds: u64::try_from(span.as_millis()).unwrap_or(u64::MAX),
                    },
                    format!("{name} counts as lost for {}", humantime::format_duration(*span)),
                ),
            };
            let answer = ask(&call)?;
            if json { show(&answer) } else { say(&done) }
        }
        Command::Pair { order } => {
            let milliseconds = match order {
                PairOrder::Handover { span } => u64::try_from(span.as_millis()).unwrap_or(u64::MAX).max(1),
                PairOrder::Return => 0,
            };
            let answer = ask(&Call::Handover { milliseconds })?;
            let done = match answer.get("peer").and_then(Value::as_str) {
                Some(peer) => format!("{peer} does the work; `routerctl pair return` ends that before its time"),
                None => "this router is ready to be active again".to_owned(),
            };
            if json { show(&answer) } else { say(&done) }
        }
        Command::Journal { follow, all } => {
            let call = Call::Journal { follow: *follow, all: *all };
            stream(arguments, &call, |value| read::<JournalLine>(value).map(|line| Some(line.to_string())))
        }
        Command::Events => stream(arguments, &Call::Events, |value| match value.get("missed") {
            Some(missed) => Ok(Some(format!("({missed} more were missed)"))),
            None => read::<Happening>(value).map(|told| Some(format!("{} {}", told.time, told.text))),
        }),
        Command::Replay { file, config } => replay(file, config.as_deref(), json),
        Command::Import { from: ImportFrom::Mwan3(files) } => {
            let imported = files.run().map_err(Failure::Refused)?;
            if json {
                return show(&imported);
            }
            writeln!(io::stderr(), "{}", imported.notes.to_string().trim()).ok();
            match files.written() {
                None => say(imported.site.trim_end()),
                Some(path) => say(&format!("wrote {0}; look at it, then `routerctl check {0}`", path.display())),
            }
        }
        Command::Api => show(&schema::schema()),
        Command::Completions { shell } => {
            let text = shell::completions(shell::with_examples(Arguments::command()), *shell);
            Ok(io::stdout().lock().write_all(&text)?)
        }
        Command::Man { folder } => Ok(shell::man_pages(shell::with_examples(Arguments::command()), folder)?),
        Command::Top(options) => Ok(tui::run(&arguments.socket, options)?),
        Command::Simulate { journal, set } => {
            let text = text_of(journal)?;
            let simulation = simulate(text.lines(), set).map_err(|error| Failure::Refused(error.to_string()))?;
            if json { show(&simulation) } else { say(told(&simulation).trim_end()) }
        }
        Command::Qat(qat) => {
            let Told { text, json: object, passed } = qat.run().map_err(Failure::Refused)?;
            if json {
                show(&object)?;
            } else {
                say(text.trim_end())?;
            }
            if passed { Ok(()) } else { Err(Failure::Refused(String::new())) }
        }
        Command::Flush => flush(arguments),
        Command::Version => {
            let own = env!("CARGO_PKG_VERSION");
            let daemon = ask(&Call::Version);
            if json {
                show(&json!({"routerctl": own, "routerd": daemon.as_ref().ok()}))?;
            } else {
                say(&format!("routerctl {own}"))?;
                if let Ok(daemon) = &daemon {
                    say(&format!("routerd   {}", daemon["version"].as_str().unwrap_or("of an unknown version")))?;
                    let object = daemon["fast_path_sha256"].as_str().unwrap_or("unknown");
                    say(&format!("fast path, SHA-256 of its object: {object}"))?;
                }
            }
            daemon.map(|_| ())
        }
    }
}

fn check(file: &Path, json: bool) -> Result<(), Failure> {
    let text = text_of(file)?;
    let name = file.display().to_string();
    let (config, warnings) = match config::parse(&name, &text) {
        Ok(parsed) => (parsed.config, parsed.warnings),
        Err(problems) => {
            if json {
                show(&json!({"ok": false, "problems": problems, "broken_asserts": []}))?;
            } else {
                say(problems.to_string().trim_end())?;
            }
            return Err(Failure::Refused(String::new()));
        }
    };
    let broken = asserts::broken(&config);
    if json {
        let told =
            broken.iter().map(|BrokenAssert { line, text, why }| json!({"line": line, "text": text, "why": why}));
        show(&json!({
            "ok": broken.is_empty(),
            "digest": config.digest,
            "problems": warnings,
            "broken_asserts": told.collect::<Vec<_>>(),
        }))?;
    } else {
        if !warnings.is_empty() {
            say(warnings.to_string().trim_end())?;
        }
        if !broken.is_empty() {
            say(&asserts::heading(&broken))?;
        }
        for BrokenAssert { line, text, why } in &broken {
            say(&format!("error: the assert `{text}` does not hold\n  --> {name}:{}\n  {why}", line.0))?;
        }
        if broken.is_empty() {
            say(&format!(
                "{name}: good; {} lines, {} VLANs, {} cells, {} asserts hold",
                config.wans.len(),
                config.vlans.len(),
                config.cells.len(),
                config.asserts.len()
            ))?;
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Failure::Refused(String::new())) }
}

fn applied(report: &ApplyReport) -> String {
    let ApplyReport { digest, steps, flows_ended, number, .. } = report;
    let short = digest.get(..12).unwrap_or(digest);
    let number = number.map(|number| format!(", number {number} of the history")).unwrap_or_default();
    let window = report.confirm_milliseconds.map(|window| {
        let window = humantime::format_duration(Duration::from_secs(window.div_ceil(1000)));
        format!("it is rolled back in {window} unless you type `routerctl confirm`")
    });
    let warnings = report.warnings.iter().map(|warning| warning.trim_end().to_owned());
    let done = format!("applied {short}: {steps} steps, {flows_ended} flows ended{number}");
    let measured = report.measured.as_ref().map(|measured| format!("kept: {measured}"));
    warnings.chain([done]).chain(window).chain(measured).collect::<Vec<_>>().join("\n")
}

fn restored(report: &RestoreReport) -> String {
    let RestoreReport { apply, bundle, fingerprint, host, time, missing } = report;
    let short = bundle.get(..12).unwrap_or(bundle);
    let from = format!("bundle {short} of {host}, {time}, signed by {fingerprint}");
    let missing = missing.iter().map(|file| format!("missing here, and the config names it: {file}"));
    let inherited = apply.inherited.iter().map(ToString::to_string);
    [from].into_iter().chain(inherited).chain(missing).chain([applied(apply)]).collect::<Vec<_>>().join("\n")
}

/// Writes the bundle, and tells of it.
fn save(report: &SaveReport, file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let SaveReport { manifest, fingerprint, public_key, bundle } = report;
    let bytes = BASE64_STANDARD
        .decode(bundle)
        .map_err(|error| Failure::Daemon(format!("routerd answers what is no bundle: {error}")))?;
    let own = || {
        let time: String = manifest.time.chars().filter(char::is_ascii_alphanumeric).collect();
        PathBuf::from(format!("quadway-{}-{time}.tar", manifest.host.replace('/', "-")))
    };
    let file = file.map_or_else(own, Path::to_owned);
    let piped = file == Path::new("-");
    if piped {
        io::stdout().lock().write_all(&bytes)?;
    } else {
        written(&file, &bytes)?;
    }
    let told = if json {
        let told = json!({
            "file": file,
            "bytes": bytes.len(),
            "manifest": manifest,
            "fingerprint": fingerprint,
            "public_key": public_key,
        });
        serde_json::to_string_pretty(&told).map_err(io::Error::other)?
    } else {
        let (config, entries) = (manifest.config.get(..12).unwrap_or(&manifest.config), manifest.members.len() - 1);
        let left_out = match manifest.left_out {
            0 => String::new(),
            count => format!(" ({count} older ones had no room)"),
        };
        let files = manifest.files.iter().map(|file| format!("\nnot in it, and the config names it: {file}"));
        format!(
            "saved {}: config {config}, {entries} entries of the history{left_out}\nsigned by {fingerprint}\nanother box \
             takes it with `routerctl restore --trust {fingerprint}`{}",
            file.display(),
            files.collect::<String>()
        )
    };
    if piped {
        writeln!(io::stderr(), "{told}").ok();
        return Ok(());
    }
    say(&told)
}

/// Whole or not at all, and for its owner.
fn written(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failed = |error: io::Error| {
        let text = format!("cannot write {}: {error}\n  name a file in a folder you may write to", file.display());
        Failure::Refused(text)
    };
    if fs::metadata(file).is_ok_and(|facts| !facts.is_file()) {
        return Err(failed(io::Error::other("it is there, and no file")));
    }
    let beside = file.with_added_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut open = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        open.write_all(bytes)?;
        open.sync_all()?;
        fs::rename(&beside, file)
    };
    write().map_err(|error| {
        fs::remove_file(&beside).ok();
        failed(error)
    })
}

/// What would allow it, in lines of their own; with `why`.
fn advice(denied: &Denied, why: bool) -> String {
    let advice = denied.advice.as_ref().filter(|_| why);
    advice.map(|advice| format!("\n  to allow it:\n    {}", advice.replace('\n', "\n    "))).unwrap_or_default()
}

fn denied(groups: Vec<Group>, all: bool, why: bool) -> String {
    let (told, late): (Vec<_>, Vec<_>) = groups.into_iter().partition(|group| all || group.last.kind != Kind::Invalid);
    let line = |group: &Group| {
        let time = group.last.time.get(11..19).unwrap_or(&group.last.time);
        format!("{time} {:>5}x {}{}\n", group.count, group.last, advice(&group.last, why))
    };
    let nothing = told.is_empty().then(|| "nothing was denied lately\n".to_owned());
    let late: u64 = late.iter().map(|group| group.count).sum();
    let late = (late > 0)
        .then(|| format!("and {late} packets of no known connection, mostly late segments (--all shows them)\n"));
    nothing.into_iter().chain(told.iter().map(line)).chain(late).collect()
}

fn replay(file: &Path, config: Option<&Path>, json: bool) -> Result<(), Failure> {
    let text = text_of(file)?;
    let config = match config {
        None => None,
        Some(path) => match config::parse(&path.display().to_string(), &text_of(path)?) {
            Ok(parsed) => Some(Arc::new(parsed.config)),
            Err(problems) => return Err(Failure::Refused(problems.to_string())),
        },
    };
    let other = config.is_some();
    let report = journal::replay(text.lines(), config).map_err(|error| {
        Failure::Refused(format!(
            "{}: {error}\n  give a whole file of the journal, from /var/lib/quadway/journal",
            file.display()
        ))
    })?;
    if json {
        show(&report)?;
    } else {
        say(replayed(&report, other).trim_end())?;
    }
    if other || report.equal { Ok(()) } else { Err(Failure::Refused(String::new())) }
}

fn replayed(report: &ReplayReport, other: bool) -> String {
    let told = report.timeline.iter().map(|moment| format!("{} {}\n", wall_time(moment.wall), notice(&moment.notice)));
    let unknown = report
        .unknown_targets
        .iter()
        .map(|target| format!("the journal knows nothing of {target}: it was taken as silent\n"));
    let text = told.chain(unknown).collect::<String>();
    let verdict = match (&report.first_difference, other) {
        (_, true) => format!("{} steps, {} decisions under the other config", report.steps, report.decisions),
        (None, false) => format!("equal: {} steps, {} decisions as recorded", report.steps, report.decisions),
        (Some(first), false) => {
            format!("line {} differs\n  recorded: {}\n  replayed: {}", first.line, first.recorded, first.replayed)
        }
    };
    text + &verdict
}

fn wall_time(micros: u64) -> String {
    humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_micros(micros)).to_string()
}

fn stream(
    arguments: &Arguments,
    call: &Call,
    told: impl Fn(&Value) -> Result<Option<String>, Failure>,
) -> Result<(), Failure> {
    let mut client = Client::connect(&arguments.socket)?;
    client.send(call)?;
    while let Some(value) = client.hear()? {
        if arguments.json {
            show_line(&value)?;
        } else if let Some(line) = told(&value)? {
            say(&line)?;
        }
    }
    Ok(())
}

/// A file's text; `-` is the standard input.
fn text_of(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    read.map_err(|error| {
        Failure::Refused(format!(
            "cannot read {}: {error}\n  give the path of a file you may read, or `-` for the standard input",
            file.display()
        ))
    })
}

/// A bundle; never more than one may have.
fn bytes_of(file: &Path) -> Result<Vec<u8>, Failure> {
    let read = |from: &mut dyn Read| {
        let mut bytes = Vec::new();
        from.take(bundle::LARGEST as u64 + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = if file == Path::new("-") {
        read(&mut io::stdin())
    } else {
        fs::File::open(file).and_then(|mut file| read(&mut file))
    };
    let bytes = bytes.map_err(|error| {
        let file = file.display();
        let text = "give the path of a file that `routerctl save` wrote, or `-` for the standard input";
        Failure::Refused(format!("cannot read {file}: {error}\n  {text}"))
    })?;
    if bytes.len() > bundle::LARGEST {
        let text = format!("{}: a bundle has at most {} bytes", file.display(), bundle::LARGEST);
        return Err(Failure::Refused(text + "\n  give a file that `routerctl save` wrote"));
    }
    Ok(bytes)
}

fn fingerprint(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err("a fingerprint is 64 hexadecimal digits, as `routerctl save` tells them".to_owned())
}

fn show_as<T: DeserializeOwned>(json: bool, answer: &Value, told: impl Fn(T) -> String) -> Result<(), Failure> {
    if json {
        return show(answer);
    }
    say(told(read(answer)?).trim_end())
}

fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value).map_err(|error| {
        Failure::Daemon(format!(
            "routerd answers what this routerctl cannot read: {error}\n  \
             `routerctl version` shows both versions: bring them to the same one"
        ))
    })
}

fn show(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::other)?;
    say(&text)
}

fn show_line(value: &Value) -> Result<(), Failure> {
    say(value)
}

fn flush(arguments: &Arguments) -> Result<(), Failure> {
    match Client::connect(&arguments.socket) {
        Err(ClientError::NotRunning { .. } | ClientError::NobodyListens { .. }) => {}
        Ok(_) => {
            let again = "routerd runs, and would make them again: `systemctl stop routerd` first";
            return Err(Failure::Refused(again.to_owned()));
        }
        Err(error) => return Err(Failure::Unreachable(error)),
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let gone = runtime.block_on(router_daemon::kernel::tunnels::flush()).map_err(|error| {
        Failure::Refused(format!("interfaces of tunnels cannot be removed: {error}; are you root?"))
    })?;
    if arguments.json {
        show(&json!({ "removed": gone }))
    } else if gone.is_empty() {
        say("nothing of a tunnel was left")
    } else {
        say(&format!("removed: {}", gone.join(", ")))
    }
}

fn say(text: &(impl Display + ?Sized)) -> Result<(), Failure> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

const REFUSED_BY_THEN: Duration = Duration::from_secs(3);

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  refused, and nothing changed: a problem in the input, an unknown name, no permission, another change that waits
     for its confirmation, a change that would cut this session; a replay that differs; a crypto self-test that finds
     no device, or one that is not right
  2  the command line is wrong
  3  routerd cannot be reached
  4  routerd failed
  5  rolled back: what a guard measured got worse, or somebody took the change back meanwhile";
