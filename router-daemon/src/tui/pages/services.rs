//! Page 6: what runs beside the router, and whether it does what it is there for.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{Content, Row, bytes, fit, fold, plural};
use crate::api::https::Listener;
use crate::counters::FastCount;
use crate::outside::OutletLine;
use crate::service::component::{ComponentLine, ComponentState};
use crate::service::pair::PairLine;
use crate::service::tunnels::{TunnelLine, TunnelState};
use crate::status::span;
use crate::tui::look::{BAD, GOOD, HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;

pub(super) fn content(snapshot: &Snapshot, width: usize) -> Content {
    let Some(status) = &snapshot.status else { return Content::default() };
    let mut rows = vec![fast_path(&status.fast_path, width), https(status.https.as_ref(), width)];
    rows.extend(status.pair.iter().map(|pair| self::pair(pair, width)));
    rows.extend(status.outlets.iter().map(|outlet| self::outlet(outlet, width)));
    rows.extend(status.components.iter().map(|component| self::component(component, width)));
    rows.extend(status.tunnels.iter().map(|tunnel| self::tunnel(tunnel, width)));
    let header = format!("  {:<16} {:<10} {}", "SERVICE", "STATE", "WHAT");
    Content { header: Line::styled(header, HEAD), rows, panel: Vec::new() }
}

fn fast_path(path: &FastCount, width: usize) -> Row {
    if !path.on {
        return row("fast path", OFF, "every packet takes the kernel's path", path.reason.as_deref(), width);
    }
    let ports = path.ports.values().filter(|port| port.mode.is_some()).count();
    let flows: u64 = path.flows.values().sum();
    let what = format!("{}, {flows} of {} entries of flows", plural(ports as u64, "port"), path.capacity);
    row("fast path", ON, &what, None, width)
}

fn pair(pair: &PairLine, width: usize) -> Row {
    let troubles = pair.troubles().join("; ");
    let state = if pair.split_brain {
        FAILS
    } else if pair.active {
        ON
    } else {
        STANDBY
    };
    let what = pair.summary();
    row("pair", state, what.strip_prefix("pair: ").unwrap_or(&what), (!troubles.is_empty()).then_some(&troubles), width)
}

fn https(listener: Option<&Listener>, width: usize) -> Row {
    match listener {
        None => row("API over HTTPS", OFF, "not in the site file: the API has its socket alone", None, width),
        Some(Listener { address, trouble: None }) => row("API over HTTPS", ON, address, None, width),
        Some(Listener { address, trouble }) => row("API over HTTPS", FAILS, address, trouble.as_deref(), width),
    }
}

fn outlet(outlet: &OutletLine, width: usize) -> Row {
    let OutletLine { kind, to, told, failed, dropped, waiting, trouble } = outlet;
    let state = if trouble.is_some() { FAILS } else { ON };
    let mut row = row(kind, state, to, trouble.as_deref(), width);
    let counts = format!("     {told} told, {failed} failed, {waiting} waiting, {dropped} dropped");
    row.lines.push(Line::styled(counts, PALE));
    row
}

fn component(component: &ComponentLine, width: usize) -> Row {
    let ComponentLine { name, state, since_seconds, restarts, why } = component;
    let state = match (state, why) {
        (ComponentState::Running, None) => ON,
        (ComponentState::Running, Some(_)) => WORSE,
        (ComponentState::Starting, _) => STARTS,
        (ComponentState::Failed, _) => FAILS,
        (ComponentState::Off, _) => OFF,
    };
    let what = format!("for {}, {restarts} restarts", span(*since_seconds));
    row(name, state, &what, why.as_deref(), width)
}

fn tunnel(tunnel: &TunnelLine, width: usize) -> Row {
    let state = match (tunnel.state, &tunnel.why) {
        (TunnelState::Up, None) => ON,
        (TunnelState::Up, Some(_)) => WORSE,
        (TunnelState::Waiting | TunnelState::Calling, _) => STARTS,
        (TunnelState::Failed, _) => FAILS,
    };
    let TunnelLine { name, kind, wan, moves, received_bytes, sent_bytes, .. } = tunnel;
    let by = wan.as_ref().map_or_else(String::new, |wan| format!(" by {wan}"));
    let what = format!("{kind}{by}, {} in, {} out, {moves} moves", bytes(*received_bytes), bytes(*sent_bytes));
    let mut row = row(name, state, &what, tunnel.why.as_deref(), width);
    if !tunnel.open.is_empty() {
        row.lines.push(Line::styled(format!("     open to its other end at {}", tunnel.open.join(", ")), BAD));
    }
    row
}

/// `trouble` has lines of its own: what somebody should look at is not cut.
fn row(name: &str, (state, style): (&'static str, Style), what: &str, trouble: Option<&str>, width: usize) -> Row {
    let lead = format!("  {} ", fit(name, 16));
    let what = fit(what, width.saturating_sub(lead.chars().count() + 11));
    let mut lines = vec![Line::from(vec![
        Span::styled(lead, HEAD),
        Span::styled(format!("{state:<10} "), style),
        Span::styled(what, if state == OFF.0 { PALE } else { PLAIN }),
    ])];
    if let Some(trouble) = trouble {
        lines.extend(fold(&format!("     {trouble}"), 5, width, BAD));
    }
    Row::new(lines)
}

const ON: (&str, Style) = ("● on", GOOD);
const STANDBY: (&str, Style) = ("○ standby", PALE);
const OFF: (&str, Style) = ("○ off", PALE);
const STARTS: (&str, Style) = ("◐ starting", PALE);
const WORSE: (&str, Style) = ("◐ degraded", BAD);
const FAILS: (&str, Style) = ("✖ fails", BAD);
