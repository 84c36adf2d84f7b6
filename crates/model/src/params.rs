//! The parameters of a GPT: their initial values, and their way onto a device. Their names, shapes and order are those of
//! the [network](crate::network()).
//!
//! Everything that iterates over parameters (engines, checkpoints, the optimizer) does so in the order of [`param_specs`].

use candle_core::{DType, Device, Tensor};
use tinygpt_sampler::{RngDomain, box_muller, philox_at};

pub use crate::plan::{Init, ParamSpec, Role};
use crate::{GptConfig, ModelError, Result, network};

/// Every parameter of the model, in parameter order: embeddings, blocks from the first to the last, final norm.
///
/// Without `bias`, the linear layers and norms have none.
pub fn param_specs(config: &GptConfig) -> Vec<ParamSpec> {
    network(config).params
}

/// The initial values of every parameter, in parameter order. They are a pure function of the shape and the seed, computed
/// on the host, and so the same bytes on every device.
pub fn init_params(config: &GptConfig, seed: u64) -> Vec<Vec<f32>> {
    param_specs(config)
        .iter()
        .enumerate()
        .map(|(index, spec)| match spec.init {
            Init::Normal(std) => normal(seed, index as u32, spec.len(), std),
            Init::Ones => vec![1.0; spec.len()],
            Init::Zeros => vec![0.0; spec.len()],
        })
        .collect()
}

/// `n` normal numbers with mean 0, two from each Philox block.
fn normal(seed: u64, param: u32, n: usize, std: f64) -> Vec<f32> {
    let pair = |i| box_muller(philox_at(seed, RngDomain::Init, i, param), std);
    (0..).flat_map(pair).map(|x| x as f32).take(n).collect()
}

/// Checks that values given in parameter order are as many, and each as long, as the parameters.
///
/// # Errors
/// [`ModelError::ParamCount`], or [`ModelError::ParamShape`] of the first parameter whose length differs.
pub fn check_values<V: AsRef<[f32]>>(specs: &[ParamSpec], values: &[V]) -> Result<()> {
    if specs.len() != values.len() {
        return Err(ModelError::ParamCount { expected: specs.len(), got: values.len() });
    }
    for (spec, values) in specs.iter().zip(values) {
        let got = values.as_ref().len();
        if spec.len() != got {
            let (name, expected) = (spec.name.clone(), spec.shape.clone());
            return Err(ModelError::ParamShape { name, expected, got: vec![got] });
        }
    }
    Ok(())
}

/// Copies parameter values (in parameter order) to tensors on a device.
///
/// # Errors
/// When the configuration is invalid, the number or the sizes of the values do not match it, or the device is out of
/// memory.
pub fn to_tensors<V: AsRef<[f32]>>(
    config: &GptConfig,
    values: &[V],
    dtype: DType,
    device: &Device,
) -> Result<Vec<Tensor>> {
    config.validate()?;
    let specs = param_specs(config);
    check_values(&specs, values)?;
    let tensor = |(spec, values): (&ParamSpec, &V)| {
        Ok(Tensor::from_slice(values.as_ref(), spec.shape.as_slice(), device)?.to_dtype(dtype)?)
    };
    specs.iter().zip(values).map(tensor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mlp, config::InitScheme};

    fn config(bias: bool) -> GptConfig {
        GptConfig {
            vocab_size: 65,
            block_size: 64,
            n_layer: 4,
            n_head: 4,
            n_embd: 128,
            dropout: 0.0,
            bias,
            mlp: Mlp::Gelu,
            ..GptConfig::default()
        }
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let var = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        (mean, var.sqrt())
    }

    #[test]
    fn initial_weights_have_gpt2s_mean_and_deviation() {
        let config = config(true);
        for (spec, values) in param_specs(&config).iter().zip(init_params(&config, 1)) {
            assert_eq!(spec.len(), values.len());
            match spec.init {
                Init::Ones => assert!(values.iter().all(|&x| x == 1.0)),
                Init::Zeros => assert!(values.iter().all(|&x| x == 0.0)),
                Init::Normal(std) => {
                    let n = values.len() as f64;
                    let (mean, got) = moments(&values);
                    assert!(mean.abs() < 5.0 * std / n.sqrt(), "{}: mean {mean}", spec.name);
                    assert!((got / std - 1.0).abs() < 5.0 / (2.0 * n).sqrt(), "{}: std {got}", spec.name);
                    let expected = if spec.name.ends_with("c_proj.weight") { 0.02 / 8f64.sqrt() } else { 0.02 };
                    assert_eq!(std, expected);
                }
            }
        }
    }

    #[test]
    fn schemes_differ_in_the_matrices_of_linear_layers_alone() {
        // c_attn (queries, keys and values are 128 by 128 each), c_fc and the two projections back.
        let back = 1.0 / 8f64.sqrt();
        for (init, [attn, attn_back, mlp, mlp_back]) in [
            (InitScheme::Gpt2, [0.02, 0.02, 0.02, 0.02]),
            (InitScheme::FanIn, [128f64, 128.0, 128.0, 512.0].map(|inputs| 1.0 / inputs.sqrt())),
            (InitScheme::Xavier, [256f64, 256.0, 640.0, 640.0].map(|both| (2.0 / both).sqrt())),
            (InitScheme::He, [128f64, 128.0, 128.0, 512.0].map(|inputs| (2.0 / inputs).sqrt())),
        ] {
            let config = GptConfig { init, ..config(true) };
            for (spec, values) in param_specs(&config).iter().zip(init_params(&config, 3)) {
                let Init::Normal(std) = spec.init else { continue };
                let expected = match spec.name.split_once(".h.").map(|(_, name)| &name[2..]) {
                    None => 0.02,
                    Some("attn.c_attn.weight") => attn,
                    Some("attn.c_proj.weight") => attn_back * back,
                    Some("mlp.c_fc.weight") => mlp,
                    Some("mlp.c_proj.weight") => mlp_back * back,
                    Some(name) => panic!("{name}"),
                };
                assert!((std / expected - 1.0).abs() < 1e-12, "{init:?} {}: {std}, not {expected}", spec.name);
                let (_, got) = moments(&values);
                assert!((got / std - 1.0).abs() < 5.0 / (2.0 * values.len() as f64).sqrt(), "{}: {got}", spec.name);
            }
        }
    }

    #[test]
    fn initial_weights_are_a_function_of_the_seed() {
        let config = config(false);
        assert_eq!(init_params(&config, 7), init_params(&config, 7));
        assert_ne!(init_params(&config, 7)[0], init_params(&config, 8)[0]);
        let params = init_params(&config, 7);
        assert_ne!(params[3], params[9], "two layers of one shape must differ");
    }

    #[test]
    fn only_matrices_decay() {
        for spec in param_specs(&config(true)) {
            let is_vector = spec.name.contains(".ln_") || spec.name.ends_with(".bias");
            assert_eq!(spec.decays(), !is_vector, "{}", spec.name);
        }
    }
}
