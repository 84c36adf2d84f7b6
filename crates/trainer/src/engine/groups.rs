//! The groups of parameters that have a learning rate each: matrices of linear layers; embeddings, positions and an untied
//! head; norms and biases.

use std::sync::Arc;

use tinygpt_model::{
    ParamSpec,
    plan::Role::{self, Bias, Embedding, Head, Matrix, Norm, Position},
};

use super::{AdamW, Muon, Optimizer};
use crate::config::{OptimizerKind, TrainConfig};

/// What a learning rate is multiplied with, by group. That of norms and biases is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateFactors {
    /// For the matrices of linear layers.
    pub matrices: f64,
    /// For embeddings, positions and an untied head.
    pub embeddings: f64,
}

impl RateFactors {
    /// The same rate for all parameters.
    pub const EQUAL: Self = Self { matrices: 1.0, embeddings: 1.0 };

    /// The factor for parameters of a role.
    pub fn of(&self, role: Role) -> f64 {
        match role {
            Matrix => self.matrices,
            Embedding | Position | Head => self.embeddings,
            Norm | Bias => 1.0,
        }
    }
}

impl From<&TrainConfig> for RateFactors {
    fn from(c: &TrainConfig) -> Self {
        let factor = |lr: f64| or_lr(lr, c) / c.lr;
        Self { matrices: factor(c.lr_matrices), embeddings: factor(c.lr_embeddings) }
    }
}

/// The learning rate of a group: where it is 0, that of norms and biases.
fn or_lr(lr: f64, config: &TrainConfig) -> f64 {
    if lr > 0.0 { lr } else { config.lr }
}

/// The optimizer that a configuration asks for.
impl From<&TrainConfig> for Arc<dyn Optimizer> {
    fn from(config: &TrainConfig) -> Self {
        match config.optimizer {
            OptimizerKind::Adamw => Arc::new(AdamW::from(config)),
            OptimizerKind::Muon => Arc::new(Muon::from(config)),
        }
    }
}

/// The columns of each linear layer in a matrix `(in, out)`: all of them, unless several layers lie side by side.
pub(super) fn columns(spec: &ParamSpec) -> &[usize] {
    if spec.parts.is_empty() { &spec.shape[1..] } else { &spec.parts }
}

/// Parameters that have the same optimizer and learning rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ParameterGroup {
    /// The update rule.
    pub optimizer: OptimizerKind,
    /// `matrices`, `embeddings` or `norms and biases`.
    pub name: &'static str,
    /// The number of tensors; of matrices that lie side by side, that of the matrices.
    pub tensors: usize,
    /// The number of parameters.
    pub parameters: usize,
    /// The learning rate after the warm-up.
    pub lr: f64,
}

impl ParameterGroup {
    /// The groups of a model that is trained with a configuration, those without parameters left out.
    pub fn of(specs: &[ParamSpec], config: &TrainConfig) -> Vec<Self> {
        let groups: [(&str, &[Role], f64); 3] = [
            ("matrices", &[Matrix], or_lr(config.lr_matrices, config)),
            ("embeddings", &[Embedding, Position, Head], or_lr(config.lr_embeddings, config)),
            ("norms and biases", &[Norm, Bias], config.lr),
        ];
        let group = |(name, roles, lr): (&'static str, &[Role], f64)| {
            let of_roles = || specs.iter().filter(|spec| roles.contains(&spec.role));
            let matrices = roles == [Matrix];
            Self {
                optimizer: if matrices { config.optimizer } else { OptimizerKind::Adamw },
                name,
                tensors: of_roles().map(|spec| if matrices { columns(spec).len() } else { 1 }).sum(),
                parameters: of_roles().map(ParamSpec::len).sum(),
                lr,
            }
        };
        groups.map(group).into_iter().filter(|group| group.tensors > 0).collect()
    }
}
