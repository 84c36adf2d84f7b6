//! The choices that keys of `[train]` take.

use serde::{Deserialize, Serialize};

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW for every parameter.
    #[default]
    Adamw,
    /// Muon for the matrices of linear layers, AdamW for all else.
    Muon,
}

impl OptimizerKind {
    /// The name, as configurations write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adamw => "adamw",
            Self::Muon => "muon",
        }
    }
}

/// The shape of a prior of the parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PriorKind {
    /// None: maximum likelihood.
    #[default]
    None,
    /// Half the sum of squares: a normal prior.
    L2,
    /// The sum of magnitudes: a Laplace prior, under which many parameters end at almost zero.
    L1,
}

/// How the learning rate decays after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Along a half cosine (Loshchilov and Hutter, 2017, "SGDR").
    #[default]
    Cosine,
    /// In a straight line.
    Linear,
    /// Warm-up, stable, decay: in a straight line over the last updates only (Hu et al., 2024, "MiniCPM").
    Wsd,
}
