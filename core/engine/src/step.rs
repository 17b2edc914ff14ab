//! One step: rows of one or many sequences through all layers, in one sweep of the weights. Prefill
//! and decode are the same step with other rows.
//!
//! Ops gather on a list that runs when it must: before streamed weights give way to the next, and
//! around the pages of a layer that have to be loaded. With everything in memory a step is one
//! list.

use crate::engine::Engine;
use crate::events::{Progress, Track, What};
use crate::family::{self, Family, Places, RESIDUAL};
use crate::io::Inputs;
use crate::pager::{Lost, Rows, Segment, Ticket};
use kvern_contract::{
    Error, ErrorKind, Fence, FenceState, KvWindow, Op, Queue, Result, SessionId, Slice, SpanEntry,
    encoding_word,
};
use std::time::{Duration, Instant};

/// How long the engine waits for a device before it asks whether it is still at work.
const SLICE: Duration = Duration::from_secs(1);

/// Which rows' logits are wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    Nothing,
    /// Those of the last so many rows.
    Last(usize),
    All,
}

/// Whether the rows after this one count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// They do.
    Go,
    /// They are of tokens that do not follow: they are cut before the step is the session's.
    Cut,
}

/// Rows that one session adds.
pub(crate) struct StepAsk<'a> {
    pub session: SessionId,
    pub ids: &'a [u32],
    pub want: Want,
}

/// Takes logits: the index of the ask, the row in it, f32 `[vocabulary]`.
pub(crate) type OnLogits<'a> = dyn FnMut(usize, usize, &[f32]) -> Result<Next> + 'a;

/// A step that runs.
struct Running {
    batch: Vec<Rows>,
    rows: u32,
    inputs: Inputs,
    list: Vec<Op>,
    /// Units that the ops on the list are of: the first and the last; before the first layer's,
    /// the embedding.
    units: (Option<usize>, Option<usize>),
    /// Layers whose rows are written by ops on the list.
    written: Vec<usize>,
    /// Sessions that lost a page: their rows count for nothing.
    lost: Vec<Option<Lost>>,
    /// Rows that stay, where the others were cut.
    kept: Vec<Option<u32>>,
}

/// What became of a batch: for each ask whether it lost a page, and the rows that stay of it.
pub(crate) type Ran = (Vec<Option<Lost>>, Vec<Option<u32>>);

impl Engine {
    /// Runs one step. Sessions that lost pages come back, with where to go on from; their rows are
    /// not theirs. A session whose rows were cut holds at most those that stay; fewer where their
    /// page cannot be written again. *Caller*: at least one row, at most `rows_most` in all; each
    /// session once.
    pub(crate) fn step(
        &mut self,
        asks: &[StepAsk<'_>],
        on_logits: &mut OnLogits<'_>,
    ) -> Result<Vec<Lost>> {
        let began = self.events.clock();
        let (mut batch, mut fault) = (Vec::new(), None);
        for ask in asks {
            match self.pager.append(ask.session, ask.ids) {
                Ok(rows) => batch.push(rows),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        let done = match fault.take() {
            None => self.sweep(asks, batch.clone(), on_logits),
            Some(error) => Err(error),
        };
        // Whatever happened, no session is left with tokens that are not its own.
        for (index, rows) in batch.iter().enumerate() {
            let ended = match &done {
                Ok((lost, kept)) if lost[index].is_none() => match kept[index] {
                    Some(some) if some < rows.rows => self.pager.commit_some(rows, some),
                    _ => self.pager.commit(rows),
                },
                _ => self.pager.rewind(rows.session, rows.position).map(|_| ()),
            };
            fault = fault.or(ended.err());
        }
        if began.is_some() {
            self.tell_step(began, asks, &batch, done.as_ref().ok());
        }
        self.events.progress(|| Progress::Swept);
        let (lost, _) = done?;
        fault.map_or_else(|| Ok(lost.into_iter().flatten().collect()), Err)
    }

    fn sweep(
        &mut self,
        asks: &[StepAsk<'_>],
        batch: Vec<Rows>,
        on_logits: &mut OnLogits<'_>,
    ) -> Result<Ran> {
        let (began, arrived) = (self.events.clock(), self.weights.arrived());
        let ids: Vec<u32> = asks.iter().flat_map(|a| a.ids.iter().copied()).collect();
        let positions: Vec<u64> =
            batch.iter().flat_map(|r| r.position..r.position + u64::from(r.rows)).collect();
        for rows in &batch {
            self.pager.cool(rows.session, rows.position)?;
        }
        let inputs = self.io.begin(&ids, &positions)?;
        let (lost, kept) = (vec![None; batch.len()], vec![None; batch.len()]);
        let (rows, list, written) = (ids.len() as u32, Vec::new(), Vec::new());
        let units = (None, None);
        let mut run = Running { batch, rows, inputs, list, units, written, lost, kept };
        let layers = self.family.plan().layers.len();
        let wanted = asks.iter().any(|a| a.want != Want::Nothing);
        // Nobody reads what follows the last layer's attention where no logits are wanted.
        let end = self.layer_units.last().filter(|_| !wanted).map_or(usize::MAX, |units| units.1);
        self.weights.begin(end)?;
        self.embed(&ids, &mut run)?;
        for layer in 0..layers {
            self.attend(layer, layer + 1 == layers && !wanted, &mut run)?;
            if layer + 1 < layers || wanted {
                self.enter(self.layer_units[layer].1, &mut run)?;
                let places = places(&self.activations.slices, &self.weights.table, run.rows);
                let (family, most) = (self.family.as_ref(), self.mlp_chunks.rows);
                family::feed_forward(family, layer, &places, most, &mut run.list);
            }
        }
        match wanted {
            true => self.logits(asks, &mut run, on_logits)?,
            false => self.weights.vouch()?,
        }
        self.flush(&mut run)?;
        self.events.span("sweep", began, || {
            let sweep = self.weights.sweeps();
            let what = What::new(Track::Steps, format!("sweep {sweep}")).arg("sweep", sweep);
            what.bytes(self.weights.arrived() - arrived)
        });
        Ok((run.lost, run.kept))
    }

    fn embed(&mut self, ids: &[u32], run: &mut Running) -> Result<()> {
        let (matrix, scale) = self.family.plan().embedding;
        let (table, at) = match &mut self.embedding_rows {
            Some(reader) => {
                (reader.read(ids, self.storage.as_ref(), self.deadline)?, run.inputs.rows)
            }
            None => (self.weights.table.matrices[matrix.0], run.inputs.ids),
        };
        let out = self.activations.slices[RESIDUAL.0];
        run.list.push(Op::Embed { ids: at, table, out, rows: run.rows, scale });
        Ok(())
    }

    /// From the residual stream through attention and back. With `only_write`, K and V are written
    /// and no more: nobody reads what the last layer would add.
    fn attend(&mut self, layer: usize, only_write: bool, run: &mut Running) -> Result<()> {
        self.enter(self.layer_units[layer].0, run)?;
        if !self.pager.has_room(layer, &run.batch) {
            self.flush(run)?;
        }
        self.pager.open_layer(layer, &run.batch)?;
        let segments = match only_write {
            true => Vec::new(),
            false => self.pager.segments(layer, &run.batch, &run.lost)?,
        };
        let mut coming = match segments.first() {
            Some(first) => self.start_load(layer, first, run)?,
            None => None,
        };
        let at = places(&self.activations.slices, &self.weights.table, run.rows);
        self.family.before_attention(layer, &at, &mut run.list);
        self.write_rows(layer, run)?;
        if coming.is_some() {
            self.flush(run)?;
        }
        for (index, segment) in segments.iter().enumerate() {
            let loaded = coming.take();
            if let Some(ticket) = &loaded {
                for lost in self.pager.finish_load(ticket)? {
                    run.lose(lost);
                }
            }
            if let Some(next) = segments.get(index + 1) {
                coming = self.start_load(layer, next, run)?;
            }
            let ends = (index == 0, index + 1 == segments.len());
            self.attention(layer, segment, loaded.as_ref(), ends, run)?;
            if let Some(ticket) = loaded {
                self.flush(run)?;
                self.pager.release(ticket);
            }
        }
        if !only_write {
            let at = places(&self.activations.slices, &self.weights.table, run.rows);
            self.family.after_attention(layer, &at, &mut run.list);
        }
        Ok(())
    }

    /// Asks for a segment's missing pages, if it has any.
    fn start_load(
        &mut self,
        layer: usize,
        segment: &Segment,
        run: &Running,
    ) -> Result<Option<Ticket>> {
        match segment.missing.is_empty() {
            true => Ok(None),
            false => self.pager.start_load(layer, &run.batch, segment, &run.lost),
        }
    }

    fn write_rows(&mut self, layer: usize, run: &mut Running) -> Result<()> {
        let writes = self.io.writes(&self.pager.row_writes(layer, &run.batch)?)?;
        let at = places(&self.activations.slices, &self.weights.table, run.rows);
        let mut op = write_op(self.family.as_ref(), layer, &at, encoding_word(self.kv_dtype));
        if let Op::RopeWrite { positions, cos, sin, writes: to, pool, .. } = &mut op {
            (*positions, *cos, *sin) = (run.inputs.rows, run.inputs.cos, run.inputs.sin);
            (*to, *pool) = (writes, self.pool);
        }
        run.list.push(op);
        run.written.push(layer);
        Ok(())
    }

    fn attention(
        &mut self,
        layer: usize,
        segment: &Segment,
        loaded: Option<&Ticket>,
        (first, last): (bool, bool),
        run: &mut Running,
    ) -> Result<()> {
        let (mut spans, mut entries, mut row) = (Vec::new(), Vec::new(), 0);
        for (index, rows) in run.batch.iter().enumerate() {
            let entry = entries.len() as u32;
            if run.lost[index].is_none() {
                entries.extend(self.pager.entries(layer, rows, index, segment, loaded)?);
            }
            let count = entries.len() as u32 - entry;
            let position = rows.position as u32;
            spans.push(SpanEntry {
                row,
                rows: rows.rows,
                position,
                entry,
                entries: count,
                ..SpanEntry::default()
            });
            row += rows.rows;
        }
        let (spans, entries) = (self.io.spans(&spans)?, self.io.entries(&entries)?);
        let at = places(&self.activations.slices, &self.weights.table, run.rows);
        let window = self.pager.policy().window;
        let mut op = attention_op(self.family.as_ref(), layer, &at, window, (first, last));
        if let Op::Attention {
            state, spans: to_spans, entries: to_entries, pool, sequences, ..
        } = &mut op
        {
            if !(first && last) {
                *state = self.activations.state;
            }
            (*to_spans, *to_entries, *pool) = (spans, entries, self.pool);
            *sequences = run.batch.len() as u32;
        }
        run.list.push(op);
        Ok(())
    }

    /// Logits of the wanted rows, in waves.
    fn logits(
        &mut self,
        asks: &[StepAsk<'_>],
        run: &mut Running,
        on_logits: &mut OnLogits<'_>,
    ) -> Result<()> {
        let (mut wanted, mut row) = (Vec::new(), 0);
        for (index, ask) in asks.iter().enumerate() {
            let skip = match ask.want {
                Want::Nothing => ask.ids.len(),
                Want::Last(rows) => ask.ids.len().saturating_sub(rows),
                Want::All => 0,
            };
            let alive = run.lost[index].is_none();
            let rows = (skip..ask.ids.len()).filter(|_| alive);
            wanted.extend(rows.map(|r| (index, r, row + r as u32)));
            row += ask.ids.len() as u32;
        }
        self.enter(self.head_unit, run)?;
        self.weights.vouch()?;
        let vocabulary = self.family.plan().vocabulary as usize;
        let mut values = Vec::new();
        for wave in wanted.chunks(self.activations.logits_rows as usize) {
            let rows: Vec<u32> = wave.iter().map(|(_, _, row)| *row).collect();
            let indices = self.io.words(&rows)?;
            let at = places(&self.activations.slices, &self.weights.table, rows.len() as u32);
            self.family.head(indices, self.activations.logits_at, &at, &mut run.list);
            self.flush(run)?;
            self.activations.read_logits(rows.len() as u32, &mut values)?;
            let began = self.events.clock();
            for ((index, row, _), logits) in wave.iter().zip(values.chunks_exact(vocabulary)) {
                if run.kept[*index].is_none() && on_logits(*index, *row, logits)? == Next::Cut {
                    run.kept[*index] = Some(*row as u32 + 1);
                }
            }
            let what = || What::new(Track::Steps, "choose").arg("rows", rows.len() as u64);
            self.events.span("choose", began, what);
        }
        Ok(())
    }

    /// Makes a unit's weights be in memory. What was streamed before it gives way.
    fn enter(&mut self, unit: usize, run: &mut Running) -> Result<()> {
        if self.weights.is_border(unit) {
            self.flush(run)?;
            self.weights.arrive(unit)?;
        }
        let first = if run.list.is_empty() { Some(unit) } else { run.units.0 };
        run.units = (first, Some(unit));
        Ok(())
    }

    /// Runs the list and waits for it.
    fn flush(&mut self, run: &mut Running) -> Result<()> {
        if run.list.is_empty() {
            return Ok(());
        }
        self.io.hand_over()?;
        let (began, ops) = (self.events.clock(), run.list.len() as u64);
        let fence = self.device.submit(Queue(0), &run.list, &[])?;
        run.list.clear();
        self.wait(fence)?;
        self.events.span("compute", began, || {
            let name = |unit| match unit {
                Some(unit) => self.weights.name(unit),
                None => "embedding",
            };
            let (first, last) = (name(run.units.0), name(run.units.1));
            let name = if first == last { last.into() } else { format!("{first} to {last}") };
            let what = What::new(Track::Computing, name).arg("sweep", self.weights.sweeps());
            what.arg("ops", ops).arg("rows", run.rows.into())
        });
        run.units.0 = run.units.1;
        self.io.free();
        for layer in std::mem::take(&mut run.written) {
            self.pager.fenced(layer, &run.batch)?;
        }
        Ok(())
    }
}

impl Engine {
    /// Waits for a fence, a slice at a time: a device that is at work answers Pending in between.
    /// *Errors* the fence's failure, by the device's name; Timeout once a whole deadline has
    /// passed in which it did nothing.
    fn wait(&mut self, fence: Fence) -> Result<()> {
        let mut alive = None;
        loop {
            let name = &self.device_description.name;
            match self.device.wait(fence, SLICE)? {
                FenceState::Done => return Ok(()),
                FenceState::Failed(kind) => {
                    let text = format!("device `{name}` failed a step: {kind:?}");
                    return Err(Error::new(kind, "device/wait", text));
                }
                FenceState::Pending => {
                    let usage = self.device.usage();
                    let done = (usage.ops, usage.busy);
                    let (before, since) = *alive.get_or_insert((done, Instant::now()));
                    if before != done {
                        alive = Some((done, Instant::now()));
                    } else if since.elapsed() >= self.deadline {
                        let text = format!(
                            "device `{name}` has neither finished an op nor been busy in {:?}: \
                             its fence stays pending",
                            self.deadline
                        );
                        return Err(Error::new(ErrorKind::Timeout, "device/wait", text));
                    }
                }
            }
        }
    }
}

impl Running {
    /// A session leaves the batch; the earliest lost page counts.
    fn lose(&mut self, lost: Lost) {
        let index = self.batch.iter().position(|r| r.session == lost.session);
        let Some(slot) = index.and_then(|i| self.lost.get_mut(i)) else { return };
        match slot {
            Some(earlier) if earlier.position <= lost.position => (),
            _ => *slot = Some(lost),
        }
    }
}

fn places<'a>(scratch: &'a [Slice], table: &'a crate::weights::Table, rows: u32) -> Places<'a> {
    Places { scratch, table, first: 0, rows }
}

/// Rows of the embedding into the residual stream; the ids' place is filled in by the step.
pub(crate) fn embed_op(family: &dyn Family, at: &Places<'_>) -> Op {
    let (matrix, scale) = family.plan().embedding;
    let (table, out) = (at.weight(matrix), at.slice(RESIDUAL));
    Op::Embed { ids: Slice::default(), table, out, rows: at.rows, scale }
}

/// Rope, and K and V into frames; places in tables are filled in by the step.
pub(crate) fn write_op(family: &dyn Family, layer: usize, at: &Places<'_>, encoding: u32) -> Op {
    let plan = family.plan();
    let (a, kv) = (&plan.attention[layer], &plan.layers[layer]);
    Op::RopeWrite {
        q: at.slice(a.q),
        k: at.slice(a.k),
        v: at.slice(a.v),
        positions: Slice::default(),
        cos: Slice::default(),
        sin: Slice::default(),
        writes: Slice::default(),
        pool: Slice::default(),
        rows: at.rows,
        heads: a.heads,
        kv_heads: kv.kv_heads,
        key_dim: kv.key_dim,
        value_dim: kv.value_dim,
        rotary: 2 * plan.inverse_frequencies.len() as u32,
        table_rows: at.rows,
        interleaved: a.interleaved,
        encoding,
    }
}

/// Attention over visible pages: all at once, or the first, a middle or the last part of them. The
/// narrower of the model's window and the policy's counts. Places are filled in by the step.
pub(crate) fn attention_op(
    family: &dyn Family,
    layer: usize,
    at: &Places<'_>,
    policy: Option<KvWindow>,
    (first, last): (bool, bool),
) -> Op {
    let plan = family.plan();
    let (a, kv) = (&plan.attention[layer], &plan.layers[layer]);
    let (window, keep) = match policy {
        Some(w) if a.window == 0 || w.recent < a.window => (w.recent, w.first),
        _ => (a.window, 0),
    };
    Op::Attention {
        q: at.slice(a.q),
        out: at.slice(a.out),
        state: Slice::default(),
        spans: Slice::default(),
        entries: Slice::default(),
        masks: Slice::default(),
        pool: Slice::default(),
        sinks: Slice::default(),
        sequences: 1,
        heads: a.heads,
        kv_heads: kv.kv_heads,
        key_dim: kv.key_dim,
        value_dim: kv.value_dim,
        scale: a.scale,
        softcap: a.softcap,
        window,
        keep,
        causal: true,
        first,
        last,
    }
}
