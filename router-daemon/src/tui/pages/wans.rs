//! Page 1: the lines. Below them, about the selected one: since when it is what it is, and why.

use ratatui::text::{Line, Span};

use super::{Content, Row, began, bits, fit, fold, matches, plural};
use crate::status::{FamilyLine, WanLine, glyph, percent, short_time, span};
use crate::tui::look::{BAD, HEAD, PALE, PLAIN, of_health, spark};
use crate::tui::snapshot::Snapshot;
use crate::tui::ui::Ui;
use mwan::event::Health;

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let (rtt, loss) = sparks(width);
    let header = format!(
        "  {:<9}{:<5}{:<13}{:>7} {:<rtt$} {:>5} {:<loss$} {:>5}{:>7}{:>8}",
        "WAN", "", "STATE", "RTT", "", "LOSS", "", "SHARE", "FLOWS", "SINCE"
    );
    let rows = shown(snapshot, ui, width);
    let selected = ui.row().min(rows.len().saturating_sub(1));
    let panel = rows.get(selected).map(|(wan, _)| panel(snapshot, ui, wan, width)).unwrap_or_default();
    Content { header: Line::styled(header, HEAD), rows: rows.into_iter().map(|(_, row)| row).collect(), panel }
}

/// The lines that the filter lets through, with their rows.
pub(super) fn shown<'s>(snapshot: &'s Snapshot, ui: &Ui, width: usize) -> Vec<(&'s WanLine, Row)> {
    let wans = snapshot.status.iter().flat_map(|status| &status.wans);
    wans.map(|wan| (wan, row(snapshot, wan, width))).filter(|(_, row)| matches(ui, row)).collect()
}

fn row(snapshot: &Snapshot, wan: &WanLine, width: usize) -> Row {
    let mut lines = Vec::new();
    for (place, line) in wan.families.iter().enumerate() {
        let name = if place == 0 { wan.name.as_str() } else { "" };
        lines.push(family(snapshot, wan, line, name, width));
        if line.state != Health::Up && !line.why.is_empty() {
            lines.push(Line::styled(fit(&format!("     {}: {}", line.family, line.why), width), BAD));
        }
    }
    lines.push(traffic(snapshot, wan, width));
    Row::new(lines)
}

fn family(snapshot: &Snapshot, wan: &WanLine, line: &FamilyLine, name: &str, width: usize) -> Line<'static> {
    let (rtt, loss) = sparks(width);
    let history = snapshot.history.get(&(wan.name.clone(), line.family));
    let numbers = format!(
        "{:>7} {} {:>5} {} {:>5}{:>7}{:>8}",
        line.rtt_seconds.map_or_else(|| "-".to_owned(), short_time),
        spark(history.map(|history| &history.rtt), rtt, None),
        line.loss_ratio.map_or_else(|| "-".to_owned(), percent),
        spark(history.map(|history| &history.loss), loss, Some(1.0)),
        percent(line.share_ratio),
        line.flows,
        span(line.since_seconds),
    );
    Line::from(vec![
        Span::styled(format!("  {} ", fit(name, 8)), HEAD),
        Span::raw(format!("{:<5}", line.family.to_string())),
        Span::styled(format!("{} {:<11}", glyph(line.state), line.state.word()), of_health(line.state)),
        Span::raw(numbers),
    ])
}

fn traffic(snapshot: &Snapshot, wan: &WanLine, width: usize) -> Line<'static> {
    let width = 8 + width.saturating_sub(80) / 2;
    let throughput = snapshot.throughput.get(&wan.interface);
    let last = |values: Option<&std::collections::VecDeque<Option<f64>>>| {
        values.and_then(|values| values.back().copied().flatten()).map_or_else(|| "-".to_owned(), bits)
    };
    let (received, sent) = (throughput.map(|both| &both.received), throughput.map(|both| &both.sent));
    let mut spans = vec![
        Span::styled(format!("     weight {} ({})", wan.weight, percent(wan.weight_ratio)), PALE),
        Span::raw(format!("  ↓ {:>10} {}", last(received), spark(received, width, None))),
        Span::raw(format!("  ↑ {:>10} {}", last(sent), spark(sent, width, None))),
    ];
    if wan.drained {
        spans.push(Span::styled(" ! drained", BAD));
    }
    if let Some(rest) = wan.fail_test_seconds {
        spans.push(Span::styled(format!(" ! fail test {}", span(rest)), BAD));
    }
    Line::from(spans)
}

/// When and why, and with details the targets and the policies.
fn panel(snapshot: &Snapshot, ui: &Ui, wan: &WanLine, width: usize) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for line in &wan.families {
        let since = began(snapshot, line.since_seconds);
        let failovers = match line.failovers {
            0 => String::new(),
            count => format!("; lost {}", plural(count, "time")),
        };
        let told = format!("{} {} {} since {since}: {}{failovers}", wan.name, line.family, line.state.word(), line.why);
        lines.extend(fold(&told, 2, width, of_health(line.state)));
        if let Some(hold) = line.hold_seconds {
            lines.push(Line::raw(format!("  used again in {} if it stays good", span(hold))));
        }
        if let Some(lease) = &line.lease {
            lines.extend(fold(&lease.to_string(), 2, width, PLAIN));
        }
        if ui.details {
            lines.extend(line.targets.iter().map(|target| {
                let state = match (target.bad, target.up) {
                    (true, _) => "fails on every line, not counted",
                    (false, Some(true)) => "answers",
                    (false, Some(false)) => "silent",
                    (false, None) => "not judged yet",
                };
                let time = |seconds: Option<f64>| seconds.map_or_else(|| "-".to_owned(), short_time);
                let style = if target.up == Some(false) { BAD } else { PLAIN };
                let told = format!(
                    "  {} {state}, RTT {}, jitter {}, loss {}",
                    fit(&target.target, 30),
                    time(target.rtt_seconds),
                    time(target.jitter_seconds),
                    percent(target.loss_ratio)
                );
                Line::styled(told, style)
            }));
            if let Some(mac) = &line.gateway_mac {
                lines.push(Line::raw(format!("  the gateway is at {mac}")));
            }
        }
    }
    if ui.details {
        let status = snapshot.status.iter();
        let policies = status.flat_map(|status| &status.policies).flat_map(|policy| {
            let part = |family: &crate::status::PolicyFamily| {
                let share = family.uses.iter().find(|share| share.wan == wan.name)?;
                Some(format!("  {} of {} {}", percent(share.share_ratio), policy.name, family.family))
            };
            policy.families.iter().filter_map(part).collect::<Vec<_>>()
        });
        lines.extend(policies.map(Line::raw));
        lines.push(Line::raw(format!(
            "  interface {}, {} flows live, {} begun",
            wan.interface, wan.flows, wan.new_flows
        )));
    }
    lines
}

/// How wide the two sparklines of a line are.
fn sparks(width: usize) -> (usize, usize) {
    let more = width.saturating_sub(80);
    (8 + more / 2, 7 + more - more / 2)
}
