//! Chat templates as the hub's models have them.
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use kvern_model::{ChatTemplate, Message, Text, TextFiles};
use serde_json::json;

fn messages() -> Vec<Message> {
    vec![
        Message::new("user", "Hi <there> & 'you'"),
        Message::new("assistant", "  Yes.  "),
        Message::new("user", "Go"),
    ]
}

fn check(source: &str, expected: &str) {
    let tokens = vec![
        ("bos_token".to_string(), "<s>".to_string()),
        ("eos_token".to_string(), "</s>".to_string()),
    ];
    let template = ChatTemplate::new(source, tokens).unwrap();
    assert_eq!(template.render(&messages(), true).unwrap(), expected);
}

const SMOLLM: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}";

#[test]
fn a_plain_template_renders() {
    check(
        SMOLLM,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi <there> & 'you'<|im_end|>\n<|im_start|>assistant\n  Yes.  <|im_end|>\n\
         <|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n",
    );
}

#[test]
fn python_in_a_template_works() {
    check(
        "{{ messages[0].content.upper().split(' ')[0] }}{{ messages[1]['content'].strip() }}",
        "HIYes.",
    );
    check("{{ messages[1]['content'] | trim }}{{ bos_token }}{{ eos_token }}", "Yes.<s></s>");
    check("{% for m in messages[1:] %}{{ m.role }},{% endfor %}", "assistant,user,");
    check("{% for m in messages[::-1] %}{{ m.content[0] }}{% endfor %}", "G H");
    check(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "3",
    );
    check(
        "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "user",
    );
    check(
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
        "assistant",
    );
    check(
        "{% if tools %}tools{% endif %}{% if tools is none %}none{% endif %}{{ x.y if x is defined else 'no' }}",
        "noneno",
    );
    check(
        "{{ messages[0].get('name', 'nobody') }}{% for k, v in messages[2].items() %}{{ k }}={{ v }};{% endfor %}",
        "nobodyrole=user;content=Go;",
    );
    check(
        "{% if 'Hi' in messages[0].content and messages[0].content is string %}in{% endif %}",
        "in",
    );
    check("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f('a') ~ f(1) }}", "[a][1]");
    check("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "2");
    check("{{ messages | map(attribute='role') | join('-') }}", "user-assistant-user");
}

#[test]
fn blocks_on_lines_of_their_own_leave_no_trace() {
    check(
        "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n        {{- '[' + m.content + ']' }}\n    {%- endif %}\n{%- endfor %}\n",
        "[Hi <there> & 'you'][Go]",
    );
    check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
}

#[test]
fn json_comes_out_as_python_writes_it() {
    check("{{ messages[2] | tojson }}", "{\"role\": \"user\", \"content\": \"Go\"}");
    check("{{ messages[0].content | tojson }}", "\"Hi <there> & 'you'\"");
    check(
        "{{ {'a': 'é'} | tojson(ensure_ascii=False) }}{{ {'a': 'é'} | tojson(ensure_ascii=True) }}",
        "{\"a\": \"é\"}{\"a\": \"\\u00e9\"}",
    );
    check(
        "{{ {'b': [1], 'a': {}} | tojson(indent=4) }}",
        "{\n    \"b\": [\n        1\n    ],\n    \"a\": {}\n}",
    );
    check(
        "{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=[',', ':']) }}",
        "{\"a\":2,\"b\":1}",
    );
}

#[test]
fn training_marks_are_left_out_with_their_white_space_control() {
    check(
        "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
        "userassistantuser",
    );
    check(
        "a \n{%- generation -%}\n b {%- endgeneration %}\nc {{ '{% generation %}' if false }}",
        "abc ",
    );
}

#[test]
fn a_template_refuses_in_its_own_words() {
    let source = "{% if messages[0].role == 'user' %}\n{{ raise_exception('roles must alternate') }}{% endif %}";
    let error = ChatTemplate::new(source, vec![]).unwrap().render(&messages(), true).unwrap_err();
    assert!(error.message.contains("line 2: roles must alternate"), "{error}");
    let error = ChatTemplate::new("{% for %}", vec![]).unwrap_err();
    assert!(error.message.contains("the chat template, line 1"), "{error}");
}

#[test]
fn a_date_in_a_template_is_a_date() {
    let template = ChatTemplate::new("{{ strftime_now('%Y-%m-%d') }}", vec![]).unwrap();
    let date = template.render(&[], false).unwrap();
    assert_eq!((date.len(), &date[4..5], &date[7..8]), (10, "-", "-"), "{date}");
    let template = ChatTemplate::new("{{ strftime_now('%Q%!') }}", vec![]).unwrap();
    assert!(template.render(&[], false).is_err());
}

#[test]
fn the_template_of_a_model_is_found_where_models_keep_it() {
    let tokenizer = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../host/kvern/embedded/tiny-austen/tokenizer.json"
    ))
    .unwrap();
    let find = |config: &serde_json::Value, file: Option<&[u8]>| {
        let bytes = config.to_string();
        let files = TextFiles {
            tokenizer: &tokenizer,
            tokenizer_config: Some(bytes.as_bytes()),
            chat_template: file,
        };
        Text::parse("who", &files, 2048)?.render(&messages()[..1], false)
    };
    let eos = json!({"content": "<|end|>", "lstrip": false});
    let both = json!({"eos_token": eos, "bos_token": null, "chat_template": "B{{ eos_token }}"});
    assert_eq!(find(&both, None).unwrap(), "B<|end|>");
    assert_eq!(find(&both, Some(b"A{{ bos_token }}")).unwrap(), "A");
    let named = json!({"chat_template": [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]});
    assert_eq!(find(&named, None).unwrap(), "D");
    let other = json!({"chat_template": [{"name": "rag", "template": "R"}]});
    assert!(
        find(&other, None)
            .unwrap_err()
            .message
            .contains("who has no chat template named default, only: rag")
    );
    assert!(find(&json!({}), None).unwrap_err().message.contains("who has no chat template"));
    assert!(find(&json!({"chat_template": 3}), None).is_err());
}

#[test]
fn a_chat_is_encoded_with_nothing_added_twice() {
    let tokenizer = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../host/kvern/embedded/tiny-austen/tokenizer.json"
    ))
    .unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&tokenizer).unwrap();
    json["post_processor"] = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}});
    let with_bos = json.to_string();
    let config = json!({"bos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}{{ messages[0].content }}"});
    let config = config.to_string();
    let files = TextFiles {
        tokenizer: with_bos.as_bytes(),
        tokenizer_config: Some(config.as_bytes()),
        chat_template: None,
    };
    let text = Text::parse("who", &files, 2048).unwrap();
    assert_eq!(text.encode("so").unwrap()[0], 0);
    let chat = text.chat(&[Message::new("user", "so")], false).unwrap();
    assert_eq!(chat, text.encode("so").unwrap());
}

#[test]
fn a_tag_that_ends_in_its_own_opening_is_an_error() {
    for source in ["{%}", "a{%}b", "{%}{% generation %}{% endgeneration %}"] {
        assert!(ChatTemplate::new(source, Vec::new()).is_err(), "{source}");
    }
}
