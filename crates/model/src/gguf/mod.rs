//! GGUF: one file with weights, shape and tokenizer, which llama.cpp and the programs around it open (the format:
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>). A Llama and a Qwen3 can be written.
//!
//! Weights are f32. What the keys and tensors are called, and that a Llama's queries and keys are stored in another order,
//! is llama.cpp's convention (`convert_hf_to_gguf.py`).

mod file;
mod tokenizer;

use std::{borrow::Cow, path::Path};

use self::file::GgufValue;
use crate::{
    GptConfig, ModelError, Result, Tokenizer,
    checkpoint::layout::{Layout, StoredTensor, stored_tensors},
    config::{Architecture, Norm, RopeScaling},
    param_specs,
    params::check_values,
};

/// `general.file_type` of a file whose weights are all f32.
const ALL_F32: u32 = 0;

/// Writes a model as GGUF, version 3, atomically. The parameters are given in parameter order; `name` is what programs show
/// of the model. It gives the architecture that was written.
///
/// The file names one token that begins and ends a text. Where the tokenizer has no `<|endoftext|>` it is
/// [`Tokenizer::start_token`], since llama.cpp would otherwise take the token with the id 11.
///
/// # Errors
/// [`ModelError::NoGguf`] where the network is neither a Llama nor a Qwen3, its rotary angles are scaled, or the tokenizer is neither of characters nor a
/// byte-level BPE with GPT-2's words; when the parameters do not match the configuration, or the disk is full.
pub fn write_gguf(
    path: &Path,
    config: &GptConfig,
    params: &[&[f32]],
    tokenizer: &Tokenizer,
    name: &str,
) -> Result<Architecture> {
    let architecture = config.llama_or_qwen3().map_err(|blame| {
        let kind = config.architecture().map_or("a network of its own kind", Architecture::class);
        ModelError::NoGguf { reason: format!("it is {kind}, where {blame}") }
    })?;
    if config.rope_scaling != RopeScaling::None {
        let reason = format!("its angles are scaled (model.rope_scaling = \"{}\")", config.rope_scaling.name());
        return Err(ModelError::NoGguf { reason });
    }
    let specs = param_specs(config);
    check_values(&specs, params)?;
    let mut metadata = describe(config, architecture, name);
    metadata.extend(tokenizer::describe(tokenizer, config.vocab_size)?);
    let mut tensors = Vec::new();
    for (spec, &param) in specs.iter().zip(params) {
        for stored in stored_tensors(spec, Layout::Gguf) {
            let rotated = ["attn_q.weight", "attn_k.weight"].iter().any(|name| stored.name.ends_with(name));
            let interleaved = (rotated && architecture == Architecture::Llama).then_some(config.head_size());
            tensors.push(GgufTensor { stored, param, interleaved });
        }
    }
    file::write(path, &metadata, &tensors)?;
    Ok(architecture)
}

/// A tensor of the file, and the parameter that it is in.
struct GgufTensor<'a> {
    stored: StoredTensor,
    param: &'a [f32],
    /// The size of the heads whose pairs lie interleaved.
    interleaved: Option<usize>,
}

impl GgufTensor<'_> {
    /// The values as they are stored. They are computed when they are written, so that only one tensor is in memory twice.
    fn values(&self) -> Cow<'_, [f32]> {
        match (self.stored.take_from(self.param), self.interleaved, &self.stored.shape[..]) {
            (rows, Some(head_size), &[_, n_in]) => interleave_pairs(&rows, n_in, head_size).into(),
            (rows, ..) => rows,
        }
    }
}

/// The shape of the model.
fn describe(config: &GptConfig, architecture: Architecture, name: &str) -> Vec<(String, GgufValue)> {
    let number = |n: usize| GgufValue::U32(n as u32); // no dimension is above 2^24
    let general = [
        ("architecture", GgufValue::String(architecture.model_type().into())),
        ("name", GgufValue::String(name.into())),
        ("file_type", GgufValue::U32(ALL_F32)),
    ];
    let shape = [
        ("vocab_size", number(config.vocab_size)),
        ("context_length", number(config.block_size)),
        ("embedding_length", number(config.n_embd)),
        ("block_count", number(config.n_layer)),
        ("feed_forward_length", number(config.hidden())),
        ("attention.head_count", number(config.n_head)),
        ("attention.head_count_kv", number(config.kv_heads())),
        ("attention.key_length", number(config.head_size())),
        ("attention.value_length", number(config.head_size())),
        ("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps(Norm::Rms) as f32)),
        ("rope.dimension_count", number(config.head_size())),
        ("rope.freq_base", GgufValue::F32(config.rope_theta as f32)),
    ];
    let general = general.map(|(key, value)| (format!("general.{key}"), value));
    let shape = shape.map(|(key, value)| (format!("{}.{key}", architecture.model_type()), value));
    general.into_iter().chain(shape).collect()
}

/// The rows of queries or keys, `(heads * head_size, in)`, in the order that llama.cpp wants of a Llama: it rotates channels
/// 2i and 2i + 1 of a head, where Hugging Face and this program rotate i and i + head_size / 2.
fn interleave_pairs(rows: &[f32], n_in: usize, head_size: usize) -> Vec<f32> {
    let row = |to: usize| {
        let (head, channel) = (to / head_size, to % head_size);
        let from = head * head_size + channel % 2 * (head_size / 2) + channel / 2;
        &rows[from * n_in..(from + 1) * n_in]
    };
    (0..rows.len() / n_in).flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_each_head_are_interleaved() {
        let rows = [0., 0., 1., 1., 2., 2., 3., 3., 4., 4., 5., 5., 6., 6., 7., 7.];
        let order: Vec<f32> = interleave_pairs(&rows, 2, 4).into_iter().step_by(2).collect();
        assert_eq!(order, [0., 2., 1., 3., 4., 6., 5., 7.]);
    }
}
