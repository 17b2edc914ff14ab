//! The arithmetic: each kernel once, over `Lanes`, compiled for every instruction set.
#![allow(unsafe_code)]

pub(crate) mod attention;
mod avx2;
mod avx512;
pub(crate) mod lanes;
pub(crate) mod linear;
mod map;
mod math;
mod norm;
mod overlap;
mod page;
mod panel;
mod product;
mod rope;
mod rows;
mod scalar;
mod scores;

use crate::exec::Worker;
use crate::task::{Need, Plan, Task};
use kvern_contract::ErrorKind;
use lanes::{Body, Lanes};

/// Which implementation of the lanes runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Isa {
    Avx512,
    Avx2,
    Scalar,
}

impl Isa {
    /// By the word of the option `isa`; `None`: unknown.
    pub fn named(word: &str) -> Option<Isa> {
        match word {
            "auto" => {
                [Isa::Avx512, Isa::Avx2].into_iter().find(|isa| isa.here()).or(Some(Isa::Scalar))
            }
            "avx512" => Some(Isa::Avx512),
            "avx2" => Some(Isa::Avx2),
            "scalar" => Some(Isa::Scalar),
            _ => None,
        }
    }

    /// Whether this CPU can.
    pub fn here(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let avx512 = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt");
        match self {
            Isa::Avx512 => avx2 && avx512,
            Isa::Avx2 => avx2,
            Isa::Scalar => true,
        }
    }
}

/// Whether a task reads tables that must be checked before it runs.
pub(crate) fn planned(task: &Task) -> bool {
    matches!(task, Task::Embed(_) | Task::Rope(_) | Task::Attention(_) | Task::Rows(_))
}

/// Checks a task's tables. *Errors* Invalid.
pub(crate) fn plan(task: &Task, workers: usize) -> Result<Plan, ErrorKind> {
    match task {
        Task::Embed(t) => rows::plan_embed(t),
        Task::Rope(t) => rope::plan(t),
        Task::Attention(t) => attention::plan(t, workers),
        Task::Rows(t) => rows::plan_rows(t),
        _ => Ok(Plan { phases: 1, ..Plan::default() }),
    }
}

/// Scratch of a task.
pub(crate) fn need(task: &Task, workers: usize) -> Need {
    match task {
        Task::Linear(_) => linear::NEED,
        Task::Attention(t) => {
            attention::need(t.heads, t.kv_heads, t.key_dim, t.value_dim, workers > 1)
        }
        _ => Need::default(),
    }
}

/// Does this worker's part of a pass.
pub(crate) fn run(isa: Isa, task: &Task, worker: &Worker<'_>) {
    // SAFETY: `isa` was found on this CPU when the device opened (`Isa::here`). Tasks hold what
    // `check` made sure of, and plans what the tables said.
    unsafe {
        match isa {
            Isa::Avx512 => part::<avx512::Avx512>(task, worker),
            Isa::Avx2 => part::<avx2::Avx2>(task, worker),
            Isa::Scalar => part::<scalar::Scalar>(task, worker),
        }
    }
}

/// A task and who takes part in it.
struct Part<'a, T>(&'a T, &'a Worker<'a>);

macro_rules! bodies { ($($task:ty => $kernel:path;)*) => { $(
    impl Body for Part<'_, $task> {
        type Out = ();
        #[inline(always)]
        unsafe fn run<V: Lanes>(self) {
            // SAFETY: the caller's promise is what the kernel asks for.
            unsafe { $kernel(self.0, self.1) }
        }
    }
)* } }
bodies! {
    crate::task::Embed => rows::embed::<V>;
    crate::task::Norm => norm::norm::<V>;
    crate::task::Linear => linear::linear::<V>;
    crate::task::Attention => attention::attention::<V>;
    crate::task::Map => map::map::<V>;
    crate::task::Rows => rows::rows::<V>;
}

/// The caller has the features of `V`, a checked task, its plan, and scratch of `need`.
unsafe fn part<V: Lanes>(task: &Task, worker: &Worker<'_>) {
    // SAFETY: the caller's promise is what each kernel asks for.
    unsafe {
        match task {
            Task::Embed(t) => V::call(Part(t, worker)),
            Task::Norm(t) => V::call(Part(t, worker)),
            Task::Linear(t) => V::call(Part(t, worker)),
            Task::Attention(t) => V::call(Part(t, worker)),
            Task::Map(t) => V::call(Part(t, worker)),
            Task::Rows(t) => V::call(Part(t, worker)),
            Task::Rope(t) => rope::rope(t, worker),
            Task::Top(t) => rows::top(t, worker),
            Task::Move(t) => rows::copy(t, worker),
        }
    }
}
