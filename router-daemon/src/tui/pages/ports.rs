//! Page 5: the cables and what is behind them.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{Content, Row, bits, fit, plural};
use crate::counters::LinkCount;
use crate::status::{PortLine, VlanLine};
use crate::tui::look::{BAD, GOOD, HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;
use crate::tui::ui::Ui;

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let Some(status) = &snapshot.status else { return Content::default() };
    let wide = width.saturating_sub(80).min(30);
    let header = format!(
        "  {:<10} {:<role$} {:<9} {:>6} {:>10} {:>10} {:>8}",
        "PORT",
        "ROLE",
        "CARRIER",
        "SPEED",
        "IN",
        "OUT",
        "ERRORS",
        role = 16 + wide
    );
    let mut rows: Vec<_> = status.ports.iter().map(|port| self::port(snapshot, ui, port, wide)).collect();
    let heading = format!(
        "  {:<15} {:>4}  {:<10} {:<10} {:>10} {:>8} {:>8}",
        "VLAN", "ID", "INTERFACE", "CARRIER", "NEIGHBOURS", "DENIED", "SPOOFED"
    );
    // The heading belongs to the port before it, so that only ports and VLANs can be selected.
    if let Some(last) = rows.last_mut() {
        last.lines.extend([Line::raw(""), Line::styled(heading, HEAD)]);
    }
    rows.extend(status.vlans.iter().map(vlan));
    Content { header: Line::styled(header, HEAD), rows, panel: Vec::new() }
}

fn port(snapshot: &Snapshot, ui: &Ui, port: &PortLine, wide: usize) -> Row {
    let throughput = snapshot.throughput.get(&port.name);
    let last = |values: Option<&std::collections::VecDeque<Option<f64>>>| {
        values.and_then(|values| values.back().copied().flatten()).map_or_else(|| "-".to_owned(), bits)
    };
    let (word, style) = carrier(port.link.as_ref());
    let errors = port.link.as_ref().map(|link| link.receive_errors + link.send_errors);
    let speed = port.link.as_ref().and_then(|link| link.speed_megabits);
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("  {} ", fit(&port.name, 10)), HEAD),
        Span::raw(format!("{} ", fit(&port.role, 16 + wide))),
        Span::styled(format!("{word:<9} "), style),
        Span::raw(format!(
            "{:>6} {:>10} {:>10} ",
            speed.map_or_else(|| "-".to_owned(), self::speed),
            last(throughput.map(|both| &both.received)),
            last(throughput.map(|both| &both.sent)),
        )),
        Span::styled(
            format!("{:>8}", errors.map_or_else(|| "-".to_owned(), |count| count.to_string())),
            if errors.unwrap_or_default() > 0 { BAD } else { PLAIN },
        ),
    ])];
    if ui.details
        && let Some(link) = &port.link
    {
        let fast = snapshot.status.as_ref().and_then(|status| {
            let (_, fast) = status.fast_path.ports.iter().find(|(name, _)| name.as_str() == port.name)?;
            Some(format!(", fast path {}", fast.word()))
        });
        lines.push(Line::styled(
            format!(
                "     errors in {} out {}, dropped in {} out {}, {}{}",
                link.receive_errors,
                link.send_errors,
                link.receive_drops,
                link.send_drops,
                plural(link.neighbours, "neighbour"),
                fast.unwrap_or_default(),
            ),
            PALE,
        ));
    }
    Row::new(lines)
}

fn vlan(vlan: &VlanLine) -> Row {
    let (word, style) = carrier(vlan.link.as_ref());
    Row::new(vec![Line::from(vec![
        Span::styled(format!("  {} ", fit(&vlan.name, 15)), HEAD),
        Span::raw(format!("{:>4}  {} ", vlan.id, fit(&vlan.interface, 10))),
        Span::styled(format!("{word:<10} "), style),
        Span::raw(format!(
            "{:>10} {:>8} {:>8}",
            vlan.link.as_ref().map_or_else(|| "-".to_owned(), |link| link.neighbours.to_string()),
            vlan.denied_packets + vlan.denied_input_packets,
            vlan.spoofed_packets,
        )),
    ])])
}

fn carrier(link: Option<&LinkCount>) -> (&'static str, Style) {
    match link {
        None => ("✖ missing", BAD),
        Some(link) if link.carrier => ("● up", GOOD),
        Some(link) if link.up => ("○ none", BAD),
        Some(_) => ("○ off", PALE),
    }
}

/// `100M`, `2.5G`.
fn speed(megabits: u32) -> String {
    if megabits < 1000 {
        return format!("{megabits}M");
    }
    let text = format!("{:.1}G", f64::from(megabits) / 1000.0);
    text.replace(".0G", "G")
}
