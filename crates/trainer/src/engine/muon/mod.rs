//! Muon (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks"): the momentum of each matrix of a
//! linear layer is orthogonalised before it is subtracted. All other parameters have AdamW.

mod cpu;
mod tensors;

use std::sync::Arc;

use tinygpt_model::{
    GptConfig, ParamSpec,
    cpu::{Orthogonalizer, POLAR_EXPRESS},
    param_specs,
    plan::Role,
};

use super::{
    AdamW, CpuUpdate, Optimizer, RateFactors, TensorStep, TensorUpdate, groups::columns, optimizer::KernelRule,
};
use crate::{Result, config::TrainConfig};
use cpu::Memory;

/// Muon with Nesterov's momentum, for the matrices of linear layers; AdamW for all else.
///
/// For the clipped mean g of a matrix's gradient, and the momentum `m = mu m + (1 - mu) g`, the step is
/// `lr sqrt(max(1, out / in))` times the orthogonalised `(1 - mu) g + mu m`, by the iterations of
/// [`tinygpt_model::cpu::Orthogonalizer`]. Matrices that lie side by side in one parameter, such as those of queries, keys
/// and values, are orthogonalised apart. Weight decay and the factors of the learning rate are those of `adamw`.
#[derive(Debug)]
pub struct Muon {
    pub(super) adamw: AdamW,
    pub(super) momentum: f64,
    /// `(a, b, c)` of each iteration.
    pub(super) coefficients: &'static [[f64; 3]],
    memory: Memory,
}

impl Muon {
    /// Muon with the decay `momentum` of its momentum and `steps` Newton-Schulz iterations, 1 to 5, with the coefficients
    /// of [`POLAR_EXPRESS`].
    pub fn new(adamw: AdamW, momentum: f64, steps: usize) -> Self {
        let coefficients = &POLAR_EXPRESS[..steps.clamp(1, POLAR_EXPRESS.len())];
        Self { adamw, momentum, coefficients, memory: Memory::default() }
    }
}

impl Muon {
    /// The floats that a step on the CPU works in, beside the state: for each of `threads` threads, but at most one for each
    /// matrix, what its largest matrix takes.
    pub(crate) fn scratch_floats(config: &GptConfig, threads: usize) -> f64 {
        // Every block has the same matrices.
        let specs = param_specs(&GptConfig { n_layer: 1, ..config.clone() });
        let matrices = || specs.iter().filter(|spec| spec.role == Role::Matrix);
        let floats = |spec: &ParamSpec| columns(spec).iter().map(|&n| Orthogonalizer::floats(spec.shape[0], n)).max();
        let largest = matrices().filter_map(floats).max().unwrap_or(0);
        threads.min(config.n_layer * matrices().count()) as f64 * largest as f64
    }
}

impl From<&TrainConfig> for Muon {
    fn from(c: &TrainConfig) -> Self {
        Self::new(AdamW::from(c), c.muon_momentum, c.muon_steps)
    }
}

impl From<Muon> for Arc<dyn Optimizer> {
    fn from(muon: Muon) -> Self {
        Arc::new(muon)
    }
}

/// The factor of an orthogonalised matrix `(n_in, n_out)`, which gives its outputs the size that they have in a square one.
pub(super) fn shape_factor(n_in: usize, n_out: usize) -> f64 {
    (n_out as f64 / n_in as f64).max(1.0).sqrt()
}

impl Optimizer for Muon {
    /// The momenta of matrices and the first moments of all else; the second moments, which stay zero for matrices. The first
    /// has a name of its own, so that a checkpoint of AdamW is not taken for one of Muon.
    fn slots(&self) -> &'static [&'static str] {
        &["momentum", "v"]
    }

    fn step_cpu(&self, update: CpuUpdate<'_>) -> Result<()> {
        self.on_cpu(update)
    }

    fn step_tensors(&self, update: TensorUpdate<'_>) -> Result<TensorStep> {
        self.on_tensors(update)
    }

    fn kernel_rule(&self) -> Option<KernelRule<'_>> {
        Some(KernelRule::Muon(self))
    }

    fn weight_decay(&self) -> f64 {
        self.adamw.weight_decay
    }

    fn rate_factors(&self) -> RateFactors {
        self.adamw.rates
    }
}
