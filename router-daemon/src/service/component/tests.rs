//! The supervisor with programs that everybody has.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;
use crate::happening::What;

#[test]
fn a_component_is_started_with_its_files_and_ended_with_the_config() {
    let site = Site::new();
    let file = site.file("settings", "one");
    site.want(vec![site.writes_its_number("it", file.clone())]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    assert_eq!(fs::read_to_string(&file.path).unwrap(), "one");
    let pid = site.number("it").unwrap();
    assert!(is_there(pid));
    site.want(Vec::new());
    site.until("it is gone", || !is_there(pid) && site.components.lines().is_empty());
    assert!(!site.run().join("components/it").exists());
}

#[test]
fn what_is_killed_is_started_again_after_pauses_that_grow() {
    let site = Site::new();
    let mut told = site.happenings.follow();
    site.want(vec![site.writes_its_number("it", site.file("settings", ""))]);
    let mut before = 0;
    let mut spans = Vec::new();
    for round in 0..4 {
        site.until("it runs again", || {
            site.is("it", ComponentState::Running) && site.number("it").is_some_and(|pid| pid != before)
        });
        assert_eq!(site.line("it").unwrap().restarts, round);
        before = site.number("it").unwrap();
        let killed = Instant::now();
        kill(Pid::from_raw(before), Signal::SIGKILL).unwrap();
        site.until("that is seen", || {
            site.is("it", ComponentState::Failed) || site.line("it").unwrap().restarts > round
        });
        spans.push(killed);
    }
    assert!(spans[3] - spans[2] > spans[1] - spans[0], "{spans:?}");
    let (first, second) = (told.blocking_recv().unwrap(), told.blocking_recv().unwrap());
    let what = |running, why: &str| What::Component {
        component: "it".to_owned(),
        running,
        why: (!why.is_empty()).then(|| why.to_owned()),
    };
    assert_eq!(first.what, what(false, "it ended: signal: 9 (SIGKILL)"));
    assert_eq!(second.what, what(true, ""));
}

#[test]
fn what_ended_long_after_its_start_is_started_at_once() {
    let timing = Timing { calm: Duration::from_millis(1), most: Duration::from_mins(1), ..QUICK };
    let site = Site::with(timing);
    site.want(vec![site.writes_its_number("it", site.file("settings", ""))]);
    for round in 0..6 {
        site.until("it runs", || site.is("it", ComponentState::Running) && site.line("it").unwrap().restarts == round);
        kill(Pid::from_raw(site.number("it").unwrap()), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_program_that_is_missing_fails_alone_and_says_what_to_install() {
    let site = Site::new();
    let missing = Component { program: "quadway-no-such-program".to_owned(), ..site.component("none", "true") };
    site.want(vec![missing, site.writes_its_number("it", site.file("settings", ""))]);
    site.until("the other runs", || site.is("it", ComponentState::Running));
    site.until("it fails", || site.is("none", ComponentState::Failed));
    let line = site.line("none").unwrap();
    assert_eq!(line.why.as_deref(), Some("there is no quadway-no-such-program: apt install some-package"));
    assert_eq!(
        line.trouble().unwrap(),
        "none has failed: there is no quadway-no-such-program: apt install some-package"
    );
}

#[test]
fn files_that_the_validator_refuses_change_nothing() {
    let site = Site::new();
    let component = |text: &str| Component {
        validator: Some(["grep", "-q", "good", &site.path("settings")].map(str::to_owned).to_vec()),
        ..site.writes_its_number("it", site.file("settings", text))
    };
    site.want(vec![component("good 1")]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    let pid = site.number("it").unwrap();
    site.want(vec![component("bad")]);
    site.until("it is refused", || site.line("it").unwrap().why.is_some());
    let line = site.line("it").unwrap();
    assert_eq!(line.state, ComponentState::Running);
    let told = "it runs with its previous files: grep refuses the files: exit status: 1";
    assert_eq!(line.why.as_deref(), Some(told));
    assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "good 1");
    assert_eq!(fs::read_dir(site.folder.path()).unwrap().count(), 3, "files beside are gone");
    assert_eq!(site.number("it"), Some(pid));
    site.want(vec![component("good 2")]);
    site.until("the next is taken", || site.line("it").unwrap().why.is_none());
    assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "good 2");
}

#[test]
fn files_that_are_not_verified_are_rolled_back() {
    for reload in [Reload::Restart, Reload::Signal(Signal::SIGHUP), Reload::Call] {
        let site = Site::new();
        let component = |text: &str| Component {
            reload,
            control: Arc::new(Believes),
            ..site.component_with("it", READER, vec![site.file("settings", text)])
        };
        site.want(vec![component("good 1")]);
        site.until("it runs", || site.is("it", ComponentState::Running));
        site.want(vec![component("bad")]);
        site.until("it is refused", || site.line("it").unwrap().why.is_some());
        let line = site.line("it").unwrap();
        assert_eq!(line.state, ComponentState::Running, "{reload:?}");
        assert_eq!(line.why.as_deref(), Some("it runs with its previous files: bad is not good"), "{reload:?}");
        assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "good 1");
        site.until("it has read them", || fs::read_to_string(site.path("read")).unwrap_or_default() == "good 1");
    }
}

#[test]
fn a_start_goes_back_to_the_files_of_the_last_run() {
    let site = Site::new();
    fs::write(site.path("settings"), "good 0").unwrap();
    let bad = site.component_with("it", READER, vec![site.file("settings", "bad")]);
    site.want(vec![Component { control: Arc::new(Believes), ..bad }]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    assert!(site.line("it").unwrap().why.unwrap().contains("bad is not good"));
    assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "good 0");
}

#[test]
fn what_was_refused_is_tried_again() {
    let site = Site::new();
    let validator = Some(["test", "-e", &site.path("allowed")].map(str::to_owned).to_vec());
    let component =
        |text: &str, validator| Component { validator, ..site.writes_its_number("it", site.file("settings", text)) };
    site.want(vec![component("one", None)]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    site.want(vec![component("two", validator)]);
    site.until("it is refused", || site.line("it").unwrap().why.is_some());
    fs::write(site.path("allowed"), "").unwrap();
    site.until("it is taken", || site.line("it").unwrap().why.is_none());
    assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "two");
}

#[test]
fn what_does_not_answer_any_more_is_ended_and_started_again() {
    let site = Site::new();
    let control = Arc::new(Believes);
    let component = site.component_with("it", READER, vec![site.file("settings", "good")]);
    site.want(vec![Component { control, ..component }]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    // It is what the file says that makes this control answer.
    fs::write(site.path("settings"), "bad").unwrap();
    site.until("it was started again", || site.line("it").is_some_and(|line| line.restarts > 0));
    site.until("it runs", || site.is("it", ComponentState::Running));
    assert_eq!(fs::read_to_string(site.path("settings")).unwrap(), "good");
}

#[test]
fn what_does_not_end_when_it_is_asked_to_is_killed_with_all_that_it_started() {
    let site = Site::new();
    let script = format!("trap '' TERM; sleep 600 & echo $! > {}; while :; do sleep 1; done", site.path("child"));
    site.want(vec![site.component("it", &script)]);
    let child = || fs::read_to_string(site.path("child")).ok()?.trim().parse::<i32>().ok();
    site.until("it runs", || site.is("it", ComponentState::Running) && child().is_some());
    let child = child().unwrap();
    site.want(Vec::new());
    site.until("both are gone", || site.components.lines().is_empty() && !is_there(child));
}

#[test]
fn a_component_waits_for_its_interfaces() {
    let site = Site::new();
    let absent: IfName = "qw-none0".parse().unwrap();
    let waiting = Component { interfaces: vec![absent], ..site.component("it", "exec sleep 600") };
    site.want(vec![waiting]);
    site.until("it waits", || site.line("it").is_some_and(|line| line.why.is_some()));
    let line = site.line("it").unwrap();
    assert_eq!((line.state, line.restarts), (ComponentState::Starting, 0));
    assert_eq!(line.why.as_deref(), Some("it waits for the interfaces qw-none0"));
    let lo: IfName = "lo".parse().unwrap();
    site.want(vec![Component { interfaces: vec![lo], ..site.component("it", "exec sleep 600") }]);
    site.until("it runs", || site.is("it", ComponentState::Running));
}

#[test]
fn the_next_start_ends_what_a_killed_one_left_and_nothing_else() {
    let run = tempfile::tempdir().unwrap();
    let orphan = |mark: Option<&std::path::Path>| {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & exec sleep 600"]).stdin(Stdio::null()).process_group(0);
        if let Some(run) = mark {
            command.env("QUADWAY_COMPONENT_OF", run);
        }
        command.spawn().unwrap()
    };
    // A test's children are corpses until they are waited for: they are not there.
    let mut ours = orphan(Some(run.path()));
    let other = tempfile::tempdir().unwrap();
    let mut others = [orphan(None), orphan(Some(other.path()))];
    let site = Site::at(run, QUICK);
    site.want(vec![site.component("it", "exec sleep 600")]);
    site.until("it runs", || site.is("it", ComponentState::Running));
    assert!(ours.try_wait().unwrap().is_some(), "ended before anything was started");
    for other in &mut others {
        assert!(other.try_wait().unwrap().is_none());
        nix::sys::signal::killpg(Pid::from_raw(i32::try_from(other.id()).unwrap()), Signal::SIGKILL).unwrap();
        other.wait().unwrap();
    }
}

#[test]
fn a_stop_leaves_none() {
    let site = Site::new();
    site.want(vec![
        site.writes_its_number("one", site.file("settings", "")),
        site.component("two", &format!("echo $$ > {}; exec sleep 600", site.path("two-number"))),
    ]);
    site.until("both run", || site.is("one", ComponentState::Running) && site.is("two", ComponentState::Running));
    let numbers = [site.number("one").unwrap(), site.number("two").unwrap()];
    let Site { wanted, ending, folder, .. } = site;
    drop(wanted);
    ending.wait();
    assert!(numbers.into_iter().all(|pid| !is_there(pid)));
    drop(folder);
}

#[test]
fn a_goodbye_is_said_only_where_it_is_one() {
    let script = "trap 'echo bye >> $IN/told; exit' TERM; echo up >> $IN/ups; while :; do sleep 0.05; done";
    // Before that it cannot say goodbye yet.
    let ups = |site: &Site| fs::read_to_string(site.path("ups")).unwrap_or_default().lines().count();
    let told = |site: &Site| fs::read_to_string(site.path("told")).unwrap_or_default();
    let start = || {
        let site = Site::new();
        site.want(vec![Component { goodbye: Signal::SIGKILL, ..site.component("it", script) }]);
        site.until("it runs", || site.is("it", ComponentState::Running) && ups(&site) == 1);
        site
    };
    let site = start();
    site.want(vec![Component { goodbye: Signal::SIGKILL, ..site.component("it", &format!("{script} # other")) }]);
    site.until("it was started again", || site.is("it", ComponentState::Running) && ups(&site) == 2);
    assert_eq!(told(&site), "", "it is back at once");
    site.want(Vec::new());
    site.until("it is gone", || site.components.lines().is_empty());
    assert_eq!(told(&site), "bye\n");
    let Site { wanted, ending, folder, .. } = start();
    drop(wanted);
    ending.wait();
    assert!(!folder.path().join("told").exists(), "the next routerd starts it again");
}

/// A supervisor, its folder, and what is wanted of it.
struct Site {
    wanted: watch::Sender<Option<Arc<Config>>>,
    list: Arc<Mutex<Vec<Component>>>,
    components: Components,
    happenings: Happenings,
    ending: Ending,
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        Self::with(QUICK)
    }

    fn with(timing: Timing) -> Self {
        Self::at(tempfile::tempdir().unwrap(), timing)
    }

    fn at(folder: TempDir, timing: Timing) -> Self {
        let (components, happenings) = (Components::default(), Happenings::default());
        let run = folder.path().to_owned();
        let supervisor = Supervisor { run, components: components.clone(), happenings: happenings.clone(), timing };
        let list = Arc::<Mutex<Vec<Component>>>::default();
        let (wanted, config) = watch::channel(None);
        let listed = Arc::clone(&list);
        let ending = supervisor.start(config, move |_| listed.lock().unwrap().clone()).unwrap();
        Self { wanted, list, components, happenings, ending, folder }
    }

    fn want(&self, components: Vec<Component>) {
        *self.list.lock().unwrap() = components;
        self.wanted.send_replace(Some(Arc::new(crate::fixture::config())));
    }

    fn run(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn file(&self, name: &str, text: &str) -> Rendered {
        Rendered { path: self.folder.path().join(name), text: text.to_owned(), mode: 0o640 }
    }

    fn component(&self, name: &str, script: &str) -> Component {
        self.component_with(name, script, Vec::new())
    }

    fn component_with(&self, name: &str, script: &str, files: Vec<Rendered>) -> Component {
        Component {
            name: name.to_owned(),
            package: "some-package",
            program: "sh".to_owned(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: BTreeMap::from([("IN".to_owned(), self.folder.path().display().to_string())]),
            folders: vec![Folder::new(self.folder.path(), 0o755)],
            files,
            ..Component::default()
        }
    }

    fn writes_its_number(&self, name: &str, file: Rendered) -> Component {
        let script = format!("echo $$ > {}; exec sleep 600", self.path(&format!("{name}-number")));
        self.component_with(name, &script, vec![file])
    }

    fn number(&self, name: &str) -> Option<i32> {
        fs::read_to_string(self.path(&format!("{name}-number"))).ok()?.trim().parse().ok()
    }

    fn line(&self, name: &str) -> Option<ComponentLine> {
        self.components.lines().into_iter().find(|line| line.name == name)
    }

    fn is(&self, name: &str, state: ComponentState) -> bool {
        self.line(name).is_some_and(|line| line.state == state)
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !holds() {
            assert!(Instant::now() < deadline, "{what} does not come: {:?}", self.components.lines());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Its component is good where its file, as it stands, says so.
#[derive(Debug)]
struct Believes;

impl Control for Believes {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn verify<'a>(&'a self, files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let text = fs::read_to_string(&files[0].path).map_err(|error| error.to_string())?;
            if text.starts_with("good") { Ok(()) } else { Err(format!("{text} is not good")) }
        })
    }
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Reads its file at the start, at SIGHUP, and whenever it looks.
const READER: &str = "read_it() { cat $IN/settings > $IN/read; }; trap read_it HUP; read_it; \
                      while :; do sleep 0.1; read_it; done";

const QUICK: Timing = Timing {
    first: Duration::from_millis(50),
    most: Duration::from_secs(2),
    calm: Duration::from_mins(1),
    patience: Duration::from_millis(500),
    look: Duration::from_millis(50),
    farewell: Duration::from_millis(500),
    refused: Duration::from_millis(100),
    refused_most: Duration::from_secs(1),
};
