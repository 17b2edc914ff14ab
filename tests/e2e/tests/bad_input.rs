//! What is wrong is refused in one line, with an exit code, and nothing half-written.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kvern_e2e::{Scratch, binary, kvern, tiny_austen};
use serde_json::{Value, json};
use std::path::Path;

/// A copy of the embedded model with one file changed, or removed.
fn model(scratch: &Scratch, name: &str, file: &str, content: Option<&[u8]>) -> String {
    for entry in std::fs::read_dir(tiny_austen()).unwrap().flatten() {
        let own = entry.file_name().to_string_lossy().into_owned();
        if own != file && entry.path().is_file() {
            scratch.write(&format!("{name}/{own}"), std::fs::read(entry.path()).unwrap());
        }
    }
    if let Some(content) = content {
        scratch.write(&format!("{name}/{file}"), content);
    }
    scratch.at(name)
}

fn weights() -> Vec<u8> {
    std::fs::read(tiny_austen().join("model.safetensors")).unwrap()
}

/// The weights under another header.
fn with_header(change: impl Fn(&mut serde_json::Map<String, Value>)) -> Vec<u8> {
    let bytes = weights();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<String, Value> =
        serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let text = Value::Object(header).to_string();
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &bytes[8 + length..]].concat()
}

fn config(key: &str, value: Value) -> Vec<u8> {
    let text = std::fs::read_to_string(tiny_austen().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config[key] = value;
    config.to_string().into_bytes()
}

fn refused(scratch: &Scratch, model: &str, said: &str) {
    let arguments = ["generate", "--model", model, "--prompt", "x", "--max-new-tokens", "2"];
    let ended = kvern(scratch, arguments);
    let line = ended.refused(1);
    assert!(line.contains(said), "{model}: {line}");
}

#[test]
fn weights_that_lie_are_refused() {
    let scratch = Scratch::new();
    let set = |key: &'static str, value: Value| {
        with_header(move |header| {
            let first = header.iter_mut().find(|(name, _)| *name != "__metadata__").unwrap();
            first.1[key] = value.clone();
        })
    };
    let all = weights();
    let overlap = with_header(|header| {
        let mut entries = header.iter_mut().filter(|(name, _)| *name != "__metadata__");
        let first = entries.next().unwrap().1["data_offsets"].clone();
        entries.next().unwrap().1["data_offsets"] = first;
    });
    let huge = [&(1u64 << 63).to_le_bytes()[..], &all[8..]].concat();
    let not_json = [&4u64.to_le_bytes()[..], b"}}}}"].concat();
    let cases: [(&str, Vec<u8>); 7] = [
        ("truncated", all[..all.len() / 2].to_vec()),
        ("huge", huge),
        ("range", set("data_offsets", json!([0, 1u64 << 60]))),
        ("shape", set("shape", json!([1u64 << 40, 1u64 << 40]))),
        ("overlap", overlap),
        ("not-json", not_json),
        ("empty", Vec::new()),
    ];
    for (name, bytes) in cases {
        let path = model(&scratch, name, "model.safetensors", Some(&bytes));
        refused(&scratch, &path, "model.safetensors");
    }
}

#[test]
fn configs_that_lie_are_refused() {
    let scratch = Scratch::new();
    let architecture = config("architectures", json!(["FooForCausalLM"]));
    let cases = [
        ("width", config("hidden_size", json!(256)), "config.json"),
        ("heads", config("num_attention_heads", json!(0)), "num_attention_heads"),
        ("text", config("hidden_size", json!("wide")), "hidden_size"),
        ("unknown", architecture, "FooForCausalLM"),
        ("broken", b"{".to_vec(), "config.json"),
    ];
    for (name, bytes, said) in cases {
        let path = model(&scratch, name, "config.json", Some(&bytes));
        refused(&scratch, &path, said);
    }
    let unknown =
        model(&scratch, "known", "config.json", Some(&config("architectures", json!(["Foo"]))));
    refused(&scratch, &unknown, "LlamaForCausalLM");
}

#[test]
fn directories_and_tokenizers_that_do_not_fit_are_refused() {
    let scratch = Scratch::new();
    std::fs::create_dir(scratch.path().join("empty")).unwrap();
    refused(&scratch, &scratch.at("empty"), "config.json");
    refused(&scratch, "nowhere", "no model `nowhere`");
    refused(&scratch, "tiny-austin", "did you mean `tiny-austen`?");
    refused(&scratch, &model(&scratch, "none", "tokenizer.json", None), "tokenizer.json");
    refused(&scratch, &model(&scratch, "cut", "tokenizer.json", Some(b"{")), "tokenizer.json");
    let text = std::fs::read_to_string(tiny_austen().join("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    tokenizer["model"]["vocab"]["unheard-of"] = json!(99_999);
    let large = tokenizer.to_string();
    let path = model(&scratch, "large", "tokenizer.json", Some(large.as_bytes()));
    refused(&scratch, &path, "vocab");
}

#[test]
fn libraries_that_are_no_plugins_are_refused() {
    let scratch = Scratch::new();
    let beside = binary().parent().unwrap();
    let plugin = std::fs::read(beside.join("libkvern_kv_resident.so")).unwrap();
    let mut foreign = plugin.clone();
    foreign[4] = 1; // ELFCLASS32
    let mut cases = vec![
        scratch.write("text", "hello"),
        scratch.write("empty.so", ""),
        scratch.write("cut.so", &plugin[..plugin.len() / 2]),
        scratch.write("cut-late.so", &plugin[..plugin.len() - 100]),
        scratch.write("cut-early.so", &plugin[..100]),
        scratch.write("foreign.so", foreign),
        scratch.at("nowhere.so"),
        scratch.path().to_string_lossy().into_owned(),
        beside.join("libkvern_device_cpu.so").to_string_lossy().into_owned(),
    ];
    let libm = "/lib/x86_64-linux-gnu/libm.so.6";
    cases.extend(Path::new(libm).exists().then(|| libm.to_string()));
    for library in cases {
        let ended = kvern(&scratch, ["generate", "--prompt", "x", "--kv", &library]);
        assert!(ended.refused(1).contains(&library), "{ended:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_needed() {
    let scratch = Scratch::new();
    let long = "word ".repeat(9000);
    let cases: [(&[&str], &str); 8] = [
        (&["--memory-budget", "1KiB"], "at least"),
        (&["--kv-budget", "1KiB"], "at least"),
        (
            &["--kv-cache-strategy", "chunked", "--cache-dir", "/proc/nowhere"],
            "choose another --cache-dir",
        ),
        (&["--context-tokens", "1"], "context"),
        (&["--kv-cache-strategy", "residnet"], "did you mean `resident`?"),
        (&["--device", "gpu-of-dreams"], "found: candle, cpu"),
        (&["--offload-cpu-policy", "sufix"], "did you mean `suffix`?"),
        (&["--manifests", "/nowhere"], "/nowhere"),
    ];
    for (flags, said) in cases {
        let ended = kvern(&scratch, ["generate", "--prompt", "x"].iter().chain(flags));
        assert!(ended.refused(1).contains(said), "{ended:?}");
    }
    let ended = kvern(&scratch, ["generate", "--prompt", &long]);
    assert!(ended.refused(1).contains("context"), "{ended:?}");
    let ended = kvern(&scratch, ["generate", "--prompt", ""]);
    assert!(ended.refused(1).contains("no token"), "{ended:?}");
}

#[test]
fn bad_flags_are_refused_with_code_2() {
    let scratch = Scratch::new();
    let cases: [(&[&str], &str); 13] = [
        (&[], "--help"),
        (&["generat"], "generate"),
        (&["generate"], "--prompt"),
        (&["generate", "--prompt", "x", "--promt", "y"], "--promt"),
        (&["generate", "--prompt", "x", "--kv-dtype", "f8"], "bf16"),
        (&["generate", "--prompt", "x", "--kv-budget", "lots"], "16MiB"),
        (&["generate", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (&["generate", "--prompt", "x", "--temperature=-1"], "temperature"),
        (&["generate", "--prompt", "x", "--device", "cpu:x"], "ORDINAL"),
        (&["generate", "--prompt", "x", "--strategy-selector-profile", "fast"], "balanced"),
        (
            &["generate", "--prompt", "x", "--kv-cache-strategy", "chunked", "--kv-option", "a=1"],
            "known:",
        ),
        (&["bench", "--profile", "full"], "quick"),
        (&["bench", "probe", "--mode", "session-growth"], "session-growth"),
    ];
    for (arguments, said) in cases {
        let ended = kvern(&scratch, arguments);
        assert!(ended.refused(2).contains(said), "{ended:?}");
    }
}

#[test]
fn a_broken_gguf_leaves_nothing() {
    let scratch = Scratch::new();
    let files = [("text", b"hello".to_vec()), ("cut", b"GGUF\x03\0\0\0\xff\xff".to_vec())];
    for (name, bytes) in files {
        let file = scratch.write(name, bytes);
        let out = scratch.at("imported");
        let ended = kvern(&scratch, ["models", "import", &file, "--output", &out]);
        assert!(ended.refused(1).contains(&file), "{ended:?}");
        assert!(!Path::new(&out).exists());
    }
}

#[test]
fn scores_need_ids_of_the_vocabulary() {
    let scratch = Scratch::new();
    let out = scratch.at("logits.safetensors");
    for (ids, said) in [("[1]", "too few"), ("[1, 99999]", "vocabulary"), ("{}", "list")] {
        let ids = scratch.write("ids.json", ids);
        let ended = kvern(&scratch, ["perplexity", "--token-ids", &ids]);
        assert!(ended.refused(1).contains(said), "{ended:?}");
    }
    let ids = scratch.write("ids.json", "[1, 2]");
    let nowhere = scratch.at("nowhere/logits.safetensors");
    let ended = kvern(&scratch, ["perplexity", "--token-ids", &ids, "--logits", &nowhere]);
    ended.refused(1);
    let small = ["--memory-budget", "1KiB", "--logits", &out];
    kvern(&scratch, ["perplexity", "--token-ids", &ids].iter().chain(&small)).refused(1);
    assert_eq!(scratch.files("").len(), 1, "{:?}", scratch.files(""));
}
