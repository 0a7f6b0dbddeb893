//! Page 2: what passes from one VLAN to another, and what is refused, per second. A cell opens into what the site file
//! allows there, what was counted, and the last denials.

use ratatui::text::{Line, Span};

use super::{Content, Row, brief, bytes, denied, fit, fold, plural};
use crate::status::{CellCount, Status, VlanLine};
use crate::tui::look::{BAD, HEAD, PALE, PLAIN, SELECTED};
use crate::tui::snapshot::{CellRate, Snapshot};
use crate::tui::ui::Ui;

/// What a column stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tui) enum Target<'s> {
    Vlan(&'s VlanLine),
    /// Beyond the lines.
    Internet,
    Router,
}

impl<'s> Target<'s> {
    fn word(self) -> &'s str {
        match self {
            Self::Vlan(vlan) => &vlan.name,
            Self::Internet => "outside",
            Self::Router => "router",
        }
    }

    /// Whether a zone that was counted or logged belongs to it.
    fn is(self, status: &Status, zone: &str) -> bool {
        match self {
            Self::Vlan(vlan) => vlan.name == zone,
            Self::Internet => zone == "internet" || status.wans.iter().any(|wan| wan.name == zone),
            Self::Router => zone == "router",
        }
    }
}

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let Some(status) = &snapshot.status else { return Content::default() };
    if ui.open
        && let Some((from, to)) = selected_pair(snapshot, ui)
    {
        return open(snapshot, status, from, to, width);
    }
    let targets = targets(status);
    let cell = (width.saturating_sub(LABEL) / targets.len().max(1)).clamp(8, 14);
    let fitting = (width.saturating_sub(LABEL) / cell).max(1);
    let selected = ui.column.min(targets.len().saturating_sub(1));
    let first = selected.saturating_sub(fitting - 1);
    let shown = || targets.iter().enumerate().skip(first).take(fitting);
    let mut header = vec![Span::styled(fit("  FROM\\TO", LABEL), HEAD)];
    header.extend(shown().map(|(_, to)| Span::styled(format!("{} ", fit(to.word(), cell - 1)), HEAD)));
    if first + fitting < targets.len() {
        header.push(Span::styled("→", HEAD));
    }
    let rows = status.vlans.iter().enumerate().map(|(place, from)| {
        let mut spans = vec![Span::styled(format!("  {} ", fit(&from.name, LABEL - 3)), HEAD)];
        for (column, to) in shown() {
            let (text, denied) = told(snapshot, status, from, *to);
            let mut style = if denied { BAD } else { PLAIN };
            // The rows of a filtered matrix are not where they stand.
            if column == selected && ui.filter.is_empty() && place == ui.row().min(status.vlans.len() - 1) {
                style = style.patch(SELECTED);
            }
            spans.push(Span::styled(fit(&text, cell - 1), style));
            spans.push(Span::raw(" "));
        }
        Row::new(vec![Line::from(spans)])
    });
    let mut panel =
        selected_pair(snapshot, ui).map(|(from, to)| about(snapshot, status, from, to, width)).unwrap_or_default();
    panel.extend(fold(
        "allowed flows / denied packets per second; - nothing is allowed, · nothing happens either, = one segment",
        0,
        width,
        PALE,
    ));
    Content { header: Line::from(header), rows: rows.collect(), panel }
}

/// How many columns there are.
pub(in crate::tui) fn columns(snapshot: &Snapshot) -> usize {
    snapshot.status.as_ref().map_or(0, |status| targets(status).len())
}

/// The cell that is selected.
pub(in crate::tui) fn selected_pair<'s>(snapshot: &'s Snapshot, ui: &Ui) -> Option<(&'s VlanLine, Target<'s>)> {
    let status = snapshot.status.as_ref()?;
    let targets = targets(status);
    let matching =
        |vlan: &&VlanLine| ui.filter.is_empty() || row_text(snapshot, status, vlan).contains(&ui.filter.to_lowercase());
    let rows = status.vlans.iter().filter(matching).collect::<Vec<_>>();
    let from = rows.get(ui.row().min(rows.len().checked_sub(1)?))?;
    Some((from, *targets.get(ui.column.min(targets.len().checked_sub(1)?))?))
}

/// What the filter looks into.
fn row_text(snapshot: &Snapshot, status: &Status, from: &VlanLine) -> String {
    let cells = targets(status).into_iter().map(|to| told(snapshot, status, from, to).0);
    std::iter::once(from.name.clone()).chain(cells).collect::<Vec<_>>().join(" ").to_lowercase()
}

fn targets(status: &Status) -> Vec<Target<'_>> {
    status.vlans.iter().map(Target::Vlan).chain([Target::Internet, Target::Router]).collect()
}

/// A cell's text, and whether something is denied in it at this moment.
fn told(snapshot: &Snapshot, status: &Status, from: &VlanLine, to: Target<'_>) -> (String, bool) {
    if to == Target::Vlan(from) {
        return ("=".to_owned(), false);
    }
    let rate = rate(snapshot, status, from, to);
    let denied = brief(rate.denied);
    let text = match (allowed(status, from, to), denied == "0") {
        // What the router itself answers is not counted.
        (_, quiet) if to == Target::Router => {
            if quiet {
                "·".to_owned()
            } else {
                format!("-/{denied}")
            }
        }
        (true, _) => format!("{}/{denied}", brief(rate.allowed)),
        (false, true) => "·".to_owned(),
        (false, false) => format!("-/{denied}"),
    };
    (text, denied != "0")
}

fn allowed(status: &Status, from: &VlanLine, to: Target<'_>) -> bool {
    match to {
        Target::Vlan(to) => {
            status.entries.iter().any(|entry| entry.enabled && entry.from == from.name && entry.to == to.name)
        }
        Target::Internet => !from.internet.is_empty(),
        Target::Router => true,
    }
}

fn rate(snapshot: &Snapshot, status: &Status, from: &VlanLine, to: Target<'_>) -> CellRate {
    if to == Target::Router {
        let denied = snapshot.input_rates.get(&from.name).copied().unwrap_or_default();
        return CellRate { allowed: 0.0, denied };
    }
    let of_pair = |((source, zone), _): &(&(String, String), &CellRate)| *source == from.name && to.is(status, zone);
    snapshot.rates.iter().filter(of_pair).fold(CellRate::default(), |sum, (_, rate)| CellRate {
        allowed: sum.allowed + rate.allowed,
        denied: sum.denied + rate.denied,
    })
}

/// What the file allows there and what was counted.
fn about(snapshot: &Snapshot, status: &Status, from: &VlanLine, to: Target<'_>, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(format!("{} → {}", from.name, to.word()), HEAD)];
    for audit in status.audits.iter().filter(|audit| audit.from == from.name && to.is(status, &audit.to)) {
        lines.extend(fold(&audit.to_string(), 2, width, BAD));
    }
    let mut say = |text: String| lines.extend(fold(&text, 2, width, PLAIN));
    match to {
        Target::Vlan(to) if to == from => {
            say("one segment: its packets are bridged and never judged".to_owned());
            return lines;
        }
        Target::Vlan(to) => {
            let mut entries =
                status.entries.iter().filter(|entry| entry.from == from.name && entry.to == to.name).peekable();
            if entries.peek().is_none() {
                say("nothing is allowed: no entry of the site file".to_owned());
            }
            for entry in entries {
                let off = if entry.enabled { "" } else { " (disabled: allows nothing)" };
                let name = if entry.name == format!("{}->{}", entry.from, entry.to) {
                    String::new()
                } else {
                    format!("{}: ", entry.name)
                };
                say(format!("line {}: {name}{}{off}", entry.line, entry.services.join(", ")));
            }
        }
        Target::Internet if from.internet.is_empty() => say("nothing is allowed towards the Internet".to_owned()),
        Target::Internet => say(format!("allowed towards the Internet: {}", from.internet.join(", "))),
        Target::Router => {
            say(format!("{} to the router itself were refused", plural(from.denied_input_packets, "packet")));
            return lines;
        }
    }
    let of_pair = |cell: &&CellCount| cell.from == from.name && to.is(status, &cell.to);
    let sum = |count: fn(&CellCount) -> u64| status.cells.iter().filter(of_pair).map(count).sum::<u64>();
    let rate = rate(snapshot, status, from, to);
    say(format!(
        "{} allowed ({}/s), {} denied ({}/s, {}), {} of no known connection",
        plural(sum(|cell| cell.allowed_flows), "flow"),
        brief(rate.allowed),
        plural(sum(|cell| cell.denied_packets), "packet"),
        brief(rate.denied),
        bytes(sum(|cell| cell.denied_bytes)),
        sum(|cell| cell.invalid_packets),
    ));
    lines
}

fn open(snapshot: &Snapshot, status: &Status, from: &VlanLine, to: Target<'_>, width: usize) -> Content {
    let groups = snapshot.denied.iter().rev();
    let of_pair = groups.filter(|group| group.last.from.zone == from.name && to.is(status, &group.last.to.zone));
    let mut rows: Vec<_> = of_pair.map(|group| denied::row(group, width)).collect();
    if rows.is_empty() {
        rows.push(Row::new(vec![Line::styled("  no denial is remembered here", PALE)]));
    }
    Content { header: Line::styled("  LAST DENIALS", HEAD), rows, panel: about(snapshot, status, from, to, width) }
}

const LABEL: usize = 11;
