//! Each page at the sizes of a serial line and of a window, on a fixed clock; what keys do; and that nothing panics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use config::units::Family;
use mwan::event::Health;
use proptest::prelude::*;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier};

use super::look::{BLUE, ORANGE};
use super::*;
use crate::api::protocol::Call;
use crate::ask::{Applies, Author, PendingChange};
use crate::counters::{Count, FastCount, LinkCount};
use crate::crypto::{CryptoStatus, CryptoStep};
use crate::difference::{Change, Difference, KernelChanges, What};
use crate::event_log::packet::Transport;
use crate::event_log::{Denied, End, Group, Kind};
use crate::outside::OutletLine;
use crate::service::tls_offload::{OffloadLine, SignatureCount};
use crate::status::{
    CellCount, EntryLine, FamilyLine, LineShare, PolicyFamily, PolicyLine, PortLine, Status, TargetLine, VlanLine,
    WanLine,
};
use crate::talkers::{Talker, Talkers};

#[test]
fn every_page_reads_well_at_both_sizes() {
    let snapshot = snapshot();
    for (width, height) in [(80, 24), (120, 40)] {
        for page in Page::ALL {
            let screen = drawn(&snapshot, &on(page), width, height);
            insta::assert_snapshot!(format!("{}_{width}x{height}", page.word()), screen.text());
        }
        let cell =
            typed(on(Page::Matrix), &snapshot, &[Key::Down, Key::Down, Key::Down, Key::Right, Key::Right, Key::Enter]);
        insta::assert_snapshot!(format!("cell_{width}x{height}"), drawn(&snapshot, &cell, width, height).text());
        let help = typed(on(Page::Wans), &snapshot, &[Key::Char('h')]);
        insta::assert_snapshot!(format!("help_{width}x{height}"), drawn(&snapshot, &help, width, height).text());
    }
}

#[test]
fn the_readme_shows_the_screens_as_they_are() {
    let readme = include_str!("../../../README.md");
    let snapshot = snapshot();
    let cell = [Key::Down, Key::Down, Key::Down, Key::Right, Key::Right, Key::Enter];
    let cell = typed(on(Page::Matrix), &snapshot, &cell);
    for ui in Page::ALL.map(on).into_iter().chain([cell]) {
        let above = if ui.page == Page::Wans { 0 } else { 3 };
        let screen = drawn(&snapshot, &ui, 80, 24).text();
        let lines = screen.lines().skip(above).filter(|line| !line.is_empty());
        let shown = lines.map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n") + "\n";
        assert!(readme.contains(&shown), "the README shows another screen of {:?} than this:\n{shown}", ui.page);
    }
}

#[test]
fn every_page_is_named_on_80_columns() {
    let screen = drawn(&snapshot(), &on(Page::Wans), 80, 24).text();
    for page in Page::ALL {
        let named = format!(" {} {}", page.digit(), page.word());
        assert!(screen.lines().nth(1).unwrap().contains(&named), "{named}: {screen}");
    }
}

#[test]
fn without_a_device_the_page_of_crypto_says_what_is_missing_and_without_need_that_nothing_runs() {
    let mut snapshot = snapshot();
    let status = snapshot.status.as_mut().unwrap();
    let steps = &mut status.crypto.as_mut().unwrap().steps;
    steps[0] = CryptoStep { what: "card".to_owned(), found: false, text: "no PCI device 0x8086:0x37c8".to_owned() };
    let crypto = CryptoStatus {
        missing: Some("library: libqat_s.so is not installed".to_owned()),
        steps: steps.clone(),
        ..CryptoStatus::default()
    };
    status.crypto = Some(crypto);
    insta::assert_snapshot!("crypto_none", drawn(&snapshot, &on(Page::Crypto), 80, 24).text());
    let status = snapshot.status.as_mut().unwrap();
    (status.crypto, status.tls_offload) = (None, Vec::new());
    let screen = drawn(&snapshot, &on(Page::Crypto), 80, 24).text();
    assert!(screen.contains("no engine runs") && screen.contains("routerctl qat status"), "{screen}");
}

#[test]
fn tunnels_stand_among_the_services_and_who_is_let_in_is_orange() {
    let mut snapshot = snapshot();
    snapshot.status.as_mut().unwrap().tunnels = crate::fixture::tunnels();
    let screen = drawn(&snapshot, &on(Page::Services), 80, 40);
    let text = screen.text();
    assert!(text.contains("ipsec by wan2, 1.2 MB in, 340.0 kB out, 1 moves"), "{text}");
    assert!(text.contains("/etc/quadway/depot.key cannot be read"), "{text}");
    let (x, y) = screen.find("open to its other end at wan1");
    assert_eq!(screen.style(x, y).0, ORANGE);
}

#[test]
fn details_of_a_line_fit_a_serial_line() {
    let snapshot = snapshot();
    let ui = typed(on(Page::Wans), &snapshot, &[Key::Down, Key::Char('d')]);
    insta::assert_snapshot!(drawn(&snapshot, &ui, 80, 40).text());
}

#[test]
fn a_line_that_is_down_is_orange_and_says_so() {
    let screen = drawn(&snapshot(), &on(Page::Wans), 80, 24);
    let (x, y) = screen.find("✖ down");
    assert_eq!(screen.style(x, y), (ORANGE, Modifier::BOLD));
    assert_eq!(screen.style(x + 2, y), (ORANGE, Modifier::BOLD));
    let (x, y) = screen.find("● up");
    assert_eq!(screen.style(x, y), (BLUE, Modifier::empty()));
    let (x, y) = screen.find("3 of 4 lines usable");
    assert_eq!(screen.style(x, y), (ORANGE, Modifier::BOLD));
}

#[test]
fn a_denial_that_happens_is_orange_in_the_matrix_and_the_selection_is_reversed() {
    let screen = drawn(&snapshot(), &on(Page::Matrix), 80, 24);
    let (x, y) = screen.find("-/3");
    assert_eq!(screen.style(x, y), (ORANGE, Modifier::BOLD));
    let (x, y) = screen.find("=");
    assert!(screen.style(x, y).1.contains(Modifier::REVERSED));
}

#[test]
fn without_colours_no_cell_has_one_and_the_words_stay() {
    let look = Look { colour: Colour::None, ascii: false };
    let coloured = drawn(&snapshot(), &on(Page::Wans), 80, 24);
    let screen = drawn(&snapshot(), &Ui { look, ..on(Page::Wans) }, 80, 24);
    assert_eq!(screen.text(), coloured.text());
    assert!(screen.0.content().iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
}

#[test]
fn a_terminal_of_few_colours_gets_two_of_its_own() {
    let look = Look { colour: Colour::Basic, ascii: false };
    let screen = drawn(&snapshot(), &Ui { look, ..on(Page::Wans) }, 80, 24);
    let (x, y) = screen.find("✖ down");
    assert_eq!(screen.style(x, y).0, Color::Yellow);
    let (x, y) = screen.find("● up");
    assert_eq!(screen.style(x, y).0, Color::LightBlue);
}

#[test]
fn in_ascii_nothing_else_is_drawn() {
    let look = Look { colour: Colour::None, ascii: true };
    let mut snapshot = snapshot();
    snapshot.take_journal("2026-03-01T12:00:07.000Z wan2 \u{1b}[31mнет\u{7}");
    for page in Page::ALL {
        let screen = drawn(&snapshot, &Ui { look, ..on(page) }, 120, 40);
        assert!(screen.text().is_ascii(), "{}", screen.text());
        assert!(!screen.text().contains('\u{1b}'), "escapes of others reach no terminal");
    }
    insta::assert_snapshot!("ascii", drawn(&snapshot, &Ui { look, ..on(Page::Wans) }, 80, 24).text());
}

#[test]
fn a_lost_daemon_is_told_with_how_long_and_the_numbers_stay() {
    let mut snapshot = snapshot();
    snapshot.trouble = Some("routerd is not running: nobody listens".to_owned());
    snapshot.now = moment(14);
    for page in Page::ALL {
        let screen = drawn(&snapshot, &on(page), 80, 24);
        assert!(screen.text().contains("no connection to routerd for 12s, trying again: routerd is not running"));
    }
    assert!(drawn(&snapshot, &on(Page::Wans), 80, 24).text().contains("✖ down"));
    // One that hangs says nothing.
    snapshot.trouble = None;
    assert!(drawn(&snapshot, &on(Page::Wans), 80, 24).text().contains("for 12s, trying again: it does not answer"));
    snapshot.take_status(status(2), moment(15));
    assert!(!drawn(&snapshot, &on(Page::Wans), 80, 24).text().contains("no connection"));
}

#[test]
fn before_the_first_answer_the_screen_says_that_it_asks() {
    let mut snapshot = Snapshot::new(moment(0));
    assert!(drawn(&snapshot, &on(Page::Wans), 80, 24).text().contains("asking routerd"));
    snapshot.take_status(Status { site: None, digest: None, ..status(0) }, moment(0));
    assert!(drawn(&snapshot, &on(Page::Wans), 80, 24).text().contains("no configuration is in force"));
}

#[test]
fn rates_are_differences_and_a_counter_that_begins_anew_has_none() {
    let mut snapshot = Snapshot::new(moment(0));
    let pair = ("dev".to_owned(), "compute".to_owned());
    snapshot.take_status(status(0), moment(0));
    assert!(snapshot.rates[&pair].denied.abs() < 1e-9, "of one status there is no rate");
    snapshot.take_status(status(1), moment(2));
    assert!((snapshot.rates[&pair].denied - 1.5).abs() < 1e-9);
    let received = snapshot.throughput["wan1"].received.back().copied().flatten().unwrap();
    assert!((received - 6e6).abs() < 1.0, "{received}");
    snapshot.take_status(status(0), moment(3));
    assert!(snapshot.rates[&pair].denied.abs() < 1e-9);
    assert_eq!(snapshot.throughput["wan1"].received.back().copied().flatten(), None);
}

#[test]
fn equal_denials_are_one_group_and_groups_are_bounded() {
    let mut snapshot = Snapshot::new(moment(0));
    snapshot.take_groups(vec![Group { count: 7, since: time(0), last: denied("dev", "compute", "tcp/22", 1) }]);
    snapshot.take_denied(denied("dev", "compute", "tcp/23", 2));
    snapshot.take_denied(denied("dev", "compute", "tcp/22", 3));
    let told: Vec<_> = snapshot.denied.iter().map(|group| (group.count, group.last.service.as_str())).collect();
    assert_eq!(told, [(1, "tcp/23"), (8, "tcp/22")]);
    assert_eq!(snapshot.denied[1].since, time(0));
    for port in 0..2000 {
        snapshot.take_denied(denied("dev", "compute", &format!("udp/{port}"), 4));
        snapshot.take_journal("line");
    }
    assert_eq!((snapshot.denied.len(), snapshot.journal.len()), (500, 500));
}

#[test]
fn digits_and_tab_turn_pages() {
    let snapshot = snapshot();
    let mut ui = on(Page::Wans);
    for (digit, page, action) in [
        ('2', Page::Matrix, None),
        ('3', Page::Flows, Some(Action::Flows)),
        ('4', Page::Denied, None),
        ('5', Page::Ports, None),
        ('6', Page::Services, None),
        ('7', Page::Crypto, None),
        ('8', Page::Journal, None),
        ('9', Page::Config, Some(Action::Plan)),
        ('1', Page::Wans, None),
    ] {
        assert_eq!(ui.key(Key::Char(digit), &snapshot), action);
        assert_eq!(ui.page, page);
    }
    for page in Page::ALL.into_iter().cycle().skip(1).take(Page::ALL.len()) {
        ui.key(Key::Tab, &snapshot);
        assert_eq!(ui.page, page);
    }
}

#[test]
fn an_order_is_given_after_y_and_nothing_else() {
    let snapshot = snapshot();
    let orders = [
        ('x', Call::Drain { wan: "wan2".to_owned() }),
        ('u', Call::Undrain { wan: "wan2".to_owned() }),
        ('t', Call::FailTest { wan: "wan2".to_owned(), milliseconds: 10_000 }),
    ];
    for (pressed, order) in orders {
        let asked = || typed(on(Page::Wans), &snapshot, &[Key::Down, Key::Char(pressed)]);
        let screen = drawn(&snapshot, &asked(), 80, 24).text();
        assert!(screen.lines().last().unwrap().contains("wan2") && screen.trim_end().ends_with("? y/n"), "{screen}");
        assert_eq!(asked().key(Key::Char('y'), &snapshot), Some(Action::Order(order)));
        for no in [Key::Char('n'), Key::Esc, Key::Enter, Key::Char(pressed), Key::Char('q'), Key::Ctrl('f')] {
            let mut ui = asked();
            assert_eq!(ui.key(no, &snapshot), None);
            assert_eq!((ui.asking.as_ref(), ui.told.as_deref()), (None, Some("not done")));
            assert_eq!(ui.key(Key::Char('y'), &snapshot), None, "late");
        }
    }
    for page in Page::ALL.into_iter().skip(1) {
        assert_eq!(typed(on(page), &snapshot, &[Key::Char('x')]).asking, None, "only where lines are");
    }
    assert_eq!(typed(on(Page::Wans), &Snapshot::new(moment(0)), &[Key::Char('x')]).asking, None);
}

#[test]
fn a_change_that_waits_is_told_everywhere_and_answered_on_its_page() {
    let mut snapshot = snapshot();
    let mut ui = on(Page::Config);
    for key in ['c', 'b'] {
        assert_eq!(typed(ui.clone(), &snapshot, &[Key::Char(key)]).asking, None, "nothing waits");
    }
    let author = Author { name: "eve".to_owned(), uid: Some(1000) };
    let pending = PendingChange { author, message: None, remaining_seconds: 83, window_seconds: 120, guard: false };
    snapshot.status.as_mut().unwrap().applies.pending = Some(pending);
    for page in Page::ALL {
        assert!(
            drawn(&snapshot, &on(page), 80, 24).text().contains("a change by eve (uid 1000) is rolled back in 1m23s")
        );
    }
    insta::assert_snapshot!("config_pending", drawn(&snapshot, &ui, 80, 24).text());
    let back = Call::Rollback { number: None, how: crate::ask::How::default() };
    for (key, order) in [('c', Call::Confirm), ('b', back)] {
        ui.key(Key::Char(key), &snapshot);
        assert!(drawn(&snapshot, &ui, 80, 24).text().contains("eve"));
        assert_eq!(ui.key(Key::Char('y'), &snapshot), Some(Action::Order(order)));
    }
    assert_eq!(typed(on(Page::Wans), &snapshot, &[Key::Char('c')]).asking, None);
}

#[test]
fn an_order_is_for_the_line_that_the_filter_left_selected() {
    let snapshot = snapshot();
    let mut ui = typed(on(Page::Wans), &snapshot, &[Key::End, Key::Char('/')]);
    for letter in "wan3".chars() {
        ui.key(Key::Char(letter), &snapshot);
    }
    ui.key(Key::Enter, &snapshot);
    ui.key(Key::Char('x'), &snapshot);
    assert_eq!(ui.key(Key::Char('y'), &snapshot), Some(Action::Order(Call::Drain { wan: "wan3".to_owned() })));
}

#[test]
fn a_filter_takes_letters_that_are_keys_elsewhere() {
    let snapshot = snapshot();
    let mut ui = typed(on(Page::Denied), &snapshot, &[Key::Char('/')]);
    for letter in "quic".chars() {
        assert_eq!(ui.key(Key::Char(letter), &snapshot), None);
    }
    assert_eq!((ui.editing, ui.filter.as_str()), (true, "quic"));
    let ui = typed(ui, &snapshot, &[Key::Backspace; 4]);
    let ui = "tcp/22".chars().fold(ui, |ui, letter| typed(ui, &snapshot, &[Key::Char(letter)]));
    let screen = drawn(&snapshot, &typed(ui.clone(), &snapshot, &[Key::Enter]), 80, 24).text();
    assert!(screen.contains("tcp/22") && !screen.contains("udp/53"), "{screen}");
    let cleared = typed(ui.clone(), &snapshot, &[Key::Esc]);
    assert_eq!((cleared.editing, cleared.filter.as_str()), (false, ""));
    let kept = typed(ui, &snapshot, &[Key::Enter, Key::Esc]);
    assert_eq!(kept.filter, "", "esc ends a filter that was kept, too");
}

#[test]
fn a_filtered_matrix_opens_the_cell_it_shows() {
    let snapshot = snapshot();
    let mut ui = typed(on(Page::Matrix), &snapshot, &[Key::Char('/')]);
    for letter in "storage".chars() {
        ui.key(Key::Char(letter), &snapshot);
    }
    let ui = typed(ui, &snapshot, &[Key::Enter, Key::Enter]);
    assert!(ui.open && drawn(&snapshot, &Ui { filter: String::new(), ..ui }, 80, 24).text().contains("→"));
}

#[test]
fn esc_goes_back_one_thing_at_a_time() {
    let snapshot = snapshot();
    let mut ui = typed(on(Page::Matrix), &snapshot, &[Key::Char('d'), Key::Enter]);
    assert!(ui.open && ui.details);
    ui.key(Key::Esc, &snapshot);
    assert!(!ui.open && ui.details);
    ui.key(Key::Esc, &snapshot);
    assert!(!ui.details);
    assert!(!typed(on(Page::Wans), &snapshot, &[Key::Char('?'), Key::Esc]).help);
}

#[test]
fn q_quits_unless_it_is_text_and_ctrl_c_always() {
    let snapshot = snapshot();
    assert_eq!(on(Page::Wans).key(Key::Char('q'), &snapshot), Some(Action::Quit));
    for before in [Key::Char('/'), Key::Char('x'), Key::Char('h')] {
        assert_eq!(typed(on(Page::Wans), &snapshot, &[before]).key(Key::Ctrl('c'), &snapshot), Some(Action::Quit));
    }
    assert_eq!(typed(on(Page::Wans), &snapshot, &[Key::Char('h')]).key(Key::Char('q'), &snapshot), Some(Action::Quit));
}

#[test]
fn a_frozen_screen_says_when() {
    let snapshot = snapshot();
    let ui = typed(on(Page::Denied), &snapshot, &[Key::Ctrl('f')]);
    assert!(ui.frozen && drawn(&snapshot, &ui, 80, 24).text().contains("frozen at 12:00:02"));
    assert!(!typed(ui, &snapshot, &[Key::Ctrl('f')]).frozen);
}

#[test]
fn the_selected_row_is_on_the_screen_however_many_there_are() {
    let mut snapshot = snapshot();
    for port in 0..300 {
        snapshot.take_denied(denied("dev", "compute", &format!("udp/{port}"), 4));
    }
    let ui = typed(on(Page::Denied), &snapshot, &[Key::End]);
    let screen = drawn(&snapshot, &ui, 80, 24).text();
    assert!(screen.lines().any(|line| line.starts_with('>')), "{screen}");
    assert!(!drawn(&snapshot, &typed(ui, &snapshot, &[Key::Home]), 80, 24).text().contains("tcp/22"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_keys_panic_at_any_size(
        keys in proptest::collection::vec(any_key(), 0..40),
        (width, height) in (1_u16..=200, 1_u16..=60),
        (x, y) in (0_u16..3, 0_u16..3),
        empty: bool,
        ascii: bool,
    ) {
        let snapshot = if empty { Snapshot::new(moment(0)) } else { snapshot() };
        let mut ui = Ui { look: Look { ascii, colour: Colour::Full }, ..on(Page::Wans) };
        for key in keys {
            ui.key(key, &snapshot);
            let area = Rect { x, y, width, height };
            let mut buffer = Buffer::empty(area);
            view(&snapshot, &ui, area, &mut buffer);
        }
    }
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        "[1-9a-z/?]".prop_map(|text| Key::Char(text.chars().next().unwrap())),
        any::<char>().prop_map(Key::Char),
        Just(Key::Ctrl('f')),
        proptest::sample::select(vec![
            Key::Up,
            Key::Down,
            Key::Left,
            Key::Right,
            Key::PageUp,
            Key::PageDown,
            Key::Home,
            Key::End,
            Key::Enter,
            Key::Esc,
            Key::Backspace,
            Key::Tab,
        ]),
    ]
}

struct Screen(Buffer);

impl Screen {
    fn text(&self) -> String {
        let width = usize::from(self.0.area.width);
        let lines = self.0.content().chunks(width).map(|row| {
            let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            line.trim_end().to_owned() + "\n"
        });
        lines.collect()
    }

    /// Where a text stands first.
    fn find(&self, text: &str) -> (u16, u16) {
        let screen = self.text();
        let (y, line) = screen.lines().enumerate().find(|(_, line)| line.contains(text)).unwrap();
        let x = line[..line.find(text).unwrap()].chars().count();
        (u16::try_from(x).unwrap(), u16::try_from(y).unwrap())
    }

    fn style(&self, x: u16, y: u16) -> (Color, Modifier) {
        (self.0[(x, y)].fg, self.0[(x, y)].modifier)
    }
}

fn drawn(snapshot: &Snapshot, ui: &Ui, width: u16, height: u16) -> Screen {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    view(snapshot, ui, area, &mut buffer);
    Screen(buffer)
}

fn on(page: Page) -> Ui {
    Ui { page, ..Ui::new(Look { ascii: false, colour: Colour::Full }) }
}

fn typed(mut ui: Ui, snapshot: &Snapshot, keys: &[Key]) -> Ui {
    for key in keys {
        ui.key(*key, snapshot);
    }
    ui
}

/// Noon of a day, and so many seconds.
fn moment(seconds: u64) -> Moment {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_366_400 + seconds);
    Moment { wall, at: Duration::from_secs(seconds) }
}

fn time(seconds: u64) -> String {
    humantime::format_rfc3339_millis(moment(seconds).wall).to_string()
}

/// Three seconds of a site with four lines, of which wan2 is down in IPv4 and degraded in IPv6.
fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::new(moment(0));
    for second in 0..=2 {
        snapshot.now = moment(second);
        snapshot.take_status(status(second), moment(second));
    }
    let groups = [("dev", "compute", "tcp/22", 41), ("users", "mgmt", "tcp/443", 3), ("dmz", "storage", "udp/53", 1)];
    let groups =
        groups.map(|(from, to, service, count)| Group { count, since: time(0), last: denied(from, to, service, 1) });
    snapshot.take_groups(groups.to_vec());
    let mut late = denied("dmz", "wan1", "tcp/443", 1);
    late.kind = Kind::Invalid;
    snapshot.take_denied(late);
    snapshot.take_denied(denied("dev", "compute", "tcp/22", 2));
    for line in [
        "routerd started",
        "configuration 0123456789ab of spectrum",
        "wan1 v4: unknown -> up: 3 of 3 targets answer",
        "wan2 v4: up -> down: 3 of 3 targets silent: icmp 192.0.2.1, icmp 192.0.2.2, icmp 192.0.2.3",
        "balanced v4 uses wan1, wan3, wan4",
        "an operator drains wan4",
    ] {
        snapshot.take_journal(&format!("{} {line}", time(1)));
    }
    snapshot.talkers = Some(Ok(talkers()));
    snapshot.plan = Some(Ok(difference()));
    snapshot
}

fn status(second: u64) -> Status {
    let names = ["mgmt", "storage", "compute", "dev", "users", "voip", "dmz"];
    let wans = [
        wan("wan1", 3, second, Health::Up, Health::Up),
        wan("wan2", 1, second, Health::Down, Health::Degraded),
        wan("wan3", 1, second, Health::Up, Health::Up),
        WanLine { drained: true, ..wan("wan4", 1, second, Health::Up, Health::NoCarrier) },
    ];
    let usable = |wan: &str| LineShare { wan: wan.to_owned(), share_ratio: 1.0 / 3.0 };
    Status {
        dns: None,
        spreads: Vec::new(),
        version: "0.1.0".to_owned(),
        site: Some("spectrum".to_owned()),
        digest: Some("0123456789abcdef".repeat(4)),
        settled: true,
        isp_outage: std::collections::BTreeSet::new(),
        policies: vec![PolicyLine {
            name: "balanced".to_owned(),
            default: true,
            families: vec![PolicyFamily {
                family: Family::V4,
                uses: ["wan1", "wan3", "wan4"].map(usable).to_vec(),
                last_resort: None,
            }],
        }],
        vlans: names.iter().zip(1_u16..).map(|(name, number)| vlan(name, number * 10, second)).collect(),
        cells: vec![
            cell("mgmt", "storage", 100 + 2 * second, 0),
            cell("mgmt", "dev", 12, 0),
            cell("dev", "compute", 0, 40 + 3 * second),
            cell("users", "wan1", 9000 + 1200 * second, 0),
            cell("users", "wan3", 3000 + 400 * second, 12),
            cell("dmz", "storage", 0, 7),
        ],
        denied_input: BTreeMap::from([("users".to_owned(), 4 + second)]),
        spoofed: BTreeMap::new(),
        audits: Vec::new(),
        applies: Applies {
            current: true,
            succeeded: 4,
            failed: 0,
            drift_repaired: 1,
            failing: None,
            pending: None,
            rollbacks: BTreeMap::new(),
            rolled_back: None,
            waiting: Vec::new(),
            unlike_file: Some(
                "/etc/quadway/site.toml has been edited since the last apply; the next start, or SIGHUP, takes it"
                    .to_owned(),
            ),
        },
        counters_missing: None,
        conntrack: None,
        fast_path: FastCount {
            on: true,
            flows: BTreeMap::from([(Family::V4, 640), (Family::V6, 12)]),
            capacity: 262_144,
            ..FastCount::default()
        },
        foreign_marks: Vec::new(),
        https: None,
        outlets: vec![
            outlet("syslog", "10.40.0.10:6514 over TLS", None),
            outlet("webhook", "https://oncall.example/quadway", Some("it does not answer; trying again in 40s")),
        ],
        tls_offload: crate::fixture::tls_offload().into_iter().map(without_trouble).collect(),
        components: crate::fixture::components(),
        dhcp: crate::fixture::leases(),
        clock: Some(crate::fixture::clock()),
        pair: None,
        crypto: Some(crate::fixture::crypto()),
        kernel_crypto: Vec::new(),
        tunnels: Vec::new(),
        kernel_devices: Vec::new(),
        ports: wans
            .iter()
            .map(|wan| port(&wan.interface, &format!("wan {}", wan.name), wan.carrier, second))
            .chain([
                port("lan1", "trunk mgmt storage compute dev", true, second),
                PortLine { link: None, ..port("lan2", "access users", false, second) },
            ])
            .collect(),
        entries: vec![
            entry("mgmt->storage", "mgmt", "storage", &["ssh", "https"], 88),
            entry("mgmt->compute", "mgmt", "compute", &["any"], 92),
            entry("backup", "compute", "storage", &["nfs*", "tcp/9000"], 97),
            EntryLine { enabled: false, ..entry("dev->compute", "dev", "compute", &["ssh"], 101) },
            entry("mgmt->dev", "mgmt", "dev", &["ssh", "ping"], 104),
        ],
        wans: wans.to_vec(),
    }
}

/// But for a backend that is down.
fn without_trouble(offload: OffloadLine) -> OffloadLine {
    let signed = |engine: &str, fallback: &str, count| SignatureCount {
        engine: engine.to_owned(),
        fallback: fallback.to_owned(),
        count,
    };
    OffloadLine {
        open_to_wan: Vec::new(),
        trouble: None,
        certificates: Vec::new(),
        signatures: vec![signed("cpu", "cheaper", 1), signed("qat", "", 7)],
        ..offload
    }
}

fn wan(name: &str, weight: u8, second: u64, v4: Health, v6: Health) -> WanLine {
    WanLine {
        name: name.to_owned(),
        interface: name.to_owned(),
        carrier: v6 != Health::NoCarrier,
        drained: false,
        fail_test_seconds: None,
        weight,
        weight_ratio: f64::from(weight) / 6.0,
        download_bytes_per_second: None,
        upload_bytes_per_second: None,
        flows: 118,
        new_flows: 1200 + second,
        families: vec![family(Family::V4, second, v4), family(Family::V6, second, v6)],
    }
}

fn family(family: Family, second: u64, state: Health) -> FamilyLine {
    let answers = matches!(state, Health::Up | Health::Degraded);
    let rtt = answers.then(|| 0.012 + 0.004 * super::snapshot::float(second));
    let loss = match state {
        Health::Up => 0.0,
        Health::Degraded => 0.25,
        Health::Unknown | Health::Held | Health::Down | Health::NoCarrier => 1.0,
    };
    FamilyLine {
        family,
        state,
        usable: state == Health::Up,
        since_seconds: if answers { 7500.0 } else { 14.0 },
        why: match state {
            Health::Up => "3 of 3 targets answer",
            Health::Degraded => "loss 25 % of 100 probes, limit 20 %",
            Health::NoCarrier => "no carrier",
            Health::Unknown | Health::Held | Health::Down => {
                "3 of 3 targets silent for 316 ms: icmp 192.0.2.1, icmp 192.0.2.2, icmp 192.0.2.3"
            }
        }
        .to_owned(),
        share_ratio: if state == Health::Up { 1.0 / 3.0 } else { 0.0 },
        flows: 59,
        sent_bytes: None,
        received_bytes: None,
        failovers: u64::from(!answers),
        rtt_seconds: rtt,
        jitter_seconds: rtt.map(|rtt| rtt / 10.0),
        loss_ratio: Some(loss),
        hold_seconds: None,
        gateway_mac: Some("02:00:00:00:00:01".to_owned()),
        lease: None,
        targets: ["icmp 192.0.2.1", "icmp 192.0.2.2"]
            .map(|target| TargetLine {
                target: target.to_owned(),
                up: Some(answers),
                bad: false,
                rtt_seconds: rtt,
                jitter_seconds: rtt.map(|rtt| rtt / 10.0),
                loss_ratio: loss,
            })
            .to_vec(),
    }
}

fn vlan(name: &str, id: u16, second: u64) -> VlanLine {
    VlanLine {
        name: name.to_owned(),
        id,
        interface: format!("vlan{id}"),
        allowed_flows: 100,
        denied_packets: if name == "dev" { 40 + 3 * second } else { 0 },
        denied_input_packets: if name == "users" { 4 + second } else { 0 },
        spoofed_packets: 0,
        internet: match name {
            "users" | "dmz" => vec!["any".to_owned()],
            "compute" => vec!["updates".to_owned(), "cloudflared".to_owned()],
            _ => Vec::new(),
        },
        link: Some(LinkCount { neighbours: u64::from(id) / 10, ..link(name != "voip", second) }),
    }
}

fn link(carrier: bool, second: u64) -> LinkCount {
    LinkCount {
        up: true,
        carrier,
        speed_megabits: Some(2500),
        received: Count { packets: 1000 * second, bytes: 1_500_000 * second },
        sent: Count { packets: 100 * second, bytes: 150_000 * second },
        ..LinkCount::default()
    }
}

fn port(name: &str, role: &str, carrier: bool, second: u64) -> PortLine {
    let errors = if name == "wan3" { 17 } else { 0 };
    let link = LinkCount { receive_errors: errors, ..link(carrier, second) };
    PortLine { name: name.to_owned(), role: role.to_owned(), link: Some(link) }
}

fn cell(from: &str, to: &str, allowed: u64, denied: u64) -> CellCount {
    CellCount {
        from: from.to_owned(),
        to: to.to_owned(),
        allowed_flows: allowed,
        denied_packets: denied,
        denied_bytes: denied * 60,
        invalid_packets: 0,
        audited_flows: 0,
    }
}

fn entry(name: &str, from: &str, to: &str, services: &[&str], line: u32) -> EntryLine {
    EntryLine {
        name: name.to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
        services: services.iter().map(|service| (*service).to_owned()).collect(),
        enabled: true,
        line,
    }
}

fn denied(from: &str, to: &str, service: &str, second: u64) -> Denied {
    let end = |zone: &str, host: Option<&str>, address: [u8; 4]| End {
        zone: zone.to_owned(),
        host: host.map(str::to_owned),
        address: IpAddr::from(address),
    };
    Denied {
        time: time(second),
        kind: Kind::Forward,
        from: end(from, Some("dev1"), [10, 10, 40, 7]),
        to: end(to, None, [10, 10, 30, 3]),
        transport: Transport::Tcp { source: 40_000, destination: 22 },
        service: service.to_owned(),
        cell: format!("{from}->{to}"),
        reason: "no entry of the pair allows it".to_owned(),
        line: None,
        advice: Some("[[cell]]\nfrom     = \"dev\"\nto       = \"compute\"".to_owned()),
        at_port: false,
    }
}

fn talkers() -> Talkers {
    let talker = |wan: Option<&str>, zone: &str, host: Option<&str>, last: u8, flows, bytes| Talker {
        wan: wan.map(str::to_owned),
        zone: zone.to_owned(),
        host: host.map(str::to_owned),
        address: IpAddr::from([10, 10, 50, last]),
        flows,
        bytes,
    };
    Talkers {
        flows: 472,
        groups: vec![
            talker(Some("wan1"), "users", Some("laptop7"), 7, 180, Some(7_300_000_000)),
            talker(Some("wan3"), "users", None, 9, 90, Some(41_000_000)),
            talker(None, "mgmt", Some("admin"), 2, 12, Some(9_000)),
            talker(None, "router", None, 1, 4, None),
        ],
        flows_left_out: 186,
    }
}

fn difference() -> Difference {
    Difference {
        changes: vec![
            Change {
                what: What::Changed,
                kind: "wan".to_owned(),
                name: "wan1".to_owned(),
                line: Some(12),
                details: vec!["weight: 3 → 2".to_owned()],
            },
            Change {
                what: What::Added,
                kind: "cell".to_owned(),
                name: "dev->compute".to_owned(),
                line: Some(101),
                details: Vec::new(),
            },
        ],
        kernel: KernelChanges { ruleset: true, buckets: 1, ..KernelChanges::default() },
        steps: Vec::new(),
        flows_that_die: 3,
        warnings: Vec::new(),
    }
}

fn outlet(kind: &str, to: &str, trouble: Option<&str>) -> OutletLine {
    let (failed, waiting) = if trouble.is_some() { (3, 2) } else { (0, 0) };
    let (kind, to) = (kind.to_owned(), to.to_owned());
    OutletLine { kind, to, told: 118, failed, dropped: 0, waiting, trouble: trouble.map(str::to_owned) }
}
