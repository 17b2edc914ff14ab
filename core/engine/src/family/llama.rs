//! Llama: RMS norms, rotary positions, grouped queries, a gated SiLU. Biases, tied heads and scaled
//! frequencies as the config says (Touvron et al. 2023; Grattafiori et al. 2024).

use super::{AttentionPlan, Family, Matrix, Places, Plan, RESIDUAL, Scratch, UnitPlan, Vector};
use kvern_contract::{
    Access, Epilogue, Few, KvLayer, LayerIndex, LayerKind, NormKind, Op, Result, Role, RowsKind,
    Slice, View,
};
use kvern_model::Model;

const NORMED: Scratch = Scratch(1);
const Q: Scratch = Scratch(2);
const K: Scratch = Scratch(3);
const V: Scratch = Scratch(4);
const ATTENDED: Scratch = Scratch(5);
const GATE: Scratch = Scratch(6);
const UP: Scratch = Scratch(7);

/// A matrix and its bias.
type Projection = (Matrix, Option<Vector>);

struct Layer {
    input_norm: Vector,
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    post_norm: Vector,
    gate: Projection,
    up: Projection,
    down: Projection,
}

/// A llama's graph.
pub(super) struct Llama {
    plan: Plan,
    layers: Vec<Layer>,
    final_norm: Vector,
    head: Matrix,
    eps: f32,
}

/// Names gathered so far.
#[derive(Default)]
struct Names {
    matrices: Vec<String>,
    vectors: Vec<String>,
}

impl Names {
    fn matrix(&mut self, name: String) -> Matrix {
        self.matrices.push(name);
        Matrix(self.matrices.len() - 1)
    }
    fn vector(&mut self, name: String) -> Vector {
        self.vectors.push(name);
        Vector(self.vectors.len() - 1)
    }
    fn projection(&mut self, name: &str, bias: bool) -> Projection {
        let weight = self.matrix(format!("{name}.weight"));
        (weight, bias.then(|| self.vector(format!("{name}.bias"))))
    }
}

impl Llama {
    /// *Errors* none of its own yet: the model's tensors were checked when it was opened.
    pub(super) fn new(model: &Model) -> Result<Self> {
        let config = model.config();
        let mut names = Names::default();
        let mut units = Vec::new();
        let embedding = names.matrix("model.embed_tokens.weight".into());
        if !config.tie_word_embeddings {
            units.push(unit(None, Role::Embed, Access::Rows, vec![embedding]));
        }
        let mut layers = Vec::new();
        for index in 0..config.layers {
            let layer = layer(&mut names, index, config.attention_bias, config.mlp_bias);
            let at = Some(LayerIndex(index));
            let attention = vec![layer.q.0, layer.k.0, layer.v.0, layer.o.0];
            units.push(unit(at, Role::Attention, Access::Sweep, attention));
            let mlp = vec![layer.gate.0, layer.up.0, layer.down.0];
            units.push(unit(at, Role::Mlp, Access::Sweep, mlp));
            layers.push(layer);
        }
        let final_norm = names.vector("model.norm.weight".into());
        let head = match config.tie_word_embeddings {
            true => embedding,
            false => names.matrix("lm_head.weight".into()),
        };
        units.push(unit(None, Role::Head, Access::Sweep, vec![head]));
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let (hidden, mlp) = (config.hidden_size, config.intermediate_size);
        let kv_layer = KvLayer {
            kind: LayerKind::Full,
            key_dim: config.head_dim,
            value_dim: config.head_dim,
            kv_heads: config.kv_heads,
        };
        let plan = Plan {
            matrices: names.matrices,
            vectors: names.vectors,
            units,
            scratch: vec![hidden, hidden, q, kv, kv, q, mlp, mlp],
            dense: vec![GATE, UP],
            layers: vec![kv_layer; config.layers as usize],
            attention: (0..config.layers).map(|_| attention(config)).collect(),
            embedding: (embedding, 1.0),
            hidden,
            vocabulary: config.vocab_size,
            inverse_frequencies: config.inv_freq(),
            context_tokens: u64::from(config.max_position_embeddings),
        };
        Ok(Llama { plan, layers, final_norm, head, eps: config.rms_norm_eps })
    }

    fn norm(&self, x: View, weight: Vector, out: View, at: &Places<'_>) -> Op {
        let width = self.plan.hidden;
        Op::Norm {
            x,
            weight: at.vector(weight),
            bias: Slice::default(),
            gate: View::default(),
            out,
            kind: NormKind::Rms,
            rows: at.rows,
            groups: 1,
            width,
            eps: self.eps,
        }
    }
}

fn unit(layer: Option<LayerIndex>, role: Role, access: Access, matrices: Vec<Matrix>) -> UnitPlan {
    UnitPlan { layer, role, access, matrices }
}

fn layer(names: &mut Names, index: u32, attention_bias: bool, mlp_bias: bool) -> Layer {
    let p = format!("model.layers.{index}");
    Layer {
        input_norm: names.vector(format!("{p}.input_layernorm.weight")),
        q: names.projection(&format!("{p}.self_attn.q_proj"), attention_bias),
        k: names.projection(&format!("{p}.self_attn.k_proj"), attention_bias),
        v: names.projection(&format!("{p}.self_attn.v_proj"), attention_bias),
        o: names.projection(&format!("{p}.self_attn.o_proj"), attention_bias),
        post_norm: names.vector(format!("{p}.post_attention_layernorm.weight")),
        gate: names.projection(&format!("{p}.mlp.gate_proj"), mlp_bias),
        up: names.projection(&format!("{p}.mlp.up_proj"), mlp_bias),
        down: names.projection(&format!("{p}.mlp.down_proj"), mlp_bias),
    }
}

fn attention(config: &kvern_model::Config) -> AttentionPlan {
    AttentionPlan {
        heads: config.heads,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
        softcap: 0.0,
        window: 0,
        interleaved: false,
        q: Q,
        k: K,
        v: V,
        out: ATTENDED,
    }
}

/// Projections of one input, each into its output.
fn linear(
    x: Slice,
    projections: &[Projection],
    outs: &[Scratch],
    epilogue: Epilogue,
    at: &Places<'_>,
) -> Op {
    let weights: Vec<_> = projections.iter().map(|p| at.weight(p.0)).collect();
    let biases: Vec<_> = projections.iter().map(|p| at.bias(p.1)).collect();
    let outs: Vec<_> = outs.iter().map(|s| at.slice(*s)).collect();
    Op::Linear {
        x,
        weights: Few::of(&weights),
        biases: Few::of(&biases),
        outs: Few::of(&outs),
        rows: at.rows,
        epilogue,
        limit: 0.0,
        alpha: 0.0,
    }
}

impl Family for Llama {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn before_attention(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>) {
        let (l, hidden) = (&self.layers[layer], self.plan.hidden);
        let (x, h) = (at.rows_of(RESIDUAL, hidden), at.rows_of(NORMED, hidden));
        list.push(self.norm(x, l.input_norm, h, at));
        let qkv = [l.q, l.k, l.v];
        list.push(linear(h.at, &qkv, &[Q, K, V], Epilogue::None, at));
    }

    fn after_attention(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>) {
        let o = self.layers[layer].o;
        list.push(linear(at.slice(ATTENDED), &[o], &[RESIDUAL], Epilogue::Add, at));
    }

    fn feed_forward(&self, layer: usize, at: &Places<'_>, list: &mut Vec<Op>) {
        let (l, hidden) = (&self.layers[layer], self.plan.hidden);
        let (x, h) = (at.rows_of(RESIDUAL, hidden), at.rows_of(NORMED, hidden));
        list.push(self.norm(x, l.post_norm, h, at));
        list.push(linear(h.at, &[l.gate, l.up], &[GATE, UP], Epilogue::SiluGated, at));
        let mut down = linear(at.slice(GATE), &[l.down], &[RESIDUAL], Epilogue::Add, at);
        if let Op::Linear { outs, .. } = &mut down {
            *outs = Few::of(&[x.at]);
        }
        list.push(down);
    }

    fn head(&self, indices: Slice, logits: Slice, at: &Places<'_>, list: &mut Vec<Op>) {
        let hidden = self.plan.hidden;
        let h = at.rows_of(NORMED, hidden);
        list.push(Op::Rows {
            x: at.slice(RESIDUAL),
            indices,
            out: h.at,
            kind: RowsKind::Gather,
            rows: at.rows,
            width: hidden,
        });
        list.push(self.norm(h, self.final_norm, h, at));
        list.push(Op::Linear {
            x: h.at,
            weights: Few::of(&[at.weight(self.head)]),
            biases: Few::of(&[Slice::default()]),
            outs: Few::of(&[logits]),
            rows: at.rows,
            epilogue: Epilogue::None,
            limit: 0.0,
            alpha: 0.0,
        });
    }
}
