//! A model as one file for llama.cpp and what is built on it: GGUF
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), there and back, of a GPT-2, a Llama or a Qwen3.
//!
//! What the keys and tensors are called, which tensors stay f32, and that a Llama's queries and keys are stored in another
//! order, is llama.cpp's convention (`convert_hf_to_gguf.py`). A file is [written](write_gguf) as a stream, and
//! [read](GgufFile) from its mapped bytes; `reader.rs` is what looks at bytes that nobody vouches for.

mod file;
mod format;
mod keys;
mod reader;
mod rope;
mod tensor_type;
mod tokenizer;
mod writer;

use std::{borrow::Cow, path::Path};

use self::{reader::Gguf, tensor_type::BLOCK};
use crate::{
    GptConfig, ModelError, Result, Tokenizer,
    checkpoint::layout::{Layout, StoredTensor, params_of_file, stored_tensors},
    config::{Architecture, RopeScaling},
    param_specs,
    params::check_values,
};

pub use file::GgufFile;
pub use tensor_type::TensorType;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgufWritten {
    /// The architecture that the file names.
    pub architecture: Architecture,
    /// How many matrices are f16 since blocks of 32 weights do not fit their rows.
    pub without_blocks: usize,
}

/// Writes a model as GGUF, version 3, atomically, with its matrices in a type of numbers; biases, norms and positions are f32
/// in each. The parameters are given in parameter order; `name` is what programs show of the model.
///
/// The file names the tokens that begin and end a text. Where the tokenizer has none they are [`Tokenizer::start_token`], since
/// llama.cpp would otherwise take the token with the id 11.
///
/// # Errors
/// [`ModelError::NoGguf`] where the network is of no architecture of Hugging Face, or is a Qwen3 whose angles are scaled as Llama 3's,
/// or the tokenizer is neither of characters nor
/// a byte-level BPE with the words of GPT-2, Llama 3 or Qwen; when the parameters do not match the configuration, a weight is
/// too large for the type, or the disk is full.
pub fn write_gguf(
    path: &Path,
    config: &GptConfig,
    params: &[&[f32]],
    tokenizer: &Tokenizer,
    name: &str,
    kind: TensorType,
) -> Result<GgufWritten> {
    let architecture = config.architecture().map_err(|blame| ModelError::NoGguf { reason: blame.to_string() })?;
    let llama3 = config.rope_scaling == RopeScaling::Llama3;
    if llama3 && architecture != Architecture::Llama {
        let reason = "its angles are scaled by model.rope_scaling = \"llama3\", which llama.cpp has for a Llama alone";
        return Err(ModelError::NoGguf { reason: reason.into() });
    }
    let numbers = [config.rope_theta, config.rope_factor, config.rope_low_freq_factor, config.rope_high_freq_factor];
    if numbers.iter().any(|&number| !(number as f32).is_finite()) {
        let reason = "a number of its angles (rope_theta, rope_factor) is larger than one of 32 bits";
        return Err(ModelError::NoGguf { reason: reason.into() });
    }
    check_values(&param_specs(config), params)?;
    let mut metadata = keys::describe(config, architecture, kind, name);
    if llama3 {
        metadata.extend(rope::describe(config));
    }
    metadata.extend(tokenizer::describe(tokenizer, config.vocab_size)?);
    let in_file = params_of_file(config, params);
    let mut tensors = Vec::new();
    for (spec, param) in &in_file {
        for stored in stored_tensors(spec, Layout::of_gguf(architecture)) {
            let interleaved = interleaved_heads(&stored, architecture, config);
            tensors.push(GgufTensor { kind: type_of(&stored, kind), stored, param, interleaved });
        }
    }
    let factors = if llama3 { rope::factors(config) } else { Vec::new() };
    if llama3 {
        let stored = StoredTensor { name: rope::ROPE_FACTORS.into(), shape: vec![factors.len()], columns: None };
        tensors.push(GgufTensor { kind: TensorType::F32, stored, param: &factors, interleaved: None });
    }
    writer::write(path, &metadata, &tensors)?;
    let without_blocks = tensors.iter().filter(|tensor| kind.has_blocks() && tensor.kind == TensorType::F16).count();
    Ok(GgufWritten { architecture, without_blocks })
}

/// A tensor of the file, and the parameter that it is in.
struct GgufTensor<'a> {
    stored: StoredTensor,
    kind: TensorType,
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

    /// The size of the tensor in the file.
    fn bytes(&self) -> usize {
        let cols = self.stored.shape.last().copied().unwrap_or(0);
        let rows = self.stored.shape.iter().rev().skip(1).product();
        // `type_of` gives no type that does not fit, and the values of all are in memory.
        self.kind.bytes(rows, cols).unwrap_or(0)
    }
}

/// The type of a tensor in a file whose matrices are of `kind`: as llama.cpp's converter has it, vectors, norms and positions
/// are f32, and matrices whose rows are not whole blocks f16.
fn type_of(stored: &StoredTensor, kind: TensorType) -> TensorType {
    let StoredTensor { name, shape, .. } = stored;
    match shape[..] {
        [_, cols] if name != POSITIONS => match kind {
            kind if kind.has_blocks() && !cols.is_multiple_of(BLOCK) => TensorType::F16,
            kind => kind,
        },
        _ => TensorType::F32,
    }
}

/// The table of learned positions.
const POSITIONS: &str = "position_embd.weight";

/// The size of the heads of a tensor whose pairs lie interleaved in the file: of a Llama's queries and keys.
fn interleaved_heads(stored: &StoredTensor, architecture: Architecture, config: &GptConfig) -> Option<usize> {
    let rotated = ["attn_q.weight", "attn_k.weight"].iter().any(|name| stored.name.ends_with(name));
    (rotated && architecture == Architecture::Llama).then_some(config.head_size())
}

/// The rows of queries or keys, `(heads * head_size, in)`, in the order that llama.cpp wants of a Llama: it rotates channels
/// 2i and 2i + 1 of a head, where Hugging Face and this program rotate i and i + head_size / 2.
fn interleave_pairs(rows: &[f32], n_in: usize, head_size: usize) -> Vec<f32> {
    reorder(rows, n_in, head_size, |channel| channel % 2 * (head_size / 2) + channel / 2)
}

/// The way back from [`interleave_pairs`].
pub(crate) fn separate_pairs(rows: &[f32], n_in: usize, head_size: usize) -> Vec<f32> {
    reorder(rows, n_in, head_size, |channel| channel % (head_size / 2) * 2 + channel / (head_size / 2))
}

/// The rows `(heads * head_size, in)` with those of each head in the order in which `from` takes them.
fn reorder(rows: &[f32], n_in: usize, head_size: usize, from: impl Fn(usize) -> usize) -> Vec<f32> {
    let row = |to: usize| {
        let from = to / head_size * head_size + from(to % head_size);
        &rows[from * n_in..(from + 1) * n_in]
    };
    (0..rows.len() / n_in).flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_halves_of_each_head_are_interleaved_and_come_back() {
        let rows = [0., 0., 1., 1., 2., 2., 3., 3., 4., 4., 5., 5., 6., 6., 7., 7.];
        let interleaved = interleave_pairs(&rows, 2, 4);
        let order: Vec<f32> = interleaved.iter().copied().step_by(2).collect();
        assert_eq!(order, [0., 2., 1., 3., 4., 6., 5., 7.]);
        assert_eq!(separate_pairs(&interleaved, 2, 4), rows);
        let six: Vec<f32> = (0..6).map(|i| i as f32).collect();
        assert_eq!(interleave_pairs(&six, 1, 6), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(separate_pairs(&interleave_pairs(&six, 1, 6), 1, 6), six);
    }

    #[test]
    fn vectors_and_positions_stay_f32_and_rows_that_are_no_blocks_f16() {
        let of = |name: &str, shape: &[usize], kind| {
            type_of(&StoredTensor { name: name.into(), shape: shape.into(), columns: None }, kind)
        };
        for kind in TensorType::ALL {
            assert_eq!(of("blk.0.attn_qkv.weight", &[3, 64], kind), kind);
            for (name, shape) in
                [("blk.0.attn_qkv.bias", &[64][..]), ("output_norm.weight", &[64]), ("position_embd.weight", &[8, 64])]
            {
                assert_eq!(of(name, shape, kind), TensorType::F32, "{name}");
            }
        }
        assert_eq!(of("token_embd.weight", &[3, 48], TensorType::Q8_0), TensorType::F16);
        assert_eq!(of("token_embd.weight", &[3, 48], TensorType::Q4_0), TensorType::F16);
        assert_eq!(of("token_embd.weight", &[3, 48], TensorType::Bf16), TensorType::Bf16);
    }
}
