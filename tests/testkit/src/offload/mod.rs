//! The suite of offload policies: every unit placed once, within the budgets, where the operator
//! asked for it, and the same answer to the same question. The reference for a count of layers is
//! every choice of as many: which of them fit, and what the cheapest and the dearest need.

mod ask;

use crate::case::need;
use crate::{Case, Check, Promise, Subject, for_all};
use ask::Question;
use kvern_contract::*;
use std::collections::BTreeMap;

type Policy = dyn OffloadPolicy;

const SAME: Promise = Promise::new("OffloadPolicy::describe", "Answer the same every time.");
const DEFAULTS: Promise = Promise::new("OffloadDescription::options", "Defaults, every known name");
const PURE: Promise =
    Promise::new("OffloadPolicy::plan", "Be pure: the same ask gives the same answer");
const OPTION: Promise = Promise::new("OffloadPolicy::plan", "Invalid (an option)");
const NEEDED: Promise = Promise::new("OffloadPolicy::plan", "OverBudget (says what is needed)");
const ONCE: Promise = Promise::new("Placement::units", "Every unit exactly once.");
const ROOM: Promise = Promise::new("TierFacts::budget_bytes", "Room for weights, in bytes.");
const THERE: Promise = Promise::new("PlanAsk::tiers", "The memories there are, nearest first.");
const WHY: Promise = Promise::new("Placed::reason", "Why, in a few words for the plan's table.");
const HOST: Promise =
    Promise::new("PlanAsk::host_layers", "Placed layers that the operator asked for on the host");
const FREE: Promise = Promise::new("PlanAsk::host_layers", "0: the policy decides.");
const DEVICE: Promise = Promise::new(
    "PlanAsk::device_layers",
    "Placed layers that the operator asked for on the device",
);
const CACHE: Promise =
    Promise::new("Placement::expert_cache_bytes", "Room for experts that come and go");
const AHEAD: Promise = Promise::new("Placement::read_ahead_units", "How many units to read ahead");
const OBSERVES: Promise =
    Promise::new("OffloadDescription::observes", "Whether it wants [`PlanAsk::observed`]");

/// Every case, in the order in which they run.
pub fn cases() -> Vec<Case<Policy>> {
    let always = |_: &Policy| None;
    let case = |name, promises, check| Case { name, promises, skip: always, check };
    vec![
        case("a_description_is_a_constant", &[SAME, DEFAULTS], description),
        case("an_option_of_another_type_is_refused_by_its_name", &[OPTION], options),
        case("every_unit_is_placed_once_where_there_is_room", &[ONCE, ROOM, THERE, WHY], placed),
        case("where_the_policy_decides_there_is_always_an_answer", &[FREE, CACHE, AHEAD], decides),
        case("as_many_layers_as_were_counted_are_kept", &[HOST, NEEDED], counted),
        case("the_device_takes_the_layers_that_were_counted", &[DEVICE], on_device),
        case("the_same_question_has_the_same_answer", &[PURE], pure),
        Case {
            name: "what_was_observed_changes_nothing_where_that_is_not_wanted",
            promises: &[OBSERVES],
            skip: |policy| policy.describe().observes.then_some("it observes"),
            check: unmoved,
        },
    ]
}

/// Runs every case on what `make` makes, for a plugin's own test.
///
/// # Panics
/// Where a promise is broken.
pub fn hold(make: impl Fn() -> Box<Policy>) {
    crate::hold(&cases(), &Subject::new(&|| Ok(make())));
}

fn description(subject: &Subject<'_, Policy>) -> Check {
    let (one, other) = (subject.instance()?, subject.instance()?);
    let described = one.describe();
    need(one.describe() == described && other.describe() == described, || {
        format!("it described itself as {described:?}, then as {:?}", other.describe())
    })?;
    need(!described.name.is_empty() && !described.version.is_empty(), || {
        "name or version is empty".into()
    })?;
    // Defaults are options that work.
    let ask = plain().ask(&described.options);
    one.plan(&ask).map(drop).map_err(|e| format!("its own defaults are refused: {e}"))
}

/// Three layers and room for everything.
fn plain() -> Question {
    Question {
        layers: vec![vec![40, 10]; 3],
        loose: vec![30, 20],
        routed: false,
        device: None,
        host: 1000,
        host_layers: 0,
        device_layers: 0,
    }
}

fn options(subject: &Subject<'_, Policy>) -> Check {
    let policy = subject.instance()?;
    let defaults = policy.describe().options;
    // The host refuses names that there are not; what a value may be only the plugin knows.
    let mut wrong = Vec::new();
    for (name, value) in &defaults {
        wrong.push((
            name.clone(),
            match value {
                OptionValue::Text(_) => OptionValue::Integer(-1),
                _ => OptionValue::Text("no value of it".into()),
            },
        ));
    }
    for (name, value) in wrong {
        let mut options = defaults.clone();
        options.insert(name.clone(), value.clone());
        match policy.plan(&plain().ask(&options)) {
            Err(e) if e.kind == ErrorKind::Invalid && e.message.contains(&name) => {}
            Err(e) => return Err(format!("option {name} = {value:?} answers {:?}: {e}", e.kind)),
            Ok(_) => return Err(format!("option {name} = {value:?} is taken")),
        }
    }
    Ok(())
}

/// The placement by unit, once it is known to be one: all units, once, in memories that are there
/// and with room.
fn judged(
    ask: &PlanAsk,
    placement: &Placement,
) -> std::result::Result<BTreeMap<UnitId, Tier>, String> {
    let mut places = BTreeMap::new();
    for Placed { unit, tier, reason } in &placement.units {
        need(ask.units.iter().any(|u| u.id == *unit), || format!("{unit:?} is not asked about"))?;
        need(places.insert(*unit, *tier).is_none(), || format!("{unit:?} is placed twice"))?;
        need(!reason.trim().is_empty(), || format!("{unit:?} is placed without a reason"))?;
    }
    for unit in &ask.units {
        need(places.contains_key(&unit.id), || format!("{:?} is not placed", unit.id))?;
    }
    for tier in places.values() {
        need(ask.tiers.iter().any(|facts| facts.tier == *tier), || {
            format!("there is no {tier:?}")
        })?;
    }
    for facts in &ask.tiers {
        let there = ask.units.iter().filter(|unit| places[&unit.id] == facts.tier);
        let mut bytes: u64 = there.map(|unit| unit.bytes).sum();
        // Experts come and go where they are computed: in the nearest memory.
        if ask.tiers.first() == Some(facts) {
            bytes = bytes.saturating_add(placement.expert_cache_bytes);
        }
        need(bytes <= facts.budget_bytes, || {
            format!("{bytes} bytes are placed in {} of {:?}", facts.budget_bytes, facts.tier)
        })?;
    }
    Ok(places)
}

/// Steps of a trace are questions, asked of one instance.
fn for_questions(
    subject: &Subject<'_, Policy>,
    choose: fn(&mut crate::Random) -> Question,
    check: impl Fn(&Policy, &Question, &Options) -> Check,
) -> Check {
    let policy = subject.instance()?;
    let options = policy.describe().options;
    let trace = |random: &mut crate::Random| (0..20).map(|_| choose(random)).collect();
    for_all(subject.seeds(50), trace, |questions: &[Question]| {
        questions.iter().try_for_each(|question| check(&*policy, question, &options))
    })
}

fn placed(subject: &Subject<'_, Policy>) -> Check {
    for_questions(subject, Question::free, |policy, question, options| {
        let ask = question.ask(options);
        let Ok(placement) = policy.plan(&ask) else { return Ok(()) };
        judged(&ask, &placement).map(drop)
    })
}

fn decides(subject: &Subject<'_, Policy>) -> Check {
    for_questions(subject, Question::free, |policy, question, options| {
        let ask = question.ask(options);
        let placement =
            policy.plan(&ask).map_err(|e| format!("the disk has room, and yet: {e}"))?;
        judged(&ask, &placement)?;
        // Each unit that is read ahead has its bytes in memory before it is used.
        let (ahead, most) = (placement.read_ahead_units as usize, 2 * ask.units.len() + 2);
        need(ahead <= most, || {
            format!("{ahead} units are read ahead, and there are {}", ask.units.len())
        })
    })
}

/// Layers all of whose units lie in `tier`. Parts of others may lie there too.
fn layers_in(ask: &PlanAsk, places: &BTreeMap<UnitId, Tier>, tier: Tier) -> usize {
    let whole = |layer: &u32| {
        let mut units = ask.units.iter().filter(|unit| unit.layer == Some(LayerIndex(*layer)));
        units.all(|unit| places[&unit.id] == tier)
    };
    (0..ask.layers).filter(whole).count()
}

/// The least and the most that a choice of `count` layers needs, of every choice that there is.
fn needs(question: &Question, count: usize) -> (u64, u64) {
    let bytes = question.layer_bytes();
    let choices = (0u32..1 << bytes.len()).filter(|choice| choice.count_ones() as usize == count);
    let sums = choices.map(|choice| {
        let chosen = bytes.iter().enumerate().filter(|(layer, _)| choice >> layer & 1 == 1);
        chosen.map(|(_, bytes)| bytes).sum::<u64>()
    });
    sums.fold((u64::MAX, 0), |(least, most), sum| (least.min(sum), most.max(sum)))
}

fn counted(subject: &Subject<'_, Policy>) -> Check {
    for_questions(subject, Question::counted, |policy, question, options| {
        let ask = question.ask(options);
        let count = question.layers.len().min(question.host_layers as usize);
        let (least, most) = needs(question, count);
        let placement = match policy.plan(&ask) {
            Ok(placement) => placement,
            Err(e) if e.kind != ErrorKind::OverBudget => {
                let (asked, there) = (question.host_layers, question.layers.len());
                let answer =
                    format!("{asked} of {there} layers on the host answer {:?}: {e}", e.kind);
                return Err(format!("{answer}; a count beyond the layers is all of them"));
            }
            Err(e) => {
                need(most > question.host, || {
                    format!("any {count} layers fit {} bytes, and yet: {e}", question.host)
                })?;
                let says = e.message.split(|c: char| !c.is_ascii_digit());
                let says: Vec<u64> = says.filter_map(|word| word.parse().ok()).collect();
                return need(says.iter().any(|n| (least..=most).contains(n)), || {
                    format!("{count} layers need {least} bytes or more, and it says: {e}")
                });
            }
        };
        need(least <= question.host, || format!("{count} layers do not fit {}", question.host))?;
        let whole = layers_in(&ask, &judged(&ask, &placement)?, Tier::Host);
        need(whole == count, || format!("{count} layers were asked for, and {whole} are kept"))
    })
}

fn on_device(subject: &Subject<'_, Policy>) -> Check {
    let policy = subject.instance()?;
    let options = policy.describe().options;
    for device_layers in 1..=6 {
        let question = Question {
            device: Some(10_000),
            device_layers,
            host_layers: 1,
            layers: vec![vec![40, 10]; 4],
            ..plain()
        };
        let ask = question.ask(&options);
        let placement = policy.plan(&ask).map_err(|e| {
            format!("{device_layers} of 4 layers on the device, all of which fit, answer: {e}")
        })?;
        let whole = layers_in(&ask, &judged(&ask, &placement)?, Tier::Device);
        let wanted = device_layers.min(4) as usize;
        need(whole == wanted, || {
            format!("{wanted} layers were asked for on the device, and {whole} are there")
        })?;
    }
    let alone = Question { device_layers: 1, ..plain() };
    match policy.plan(&alone.ask(&options)) {
        Err(_) => Ok(()),
        Ok(_) => Err("a layer on the device is promised, and there is no device".into()),
    }
}

fn pure(subject: &Subject<'_, Policy>) -> Check {
    let other = subject.instance()?;
    let before = std::cell::RefCell::new(Vec::new());
    for_questions(subject, Question::free, |policy, question, options| {
        let ask = question.ask(options);
        let first = policy.plan(&ask);
        // Other questions in between, and an instance that was asked others before.
        let mut before = before.borrow_mut();
        let between: Vec<_> = before.iter().rev().take(3).map(|ask| policy.plan(ask)).collect();
        let again = policy.plan(&ask);
        need(first == again, || format!("first {first:?}, then {again:?}"))?;
        let elsewhere = other.plan(&ask);
        need(first == elsewhere, || format!("one instance {first:?}, another {elsewhere:?}"))?;
        drop(between);
        before.push(ask);
        Ok(())
    })
}

fn unmoved(subject: &Subject<'_, Policy>) -> Check {
    for_questions(subject, Question::free, |policy, question, options| {
        let ask = question.ask(options);
        let observed = |unit: &Unit| Observed {
            unit: unit.id,
            uses: u64::from(unit.id.0) * 7 % 5,
            cache_hits: u64::from(unit.id.0) % 3,
            stall_ms: f64::from(unit.id.0) * 1.5,
        };
        let seen = PlanAsk { observed: ask.units.iter().map(observed).collect(), ..ask.clone() };
        let (one, other) = (policy.plan(&ask), policy.plan(&seen));
        need(one == other, || format!("{one:?}, and after a sweep {other:?}"))
    })
}

/// Which of `layers` layers of 10 bytes a policy keeps in host memory of `bytes`: `count` of them,
/// or as many as it likes where `count` is 0.
///
/// # Errors
/// As [`OffloadPolicy::plan`].
pub fn host_layers(policy: &Policy, layers: u32, count: u32, bytes: u64) -> Result<Vec<u32>> {
    let question = Question {
        layers: vec![vec![10]; layers as usize],
        loose: Vec::new(),
        host: bytes,
        host_layers: count,
        ..plain()
    };
    let ask = question.ask(&policy.describe().options);
    let placement = policy.plan(&ask)?;
    let kept = placement.units.iter().filter(|placed| placed.tier == Tier::Host);
    Ok(kept.map(|placed| placed.unit.0).collect())
}
