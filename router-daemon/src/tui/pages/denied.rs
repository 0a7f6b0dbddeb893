//! Page 4: what the firewall refuses, as it happens; equal denials together, the last one first.

use ratatui::text::{Line, Span};

use super::{Content, Row, fit, fold};
use crate::event_log::{Group, Kind};
use crate::tui::look::{HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;
use crate::tui::ui::Ui;

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let (shown, late): (Vec<_>, Vec<_>) =
        snapshot.denied.iter().rev().partition(|group| ui.all || group.last.kind != Kind::Invalid);
    let mut groups: Vec<(&Group, Row)> = shown.into_iter().map(|group| (group, row(group, width))).collect();
    groups.retain(|(_, row)| super::matches(ui, row));
    let mut panel = Vec::new();
    if let Some((group, _)) = groups.get(ui.row().min(groups.len().saturating_sub(1)))
        && ui.details
    {
        let last = &group.last;
        let told = format!("{} times since {}, the last {}", group.count, group.since, last.time);
        panel.extend(fold(&told, 2, width, PLAIN));
        let told = format!(
            "{}: from {} ({}) to {} ({}), {}: {}",
            last.cell, last.from, last.from.address, last.to, last.to.address, last.service, last.reason
        );
        panel.extend(fold(&told, 2, width, PLAIN));
        let line = last.line.map_or_else(
            || "no line of the site file: denied by default".to_owned(),
            |line| format!("line {line} of the site file says so"),
        );
        panel.push(Line::raw(line));
        if let Some(advice) = &last.advice {
            panel.push(Line::raw("this would allow it:"));
            panel.extend(advice.lines().map(|line| Line::raw(format!("  {line}"))));
        }
    }
    let late: u64 = late.iter().map(|group| group.count).sum();
    if late > 0 {
        let told = format!("and {late} packets of no known connection, mostly late segments (a shows them)");
        panel.push(Line::styled(fit(&told, width), PALE));
    }
    if snapshot.missed > 0 {
        panel
            .push(Line::styled(format!("{} more came too fast to be told; counters are exact", snapshot.missed), PALE));
    }
    let mut rows: Vec<_> = groups.into_iter().map(|(_, row)| row).collect();
    if rows.is_empty() && ui.filter.is_empty() {
        let told = if snapshot.status.is_some() { "nothing was denied lately" } else { "nothing is known yet" };
        rows.push(Row::new(vec![Line::styled(format!("  {told}"), PALE)]));
    }
    Content { header: Line::styled("  LAST        COUNT  WHAT", HEAD), rows, panel }
}

pub(super) fn row(group: &Group, width: usize) -> Row {
    let time = group.last.time.get(11..19).unwrap_or(&group.last.time);
    let lead = format!("  {time}  {:>7}× ", group.count);
    let text = fit(&group.last.to_string(), width.saturating_sub(lead.chars().count()));
    let mut row = Row::new(vec![Line::from(vec![Span::styled(lead, PALE), Span::raw(text)])]);
    // What the cut hides can be found too.
    row.text = format!("{time} {} {} {}", group.last, group.last.from.address, group.last.to.address).to_lowercase();
    row
}
