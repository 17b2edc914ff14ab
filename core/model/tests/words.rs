//! Text to tokens and back, whole and in pieces.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

mod support;

use kvern_contract::ErrorKind;
use kvern_model::{Model, StopMatcher, Text, TextFiles};
use serde_json::{Value, json};
use support::*;

fn golden() -> Value {
    let bytes = std::fs::read(tiny_austen().join("golden.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

#[test]
fn text_encodes_and_decodes_as_transformers_does() {
    let model = Model::open(&tiny_austen()).unwrap();
    let text = model.text().unwrap();
    let golden = golden();
    for case in golden["greedy"].as_array().unwrap() {
        let prompt = case["prompt"].as_str().unwrap();
        assert_eq!(text.encode(prompt).unwrap(), ids(&case["prompt_ids"]));
        assert_eq!(text.decode(&ids(&case["ids"]), false).unwrap(), case["text"].as_str().unwrap());
    }
    for case in golden["logprobs"].as_array().unwrap() {
        let expected = ids(&case["ids"]);
        let found = text.encode(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(found[..expected.len()], expected);
    }
    assert_eq!(text.vocabulary(), 2048);
    assert_eq!(text.id("<|endoftext|>"), Some(0));
    assert!(text.is_special(0) && !text.is_special(1));
}

#[test]
fn a_text_has_no_template_and_says_so() {
    let model = Model::open(&tiny_austen()).unwrap();
    let error = model.text().unwrap().render(&[], true).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("tiny-austen has no chat template"), "{error}");
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let tokenizer = std::fs::read(tiny_austen().join("tokenizer.json")).unwrap();
    let files = TextFiles { tokenizer: &tokenizer, tokenizer_config: None, chat_template: None };
    assert!(Text::parse("x", &files, 2048).is_ok());
    let error = Text::parse("x", &files, 2047).unwrap_err();
    assert!(error.message.contains("the id 2047, expected less than vocab_size, 2047"), "{error}");
    for broken in [&b""[..], b"{}", b"\xff", &tokenizer[..1000]] {
        let files = TextFiles { tokenizer: broken, ..files };
        assert_eq!(Text::parse("x", &files, 2048).unwrap_err().kind, ErrorKind::Invalid);
    }
}

#[test]
fn truncation_and_padding_in_the_file_do_not_touch_a_prompt() {
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(tiny_austen().join("tokenizer.json")).unwrap())
            .unwrap();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"});
    let changed = json.to_string();
    let files =
        TextFiles { tokenizer: changed.as_bytes(), tokenizer_config: None, chat_template: None };
    let text = Text::parse("x", &files, 2048).unwrap();
    assert_eq!(text.encode("It was a truth universally acknowledged").unwrap().len(), 11);
}

/// The pattern that splits words gives up inside a long run of white space and leaves the rest in
/// one piece, which then encodes to other tokens without an error. Up to the limit the ids are
/// those of the parts; past it the text is refused.
#[test]
fn a_long_run_of_white_space_is_split_rightly_or_refused() {
    let model = Model::open(&tiny_austen()).unwrap();
    let text = model.text().unwrap();
    let run = " ".repeat(499_999);
    let whole = text.encode(&format!("so{run} was it a truth")).unwrap();
    let mut parts = text.encode("so").unwrap();
    parts.extend(text.encode(&run).unwrap());
    parts.extend(text.encode(" was it a truth").unwrap());
    assert_eq!(whole, parts);
    let error = text.encode(&format!("so{run}  was it a truth")).unwrap_err();
    assert!(
        error.message.contains("500000 white-space characters in a row from byte 2"),
        "{error}"
    );
}

#[test]
fn one_text_at_a_time_uses_no_pool_of_threads() {
    let model = Model::open(&tiny_austen()).unwrap();
    let text = model.text().unwrap();
    text.encode(&"It was a truth universally acknowledged. ".repeat(2000)).unwrap();
    assert!(!tokenizers::utils::parallelism::get_parallelism());
    assert!(!tokenizers::utils::parallelism::has_parallelism_been_used());
}

#[test]
fn a_model_is_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&Model::open(&tiny_austen()).unwrap());
}

#[test]
fn pieces_of_a_stream_are_the_whole_text() {
    let model = Model::open(&tiny_austen()).unwrap();
    let text = model.text().unwrap();
    for sample in
        ["Anne had always been — “so” 😀 naïve, 東京 é\u{301}!", "\u{fffd}\u{fffd}a\u{fffd}", ""]
    {
        let ids = text.encode(sample).unwrap();
        let mut stream = text.stream(false);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        assert_eq!(pieces.concat(), sample);
    }
}

/// Random ids are mostly broken UTF-8: the stream must still add up, and hold no more than an open
/// character.
#[test]
fn pieces_of_broken_text_are_the_full_decode_too() {
    let model = Model::open(&tiny_austen()).unwrap();
    let text = model.text().unwrap();
    let mut rng = kvern_model::Rng::new(3);
    for case in 0..200 {
        let ids: Vec<u32> = (0..case % 40)
            .map(|_| (rng.next_u64() % if case % 2 == 0 { 257 } else { 2048 }) as u32)
            .collect();
        for skip in [false, true] {
            let mut stream = text.stream(skip);
            let mut found = String::new();
            for (n, id) in ids.iter().enumerate() {
                found += &stream.push(*id).unwrap();
                let full = text.decode(&ids[..=n], skip).unwrap();
                assert!(full.starts_with(&found), "{ids:?}: {full:?} {found:?}");
                assert!(full.chars().count() <= found.chars().count() + 3, "{ids:?}");
            }
            found += &stream.finish().unwrap();
            assert_eq!(found, text.decode(&ids, skip).unwrap(), "{ids:?}");
        }
    }
}

/// A tokenizer of the sentencepiece kind: a dropped leading space, and bytes that become text a run
/// at a time.
#[test]
fn a_stream_keeps_leading_spaces_and_byte_runs_as_the_full_decode() {
    let mut vocab = json!({"<unk>": 0, "▁Hello": 1, "▁world": 2, "▁": 3, "!": 4});
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(5 + byte);
    }
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [{"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": []}
    })
    .to_string();
    let files =
        TextFiles { tokenizer: tokenizer.as_bytes(), tokenizer_config: None, chat_template: None };
    let text = Text::parse("x", &files, 512).unwrap();
    let byte = |b: u32| 5 + b;
    let euro = [byte(0xe2), byte(0x82), byte(0xac)];
    let broken = [byte(0xe2), byte(0x82), byte(0xac), byte(0xff)];
    for ids in [
        vec![1, 2, 4],
        vec![3, 1, 2],
        [&[1][..], &euro, &euro, &[2]].concat(),
        [&[1][..], &broken, &[2]].concat(),
        euro.to_vec(),
        broken.to_vec(),
    ] {
        let mut stream = text.stream(false);
        let mut found: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        found += &stream.finish().unwrap();
        assert_eq!(found, text.decode(&ids, false).unwrap(), "{ids:?}");
    }
    assert_eq!(text.decode(&[1, 2, 4], false).unwrap(), "Hello world!");
    // A token that is left out is no context: after it, a space is still not the text's first.
    let mut stream = text.stream(true);
    let found: String = [1, 0, 2].iter().map(|id| stream.push(*id).unwrap()).collect();
    assert_eq!(found, "Hello world");
}

/// Feeds a text cut into pieces of every length; the outcome may not depend on the cut.
fn check_stops(stops: &[&str], text: &str, expected: &str, stop: Option<usize>) {
    let chars: Vec<char> = text.chars().collect();
    for size in 1..=chars.len().max(1) {
        let mut matcher = StopMatcher::new(stops.iter().copied()).unwrap();
        let (mut shown, mut found) = (String::new(), None);
        for piece in chars.chunks(size) {
            let matched = matcher.push(&piece.iter().collect::<String>());
            shown += &matched.text;
            found = found.or(matched.stop);
        }
        shown += &matcher.finish();
        assert_eq!((shown.as_str(), found), (expected, stop), "{stops:?} {text:?} by {size}");
    }
}

#[test]
fn a_stop_string_is_never_shown_however_the_text_is_cut() {
    check_stops(&["\n\n"], "one\ntwo\n\nthree", "one\ntwo", Some(0));
    check_stops(&["STOP"], "no SSTOTSTOP it", "no SSTOT", Some(0));
    check_stops(&["STOP"], "a STO", "a STO", None);
    check_stops(&["abc", "b"], "xabc", "xa", Some(1));
    check_stops(&["b", "ab"], "xab", "x", Some(1));
    check_stops(&["é€"], "naïé é€ x", "naïé ", Some(0));
    check_stops(&["aab"], "aaab", "a", Some(0));
    check_stops(&[], "all of it", "all of it", None);
    check_stops(&["x"], "", "", None);
}

#[test]
fn no_more_is_held_back_than_may_begin_a_stop_string() {
    let mut matcher = StopMatcher::new(["STOP"]).unwrap();
    assert_eq!(matcher.push("go SS").text, "go S");
    assert_eq!(matcher.push("x").text, "Sx");
    assert_eq!(matcher.push("STOPafter").stop, Some(0));
    assert_eq!(matcher.push("more").text, "");
    assert!(StopMatcher::new([""]).is_err());
}
