#!/usr/bin/env python3
"""Write tiny.gguf, a llama of one layer with a tensor in each block encoding, and tiny.json: its config, the SHA-256
of every tensor in bf16 as transformers converts it, and the ids of a text.

usage: tiny_gguf.py OUT_DIR      needs gguf, numpy, torch, transformers
"""
import hashlib
import json
import os
import sys

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

out = sys.argv[1]
rng = np.random.default_rng(7)
H, HEADS, KV, DIM, INNER, Q = 256, 4, 1, 64, 256, gguf.GGMLQuantizationType
tokens = ["<|end|>", "<|start|>", "a", "b", "c", "1", "2", "Ġ", "Ċ", "ab", "Ġa", "ĠĠ", "Ġab", "abc"]
merges = ["a b", "Ġ a", "Ġ Ġ", "Ġ ab", "ab c"]
w = gguf.GGUFWriter(f"{out}/tiny.gguf", "llama")
w.add_name("tiny")
w.add_context_length(128)
w.add_embedding_length(H)
w.add_block_count(1)
w.add_feed_forward_length(INNER)
w.add_head_count(HEADS)
w.add_head_count_kv(KV)
w.add_layer_norm_rms_eps(1e-5)
w.add_rope_freq_base(50000.0)
w.add_rope_dimension_count(DIM)
w.add_vocab_size(len(tokens))
w.add_tokenizer_model("gpt2")
w.add_tokenizer_pre("smollm")
w.add_token_list(tokens)
w.add_token_types([3, 3] + [1] * (len(tokens) - 2))
w.add_token_merges(merges)
w.add_bos_token_id(1)
w.add_eos_token_id(0)
w.add_unk_token_id(0)
w.add_chat_template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")


def blocks(rows, columns, kind):
    """Random blocks with scales of a sane size: every bit pattern of the packed parts is right."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    places = {Q.Q4_0: [0], Q.Q5_0: [0], Q.Q8_0: [0], Q.Q4_1: [0, 2], Q.Q5_1: [0, 2], Q.Q4_K: [0, 2], Q.Q5_K: [0, 2], Q.Q6_K: [208]}
    for at in places[kind]:
        scales = (rng.standard_normal(len(data)) * 0.002).astype(np.float16)
        data[:, at:at + 2] = scales[:, None].view(np.uint8)
    return data.reshape(rows, -1)


def add(name, rows, columns, kind):
    if kind in (Q.F32, Q.F16):
        shape = (rows, columns) if columns else (rows,)
        w.add_tensor(name, rng.standard_normal(shape).astype(np.float32 if kind == Q.F32 else np.float16))
    elif kind == Q.BF16:
        w.add_tensor(name, gguf.quants.quantize(rng.standard_normal((rows, columns)).astype(np.float32), kind), raw_dtype=kind)
    else:
        w.add_tensor(name, blocks(rows, columns, kind), raw_dtype=kind)


add("token_embd.weight", len(tokens), H, Q.Q8_0)
add("output_norm.weight", H, 0, Q.F32)
add("output.weight", len(tokens), H, Q.BF16)
add("blk.0.attn_norm.weight", H, 0, Q.F32)
add("blk.0.ffn_norm.weight", H, 0, Q.F32)
add("blk.0.attn_q.weight", HEADS * DIM, H, Q.Q4_K)
add("blk.0.attn_k.weight", KV * DIM, H, Q.Q6_K)
add("blk.0.attn_v.weight", KV * DIM, H, Q.Q5_K)
add("blk.0.attn_output.weight", H, HEADS * DIM, Q.Q4_0)
add("blk.0.ffn_gate.weight", INNER, H, Q.Q5_0)
add("blk.0.ffn_up.weight", INNER, H, Q.Q5_1)
add("blk.0.ffn_down.weight", H, INNER, Q.Q4_1)
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()

model = AutoModelForCausalLM.from_pretrained(out, gguf_file="tiny.gguf", dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(out, gguf_file="tiny.gguf")
keep = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "rope_parameters", "hidden_act"]
config = model.config.to_dict()
digest = {}
for name, tensor in model.state_dict().items():
    digest[name] = hashlib.sha256(tensor.bfloat16().contiguous().view(torch.int16).numpy().tobytes()).hexdigest()
text = "<|start|>abc  ab a\nbc12 ab<|end|>"
json.dump({"config": {key: config.get(key) for key in keep}, "sha256": digest, "text": text, "ids": tokenizer(text).input_ids},
          open(f"{out}/tiny.json", "w"), indent=1)
print(os.path.getsize(f"{out}/tiny.gguf"), "bytes")
