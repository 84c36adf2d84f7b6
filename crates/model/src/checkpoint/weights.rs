//! The weights of a model folder, used where they lie in its files.

use std::{borrow::Cow, collections::HashSet, ops::Range, sync::OnceLock};

use candle_core::{Device, Tensor};
use safetensors::tensor::Dtype;

use super::{
    config_json::{AttentionScale, Description},
    decoder::{tensor_batch_decoder, tensor_decoder},
    layout::{Layout, StoredTensor, stored_tensors},
    param_values::ParamValues,
    stored_param::{NumberType, Piece, StoredParam},
    weight_files::{TensorEntry, WeightFiles},
};
use crate::{
    Adapter, BatchDecoder, ContextPolicy, Decoder, GptConfig, ParamSpec,
    cpu::{CpuBatchDecoder, CpuDecoder, DecodeFormats, WeightFormat},
    files::{FileError, MappedFile},
    gguf::TensorType,
    param_specs,
};

/// All parameters of a model, in parameter order. Those that do not lie in their files as in memory are converted when they are
/// asked for.
#[derive(Debug)]
pub struct Weights {
    files: Vec<MappedFile>,
    params: Vec<Param>,
    /// What is added to some of them.
    adapter: Option<Box<AddedAdapter>>,
    /// Whether a scale of attention's scores was multiplied into the queries' weights.
    queries_are_scaled: bool,
}

#[derive(Debug)]
enum Param {
    /// Its bytes in one of the files: f32, as in memory.
    Mapped {
        file: usize,
        bytes: Range<usize>,
        /// A copy, once somebody wanted one.
        copy: OnceLock<Vec<f32>>,
    },
    Stored(StoredParam),
    Read(Vec<f32>),
}

/// An adapter whose products are added to parameters when these are asked for.
#[derive(Debug)]
struct AddedAdapter {
    adapter: Adapter,
    /// The effective values of each parameter that it changes, once somebody wanted them for good.
    kept: Vec<OnceLock<Vec<f32>>>,
}

impl Param {
    fn mapped(file: usize, bytes: Range<usize>) -> Self {
        Self::Mapped { file, bytes, copy: OnceLock::new() }
    }
}

/// A tensor that a parameter needs, its name in the file, and where it lies.
type Located<'a> = (StoredTensor, &'a str, &'a TensorEntry);

impl Weights {
    /// Takes the parameters of a model from its files. Those that lie there as in memory are used there; others are to be
    /// converted: where numbers are not f32 as this processor has them, matrices are `(out, in)`, as Llama's and Qwen3's, or
    /// scores of attention are scaled in another way.
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
        let param = |(spec, tensors): (&ParamSpec, Vec<Located<'_>>)| {
            let scale = attention_scale.of_param(&spec.name, config);
            if let ([(StoredTensor { columns: None, .. }, _, entry)], None) = (&tensors[..], scale)
                && lies_as_in_memory(files.bytes(entry), entry.dtype)
            {
                return Ok(Param::mapped(entry.file, entry.bytes.clone()));
            }
            let piece = |(tensor, name, entry): Located<'_>| {
                let numbers = NumberType::of(entry.dtype).map_err(|reason| files.error(format!("{name} {reason}")))?;
                Ok(Piece { tensor, numbers, file: entry.file, bytes: entry.bytes.clone(), interleaved: None })
            };
            let pieces = tensors.into_iter().map(piece).collect::<Result<_, FileError>>()?;
            Ok(Param::Stored(StoredParam::new(spec.len(), pieces, scale)))
        };
        let params = specs.iter().zip(located).map(param).collect::<Result<_, FileError>>()?;
        let queries_are_scaled = *attention_scale != AttentionScale::default();
        Ok(Self { files: files.files, params, adapter: None, queries_are_scaled })
    }

    /// The parameters of a file, each the tensors that it is made of, in parameter order.
    pub(crate) fn of_file(file: MappedFile, params: Vec<Vec<Piece>>, specs: &[ParamSpec]) -> Self {
        let param = |(pieces, spec): (Vec<Piece>, &ParamSpec)| match &pieces[..] {
            [Piece { tensor: StoredTensor { columns: None, .. }, numbers, bytes, interleaved: None, .. }]
                if *numbers == NumberType::Gguf(TensorType::F32)
                    && lies_as_in_memory(&file[bytes.clone()], Dtype::F32) =>
            {
                Param::mapped(0, bytes.clone())
            }
            _ => Param::Stored(StoredParam::new(spec.len(), pieces, None)),
        };
        let params = params.into_iter().zip(specs).map(param).collect();
        Self { files: vec![file], params, adapter: None, queries_are_scaled: false }
    }

    /// Weights that were read, in parameter order.
    pub(crate) fn of_values(values: Vec<Vec<f32>>) -> Self {
        let params = values.into_iter().map(Param::Read).collect();
        Self { files: Vec::new(), params, adapter: None, queries_are_scaled: false }
    }

    /// The effective weights with an adapter of the model that these are of.
    pub(super) fn with_adapter(self, adapter: Adapter) -> Self {
        // Over weights that have one already there is another.
        let queries_are_scaled = self.queries_are_scaled;
        let base = match self.adapter {
            Some(_) => Self { queries_are_scaled, ..Self::of_values(self.into_values()) },
            None => self,
        };
        let kept = base.params.iter().map(|_| OnceLock::new()).collect();
        Self { adapter: Some(Box::new(AddedAdapter { adapter, kept })), ..base }
    }

    /// The adapter, if it changes this parameter, and where its effective values are kept.
    fn adapted(&self, param: usize) -> Option<(&Adapter, &OnceLock<Vec<f32>>)> {
        let AddedAdapter { adapter, kept } = self.adapter.as_deref()?;
        adapter.changes(param).then(|| (adapter, &kept[param]))
    }

    /// Whether a scale of attention's scores was multiplied into the queries' weights, which are others than in the file then.
    pub fn queries_are_scaled(&self) -> bool {
        self.queries_are_scaled
    }

    /// The values of each parameter. Those that do not lie in the file as in memory are converted, and stay in memory.
    pub fn slices(&self) -> Vec<&[f32]> {
        (0..self.params.len()).map(|param| self.kept(param)).collect()
    }

    /// The fastest decoder of a device for the model of this shape. On the CPU it reads weights in f32 where they lie in the
    /// file; what it rounds it reads piece by piece, and the process holds the rounded weights alone.
    ///
    /// # Errors
    /// As [`open_decoder`](super::open_decoder).
    pub fn decoder(
        &self,
        config: &GptConfig,
        window: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        device: &Device,
    ) -> crate::Result<Box<dyn Decoder + '_>> {
        let formats = formats.into();
        if device.is_cpu() {
            let values = self.param_values(formats.weights);
            return Ok(Box::new(CpuDecoder::of_values(config, values, window, formats)?));
        }
        Ok(Box::new(tensor_decoder(config, self.converted(), window, formats, device)?))
    }

    /// As [`Weights::decoder`], of up to `slots` texts side by side.
    ///
    /// # Errors
    /// As [`open_batch_decoder`](super::open_batch_decoder).
    pub fn batch_decoder(
        &self,
        config: &GptConfig,
        window: ContextPolicy,
        formats: impl Into<DecodeFormats>,
        (device, slots): (&Device, usize),
    ) -> crate::Result<Box<dyn BatchDecoder + '_>> {
        let formats = formats.into();
        if device.is_cpu() {
            let values = self.param_values(formats.weights);
            return Ok(Box::new(CpuBatchDecoder::of_values(config, values, window, formats, slots)?));
        }
        tensor_batch_decoder(config, self.converted(), window, formats, (device, slots))
    }

    /// The values of all parameters, as they lie in the files.
    fn param_values(&self, format: WeightFormat) -> Vec<ParamValues<'_>> {
        // What is rounded is all that a decoder reads of the file but single rows and small parameters.
        let gives_up = format != WeightFormat::F32;
        (0..self.params.len()).map(|param| ParamValues::Of { weights: self, param, gives_up }).collect()
    }

    /// All values of all parameters.
    fn converted(&self) -> Vec<Vec<f32>> {
        (0..self.params.len()).map(|param| self.values_of(param).into_owned()).collect()
    }

    /// The parameters of the model of this shape in f32 on the CPU, in parameter order: a copy of the caller's own. They are
    /// converted one by one, and nothing that is converted stays here.
    ///
    /// # Errors
    /// When the sizes of the values are not those of `config`.
    pub fn to_tensors(&self, config: &GptConfig) -> crate::Result<Vec<Tensor>> {
        let tensor = |(param, spec): (usize, ParamSpec)| {
            Ok(match self.values_of(param) {
                Cow::Owned(values) => Tensor::from_vec(values, spec.shape, &Device::Cpu)?,
                Cow::Borrowed(values) => Tensor::from_slice(values, spec.shape, &Device::Cpu)?,
            })
        };
        param_specs(config).into_iter().enumerate().map(tensor).collect()
    }

    /// The number of elements of a parameter.
    pub(super) fn len_of(&self, param: usize) -> usize {
        match &self.params[param] {
            Param::Mapped { bytes, .. } => bytes.len() / size_of::<f32>(),
            Param::Stored(stored) => stored.len,
            Param::Read(values) => values.len(),
        }
    }

    /// All values of a parameter, which stay in memory where they are converted.
    pub(super) fn kept(&self, param: usize) -> &[f32] {
        if let Some((_, kept)) = self.adapted(param) {
            return kept.get_or_init(|| {
                let values = self.values_of(param).into_owned();
                self.release(param);
                values
            });
        }
        self.kept_base(param)
    }

    /// [`Weights::kept`] without an adapter.
    fn kept_base(&self, param: usize) -> &[f32] {
        match &self.params[param] {
            Param::Stored(stored) => stored.kept.get_or_init(|| stored.values(|piece| self.bytes(piece))),
            // `lies_as_in_memory` has seen that they can be cast.
            Param::Mapped { file, bytes, .. } => bytemuck::cast_slice(&self.files[*file][bytes.clone()]),
            Param::Read(values) => values,
        }
    }

    /// A copy of all values of a parameter, which stays in memory. A system may map megabytes of a file around what is read of it,
    /// which small parameters are not worth.
    pub(super) fn copied(&self, param: usize) -> &[f32] {
        match &self.params[param] {
            Param::Mapped { copy, .. } if self.adapted(param).is_none() => copy.get_or_init(|| {
                let values = self.kept(param).to_vec();
                self.release(param);
                values
            }),
            _ => self.kept(param),
        }
    }

    /// All values of a parameter, converted where they must be.
    pub(super) fn values_of(&self, param: usize) -> Cow<'_, [f32]> {
        let adapted = self.adapted(param);
        if let Some(kept) = adapted.and_then(|(_, kept)| kept.get()) {
            return kept.into();
        }
        let values = match &self.params[param] {
            Param::Stored(stored) if stored.kept.get().is_none() => stored.values(|piece| self.bytes(piece)).into(),
            _ => self.kept_base(param).into(),
        };
        let Some((adapter, _)) = adapted else { return values };
        let mut values = values.into_owned();
        adapter.add_to(param, &mut values);
        values.into()
    }

    /// Whether single rows of `cols` elements can be had without the others.
    pub(super) fn lies_by_rows(&self, param: usize, cols: usize) -> bool {
        if let Some((_, kept)) = self.adapted(param) {
            return kept.get().is_some();
        }
        match &self.params[param] {
            Param::Stored(stored) => stored.kept.get().is_some() || stored.by_rows(cols).is_some(),
            _ => true,
        }
    }

    /// Shows `f` some rows of `cols` elements of a parameter. One that does not lie by rows is converted as a whole, and kept.
    pub(super) fn with_rows(&self, param: usize, cols: usize, rows: Range<usize>, f: &mut impl FnMut(&[f32])) {
        let all = match &self.params[param] {
            _ if self.adapted(param).is_some() => self.kept(param),
            Param::Stored(stored) if stored.kept.get().is_none() => match stored.by_rows(cols) {
                Some((piece, row_bytes)) => {
                    let bytes = &self.bytes(piece)[rows.start * row_bytes..rows.end * row_bytes];
                    return f(&piece.numbers.decode(bytes));
                }
                None => self.kept(param),
            },
            _ => self.kept(param),
        };
        f(&all[rows.start * cols..rows.end * cols]);
    }

    /// Gives up the memory of the file's bytes that a parameter was read from.
    pub(super) fn release(&self, param: usize) {
        match &self.params[param] {
            Param::Mapped { file, bytes, .. } => self.files[*file].release(bytes.clone()),
            Param::Stored(stored) => {
                stored.pieces.iter().for_each(|piece| self.files[piece.file].release(piece.bytes.clone()));
            }
            Param::Read(_) => {}
        }
    }

    /// As [`Weights::release`], of some rows of `cols` elements.
    pub(super) fn release_rows(&self, param: usize, cols: usize, rows: Range<usize>) {
        let part = |bytes: &Range<usize>, row: usize| bytes.start + rows.start * row..bytes.start + rows.end * row;
        match &self.params[param] {
            Param::Mapped { file, bytes, .. } => self.files[*file].release(part(bytes, cols * size_of::<f32>())),
            Param::Stored(stored) => {
                if let Some((piece, row)) = stored.by_rows(cols) {
                    self.files[piece.file].release(part(&piece.bytes, row));
                }
            }
            Param::Read(_) => {}
        }
    }

    fn bytes(&self, piece: &Piece) -> &[u8] {
        &self.files[piece.file][piece.bytes.clone()]
    }

    /// The values of each parameter, in memory of their own. Nothing of the files stays there.
    pub(super) fn into_values(self) -> Vec<Vec<f32>> {
        let Self { files, params, adapter, .. } = self;
        let base = |param| match param {
            Param::Mapped { file, bytes, .. } => {
                let values = bytemuck::cast_slice(&files[file][bytes.clone()]).to_vec();
                files[file].release(bytes);
                values
            }
            Param::Stored(mut stored) => stored.kept.take().unwrap_or_else(|| {
                let values = stored.values(|piece| &files[piece.file][piece.bytes.clone()]);
                stored.pieces.iter().for_each(|piece| files[piece.file].release(piece.bytes.clone()));
                values
            }),
            Param::Read(values) => values,
        };
        let values = |(param, stored)| {
            let mut values = base(stored);
            if let Some(AddedAdapter { adapter, .. }) = adapter.as_deref() {
                adapter.add_to(param, &mut values);
            }
            values
        };
        params.into_iter().enumerate().map(values).collect()
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

/// Whether a tensor of these bytes can be used where it lies.
fn lies_as_in_memory(bytes: &[u8], dtype: Dtype) -> bool {
    cfg!(target_endian = "little") && dtype == Dtype::F32 && bytemuck::try_cast_slice::<u8, f32>(bytes).is_ok()
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
            let zeros = NumberType::of(entry.dtype).map(|numbers| numbers.decode(files.bytes(entry)));
            files.files[entry.file].release(entry.bytes.clone());
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
    /// The bytes of each that the process holds at a time.
    const PIECE: usize = 1 << 20;
    let mut at = (0..a.bytes.len()).step_by(PIECE);
    (a.dtype, &a.shape) == (b.dtype, &b.shape)
        && at.all(|at| {
            let piece = at..a.bytes.len().min(at + PIECE);
            let is_same = files.bytes(a)[piece.clone()] == files.bytes(b)[piece.clone()];
            for entry in [a, b] {
                files.files[entry.file].release(entry.bytes.start + piece.start..entry.bytes.start + piece.end);
            }
            is_same
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{adapter::AdapterShape, init_params};

    #[test]
    fn scaled_queries_are_known_below_any_number_of_adapters() {
        let config = GptConfig { n_layer: 1, n_embd: 8, n_head: 2, ..GptConfig::default() };
        let shape = AdapterShape::new(&config, 2, 4.0, &["c_fc".to_owned()]).unwrap();
        let adapter = Adapter::new(shape.clone(), shape.initial_values(1)).unwrap();
        let params = init_params(&config, 1);
        let mut weights = Weights { queries_are_scaled: true, ..Weights::of_values(params.clone()) };
        for _ in 0..2 {
            weights = weights.with_adapter(adapter.clone());
            assert!(weights.queries_are_scaled());
        }
        assert_eq!(weights.into_values(), params, "a fresh adapter changes nothing");
    }
}
