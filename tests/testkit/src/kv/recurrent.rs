//! Layers that keep a state in place of rows.

use super::Strategy;
use super::model::*;
use super::trial::*;
use crate::{Check, Subject};
use kvern_contract::*;
use std::time::Duration;

const A: SessionId = SessionId(1);

pub(super) fn recurrent(subject: &Subject<'_, Strategy>) -> Check {
    let strategy = subject.instance()?;
    let mut spec = spec(&*strategy)?;
    spec.shape.layers[1].kind = LayerKind::Recurrent { state_bytes: 48, conv_bytes: 16 };
    let mut ask = ask(&*strategy);
    ask.shape = spec.shape.clone();
    spec.policy = match strategy.policy(&ask) {
        Ok(policy) => policy,
        Err(error) if error.kind == ErrorKind::Unsupported => return Ok(()),
        Err(error) => return Err(format!("policy with a recurrent layer: {error}")),
    };
    if spec.policy.window.is_some() {
        return Ok(());
    }
    let mut trial = Trial::open(strategy, &spec, crate::double::MemoryStorage::new())?;
    let keys = text(1, 0, 200);
    let known = trial.fill(A, &keys)?;
    let found = trial.find(&keys)?.tokens;
    need(found == 0, || format!("{found} tokens are found, and no state is stored"))?;
    let state = |at| PageKey { session: A, layer: LayerIndex(1), part: Part::State { at } };
    let bytes: Vec<u8> = (0..64).collect();
    let tag = |at| PageTag {
        first: at,
        layer: 1,
        tokens: 0,
        bytes: 64,
        crc: kvern_record::checksum(&bytes),
        chain: chain(&keys[..at as usize]),
        encoding: 0,
    };
    for at in [64, 100, 200] {
        let page = PageRef { key: state(at), tag: tag(at), bytes: &bytes };
        went("store of a state", trial.store.store(&[page]))?;
    }
    if trial.rules.finds {
        let whole = trial.find(&keys)?.tokens;
        let wanted = if trial.rules.partial { 200 } else { 64 };
        need(whole == wanted, || format!("{whole} tokens are found, and a state is at {wanted}"))?;
        let part = trial.find(&keys[..190])?.tokens;
        need(part == 64, || format!("{part} of 190 tokens are found; states are at 64 and 100"))?;
    }
    let landed = went("rewind", trial.store.rewind(A, 150))?;
    need(landed == 100, || format!("a rewind to 150 lands at {landed}; states are at 64 and 100"))?;
    let answers = trial.load(&[state(100), state(200), key(A, 0, 0)], Duration::MAX)?;
    need(answers[1] == Err(Verdict::Missing), || "a state past the rewind is still there".into())?;
    need(answers[0].as_ref().is_ok_and(|(came, got)| *came == tag(100) && *got == bytes), || {
        format!("the state at 100 comes back as {:?}", answers[0])
    })?;
    right(key(A, 0, 0), &known.pages[&(0, 0)], answers[2].clone())?;
    Ok(())
}
