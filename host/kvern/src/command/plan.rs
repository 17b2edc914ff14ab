//! `kvern plan`: what a run would keep, stream and read, and how long it would take.

use crate::ceilings::age;
use crate::cli::PlanArgs;
use crate::fail::Outcome;
use crate::out::{self, size};
use crate::planned::{Planned, tier};
use crate::runtime::Prepared;
use crate::settings::Settings;
use comfy_table::{ContentArrangement, Table, presets};
use jiff::Timestamp;
use kvern_engine::{UnitFacts, UnitTier, WeightPath};

/// Columns of the text.
const WIDTH: usize = 100;

/// Runs the command.
pub fn run(args: &PlanArgs) -> Outcome<()> {
    let settings = Settings::of(&args.run)?;
    let planned = Planned::of(Prepared::new(settings)?, args.rows.unwrap_or(1))?;
    match args.json {
        true => out::document(&planned.document()),
        false => out::say(&text(&planned)),
    }
}

fn text(planned: &Planned) -> String {
    let facts = &planned.facts;
    let mut rows = Rows::default();
    let weights: u64 = facts.units.iter().map(|unit| unit.bytes).sum();
    rows.add("model", format!("{}, {} of matrices", planned.model, size(weights)));
    let [kv, offload, device] = planned.origins.each_ref().map(|o| o.described.name.as_str());
    let (why, threads) = (&planned.offload_why, planned.settings.threads);
    rows.add("plugins", format!("kv {kv}, offload {offload} ({why}), device {device}"));
    rows.add("threads", threads.to_string());
    let said = if planned.settings.context_tokens.is_some() {
        ""
    } else {
        " unless --context-tokens says otherwise"
    };
    rows.add(
        "context",
        format!("{} tokens{said}, {} at once", facts.context_tokens, sequences(facts.sessions)),
    );
    let (mode, most) = (facts.mlp_chunks.mode(), facts.mlp_chunks.rows);
    rows.add("steps", format!("{} rows at most", facts.rows));
    rows.add("mlp chunks", format!("{most} rows at most ({mode})"));
    let budget = facts.budget.map_or("none".into(), size);
    let (from, least) = (planned.settings.memory.from.word(), size(facts.least_budget));
    rows.add("memory budget", format!("{budget} ({from}); the least that works is {least}"));
    for (holder, bytes) in &facts.holders {
        rows.add(&format!("  {holder}"), size(*bytes));
    }
    reading(planned, &mut rows);
    ceilings(planned, &mut rows);
    prediction(planned, &mut rows);
    format!("{}\n{}\n", rows.text(), units(&facts.units))
}

fn reading(planned: &Planned, rows: &mut Rows) {
    let (facts, reading) = (&planned.facts, &planned.reading);
    let (streamed, read) = (size(facts.streamed_bytes), size(facts.read_bytes));
    rows.add("a sweep", format!("streams {streamed}, reads {read}"));
    rows.add("staging", size(facts.staging_bytes));
    rows.add("read ahead", format!("{} units", facts.read_ahead_units));
    let (tensors, bytes) = facts.copied;
    rows.add("copied", format!("{tensors} tensors, {} a sweep", size(bytes)));
    rows.add("read path", format!("{}: {}", reading.word(), reading.reason));
    if let Some(refused) = facts.refused.as_ref().filter(|_| reading.how == WeightPath::Direct) {
        rows.add("  refused", refused.clone());
    }
    let spec = &planned.service;
    let why = planned.no_ring.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    let block = size(spec.piece_bytes as u64);
    rows.add("io", format!("{}{why}, {} reads of {block} at once", facts.path, spec.depth));
    if let Some(limit) = spec.bytes_per_second {
        rows.add("  limit", format!("{} a second", size(limit)));
    }
}

fn ceilings(planned: &Planned, rows: &mut Rows) {
    let now = Timestamp::now();
    let text = planned.known.drive.as_ref().map_or_else(Clone::clone, |drive| {
        let (best, median) = (rate(drive.best()), rate(drive.median()));
        let when = age(&drive.measured_at, now);
        format!("{best} at best, {median} in the median, by {}; {when}", drive.path)
    });
    rows.add("drive", text);
    let rates = planned.known.rates(planned.rows);
    let text = planned.known.device.as_ref().map_or_else(Clone::clone, |device| {
        let one = rates.memory.map_or("unknown".into(), rate);
        let many = rates.flops.map_or(String::new(), |flops| {
            format!(", {:.1} GFlop/s for {} rows", flops / 1e9, planned.rows)
        });
        let like = if device.exact { "" } else { ", on products of another model's sizes" };
        let when = age(&device.ceiling.measured_at, now);
        format!("weights at {one} for one row{many}{like}; {when}")
    });
    rows.add("device", text);
}

fn prediction(planned: &Planned, rows: &mut Rows) {
    let Some(usual) = planned.foreseen() else {
        rows.add("prediction", format!("none: {}", planned.unforeseen()));
        return;
    };
    let many = f64::from(usual.rows);
    rows.add(
        "prediction",
        format!(
            "{} a sweep, {:.2} tokens/s: {} reading, {} computing, {} that do not overlap",
            seconds(usual.seconds),
            many / usual.seconds,
            seconds(usual.read),
            seconds(usual.compute),
            seconds(usual.apart)
        ),
    );
    if let Some(best) = planned.at_best().filter(|_| planned.facts.read_bytes > 0) {
        let (sweep, tokens) = (seconds(best.seconds), many / best.seconds);
        rows.add("  drive at its best", format!("{sweep} a sweep, {tokens:.2} tokens/s"));
    }
}

/// A rate for people.
pub fn rate(bytes_per_second: f64) -> String {
    format!("{:.2} GB/s", bytes_per_second / 1e9)
}

/// A time for people.
pub fn seconds(seconds: f64) -> String {
    if seconds < 0.1 { format!("{:.2} ms", seconds * 1e3) } else { format!("{seconds:.3} s") }
}

fn sequences(count: u32) -> String {
    if count == 1 { "1 sequence".into() } else { format!("{count} sequences") }
}

/// Keys and what they say, in lines of at most [`WIDTH`] columns.
#[derive(Default)]
struct Rows(String);

const KEY: usize = 20;

impl Rows {
    fn add(&mut self, key: &str, text: String) {
        let mut line = format!("{key:KEY$}");
        for (index, word) in text.split_whitespace().enumerate() {
            if index > 0 && line.chars().count() + 1 + word.chars().count() > WIDTH {
                self.0 += line.trim_end();
                self.0.push('\n');
                line = " ".repeat(KEY);
            } else if index > 0 {
                line.push(' ');
            }
            line += word;
        }
        self.0 += line.trim_end();
        self.0.push('\n');
    }

    fn text(&self) -> &str {
        &self.0
    }
}

/// Units of one fate.
struct Group {
    tier: UnitTier,
    roles: String,
    bytes: u64,
    reason: String,
    /// Empty outside of the layers.
    layers: Vec<u32>,
}

/// Units that fare alike, those of a layer together.
fn groups(units: &[UnitFacts]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut parts: Vec<(Option<u32>, Group)> = Vec::new();
    for unit in units {
        let of = |(layer, part): &&mut (Option<u32>, Group)| {
            *layer == unit.layer && part.tier == unit.tier && part.reason == unit.reason
        };
        match parts.iter_mut().find(of).filter(|_| unit.layer.is_some()) {
            Some((_, part)) => {
                part.roles = format!("{}+{}", part.roles, unit.role);
                part.bytes += unit.bytes;
            }
            None => parts.push((
                unit.layer,
                Group {
                    tier: unit.tier,
                    roles: unit.role.clone(),
                    bytes: unit.bytes,
                    reason: unit.reason.clone(),
                    layers: unit.layer.into_iter().collect(),
                },
            )),
        }
    }
    for (layer, part) in parts {
        let alike = |group: &&mut Group| {
            (group.tier, group.bytes) == (part.tier, part.bytes)
                && (&group.roles, &group.reason) == (&part.roles, &part.reason)
        };
        match groups.iter_mut().find(alike).filter(|_| layer.is_some()) {
            Some(group) => group.layers.extend(layer),
            None => groups.push(part),
        }
    }
    groups
}

/// Ascending numbers, neighbours as `0-3`.
fn ranges(numbers: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match parts.last_mut().filter(|(_, end)| end.checked_add(1) == Some(*number)) {
            Some((_, end)) => *end = *number,
            None => parts.push((*number, *number)),
        }
    }
    let part = |(start, end): &(u32, u32)| match start == end {
        true => start.to_string(),
        false => format!("{start}-{end}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(", ")
}

fn units(units: &[UnitFacts]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_content_arrangement(ContentArrangement::DynamicFullWidth);
    table.set_width(WIDTH as u16);
    table.set_header(["where", "what", "layers", "each", "together", "why"]);
    for group in groups(units) {
        let count = group.layers.len().max(1) as u64;
        table.add_row([
            tier(group.tier).to_string(),
            group.roles.clone(),
            ranges(&group.layers),
            size(group.bytes),
            size(group.bytes * count),
            group.reason.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(layer: Option<u32>, role: &str, tier: UnitTier) -> UnitFacts {
        let (role, reason) = (role.to_string(), "told so".to_string());
        UnitFacts { layer, role, tier, reason, bytes: 10, ..UnitFacts::default() }
    }

    #[test]
    fn units_that_fare_alike_are_a_row_and_all_bytes_are_in_one() {
        let mut units = Vec::new();
        for layer in 0..6 {
            let stays = if layer % 3 == 1 { UnitTier::Resident } else { UnitTier::Streamed };
            units.push(unit(Some(layer), "attention", stays));
            let mlp = if layer == 5 { UnitTier::Resident } else { stays };
            units.push(unit(Some(layer), "mlp", mlp));
        }
        units.push(unit(None, "head", UnitTier::Resident));
        let groups = groups(&units);
        let told = |g: &Group| (tier(g.tier), g.roles.clone(), ranges(&g.layers), g.bytes);
        let told: Vec<_> = groups.iter().map(told).collect();
        let row = |tier, roles: &str, layers: &str, bytes| {
            (tier, roles.to_string(), layers.to_string(), bytes)
        };
        assert_eq!(
            told,
            [
                row("streamed", "attention+mlp", "0, 2-3", 20),
                row("kept", "attention+mlp", "1, 4", 20),
                row("streamed", "attention", "5", 10),
                row("kept", "mlp", "5", 10),
                row("kept", "head", "", 10),
            ]
        );
        let bytes: u64 = groups.iter().map(|g| g.bytes * g.layers.len().max(1) as u64).sum();
        assert_eq!(bytes, units.iter().map(|u| u.bytes).sum::<u64>());
    }

    #[test]
    fn no_line_is_wider_than_a_hundred_columns() {
        let mut rows = Rows::default();
        rows.add("key", "a word and another one, ".repeat(20));
        let many: Vec<UnitFacts> = (0..80)
            .map(|layer| {
                let stays = if layer % 2 == 0 { UnitTier::Resident } else { UnitTier::Streamed };
                unit(Some(layer), "attention", stays)
            })
            .collect();
        let text = format!("{}{}", rows.text(), units(&many));
        assert!(text.lines().count() > 10);
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }
}
