//! Page 7: where the router ends TLS, who does its crypto, and what was measured.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{Content, Row, fit, fold, plural};
use crate::crypto::{CryptoBatch, CryptoChoice, CryptoInstance, CryptoOperation, CryptoStatus, CryptoStep};
use crate::service::tls_offload::OffloadLine;
use crate::tui::look::{BAD, GOOD, HEAD, PALE, PLAIN};
use crate::tui::snapshot::Snapshot;
use crate::tui::ui::Ui;

pub(super) fn content(snapshot: &Snapshot, ui: &Ui, width: usize) -> Content {
    let Some(status) = &snapshot.status else { return Content::default() };
    let header = Line::styled(format!("  {:<NAME$} {:<STATE$} {}", "CRYPTO", "STATE", "WHAT"), HEAD);
    let mut rows: Vec<_> = status.tls_offload.iter().map(|offload| self::offload(offload, width)).collect();
    let Some(crypto) = &status.crypto else {
        let below = "nothing of the site file needs crypto; `routerctl qat status` looks for a device";
        rows.push(row("device", ("○ not used", PALE), "no engine runs", &[(below, PALE)], width));
        return Content { header, rows, panel: Vec::new() };
    };
    rows.push(device(crypto, width));
    rows.extend(crypto.instances.iter().map(|instance| self::instance(instance, width)));
    rows.extend(crypto.batches.iter().map(|batch| self::batch(batch, width)));
    rows.extend(crypto.operations.iter().map(|operation| self::operation(operation, width)));
    rows.extend(crypto.choices.iter().filter_map(|choice| self::choice(choice, width)));
    // Who has no device wants to know what is missing; the rest is for who asks.
    let shown = |step: &&CryptoStep| ui.details || (crypto.missing.is_some() && !step.found);
    let step = |CryptoStep { what, found, text }: &CryptoStep| {
        let (mark, style) = if *found { ('+', PLAIN) } else { ('-', PALE) };
        fold(&format!("{mark} {what}: {text}"), 4, width, style)
    };
    Content { header, rows, panel: crypto.steps.iter().filter(shown).flat_map(step).collect() }
}

fn offload(offload: &OffloadLine, width: usize) -> Row {
    let fails = offload.trouble.is_some() || offload.listen.iter().any(|listen| listen.trouble.is_some());
    let expired = offload.certificates.iter().any(|certificate| certificate.expired);
    let degraded = expired || offload.backends.iter().any(|backend| !backend.up);
    let state = match () {
        () if fails => ("✖ fails", BAD),
        () if degraded => ("◐ degraded", BAD),
        () => ("● on", GOOD),
    };
    let listen: Vec<_> = offload.listen.iter().map(|listen| listen.address.as_str()).collect();
    let what = format!("TLS at {}", listen.join(", "));
    let handshakes: u64 = offload.handshakes.iter().map(|count| count.count).sum();
    let resumed: u64 = offload.handshakes.iter().filter(|count| count.kind == "resumed").map(|count| count.count).sum();
    let up = offload.backends.iter().filter(|backend| backend.up).count();
    let told = format!(
        "{} of {}, {} ({resumed} resumed), {up} of {} up",
        offload.connections,
        plural(offload.connections_limit.into(), "connection"),
        plural(handshakes, "handshake"),
        plural(offload.backends.len() as u64, "backend"),
    );
    let mut below = vec![(told, PLAIN)];
    below.extend(offload.signed().map(|signed| (format!("signed: {signed}"), PLAIN)));
    below.extend(offload.turned_away().map(|refused| (format!("refused: {refused}"), PALE)));
    below.extend(offload.troubles().into_iter().map(|trouble| (trouble, BAD)));
    row(&offload.name, state, &what, &below, width)
}

fn device(crypto: &CryptoStatus, width: usize) -> Row {
    let Some(missing) = &crypto.missing else {
        let (device, batched, openssl) = crypto.done();
        let simulated = crypto.is_simulated().then_some(("a SIMULATOR: no card", BAD));
        let what = format!("{device} operations; the CPU did {}", batched + openssl);
        return row("device", ("● on", GOOD), &what, simulated.as_slice(), width);
    };
    row("device", ("○ none", PALE), "the CPU does every operation", &[(missing, PALE)], width)
}

fn instance(instance: &CryptoInstance, width: usize) -> Row {
    let state = if instance.in_use() { ("● in use", GOOD) } else { ("✖ not used", BAD) };
    let CryptoInstance { state: word, part, answered, in_flight, late, retries, restarts, resets, .. } = instance;
    let what = if instance.in_use() { format!("{part}, node {}", instance.node) } else { word.clone() };
    let below = [
        (instance.answers(), if instance.failed().is_empty() { PALE } else { BAD }),
        (format!("{answered} answered, {late} of them late; {in_flight} in flight"), PALE),
        (format!("{retries} times full, {restarts} restarts, {resets} resets"), PALE),
    ];
    row(&instance.title(), state, &what, &below, width)
}

/// Many at once on the CPU.
fn batch(batch: &CryptoBatch, width: usize) -> Row {
    let CryptoBatch { operation, library, in_use, width: most, batches, operations } = batch;
    let state = if *in_use { ("● in use", GOOD) } else { ("✖ was wrong", BAD) };
    let what = format!("{library}, up to {most} at once");
    let below = [(format!("{operations} in {}", batched(*batches)), PALE)];
    row(operation, state, &what, &below, width)
}

fn batched(batches: u64) -> String {
    if batches == 1 { "1 batch".to_owned() } else { format!("{batches} batches") }
}

/// Who did it, and why OpenSSL had to.
fn operation(operation: &CryptoOperation, width: usize) -> Row {
    let CryptoOperation { operation, offloaded, batched, cpu, refused } = operation;
    let why: Vec<_> = cpu.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let below = (!why.is_empty()).then(|| (format!("by OpenSSL: {}", why.join(", ")), PALE));
    let refused = if *refused > 0 { format!(", {refused} refused") } else { String::new() };
    let openssl: u64 = cpu.values().sum();
    let what = format!("device {offloaded}, batched {batched}, OpenSSL {openssl}{refused}");
    row(operation, ("", PLAIN), &what, below.as_slice(), width)
}

/// `None` while too little was measured.
fn choice(choice: &CryptoChoice, width: usize) -> Option<Row> {
    let CryptoChoice { operation, below_bytes, in_flight, cpu_seconds, offload_seconds, choice } = choice;
    let text = if *below_bytes == 0 { String::new() } else { format!(" of <{below_bytes} bytes") };
    let micro = |seconds: &f64| format!("{:.0}µs", seconds * 1e6);
    let what = format!("{in_flight}+ in flight: {}, OpenSSL {}", micro(offload_seconds), micro(cpu_seconds));
    Some(row(&format!("{operation}{text}"), (choice.as_deref()?, PLAIN), &what, NOTHING, width))
}

/// What does not fit has lines of its own: what somebody should look at is not cut.
fn row(name: &str, (state, style): (&str, Style), what: &str, below: &[(impl AsRef<str>, Style)], width: usize) -> Row {
    let lead = format!("  {} ", fit(name, NAME));
    let what = fit(what, width.saturating_sub(lead.chars().count() + STATE + 1));
    let pale = style == PALE;
    let mut lines = vec![Line::from(vec![
        Span::styled(lead, HEAD),
        Span::styled(format!("{state:<STATE$} "), style),
        Span::styled(what, if pale { PALE } else { PLAIN }),
    ])];
    for (text, style) in below {
        lines.extend(fold(&format!("     {}", text.as_ref()), 5, width, *style));
    }
    Row::new(lines)
}

const NAME: usize = 24;
const STATE: usize = 10;
const NOTHING: &[(&str, Style)] = &[];
