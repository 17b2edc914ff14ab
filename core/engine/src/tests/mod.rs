//! The engine on the cpu device, in process, against transformers' answers and against itself.

mod batch;
mod calibrate;
mod doubles;
mod drives;
mod families;
mod faults;
mod guess;
mod guess_draft;
mod guess_faults;
mod guesser;
mod history;
mod loss;
mod loss_sessions;
mod mlp;
mod placement;
mod plan;
mod ring;
mod watch;

use crate::spec::{EngineSpec, Flow, Request};
use crate::step::{Next, StepAsk, Want};
use crate::{Engine, Finish, Rates, Watch, WeightPath};
use doubles::{Keep, Policy};
use kvern_contract::{
    Access, ComputeDtype, DeviceBackend, KvEncoding, KvStrategy, OffloadPolicy, Options, Result,
    SessionId,
};
use kvern_device_cpu::CpuDevice;
use kvern_model::{Model, Sampler, Sampling};
use kvern_storage::{Service, Storage};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(super) fn austen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/kvern/embedded/tiny-austen")
}

/// How an engine of these tests differs from the plainest one.
pub(super) struct Setup {
    pub model: PathBuf,
    pub kv: Box<dyn KvStrategy>,
    pub kv_dtype: KvEncoding,
    pub kv_budget: Option<u64>,
    pub memory_budget: Option<u64>,
    pub chunk: u32,
    pub sessions: u32,
    pub context: Option<u64>,
    pub layers: Option<u32>,
    pub mlp_rows: Option<u32>,
    pub offload: Box<dyn OffloadPolicy>,
    pub storage: Arc<dyn Storage>,
    pub device: Box<dyn DeviceBackend>,
    pub reading: WeightPath,
    pub rates: Rates,
    pub deadline: Duration,
    pub watch: Watch,
    pub cache: tempfile::TempDir,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            model: austen(),
            kv: Box::new(Keep::resident()),
            kv_dtype: KvEncoding::F32,
            kv_budget: None,
            memory_budget: None,
            chunk: 512,
            sessions: 1,
            context: Some(2048),
            layers: None,
            mlp_rows: None,
            offload: Box::new(Policy::everything()),
            storage: Service::pool(2),
            device: Box::new(CpuDevice::default()),
            reading: WeightPath::Cached,
            rates: Rates::default(),
            deadline: Duration::from_secs(20),
            watch: Watch::default(),
            cache: tempfile::tempdir().expect("a temporary directory"),
        }
    }
}

impl Setup {
    pub(super) fn load(self) -> Result<Engine> {
        let (spec, _cache) = self.spec()?;
        Engine::load(spec)
    }

    /// What a load is given, and its directory.
    pub(super) fn spec(self) -> Result<(EngineSpec, tempfile::TempDir)> {
        let spec = EngineSpec {
            model: Arc::new(Model::open(&self.model)?),
            storage: self.storage,
            device: self.device,
            device_options: Options::new(),
            kv: self.kv,
            kv_options: Options::new(),
            offload: self.offload,
            offload_options: Options::new(),
            compute: ComputeDtype::F32,
            kv_dtype: self.kv_dtype,
            threads: 2,
            memory_budget: self.memory_budget,
            kv_budget: self.kv_budget,
            cache_dir: self.cache.path().to_path_buf(),
            prefill_chunk: self.chunk,
            context_tokens: self.context,
            offload_cpu_layers: self.layers,
            sessions: self.sessions,
            reading: self.reading,
            rates: self.rates,
            dense_chunk_rows: self.mlp_rows,
            load_deadline: self.deadline,
            log: Arc::new(|_, _| ()),
            watch: self.watch,
        };
        Ok((spec, self.cache))
    }
}

/// Logits as bits, of every id: what is compared is exact.
pub(super) fn bits(engine: &mut Engine, ids: &[u32]) -> Result<Vec<Vec<u32>>> {
    let session = engine.begin()?;
    let mut rows = Vec::new();
    engine.score(session, ids, &mut |at, row| {
        assert_eq!(at, rows.len(), "rows come once each and in order");
        rows.push(row.iter().map(|x| x.to_bits()).collect());
        Ok(())
    })?;
    engine.end(session)?;
    Ok(rows)
}

/// Prose: ids of the held-out novel, as many as asked, up to 1,539.
pub(super) fn prose(count: usize) -> Vec<u32> {
    let golden = golden();
    let texts = golden["logprobs"].as_array().expect("texts").iter();
    let ids = texts.flat_map(|t| t["ids"].as_array().expect("ids").clone());
    ids.map(|id| id.as_u64().expect("an id") as u32).take(count).collect()
}

pub(super) fn golden() -> serde_json::Value {
    let text = std::fs::read(austen().join("golden.json")).expect("the goldens");
    serde_json::from_slice(&text).expect("JSON")
}

pub(super) fn greedy(engine: &mut Engine, prompt: &[u32], new: u32) -> Result<Vec<u32>> {
    let session = engine.begin()?;
    let request = Request {
        prompt,
        max_new_tokens: new,
        sampler: Sampler::new(Sampling::greedy())?,
        ignore_eos: true,
        stop: &[],
    };
    let outcome = engine.generate(session, &request, &mut |_| Flow::Go)?;
    assert_eq!(outcome.finish, Finish::Length);
    engine.end(session)?;
    Ok(outcome.token_ids)
}

#[test]
fn greedy_texts_and_log_probabilities_are_transformers_own() {
    let golden = golden();
    let mut engine = Setup::default().load().expect("it loads");
    let list = |v: &serde_json::Value| -> Vec<u32> {
        v.as_array().expect("ids").iter().map(|x| x.as_u64().expect("an id") as u32).collect()
    };
    let mut compared = 0;
    for text in golden["greedy"].as_array().expect("texts") {
        if text["smallest_margin"].as_f64().expect("a margin") <= 1e-3 {
            continue;
        }
        let want = list(&text["ids"]);
        let got = greedy(&mut engine, &list(&text["prompt_ids"]), want.len() as u32);
        assert_eq!(got.expect("it generates"), want);
        compared += 1;
    }
    assert!(compared >= 3, "{compared} texts compared");
    for text in golden["logprobs"].as_array().expect("texts") {
        let ids = list(&text["ids"]);
        let session = engine.begin().expect("a session");
        let mut got = Vec::new();
        let mut row = |at: usize, logits: &[f32]| {
            if let Some(next) = ids.get(at + 1) {
                let most = logits.iter().copied().fold(f32::MIN, f32::max) as f64;
                let sum: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
                got.push(f64::from(logits[*next as usize]) - most - sum.ln());
            }
            Ok(())
        };
        engine.score(session, &ids, &mut row).expect("it scores");
        engine.end(session).expect("it ends");
        let want = text["logprobs"].as_array().expect("log-probabilities");
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            let want = want.as_f64().expect("a number");
            assert!((got - want).abs() <= 1e-3, "{got}, expected {want}");
        }
    }
}

#[test]
fn any_chunking_of_a_prefill_gives_the_same_bits() {
    let ids = prose(300);
    let want = bits(&mut Setup::default().load().expect("it loads"), &ids).expect("it scores");
    for chunk in [1, 7, 64, 100] {
        let mut engine = Setup { chunk, ..Setup::default() }.load().expect("it loads");
        assert!(bits(&mut engine, &ids).expect("it scores") == want, "chunks of {chunk} differ");
    }
}

/// Feeds three sessions in one batch, in uneven pieces.
fn ragged(engine: &mut Engine, texts: &[Vec<u32>; 3]) -> Result<[Vec<Vec<u32>>; 3]> {
    let mut sessions: Vec<(SessionId, usize)> = Vec::new();
    for _ in texts {
        sessions.push((engine.begin()?, 0));
    }
    let mut rows: [Vec<Vec<u32>>; 3] = Default::default();
    let pieces = [5, 64, 30];
    while sessions.iter().zip(texts).any(|((_, at), text)| *at < text.len()) {
        let mut asks = Vec::new();
        let mut who = Vec::new();
        for (index, (session, at)) in sessions.iter_mut().enumerate() {
            let end = texts[index].len().min(*at + pieces[index]);
            if *at < end {
                asks.push(StepAsk {
                    session: *session,
                    ids: &texts[index][*at..end],
                    want: Want::All,
                });
                who.push(index);
                *at = end;
            }
        }
        let lost = engine.step(&asks, &mut |ask, _, logits| {
            rows[who[ask]].push(logits.iter().map(|x| x.to_bits()).collect());
            Ok(Next::Go)
        })?;
        assert!(lost.is_empty(), "{lost:?}");
    }
    Ok(rows)
}

#[test]
fn sequences_in_one_batch_have_the_bits_that_each_has_alone() {
    let all = prose(500);
    let texts = [all[..90].to_vec(), all[90..400].to_vec(), all[400..].to_vec()];
    let mut alone = Setup::default().load().expect("it loads");
    let want = texts.clone().map(|ids| bits(&mut alone, &ids).expect("it scores"));
    let setup = Setup { sessions: 3, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    assert!(ragged(&mut engine, &texts).expect("it steps") == want, "resident");
    let kv = Box::new(Keep::store());
    let kv_budget = Some(40 * 32 * 1024);
    let setup = Setup { kv, kv_budget, sessions: 3, ..Setup::default() };
    let mut engine = setup.load().expect("it loads");
    assert!(ragged(&mut engine, &texts).expect("it steps") == want, "with a store");
    assert!(engine.facts().kv.pages_read > 0, "nothing was read back");
}

#[test]
fn a_stop_string_ends_the_text_before_it_and_a_full_context_ends_it_too() {
    let mut engine = Setup { context: Some(24), ..Setup::default() }.load().expect("it loads");
    let model = Model::open(&austen()).expect("it opens");
    let text = model.text().expect("a tokenizer");
    let prompt = text.encode("She walked to the window, and").expect("ids");
    let run = |engine: &mut Engine, stop: &[String]| {
        let session = engine.begin().expect("a session");
        let request = Request {
            prompt: &prompt,
            max_new_tokens: 100,
            sampler: Sampler::new(Sampling::greedy()).expect("a sampler"),
            ignore_eos: true,
            stop,
        };
        let mut streamed = String::new();
        let done = engine.generate(session, &request, &mut |piece| {
            streamed.push_str(piece);
            Flow::Go
        });
        engine.end(session).expect("it ends");
        let done = done.expect("it generates");
        assert_eq!(streamed, done.text, "what was streamed is what was said");
        done
    };
    let whole = run(&mut engine, &[]);
    assert_eq!(whole.finish, Finish::ContextFull);
    assert_eq!(whole.token_ids.len() + prompt.len(), 24);
    let words: Vec<&str> = whole.text.split_whitespace().collect();
    let stop = words[2].to_string();
    let cut = run(&mut engine, std::slice::from_ref(&stop));
    assert_eq!(cut.finish, Finish::StopString);
    assert_eq!(cut.text, whole.text[..whole.text.find(&stop).expect("it is there")]);
    let long = engine.begin().and_then(|s| engine.score(s, &[1; 25], &mut |_, _| Ok(())));
    let said = long.expect_err("too long").to_string();
    assert!(said.contains("25 tokens") && said.contains("context of 24"), "{said}");
}

#[test]
fn a_policy_of_rows_and_units_is_asked_with_every_unit() {
    let policy = Policy::everything();
    let seen = Arc::clone(&policy.seen);
    let offload = Box::new(policy);
    Setup { offload, ..Setup::default() }.load().expect("it loads");
    let units = seen.lock().expect("units").clone();
    assert_eq!(units.len(), 13, "an attention and an mlp unit a layer, and the tied head");
    assert!(units.iter().all(|u| u.bytes > 0 && u.access == Access::Sweep));
}

#[test]
fn a_long_prompt_can_be_interrupted_between_its_steps() {
    let mut engine = Setup { chunk: 64, ..Setup::default() }.load().expect("it loads");
    let session = engine.begin().expect("a session");
    let request = Request {
        prompt: &prose(400),
        max_new_tokens: 5,
        sampler: Sampler::new(Sampling::greedy()).expect("a sampler"),
        ignore_eos: true,
        stop: &[],
    };
    let mut asked = 0;
    let outcome = engine.generate(session, &request, &mut |piece| {
        assert_eq!(piece, "");
        asked += 1;
        if asked == 2 { Flow::Stop } else { Flow::Go }
    });
    let outcome = outcome.expect("it ends");
    assert_eq!((outcome.finish, outcome.token_ids.len()), (Finish::Interrupted, 0));
    assert_eq!(engine.tokens(session).expect("its tokens").len(), 128);
}
