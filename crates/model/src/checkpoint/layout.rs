//! How parameters lie in a file. In memory they have GPT-2's names, matrices are `(in, out)`, and linear layers of the same
//! input lie side by side in one. So does a file of ours and of a GPT-2. Hugging Face's Llama and Qwen3, and GGUF, have a
//! tensor for each linear layer, `(out, in)`, under names of their own: the table is here. A GPT-2 in GGUF has its queries, keys
//! and values in one.

use std::{borrow::Cow, collections::HashMap, ops::Range};

use crate::{GptConfig, ParamSpec, config::Architecture, param_specs, plan::Role};

/// How the parameters of a model lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As in memory.
    Own,
    /// As in Hugging Face's Llama and Qwen3.
    Llama,
    /// As in GGUF's `llama` and `qwen3`.
    Gguf,
    /// As in GGUF's `gpt2`.
    GgufGpt2,
}

impl Layout {
    /// That of `model.safetensors` in the folder of a model.
    pub(crate) fn of_folder(config: &GptConfig) -> Self {
        match config.architecture() {
            Ok(Architecture::Llama | Architecture::Qwen3) => Self::Llama,
            Ok(Architecture::Gpt2) | Err(_) => Self::Own,
        }
    }

    /// That of a GGUF file of this architecture.
    pub(crate) fn of_gguf(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Llama | Architecture::Qwen3 => Self::Gguf,
            Architecture::Gpt2 => Self::GgufGpt2,
        }
    }
}

/// The names of a module: here, in Hugging Face's Llama and Qwen3, and in GGUF. There are as many of the latter as linear
/// layers lie side by side here.
struct Names {
    own: &'static str,
    llama: &'static [&'static str],
    gguf: &'static [&'static str],
}

const fn names(own: &'static str, llama: &'static [&'static str], gguf: &'static [&'static str]) -> Names {
    Names { own, llama, gguf }
}

/// Modules outside of blocks.
const MODEL: &[Names] = &[
    names("transformer.wte", &["model.embed_tokens"], &["token_embd"]),
    names("transformer.wpe", &[], &["position_embd"]),
    names("transformer.ln_f", &["model.norm"], &["output_norm"]),
    names("lm_head", &["lm_head"], &["output"]),
];

/// Modules of a block.
const BLOCK: &[Names] = &[
    names("ln_1", &["input_layernorm"], &["attn_norm"]),
    names(
        "attn.c_attn",
        &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        &["attn_q", "attn_k", "attn_v"],
    ),
    names("attn.q_norm", &["self_attn.q_norm"], &["attn_q_norm"]),
    names("attn.k_norm", &["self_attn.k_norm"], &["attn_k_norm"]),
    names("attn.c_proj", &["self_attn.o_proj"], &["attn_output"]),
    names("ln_2", &["post_attention_layernorm"], &["ffn_norm"]),
    names("mlp.c_fc", &["mlp.gate_proj", "mlp.up_proj"], &["ffn_gate", "ffn_up"]),
    names("mlp.c_proj", &["mlp.down_proj"], &["ffn_down"]),
];

/// The names of GGUF's `gpt2` that differ from those of its other architectures.
const GPT2: &[(&str, &[&str])] = &[("attn.c_attn", &["attn_qkv"]), ("mlp.c_fc", &["ffn_up"])];

/// A tensor of a file: a parameter, or the columns of one of the linear layers in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    /// Its name in the file.
    pub(crate) name: String,
    /// Its shape in the file.
    pub(crate) shape: Vec<usize>,
    /// Which columns of the parameter are its rows; `None` where it is the parameter as it lies in memory.
    pub(crate) columns: Option<Range<usize>>,
}

/// The parameters of a file, and their values: those of the model, given in parameter order, and where a GPT-2 has no biases,
/// zeros in their places, since those of others always have them.
pub(crate) fn params_of_file<'a>(config: &GptConfig, params: &[&'a [f32]]) -> Vec<(ParamSpec, Cow<'a, [f32]>)> {
    let specs = param_specs(config);
    let given: HashMap<&str, &'a [f32]> =
        specs.iter().map(|spec| spec.name.as_str()).zip(params.iter().copied()).collect();
    let in_file = param_specs(&GptConfig { bias: config.bias || config.is_gpt2(), ..config.clone() });
    let values = |spec: &ParamSpec| match given.get(spec.name.as_str()) {
        Some(&values) => values.into(),
        None => vec![0.0; spec.len()].into(),
    };
    in_file
        .into_iter()
        .map(|spec| {
            let values = values(&spec);
            (spec, values)
        })
        .collect()
}

/// The tensors that a parameter is in a file. Parameters that the table does not know are as in memory.
pub(crate) fn stored_tensors(spec: &ParamSpec, layout: Layout) -> Vec<StoredTensor> {
    let as_in_memory = |name: String| vec![StoredTensor { name, shape: spec.shape.clone(), columns: None }];
    let Some(names) = foreign_names(&spec.name, layout) else { return as_in_memory(spec.name.clone()) };
    match (spec.role, &spec.shape[..]) {
        (Role::Matrix, &[n_in, n_out]) => {
            let parts = if names.len() == 1 { &[n_out][..] } else { &spec.parts };
            let mut end = 0;
            let part = |(name, &n_out): (String, &usize)| {
                let start = end;
                end += n_out;
                StoredTensor { name, shape: vec![n_out, n_in], columns: Some(start..end) }
            };
            names.into_iter().zip(parts).map(part).collect()
        }
        _ => names.into_iter().flat_map(as_in_memory).collect(),
    }
}

/// The names of a parameter's tensors, where the layout has names of its own.
fn foreign_names(own: &str, layout: Layout) -> Option<Vec<String>> {
    let block_prefix = match layout {
        Layout::Own => return None,
        Layout::Llama => "model.layers",
        Layout::Gguf | Layout::GgufGpt2 => "blk",
    };
    let of = |names: &Names| match layout {
        Layout::Own | Layout::Llama => names.llama,
        Layout::Gguf => names.gguf,
        Layout::GgufGpt2 => GPT2.iter().find(|(own, _)| *own == names.own).map_or(names.gguf, |(_, gpt2)| *gpt2),
    };
    let (module, suffix) = own.rsplit_once('.')?;
    if suffix == "bias" && layout != Layout::GgufGpt2 {
        return None;
    }
    let find = |table: &'static [Names], module: &str| table.iter().find(|names| names.own == module).map(of);
    match module.strip_prefix("transformer.h.") {
        Some(rest) => {
            let (block, module) = rest.split_once('.')?;
            let names = find(BLOCK, module)?;
            Some(names.iter().map(|name| format!("{block_prefix}.{block}.{name}.{suffix}")).collect())
        }
        None => Some(find(MODEL, module)?.iter().map(|name| format!("{name}.{suffix}")).collect()),
    }
}

impl StoredTensor {
    /// The values of this tensor of the file, taken from the parameter `(in, columns)` that it is in.
    pub(crate) fn take_from<'a>(&self, param: &'a [f32]) -> Cow<'a, [f32]> {
        let (Some(columns), &[_, n_in]) = (&self.columns, &self.shape[..]) else { return param.into() };
        let width = param.len() / n_in;
        columns.clone().flat_map(|column| param.iter().skip(column).step_by(width).copied()).collect()
    }

    /// Puts the values of this tensor of the file into the parameter `(in, columns)` that it is in.
    pub(crate) fn put_into(&self, values: &[f32], param: &mut [f32]) {
        let (Some(columns), &[_, n_in]) = (&self.columns, &self.shape[..]) else {
            return param.copy_from_slice(values);
        };
        let width = param.len() / n_in;
        for (column, row) in columns.clone().zip(values.chunks_exact(n_in)) {
            for (to, &value) in param.iter_mut().skip(column).step_by(width).zip(row) {
                *to = value;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Mlp, Norm, Position},
        param_specs,
        plan::Init,
    };

    fn spec(name: &str, shape: &[usize], parts: &[usize], role: Role) -> ParamSpec {
        ParamSpec { name: name.into(), shape: shape.into(), role, init: Init::Zeros, parts: parts.into() }
    }

    #[test]
    fn linear_layers_side_by_side_are_a_tensor_each_with_outputs_first_and_come_back() {
        let spec = spec("transformer.h.3.attn.c_attn.weight", &[2, 5], &[3, 1, 1], Role::Matrix);
        let tensors = stored_tensors(&spec, Layout::Llama);
        let names: Vec<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["q", "k", "v"].map(|n| format!("model.layers.3.self_attn.{n}_proj.weight")));
        assert_eq!(tensors.iter().map(|t| t.shape.clone()).collect::<Vec<_>>(), [[3, 2], [1, 2], [1, 2]]);
        let param = [0., 1., 2., 3., 4., 10., 11., 12., 13., 14.];
        let stored: Vec<Vec<f32>> = tensors.iter().map(|t| t.take_from(&param).into_owned()).collect();
        assert_eq!(stored, [vec![0., 10., 1., 11., 2., 12.], vec![3., 13.], vec![4., 14.]]);
        let mut back = [0.0; 10];
        for (tensor, values) in tensors.iter().zip(&stored) {
            tensor.put_into(values, &mut back);
        }
        assert_eq!(back, param);
    }

    #[test]
    fn embeddings_and_norms_are_stored_as_they_are() {
        for (spec, name) in [
            (spec("transformer.wte.weight", &[3, 2], &[], Role::Embedding), "token_embd.weight"),
            (spec("transformer.h.0.attn.q_norm.weight", &[2], &[], Role::Norm), "blk.0.attn_q_norm.weight"),
        ] {
            let shape = spec.shape.clone();
            assert_eq!(stored_tensors(&spec, Layout::Gguf), [StoredTensor { name: name.into(), shape, columns: None }]);
        }
    }

    #[test]
    fn every_parameter_of_a_llama_and_a_qwen3_is_in_the_table_and_no_other_layout_has_its_name() {
        for (qk_norm, tie_embeddings) in [(false, false), (true, true)] {
            let (norm, position, mlp) = (Norm::Rms, Position::Rope, Mlp::Swiglu);
            let config =
                GptConfig { norm, position, mlp, qk_norm, tie_embeddings, n_kv_head: 2, ..GptConfig::default() };
            assert_eq!(Layout::of_folder(&config), Layout::Llama);
            for spec in param_specs(&config) {
                for layout in [Layout::Llama, Layout::Gguf] {
                    let tensors = stored_tensors(&spec, layout);
                    assert!(foreign_names(&spec.name, layout).is_some(), "{}", spec.name);
                    let elements: usize = tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
                    assert_eq!(elements, spec.len(), "{}", spec.name);
                }
            }
        }
    }

    #[test]
    fn a_gpt2_in_gguf_has_its_matrices_with_outputs_first_and_its_biases() {
        let config = GptConfig {
            bias: true,
            n_layer: 1,
            vocab_size: 7,
            block_size: 5,
            n_embd: 4,
            n_head: 2,
            ..GptConfig::default()
        };
        let tensors =
            param_specs(&config).iter().flat_map(|spec| stored_tensors(spec, Layout::GgufGpt2)).collect::<Vec<_>>();
        let found: Vec<(&str, &[usize])> = tensors.iter().map(|t| (&*t.name, &*t.shape)).collect();
        let expected: [(&str, &[usize]); 16] = [
            ("token_embd.weight", &[7, 4]),
            ("position_embd.weight", &[5, 4]),
            ("blk.0.attn_norm.weight", &[4]),
            ("blk.0.attn_norm.bias", &[4]),
            ("blk.0.attn_qkv.weight", &[12, 4]),
            ("blk.0.attn_qkv.bias", &[12]),
            ("blk.0.attn_output.weight", &[4, 4]),
            ("blk.0.attn_output.bias", &[4]),
            ("blk.0.ffn_norm.weight", &[4]),
            ("blk.0.ffn_norm.bias", &[4]),
            ("blk.0.ffn_up.weight", &[16, 4]),
            ("blk.0.ffn_up.bias", &[16]),
            ("blk.0.ffn_down.weight", &[4, 16]),
            ("blk.0.ffn_down.bias", &[4]),
            ("output_norm.weight", &[4]),
            ("output_norm.bias", &[4]),
        ];
        assert_eq!(found, expected);
        assert_eq!(tensors[4].columns, Some(0..12));
    }

    #[test]
    fn a_gpt2_lies_in_its_file_as_in_memory() {
        let config = GptConfig { bias: true, ..GptConfig::default() };
        assert_eq!(Layout::of_folder(&config), Layout::Own);
        for spec in param_specs(&config) {
            let tensor = StoredTensor { name: spec.name.clone(), shape: spec.shape.clone(), columns: None };
            assert_eq!(stored_tensors(&spec, Layout::Own), [tensor]);
        }
    }
}
