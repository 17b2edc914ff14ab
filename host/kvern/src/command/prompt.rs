//! What several commands read and choose: prompts, and how tokens are drawn.

use crate::cli::{PromptArgs, SamplingArgs};
use crate::fail::{Failure, Outcome, While};
use kvern_model::{GenerationConfig, Sampler, Sampling};
use std::io::Read;
use std::path::Path;

/// Bytes of a file, or of stdin for `-`.
pub fn read_bytes(path: &Path) -> Outcome<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).during("stdin")?;
        return Ok(bytes);
    }
    std::fs::read(path).during(path.display())
}

/// The same as text.
pub fn read_text(path: &Path) -> Outcome<String> {
    let text = String::from_utf8(read_bytes(path)?);
    text.map_err(|error| {
        Failure::new(format!("{}: {error}; text in UTF-8 is expected", path.display()))
    })
}

/// The prompt, from the flag or the file.
pub fn read(args: &PromptArgs) -> Outcome<String> {
    match (&args.prompt, &args.prompt_file) {
        (_, Some(path)) => read_text(path),
        (prompt, None) => Ok(prompt.clone().unwrap_or_default()),
    }
}

/// How tokens are drawn: what the flags say over what the model's authors ask for.
pub fn sampler(args: &SamplingArgs, generation: &GenerationConfig) -> Outcome<Sampler> {
    Ok(Sampler::new(sampling(args, generation))?)
}

fn sampling(args: &SamplingArgs, generation: &GenerationConfig) -> Sampling {
    // Asking for a cut of the distribution is asking to draw from it.
    let draws = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    let default = if generation.do_sample || draws { generation.temperature } else { 0.0 };
    Sampling {
        repetition_penalty: args.repetition_penalty.unwrap_or(generation.repetition_penalty),
        temperature: args.temperature.unwrap_or(default),
        top_k: args.top_k.unwrap_or(generation.top_k),
        top_p: args.top_p.unwrap_or(generation.top_p),
        min_p: args.min_p.unwrap_or(generation.min_p),
        seed: args.seed.unwrap_or(0),
    }
}

/// Most new tokens: the flag's, the model's, or 256.
pub fn max_new_tokens(args: &SamplingArgs, generation: &GenerationConfig) -> u32 {
    args.max_new_tokens.or(generation.max_new_tokens).unwrap_or(256)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(do_sample: bool) -> GenerationConfig {
        GenerationConfig {
            do_sample,
            temperature: 0.6,
            top_k: 50,
            top_p: 0.9,
            min_p: 0.0,
            repetition_penalty: 1.1,
            bos: None,
            eos: vec![0],
            max_new_tokens: None,
        }
    }

    #[test]
    fn without_flags_the_models_authors_decide() {
        let drawn = sampling(&SamplingArgs::default(), &generation(true));
        assert_eq!((drawn.temperature, drawn.top_p, drawn.repetition_penalty), (0.6, 0.9, 1.1));
        assert_eq!(sampling(&SamplingArgs::default(), &generation(false)).temperature, 0.0);
    }

    #[test]
    fn a_flag_wins_and_a_cut_draws() {
        let greedy = SamplingArgs { temperature: Some(0.0), ..SamplingArgs::default() };
        assert_eq!(sampling(&greedy, &generation(true)).temperature, 0.0);
        let cut = SamplingArgs { top_k: Some(3), ..SamplingArgs::default() };
        let drawn = sampling(&cut, &generation(false));
        assert_eq!((drawn.temperature, drawn.top_k), (0.6, 3));
        assert_eq!(max_new_tokens(&cut, &generation(false)), 256);
    }
}
