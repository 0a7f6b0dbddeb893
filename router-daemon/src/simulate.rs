//! A recorded incident beside what other settings would have made of it, for people.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use mwan::journal::simulate::{Incident, Side, Simulation, Spread};

/// The page `routerctl simulate` shows.
pub fn told(simulation: &Simulation) -> String {
    let Simulation { settings, phases, outages, recorded, simulated, unknown_targets } = simulation;
    let settings = if settings.is_empty() { "the same settings".to_owned() } else { settings.join(" ") };
    let mut rows = vec![[String::new(), "as recorded".to_owned(), format!("under {settings}")]];
    rows.extend(
        outages.iter().map(|outage| [silence(outage), noticed(outage.recorded), simulated_as(outage, *phases)]),
    );
    let row =
        |what: &str, of: fn(&Side) -> Spread<f64>| [what.to_owned(), counted(of(recorded)), counted(of(simulated))];
    rows.push(row("lines lost", |side| side.failovers));
    rows.push(row("of them while their targets answered", |side| side.false_verdicts));
    rows.push(row("changes of the choice of lines", |side| side.decisions));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let (first, second) = (width(0), width(1));
    let mut page = String::new();
    for [what, was, would] in &rows {
        writeln!(page, "{what:first$}  {was:second$}  {would}").ok();
    }
    if outages.is_empty() {
        writeln!(page, "no line of this journal was silent").ok();
    }
    for target in unknown_targets {
        writeln!(page, "the journal knows nothing of {target}: it was taken as silent").ok();
    }
    writeln!(page, "the mean, and from the least to the most, of {phases} runs that differ in when the probes are due")
        .ok();
    page
}

/// `wan2 IPv4 silent 2026-11-21T03:12:07.1Z for 6.0 s`.
fn silence(Incident { wan, family, wall, lasted, .. }: &Incident) -> String {
    let at = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_micros(*wall));
    let lasted = lasted.map_or("to the end".to_owned(), |span| format!("for {:.1} s", span.as_secs_f64()));
    format!("{wan} {family} silent {at} {lasted}: lost after")
}

fn noticed(after: Option<Duration>) -> String {
    after.map_or("never".to_owned(), |after| format!("{} ms", after.as_millis()))
}

fn simulated_as(outage: &Incident, phases: u32) -> String {
    let Some(Spread { least, mean, most }) = outage.simulated else { return "never".to_owned() };
    let often =
        if outage.noticed < phases { format!(", in {} of {phases} runs", outage.noticed) } else { String::new() };
    format!("{} ms ({} to {}){often}", mean.as_millis(), least.as_millis(), most.as_millis())
}

fn counted(Spread { least, mean, most }: Spread<f64>) -> String {
    if most - least < 0.5 { format!("{mean:.0}") } else { format!("{mean:.1} ({least:.0} to {most:.0})") }
}

#[cfg(test)]
mod tests {
    use config::units::Family;

    use super::*;

    #[test]
    fn both_stand_side_by_side() {
        let ms = Duration::from_millis;
        let once = |value: f64| Spread { least: value, mean: value, most: value };
        let incident = |family, recorded, noticed, simulated| Incident {
            wan: "wan2".parse().unwrap(),
            family,
            wall: 1_000_000_113_000,
            unsure: ms(9),
            lasted: Some(ms(6020)),
            recorded,
            noticed,
            simulated,
        };
        let spread = Spread { least: ms(2110), mean: ms(2533), most: ms(2995) };
        let side = |wrong| Side { failovers: once(2.0), false_verdicts: wrong, decisions: once(4.0) };
        let page = told(&Simulation {
            settings: vec!["probe.interval=1s".to_owned(), "probe.fall=2".to_owned()],
            phases: 10,
            outages: vec![
                incident(Family::V4, Some(ms(352)), 10, Some(spread)),
                incident(Family::V6, None, 3, Some(spread)),
                incident(Family::V6, Some(ms(352)), 0, None),
            ],
            recorded: side(once(0.0)),
            simulated: side(Spread { least: 0.0, mean: 0.6, most: 2.0 }),
            unknown_targets: Vec::new(),
        });
        assert_eq!(
            page.lines().collect::<Vec<_>>(),
            [
                "                                                                 as recorded  under probe.interval=1s probe.fall=2",
                "wan2 IPv4 silent 1970-01-12T13:46:40.113Z for 6.0 s: lost after  352 ms       2533 ms (2110 to 2995)",
                "wan2 IPv6 silent 1970-01-12T13:46:40.113Z for 6.0 s: lost after  never        2533 ms (2110 to 2995), in 3 of 10 runs",
                "wan2 IPv6 silent 1970-01-12T13:46:40.113Z for 6.0 s: lost after  352 ms       never",
                "lines lost                                                       2            2",
                "of them while their targets answered                             0            0.6 (0 to 2)",
                "changes of the choice of lines                                   4            4",
                "the mean, and from the least to the most, of 10 runs that differ in when the probes are due",
            ]
        );
    }
}
