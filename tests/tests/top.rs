//! `routerctl top` as an operator has it: the real program on a terminal (that of tmux), before a router whose line
//! breaks.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::failover::TO;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::run;
use tests::traffic::datagrams;
use tests::watch::wait;

const SITE: &str = include_str!("../../config/examples/minimal.toml");

#[test]
fn the_screen_shows_a_line_that_breaks_and_leaves_the_terminal_as_it_was() {
    let Some(mut lab) = lab() else { return };
    let top = Terminal::start(&lab, "");
    top.shows(|screen| screen.contains("2 of 2 lines usable") && row(screen, "wan1").contains("● up"));

    lab.fail(1, Fault::Carrier).unwrap();
    top.shows(|screen| screen.contains("1 of 2 lines usable") && row(screen, "wan1").contains("○ no-carrier"));
    lab.heal(1).unwrap();
    top.shows(|screen| screen.contains("2 of 2 lines usable"));

    // An order needs its yes.
    top.press("t");
    top.shows(|screen| screen.contains("wan1 counts as lost for 10 seconds, its flows move? y/n"));
    top.press("n");
    top.shows(|screen| screen.contains("not done") && row(screen, "wan1").contains("● up"));
    top.press("x");
    top.shows(|screen| screen.contains("Drain wan1"));
    top.press("y");
    top.shows(|screen| screen.contains("! drained"));
    top.press("u");
    top.press("y");
    top.shows(|screen| !screen.contains("! drained"));

    // A flow, and who it is of.
    let [office, guests] = lab.site().vlans.as_slice() else { panic!("the site has two VLANs") };
    let flow = datagrams(&lab.host(office.id), None, TO).unwrap();
    flow.send(b"a flow").unwrap();
    top.press("3");
    top.shows(|screen| screen.lines().any(|line| line.contains("wan") && line.contains("office ")));

    // A denial that happens while its page is shown.
    top.press("4");
    top.shows(|screen| screen.contains("COUNT"));
    let denied = SocketAddr::new(office.address(false).unwrap(), 9);
    let knock = datagrams(&lab.host(guests.id), None, denied).unwrap();
    top.shows(|screen| {
        knock.send(b"let me in").unwrap();
        thread::sleep(Duration::from_millis(200));
        screen.contains("guests/") && screen.contains("udp/9")
    });

    top.press("8");
    for key in ["/", "no-carrier", "Enter"] {
        top.press(key);
    }
    top.shows(|screen| screen.contains("wan1 IPv4: up -> no-carrier") && !screen.contains("drains"));
    for (digit, word) in [("2", "FROM\\TO"), ("5", "NEIGHBOURS"), ("9", "the site is the same")] {
        top.press(digit);
        top.shows(|screen| screen.contains(word));
    }

    // Without its daemon the screen stays and says since when.
    top.press("1");
    lab.stop_router(Signal::SIGTERM).unwrap();
    top.shows(|screen| screen.contains("no connection to routerd for") && screen.contains("wan1"));
    lab.start_router().unwrap();
    top.shows(|screen| !screen.contains("no connection to routerd") && screen.contains("2 of 2 lines usable"));

    top.press("q");
    top.is_given_back();
}

#[test]
fn a_signal_ends_the_screen_and_gives_the_terminal_back() {
    let Some(lab) = lab() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        let top = Terminal::start(&lab, "--ascii");
        top.shows(|screen| screen.contains("2 of 2 lines usable"));
        assert!(top.screen().is_ascii());
        kill(top.program(), signal).unwrap();
        top.is_given_back();
    }
}

/// Told, not judged: the machine has others to serve.
#[test]
fn the_cost_of_the_screen_is_told() {
    let Some(lab) = lab() else { return };
    let top = Terminal::start(&lab, "");
    top.shows(|screen| screen.contains("2 of 2 lines usable"));
    let program = top.program();
    let (start, before) = (Instant::now(), cpu_ticks(program));
    thread::sleep(Duration::from_secs(5));
    let used = cpu_ticks(program) - before;
    // A tick is a hundredth of a second.
    println!("routerctl top: {:.2} % of a core", f64::from(used) / start.elapsed().as_secs_f64());
    top.press("q");
    top.is_given_back();
}

fn lab() -> Option<Temporary> {
    if let Err(error) = run(Command::new("tmux").arg("-V")) {
        assert!(std::env::var_os("QUADWAY_MUST_RUN").is_none(), "this test must run, and needs tmux: {error:#}");
        println!("SKIP: needs tmux");
        return None;
    }
    Temporary::routed(SITE, 2, false).unwrap()
}

/// A terminal of 80 × 24 with the program in it, on a tmux server of its own.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn start(lab: &Lab, options: &str) -> Self {
        // A server that was told to end may live on for a moment.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let terminal = Self { socket: format!("{}-top{}", lab.name(), COUNT.fetch_add(1, Ordering::Relaxed)) };
        let top = lab.routerctl().unwrap();
        let words = std::iter::once(top.get_program()).chain(top.get_args());
        let command = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ");
        let file = lab.site_file();
        // The shell stays after it, so that what it leaves behind can be seen.
        let line = format!(
            "LANG=C.UTF-8 {command} top --file '{}' {options}; echo left with $?; stty -a; sleep 60",
            file.display()
        );
        terminal.tmux(&["-f", "/dev/null", "-u", "new-session", "-d", "-x", "80", "-y", "24", &line]);
        terminal
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["-u", "capture-pane", "-p"])
    }

    fn shows(&self, so: impl Fn(&str) -> bool) {
        let mut screen = String::new();
        let waited = wait("the screen shows it", || {
            screen = self.screen();
            Ok(so(&screen))
        });
        assert!(waited.is_ok(), "{screen}");
    }

    /// Out of raw mode and of the other screen.
    fn is_given_back(&self) {
        self.shows(|screen| screen.contains("left with 0") && screen.contains(" icanon") && screen.contains(" echo "));
        assert_eq!(self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
    }

    /// The process id of the program.
    fn program(&self) -> Pid {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let shell = shell.trim();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).unwrap();
        Pid::from_raw(children.split_ascii_whitespace().next().unwrap().parse().unwrap())
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        run(Command::new("tmux").env("LANG", "C.UTF-8").args(["-L", &self.socket]).args(arguments)).unwrap()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let tmux = |arguments: &[&str]| run(Command::new("tmux").args(["-L", &self.socket]).args(arguments));
        let socket = tmux(&["display-message", "-p", "#{socket_path}"]);
        drop(tmux(&["kill-server"]));
        // tmux leaves it behind.
        if let Ok(path) = socket {
            drop(fs::remove_file(path.trim()));
        }
    }
}

/// The row of a line in IPv4.
fn row<'s>(screen: &'s str, wan: &str) -> &'s str {
    screen.lines().find(|line| line.get(2..).is_some_and(|line| line.starts_with(wan))).unwrap_or("")
}

/// User and system time.
fn cpu_ticks(program: Pid) -> u32 {
    let stat = fs::read_to_string(format!("/proc/{program}/stat")).unwrap();
    // The name in parentheses may hold anything; fields 14 and 15 are 11 and 12 behind it.
    let fields = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace();
    fields.skip(11).take(2).map(|field| field.parse::<u32>().unwrap()).sum()
}
