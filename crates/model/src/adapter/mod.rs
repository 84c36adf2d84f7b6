//! Low-rank adapters (Hu et al., 2021, "LoRA"). Beside the weights `W (in, out)` of a linear layer, which stay as they are, it
//! has `A (rank, in)` and `B (out, rank)`, and computes with `W + scale A^T B^T`.
//!
//! Everything here is about these effective weights: a network computes with them as with any others, whoever executes it.
//! Layers have the names and the shapes of Hugging Face's models ([`linear_layers`]), so that adapters go to and from the files
//! of PEFT ([`Adapter::open`], [`Adapter::write`]).

mod peft;
mod product;

use std::collections::BTreeSet;

use tinygpt_sampler::{RngDomain, philox_at, simd::SimdLevel, unit_f64};

pub use peft::{ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, MAX_RANK};
pub use product::LowRank;

use crate::{
    GptConfig, ModelError, ParamSpec, Result,
    checkpoint::layout::{Layout, stored_tensors},
    param_specs,
    params::check_values,
    plan::{Init, Role},
};

/// A linear layer under its name in Hugging Face's models, and where its weights are among the parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLayer {
    /// For example `transformer.h.0.attn.c_attn`, or `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// The parameter that has its weights, `(in, columns)`, by its place in parameter order.
    pub param: usize,
    /// The number of its inputs.
    pub n_in: usize,
    /// The number of its outputs.
    pub n_out: usize,
    /// The first of its columns in the parameter: several layers of the same input lie side by side.
    pub first_column: usize,
    /// The number of columns of the parameter.
    pub columns: usize,
}

/// The linear layers of the blocks of a model, in parameter order.
pub fn linear_layers(config: &GptConfig) -> Vec<LinearLayer> {
    let layout = Layout::of_folder(config);
    let mut layers = Vec::new();
    for (param, spec) in param_specs(config).iter().enumerate() {
        let (Role::Matrix, &[n_in, columns]) = (spec.role, &spec.shape[..]) else { continue };
        for stored in stored_tensors(spec, layout) {
            let range = stored.columns.unwrap_or(0..columns);
            let name = stored.name.strip_suffix(".weight").unwrap_or(&stored.name).to_owned();
            let (n_out, first_column) = (range.len(), range.start);
            layers.push(LinearLayer { name, param, n_in, n_out, first_column, columns });
        }
    }
    layers
}

impl LinearLayer {
    /// Whether it is what a target of PEFT's `target_modules` means: its name, or the end of it behind a dot.
    fn is(&self, target: &str) -> bool {
        self.name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    /// The last part of its name.
    fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }
}

/// The last parts of the names of layers, each once.
fn short_names(layers: &[LinearLayer]) -> String {
    let names: BTreeSet<&str> = layers.iter().map(LinearLayer::short_name).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// What an adapter is but for its numbers: the layers, and the rank and the scale of what is added to each.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterShape {
    /// The rank of each product.
    pub rank: usize,
    /// Divided by the rank, the factor of the products; by its root where [`AdapterShape::rank_stabilized`].
    pub alpha: f64,
    /// Whether the factor is `alpha / sqrt(rank)` (Kalajdzievski, 2023, "rsLoRA").
    pub rank_stabilized: bool,
    /// The layers, in parameter order.
    pub layers: Vec<LinearLayer>,
}

impl AdapterShape {
    /// An adapter of the layers that `targets` name, as PEFT's `target_modules` does; without targets, of all linear layers.
    ///
    /// # Errors
    /// [`ModelError::AdapterTarget`] of a target that is no linear layer.
    pub fn new(config: &GptConfig, rank: usize, alpha: f64, targets: &[String]) -> Result<Self> {
        let all = linear_layers(config);
        if let Some(target) = targets.iter().find(|target| !all.iter().any(|layer| layer.is(target))) {
            return Err(ModelError::AdapterTarget { target: target.clone(), known: short_names(&all) });
        }
        let wanted = |layer: &LinearLayer| targets.is_empty() || targets.iter().any(|target| layer.is(target));
        let layers = all.into_iter().filter(wanted).collect();
        Ok(Self { rank, alpha, rank_stabilized: false, layers })
    }

    /// Refuses an adapter of queries where these are scaled, as [`crate::checkpoint::Weights::queries_are_scaled`] says.
    ///
    /// # Errors
    /// [`ModelError::AdapterOfScaledQueries`].
    pub fn check_queries(&self, are_scaled: bool) -> Result<()> {
        if are_scaled && self.layers.iter().any(|layer| layer.is("c_attn")) {
            return Err(ModelError::AdapterOfScaledQueries);
        }
        Ok(())
    }

    /// The factor of the products.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilized { rank.sqrt() } else { rank }) as f32
    }

    /// The parameters of the adapter: `A` and `B` of each layer, in its order.
    pub fn specs(&self) -> Vec<ParamSpec> {
        let spec = |layer: &LinearLayer, which: &str, shape: [usize; 2]| ParamSpec {
            name: format!("{}.lora_{which}.weight", layer.name),
            shape: shape.to_vec(),
            role: Role::Matrix,
            init: Init::Zeros,
            parts: vec![shape[1]],
        };
        let of_layer = |layer| [spec(layer, "A", [self.rank, layer.n_in]), spec(layer, "B", [layer.n_out, self.rank])];
        self.layers.iter().flat_map(of_layer).collect()
    }

    /// The number of its elements.
    pub fn n_params(&self) -> usize {
        self.layers.iter().map(|layer| self.rank * (layer.n_in + layer.n_out)).sum()
    }

    /// The parameters of the model whose weights it changes, each once, by their places in parameter order.
    pub fn changed_params(&self) -> Vec<usize> {
        let mut params: Vec<usize> = self.layers.iter().map(|layer| layer.param).collect();
        params.dedup();
        params
    }

    /// The product of a layer, with `A (rank, in)` and `B (out, rank)`.
    pub fn product<'a>(&'a self, layer: &'a LinearLayer, a: &'a [f32], b: &'a [f32]) -> LowRank<'a> {
        LowRank { layer, rank: self.rank, scale: self.scale(), a, b }
    }

    /// The values before the first update, as PEFT begins: `A` uniform between `-1 / sqrt(in)` and `1 / sqrt(in)` (Kaiming's
    /// with the slope `sqrt(5)`), `B` zeros, so that the model computes what it did.
    pub fn initial_values(&self, seed: u64) -> Vec<Vec<f32>> {
        let a = |(index, layer): (usize, &LinearLayer)| {
            let bound = 1.0 / (layer.n_in as f64).sqrt();
            let pair = |i| {
                let [w0, w1, w2, w3] = philox_at(seed, RngDomain::Adapter, i, index as u32);
                [unit_f64(w0, w1), unit_f64(w2, w3)].map(|u| ((2.0 * u - 1.0) * bound) as f32)
            };
            (0..).flat_map(pair).take(self.rank * layer.n_in).collect()
        };
        let of_layer = |(index, layer): (usize, &LinearLayer)| [a((index, layer)), vec![0.0; layer.n_out * self.rank]];
        self.layers.iter().enumerate().flat_map(of_layer).collect()
    }
}

/// An adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The layers, the rank and the scale.
    pub shape: AdapterShape,
    /// `A` and `B` of each layer, in the order of [`AdapterShape::specs`].
    pub values: Vec<Vec<f32>>,
}

impl Adapter {
    /// An adapter of these values, in the order of [`AdapterShape::specs`].
    ///
    /// # Errors
    /// When they are not of its shape.
    pub fn new(shape: AdapterShape, values: Vec<Vec<f32>>) -> Result<Self> {
        check_values(&shape.specs(), &values)?;
        Ok(Self { shape, values })
    }

    /// Adds the products to the parameters of the model, given in parameter order: its effective weights.
    ///
    /// # Errors
    /// When they are not those of the model that the adapter is for.
    pub fn merge_into(&self, config: &GptConfig, params: &mut [Vec<f32>]) -> Result<()> {
        check_values(&param_specs(config), params)?;
        params.iter_mut().enumerate().for_each(|(param, values)| self.add_to(param, values));
        Ok(())
    }

    /// Whether it changes a parameter of the model.
    pub(crate) fn changes(&self, param: usize) -> bool {
        self.shape.layers.iter().any(|layer| layer.param == param)
    }

    /// Adds the products to the values of one parameter of the model that the adapter is for.
    pub(crate) fn add_to(&self, param: usize, values: &mut [f32]) {
        let level = SimdLevel::detect();
        for (layer, [a, b]) in self.shape.layers.iter().zip(self.values.as_chunks::<2>().0) {
            if layer.param == param {
                self.shape.product(layer, a, b).add_to(level, values);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Mlp,
        config::{Norm, Position},
        init_params,
    };

    #[test]
    fn an_adapter_of_queries_that_are_scaled_in_memory_is_refused() {
        let shape = |target: &str| AdapterShape::new(&GptConfig::default(), 2, 4.0, &[target.to_owned()]).unwrap();
        assert!(matches!(shape("c_attn").check_queries(true), Err(ModelError::AdapterOfScaledQueries)));
        shape("c_attn").check_queries(false).unwrap();
        shape("c_fc").check_queries(true).unwrap();
    }

    fn names(targets: &[&str], config: &GptConfig) -> Vec<String> {
        let targets: Vec<String> = targets.iter().map(|target| target.to_string()).collect();
        let shape = AdapterShape::new(config, 2, 4.0, &targets).unwrap();
        shape.layers.into_iter().map(|layer| layer.name).collect()
    }

    fn llama() -> GptConfig {
        let (norm, position, mlp) = (Norm::Rms, Position::Rope, Mlp::Swiglu);
        GptConfig { norm, position, mlp, n_layer: 1, n_kv_head: 2, ..GptConfig::default() }
    }

    #[test]
    fn a_target_is_a_name_or_the_end_of_one_as_in_peft() {
        let gpt2 = GptConfig { n_layer: 1, ..GptConfig::default() };
        assert_eq!(names(&["c_attn"], &gpt2), ["transformer.h.0.attn.c_attn"]);
        assert_eq!(names(&["c_proj"], &gpt2), ["transformer.h.0.attn.c_proj", "transformer.h.0.mlp.c_proj"]);
        assert_eq!(names(&["mlp.c_proj"], &gpt2), ["transformer.h.0.mlp.c_proj"]);
        assert_eq!(names(&[], &gpt2).len(), 4);
        assert_eq!(
            names(&["q_proj", "up_proj"], &llama()),
            ["model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"]
        );
        let error = AdapterShape::new(&gpt2, 2, 4.0, &["proj".into()]).unwrap_err().to_string();
        assert!(error.contains("`proj` is no linear layer of this model: they are c_attn, c_fc, c_proj"), "{error}");
    }

    #[test]
    fn layers_side_by_side_have_their_own_columns() {
        let config = llama();
        let layers = linear_layers(&config);
        let columns: Vec<_> = layers.iter().map(|l| (l.short_name(), l.first_column, l.n_out, l.columns)).collect();
        assert_eq!(columns[..3], [("q_proj", 0, 128, 256), ("k_proj", 128, 64, 256), ("v_proj", 192, 64, 256)]);
        assert_eq!(columns[4..6].iter().map(|c| c.0).collect::<Vec<_>>(), ["gate_proj", "up_proj"]);
    }

    #[test]
    fn a_fresh_adapter_changes_nothing_and_is_bounded_and_repeatable() {
        let config = llama();
        let shape = AdapterShape::new(&config, 3, 6.0, &[]).unwrap();
        let values = shape.initial_values(7);
        assert_eq!(values, shape.initial_values(7));
        assert_ne!(values[0], shape.initial_values(8)[0]);
        let bound = 1.0 / (128f32).sqrt();
        assert!(values[0].iter().all(|x| x.abs() <= bound) && values[0].iter().any(|x| x.abs() > 0.9 * bound));
        let mean = values[0].iter().sum::<f32>() / values[0].len() as f32;
        assert!(mean.abs() < 0.2 * bound, "{mean}");
        let mut params = init_params(&config, 1);
        let adapter = Adapter::new(shape, values).unwrap();
        adapter.merge_into(&config, &mut params).unwrap();
        assert_eq!(params, init_params(&config, 1));
    }

    #[test]
    fn the_scale_is_alpha_by_the_rank_or_by_its_root() {
        let shape = AdapterShape::new(&llama(), 16, 8.0, &[]).unwrap();
        assert_eq!(shape.scale(), 0.5);
        assert_eq!(AdapterShape { rank_stabilized: true, ..shape }.scale(), 2.0);
    }
}
