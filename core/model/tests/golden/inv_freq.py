#!/usr/bin/env python3
"""Write inv_freq.json: inverse rope frequencies by transformers, as f32 bit patterns.

usage: inv_freq.py OUT.json      needs torch, transformers
"""
import json
import struct
import sys

from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
CASES = []
for dim in (8, 16, 32, 64, 96, 128, 256):
    for theta in (10000.0, 100000.0, 130000.0, 500000.0, 1000000.0, 5000000.0):
        CASES.append((dim, dict(rope_type="default", rope_theta=theta)))
for dim in (16, 64, 128):
    CASES.append((dim, dict(rope_type="linear", factor=3.0, rope_theta=10000.0)))
    CASES.append((dim, dict(rope_theta=500000.0, original_max_position_embeddings=8192, **llama3)))
    CASES.append((dim, dict(rope_theta=500000.0, original_max_position_embeddings=128, **llama3)))
    CASES.append((dim, dict(rope_theta=500000.0, original_max_position_embeddings=8192, **{**llama3, "factor": 32.0})))
out = []
for dim, rope in CASES:
    config = LlamaConfig(hidden_size=dim * 2, num_attention_heads=2, num_key_value_heads=2, head_dim=dim, max_position_embeddings=131072,
                         rope_parameters=rope)
    bits = [struct.unpack("<I", struct.pack("<f", x))[0] for x in LlamaRotaryEmbedding(config).inv_freq.tolist()]
    out.append({"head_dim": dim, "rope_parameters": rope, "bits": bits})
json.dump(out, open(sys.argv[1], "w"))
