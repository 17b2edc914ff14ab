//! Rotary frequencies as transformers computes them: in f32, in its order of operations.

use crate::error::{invalid, unsupported};
use crate::json::Object;
use kvern_contract::Result;

/// How positions turn into angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric sequence of wavelengths.
    pub theta: f32,
    /// What stretches it, if anything.
    pub kind: RopeKind,
}

/// A rule that stretches the frequencies for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeKind {
    /// None.
    Default,
    /// All frequencies divided by one factor.
    Linear {
        /// What they are divided by, at least 1.
        factor: f32,
    },
    /// Low frequencies divided, high ones kept, a smooth ramp between.
    Llama3 {
        /// What low frequencies are divided by, at least 1.
        factor: f32,
        /// Original context over the wavelength above which a frequency is low.
        low_freq_factor: f32,
        /// Original context over the wavelength below which a frequency is high.
        high_freq_factor: f32,
        /// Context of the first training, in tokens.
        original_max_position_embeddings: u32,
    },
}

const OPERATION: &str = "model/config";
const KNOWN: &str = "default, linear, llama3";

impl Rope {
    /// From a config in its new spelling (`rope_parameters`) or its old one (`rope_theta`,
    /// `rope_scaling`).
    pub(crate) fn parse(config: &Object<'_>) -> Result<Rope> {
        let positive = |x: f32| x > 0.0;
        let inner = match config.object("rope_parameters")? {
            Some(inner) => Some(inner),
            None => config.object("rope_scaling")?,
        };
        let mut theta = config.number("rope_theta", "a positive number", positive)?;
        let Some(inner) = inner else {
            return Ok(Rope { theta: theta.unwrap_or(10000.0), kind: RopeKind::Default });
        };
        if let Some(own) = inner.number("rope_theta", "a positive number", positive)? {
            theta = Some(own);
        }
        for partial in [&inner, config] {
            let share = partial.number("partial_rotary_factor", "a number above 0", positive)?;
            if let Some(share) = share.filter(|x| *x != 1.0) {
                let message = format!("config.json: partial_rotary_factor is {share}, known is 1");
                return Err(unsupported(OPERATION, message));
            }
        }
        let kind = match inner.text("rope_type")? {
            Some(kind) => kind,
            None => inner.text("type")?.unwrap_or("default"),
        };
        let kind = match kind {
            "default" => RopeKind::Default,
            "linear" => RopeKind::Linear { factor: factor(&inner)? },
            "llama3" => Self::llama3(config, &inner)?,
            other => {
                let message =
                    format!("config.json: rope type '{other}' is unknown; known: {KNOWN}");
                return Err(unsupported(OPERATION, message));
            }
        };
        Ok(Rope { theta: theta.unwrap_or(10000.0), kind })
    }

    fn llama3(config: &Object<'_>, inner: &Object<'_>) -> Result<RopeKind> {
        let positive = |key: &str| -> Result<f32> {
            let x = inner.number(key, "a positive number", |x| x > 0.0)?;
            x.map_or_else(|| inner.absent(key), Ok)
        };
        let key = "original_max_position_embeddings";
        let original = match inner.count(key, 1)? {
            Some(n) => n,
            None => match config.count(key, 1)? {
                Some(n) => n,
                None => return inner.absent(key),
            },
        };
        let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
        if high <= low {
            let message = format!(
                "config.json: high_freq_factor is {high}, expected more than low_freq_factor, {low}"
            );
            return Err(invalid(OPERATION, message));
        }
        Ok(RopeKind::Llama3 {
            factor: factor(inner)?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        })
    }

    /// `dim / 2` inverse frequencies for `dim` rotated channels, in f32, in the order of operations
    /// of transformers (where a number over a tensor is the tensor's reciprocal times the number).
    pub fn inv_freq(&self, dim: u32) -> Vec<f32> {
        let plain = (0..dim / 2).map(|i| {
            let exponent = (2 * i) as f32 / dim as f32;
            // Rounded once from f64: the nearest f32, wherever this runs. torch's own power is
            // within one unit of that in the last place, and depends on its build and the CPU.
            1.0 / f64::from(self.theta).powf(f64::from(exponent)) as f32
        });
        match self.kind {
            RopeKind::Default => plain.collect(),
            RopeKind::Linear { factor } => plain.map(|f| f / factor).collect(),
            RopeKind::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original,
            } => plain.map(|f| smooth(f, factor, low, high, f64::from(original))).collect(),
        }
    }
}

fn factor(inner: &Object<'_>) -> Result<f32> {
    let x = inner.number("factor", "a number of at least 1", |x| x >= 1.0)?;
    x.map_or_else(|| inner.absent("factor"), Ok)
}

/// One frequency of the llama3 rule. Python computes the constants in f64 and torch narrows each
/// once.
fn smooth(f: f32, factor: f32, low: f32, high: f32, original: f64) -> f32 {
    let low_wavelength = (original / f64::from(low)) as f32;
    let high_wavelength = (original / f64::from(high)) as f32;
    let ramp = (f64::from(high) - f64::from(low)) as f32;
    let wavelength = (1.0 / f) * (2.0 * std::f64::consts::PI) as f32;
    let stretched = if wavelength > low_wavelength { f / factor } else { f };
    if wavelength >= high_wavelength && wavelength <= low_wavelength {
        let share = ((1.0 / wavelength) * original as f32 - low) / ramp;
        (1.0 - share) * stretched / factor + share * stretched
    } else {
        stretched
    }
}
