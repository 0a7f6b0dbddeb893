//! Page 3: who talks by which line.

use ratatui::text::Line;

use super::{Content, Row, bytes, fit, plural};
use crate::tui::look::{BAD, HEAD, PALE};
use crate::tui::snapshot::Snapshot;

pub(super) fn content(snapshot: &Snapshot, width: usize) -> Content {
    let wide = width.saturating_sub(80).min(40);
    let header =
        format!("  {:<10} {:<14} {:<who$} {:>8} {:>10}", "BY", "FROM", "WHO", "FLOWS", "BYTES", who = 31 + wide);
    let mut panel = Vec::new();
    let rows = match &snapshot.talkers {
        None => vec![Row::new(vec![Line::raw("  asking …")])],
        Some(Err(why)) => vec![Row::new(vec![Line::styled(fit(&format!("  ! {why}"), width), BAD)])],
        Some(Ok(talkers)) => {
            let mut told = plural(talkers.flows, "flow");
            told.push_str(" alive");
            if talkers.flows_left_out > 0 {
                let rest = format!("; {} of smaller groups not shown", talkers.flows_left_out);
                told.push_str(&rest);
            }
            if talkers.groups.iter().all(|talker| talker.bytes.is_none()) {
                told.push_str("; bytes are not counted (sysctl net.netfilter.nf_conntrack_acct is 0)");
            }
            panel.extend(super::fold(&told, 2, width, PALE));
            let row = |talker: &crate::talkers::Talker| {
                let who = match &talker.host {
                    Some(host) => format!("{host} {}", talker.address),
                    None => talker.address.to_string(),
                };
                Row::new(vec![Line::raw(format!(
                    "  {} {} {} {:>8} {:>10}",
                    fit(talker.wan.as_deref().unwrap_or("no line"), 10),
                    fit(&talker.zone, 14),
                    fit(&who, 31 + wide),
                    talker.flows,
                    talker.bytes.map_or_else(|| "-".to_owned(), bytes),
                ))])
            };
            talkers.groups.iter().map(row).collect()
        }
    };
    if let Some(status) = &snapshot.status {
        let by_line = status.wans.iter().map(|wan| format!("{} {}", wan.name, wan.flows)).collect::<Vec<_>>();
        panel.extend(super::fold(&format!("flows by line: {}", by_line.join(", ")), 2, width, PALE));
        if status.fast_path.on {
            let cached = status.fast_path.flows.iter().map(|(family, flows)| format!("{flows} {family}"));
            let cached = cached.collect::<Vec<_>>().join(", ");
            panel.push(Line::styled(format!("entries in the fast path: {cached}"), PALE));
        }
    }
    Content { header: Line::styled(header, HEAD), rows, panel }
}
