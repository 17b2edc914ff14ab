//! The one table of plugin names: which KV strategy suits a model and a machine, and which device
//! and policy run where nothing was asked for. A name that is not discovered is passed over;
//! everything else in the host takes plugins as they are found.

use crate::fail::{Failure, Outcome};

/// What the selector favours.
pub const PROFILES: [&str; 4] = ["balanced", "latency", "capacity", "bounded-window"];
/// Devices, best first.
pub const DEVICES: [&str; 3] = ["cuda", "mps", "cpu"];
/// What offload policy `auto` resolves to, the first that is found, and why: a count of layers or
/// the memory budget says how much is kept.
pub fn offload_auto(counted: bool) -> ([&'static str; 4], &'static str) {
    match counted {
        true => (["middle-band", "prefix", "suffix", "interleaved"], "placement by count"),
        false => (["interleaved", "middle-band", "prefix", "suffix"], "placement by budget"),
    }
}

pub const RESIDENT: &str = "resident";
const PAGED: &str = "paged";
const CHUNKED: &str = "chunked";
const WINDOWED: &str = "sliding-window-ring-buffer";
const QUANTIZED: &str = "quantized-cold-tier";
const JOURNAL: &str = "log-structured-journal";
const SEGMENTED: &str = "streamed-segmented";
const TIERED: &str = "tiered-write-back";

/// A coarse size, of memory or of a model.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Size {
    /// There is none: an accelerator on a machine without.
    None,
    /// Below the first border.
    Small,
    /// Between the borders.
    Medium,
    /// From the second border on.
    Large,
    /// It could not be read.
    Unknown,
}

impl Size {
    /// For the report.
    pub fn word(self) -> &'static str {
        match self {
            Size::None => "none",
            Size::Small => "small",
            Size::Medium => "medium",
            Size::Large => "large",
            Size::Unknown => "unknown",
        }
    }

    /// Total host memory: medium from 16 GiB, large from 64 GiB.
    pub fn of_memory(bytes: Option<u64>) -> Size {
        match bytes {
            None | Some(0) => Size::Unknown,
            Some(b) if b < 16 << 30 => Size::Small,
            Some(b) if b < 64 << 30 => Size::Medium,
            Some(_) => Size::Large,
        }
    }

    /// A model's parameters, all experts counted: small up to 4 billion, medium up to 16.
    pub fn of_model(parameters: Option<u64>) -> Size {
        match parameters {
            None => Size::Unknown,
            Some(n) if n <= 4_000_000_000 => Size::Small,
            Some(n) if n <= 16_000_000_000 => Size::Medium,
            Some(_) => Size::Large,
        }
    }
}

/// What the choice depends on.
#[derive(Clone, PartialEq, Debug)]
pub struct Ask {
    /// One of [`PROFILES`].
    pub profile: String,
    /// A strategy that the user pinned.
    pub pinned: Option<String>,
    /// A window that the user asked for.
    pub window_tokens: Option<u32>,
    /// Whether the model takes nothing but text.
    pub text_only: bool,
    /// Host memory.
    pub memory: Size,
    /// An accelerator's memory.
    pub accelerator: Size,
    /// Parameters.
    pub model: Size,
}

/// What was chosen, and what came of it.
#[derive(Clone, PartialEq, Debug)]
pub struct Selection {
    /// The profile.
    pub profile: String,
    /// The rule that matched.
    pub rule_id: String,
    /// What the user pinned; empty when unset.
    pub requested_override: String,
    /// The choice.
    pub selected: String,
    /// The choice, then what is tried where it cannot be opened.
    pub chain: Vec<String>,
    /// What opened; the choice until then.
    pub applied: String,
}

/// Runs the rules, first match first.
pub fn select(ask: &Ask) -> Outcome<Selection> {
    if !PROFILES.contains(&ask.profile.as_str()) {
        let hint = crate::near::hint(&ask.profile, PROFILES);
        let hint = if hint.is_empty() { ";".to_string() } else { hint };
        return Err(Failure::usage(format!(
            "no selector profile `{}`{hint} known: {}",
            ask.profile,
            PROFILES.join(", ")
        )));
    }
    let (rule_id, chain): (&str, Vec<&str>) = if let Some(pinned) = &ask.pinned {
        ("explicit-override", vec![pinned])
    } else if ask.profile == "bounded-window" {
        ("bounded-window-profile", vec![WINDOWED])
    } else if ask.window_tokens.is_some() {
        ("explicit-window-budget", vec![WINDOWED])
    } else {
        by_profile(ask)
    };
    let chain: Vec<String> = chain.into_iter().map(String::from).collect();
    Ok(Selection {
        profile: ask.profile.clone(),
        rule_id: rule_id.into(),
        requested_override: ask.pinned.clone().unwrap_or_default(),
        selected: chain[0].clone(),
        applied: chain[0].clone(),
        chain,
    })
}

fn by_profile(ask: &Ask) -> (&'static str, Vec<&'static str>) {
    let small = ask.model == Size::Small;
    match (ask.profile.as_str(), ask.text_only) {
        ("capacity", true) => {
            ("capacity-text-full-history", vec![QUANTIZED, PAGED, CHUNKED, RESIDENT])
        }
        ("capacity", false) => ("capacity-multimodal-conservative", vec![PAGED, CHUNKED, RESIDENT]),
        ("latency", true) if ask.memory == Size::Large && (small || ask.model == Size::Medium) => {
            ("latency-high-headroom-resident", vec![RESIDENT, PAGED, CHUNKED])
        }
        ("latency", _) => ("latency-conservative-paged", vec![PAGED, CHUNKED, RESIDENT]),
        (_, true) if small && (ask.memory == Size::Large || ask.accelerator == Size::Large) => {
            ("balanced-small-model-resident", vec![RESIDENT, PAGED, CHUNKED])
        }
        _ => ("balanced-paged-default", vec![PAGED, CHUNKED, RESIDENT]),
    }
}

/// A better strategy for what a request showed, and why; `None` where the running one is right.
pub fn recommend(strategy: &str, artifacts: u64, spills: u64) -> Option<(&'static str, String)> {
    if matches!(strategy, CHUNKED | SEGMENTED) && artifacts >= 64 {
        return Some((JOURNAL, format!("{artifacts} artifacts: a journal compacts them")));
    }
    if strategy == TIERED && spills == 0 {
        return Some((JOURNAL, "nothing was spilled: the tiers cost and do not pay".into()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(profile: &str) -> Ask {
        Ask {
            profile: profile.into(),
            pinned: None,
            window_tokens: None,
            text_only: true,
            memory: Size::Medium,
            accelerator: Size::None,
            model: Size::Small,
        }
    }

    fn rule(ask: Ask) -> (String, String) {
        let found = select(&ask).unwrap();
        assert_eq!(found.selected, found.chain[0]);
        (found.rule_id, found.chain.join(" "))
    }

    #[test]
    fn every_rule_of_the_table_is_reached() {
        let row =
            |ask: Ask, id: &str, chain: &str| assert_eq!(rule(ask), (id.into(), chain.into()));
        row(Ask { pinned: Some("x".into()), ..ask("capacity") }, "explicit-override", "x");
        row(ask("bounded-window"), "bounded-window-profile", WINDOWED);
        row(Ask { window_tokens: Some(8), ..ask("latency") }, "explicit-window-budget", WINDOWED);
        let quantized = "quantized-cold-tier paged chunked resident";
        row(ask("capacity"), "capacity-text-full-history", quantized);
        let media = Ask { text_only: false, ..ask("capacity") };
        row(media, "capacity-multimodal-conservative", "paged chunked resident");
        let roomy = |p| Ask { memory: Size::Large, ..ask(p) };
        row(roomy("latency"), "latency-high-headroom-resident", "resident paged chunked");
        row(ask("latency"), "latency-conservative-paged", "paged chunked resident");
        row(roomy("balanced"), "balanced-small-model-resident", "resident paged chunked");
        row(ask("balanced"), "balanced-paged-default", "paged chunked resident");
        let unknown = Ask { model: Size::Unknown, ..roomy("balanced") };
        row(unknown, "balanced-paged-default", "paged chunked resident");
    }

    #[test]
    fn an_unknown_profile_names_the_known_ones() {
        let failure = select(&ask("balancd")).unwrap_err();
        assert!(failure.message.contains("did you mean `balanced`?"), "{}", failure.message);
        assert!(failure.message.contains("bounded-window"));
    }

    #[test]
    fn borders_belong_to_the_upper_tier_of_memory_and_the_lower_of_models() {
        assert_eq!(Size::of_memory(Some(16 << 30)), Size::Medium);
        assert_eq!(Size::of_memory(Some((16 << 30) - 1)), Size::Small);
        assert_eq!(Size::of_memory(None), Size::Unknown);
        assert_eq!(Size::of_model(Some(4_000_000_000)), Size::Small);
        assert_eq!(Size::of_model(Some(16_000_000_001)), Size::Large);
    }

    #[test]
    fn layers_by_count_are_the_middle_ones_and_by_budget_they_are_spread() {
        assert_eq!(offload_auto(true).0[0], "middle-band");
        assert_eq!(offload_auto(false).0[0], "interleaved");
        let sorted = |counted| {
            let mut names = offload_auto(counted).0;
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(true), sorted(false), "each stands in for the others");
    }

    #[test]
    fn a_recommendation_needs_what_it_is_about() {
        assert_eq!(recommend(CHUNKED, 63, 0), None);
        assert_eq!(recommend(CHUNKED, 64, 0).unwrap().0, JOURNAL);
        assert_eq!(recommend(TIERED, 0, 1), None);
    }
}
