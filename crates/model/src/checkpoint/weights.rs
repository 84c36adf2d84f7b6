//! The weights of a model folder, used where they lie in its files.

use std::{collections::HashSet, ops::Range};

use safetensors::tensor::Dtype;

use super::{
    config_json::{AttentionScale, Description},
    layout::{Layout, StoredTensor, stored_tensors},
    weight_files::{TensorEntry, WeightFiles, values},
};
use crate::{
    GptConfig, ParamSpec,
    files::{FileError, MappedFile},
    param_specs,
};

/// All parameters of a model, in parameter order.
#[derive(Debug)]
pub struct Weights {
    files: Vec<MappedFile>,
    params: Vec<Param>,
    /// Whether a scale of attention's scores was multiplied into the queries' weights.
    queries_are_scaled: bool,
}

#[derive(Debug)]
enum Param {
    /// Its bytes in one of the files.
    Mapped {
        file: usize,
        bytes: Range<usize>,
    },
    Read(Vec<f32>),
}

/// A tensor that a parameter needs, its name in the file, and where it lies.
type Located<'a> = (StoredTensor, &'a str, &'a TensorEntry);

impl Weights {
    /// Takes the parameters of a model from its files. Those that lie there as in memory stay mapped; others are converted:
    /// where numbers are not f32 as this processor has them, matrices are `(out, in)`, as Llama's and Qwen3's, or scores of
    /// attention are scaled in another way.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or numbers that are not read here, or the files hold more of the network
    /// than `config.json` says.
    pub(super) fn new(files: WeightFiles, model: &Description) -> Result<Self, FileError> {
        let Description { config, attention_scale } = model;
        // Else a number in `config.json` would decide how much memory the list of parameters takes.
        if config.n_layer > files.tensors.len() {
            let (tensors, blocks) = (files.tensors.len(), config.n_layer);
            return Err(
                files.error(format!("it has {tensors} tensors, too few for the {blocks} blocks of config.json"))
            );
        }
        let specs = param_specs(config);
        // All tensors are looked for before the first is read.
        let located = locate(&files, &specs, Layout::of_folder(config)).map_err(|reason| files.error(reason))?;
        check_others(&files, config, &located).map_err(|reason| files.error(reason))?;
        let read = |name: &str, entry: &TensorEntry| {
            values(files.bytes(entry), entry.dtype, &entry.shape)
                .map_err(|reason| files.error(format!("{name} {reason}")))
        };
        let param = |(spec, tensors): (&ParamSpec, &Vec<Located<'_>>)| {
            let scale = attention_scale.of_param(&spec.name, config);
            let mut param = match tensors[..] {
                [(StoredTensor { columns: None, .. }, name, entry)] => {
                    if scale.is_none() && lies_as_in_memory(&files, entry) {
                        return Ok(Param::Mapped { file: entry.file, bytes: entry.bytes.clone() });
                    }
                    read(name, entry)?
                }
                _ => {
                    let mut param = vec![0.0; spec.len()];
                    for (stored, name, entry) in tensors {
                        stored.put_into(&read(name, entry)?, &mut param);
                    }
                    param
                }
            };
            if let Some(scale) = scale {
                scale.apply(&mut param);
            }
            Ok(Param::Read(param))
        };
        let params = specs.iter().zip(&located).map(param).collect::<Result<_, FileError>>()?;
        Ok(Self { files: files.files, params, queries_are_scaled: *attention_scale != AttentionScale::default() })
    }

    /// Weights that were read, in parameter order.
    pub(crate) fn of_values(values: Vec<Vec<f32>>) -> Self {
        Self { files: Vec::new(), params: values.into_iter().map(Param::Read).collect(), queries_are_scaled: false }
    }

    /// Whether a scale of attention's scores was multiplied into the queries' weights, which are others than in the file then.
    pub fn queries_are_scaled(&self) -> bool {
        self.queries_are_scaled
    }

    /// The values of each parameter.
    pub fn slices(&self) -> Vec<&[f32]> {
        let slice = |param| match param {
            // `lies_as_in_memory` has seen that they can be cast.
            &Param::Mapped { file, ref bytes } => bytemuck::cast_slice(&self.files[file][bytes.clone()]),
            Param::Read(values) => values,
        };
        self.params.iter().map(slice).collect()
    }

    /// The values of each parameter, in memory of their own.
    pub(super) fn into_values(self) -> Vec<Vec<f32>> {
        let Self { files, params, .. } = self;
        let values = |param| match param {
            Param::Mapped { file, bytes } => bytemuck::cast_slice(&files[file][bytes]).to_vec(),
            Param::Read(values) => values,
        };
        params.into_iter().map(values).collect()
    }
}

/// Where the tensors of each parameter lie.
fn locate<'a>(files: &'a WeightFiles, specs: &[ParamSpec], layout: Layout) -> Result<Vec<Vec<Located<'a>>>, String> {
    let tensor = |stored: StoredTensor| {
        let name = &stored.name;
        let find = |name: &str| files.tensors.get_key_value(name);
        let found = find(name).or_else(|| find(without_prefix(name)));
        let (found, entry) = found.ok_or_else(|| format!("it has no tensor {name}"))?;
        if entry.shape != stored.shape {
            return Err(format!("{name} has shape {:?}, the model needs {:?}", entry.shape, stored.shape));
        }
        Ok((stored, found.as_str(), entry))
    };
    specs.iter().map(|spec| stored_tensors(spec, layout).into_iter().map(tensor).collect()).collect()
}

/// The name of a tensor in the file of a model that was saved without its head.
fn without_prefix(name: &str) -> &str {
    ["transformer.", "model."].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// Whether a tensor can be used where it lies.
fn lies_as_in_memory(files: &WeightFiles, entry: &TensorEntry) -> bool {
    cfg!(target_endian = "little")
        && entry.dtype == Dtype::F32
        && bytemuck::try_cast_slice::<u8, f32>(files.bytes(entry)).is_ok()
}

/// What older versions of `transformers` saved beside the parameters: masks, which are the causal one, and the frequencies of
/// RoPE, which follow from `config.json`.
const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];

/// Refuses tensors that no parameter needs, but that take part in the network: otherwise it would be computed without them.
/// Heads for other tasks do not.
fn check_others(files: &WeightFiles, config: &GptConfig, located: &[Vec<Located<'_>>]) -> Result<(), String> {
    let known: HashSet<&str> = located.iter().flatten().map(|&(_, name, _)| name).collect();
    let mut others: Vec<&str> = files.tensors.keys().map(String::as_str).filter(|name| !known.contains(name)).collect();
    others.sort_unstable();
    for name in others {
        let (entry, short) = (&files.tensors[name], without_prefix(name));
        let of_network = ["h.", "layers.", "ln_f.", "norm.", "lm_head."].iter().any(|part| short.starts_with(part));
        if !of_network || BUFFERS.iter().any(|buffer| short.ends_with(buffer)) {
            continue;
        }
        // The file of a tied model may have the matrix twice.
        if short == "lm_head.weight" && config.tie_embeddings {
            let embedding = known_entry(located, "wte.weight").or_else(|| known_entry(located, "embed_tokens.weight"));
            if embedding.is_some_and(|embedding| same(files, embedding, entry)) {
                continue;
            }
            return Err(format!(
                "{name} is not the embedding of tokens, which config.json says it is: set tie_word_embeddings to false there"
            ));
        }
        // A GPT-2 has biases in its file always; those of a model that is trained without are zeros.
        if !config.bias && short.ends_with(".bias") {
            let zeros = values(files.bytes(entry), entry.dtype, &entry.shape);
            if zeros.is_ok_and(|values| values.iter().all(|&x| x == 0.0)) {
                continue;
            }
        }
        return Err(format!("it has {name}, which a model of this config.json has not, or not here"));
    }
    Ok(())
}

fn known_entry<'a>(located: &[Vec<Located<'a>>], short: &str) -> Option<&'a TensorEntry> {
    located.iter().flatten().find(|(_, name, _)| without_prefix(name) == short).map(|&(_, _, entry)| entry)
}

fn same(files: &WeightFiles, a: &TensorEntry, b: &TensorEntry) -> bool {
    (a.dtype, &a.shape) == (b.dtype, &b.shape) && files.bytes(a) == files.bytes(b)
}
