//! `Gpt::attention_maps`: probabilities that equal those of a plain composition in f64, for every variant of attention.

use crate::common::{Random, lively_params, shape};
use candle_core::{DType, Device, Tensor};
use tinygpt_model::{
    Gpt, GptConfig, ModelError,
    config::{Norm, Position},
    param_specs,
    params::to_tensors,
};

const T: usize = 7;

fn configs() -> [GptConfig; 5] {
    let gpt2 = GptConfig { bias: true, ..shape(11, 9, 2, 3, 4) };
    let rope = GptConfig { position: Position::Rope, rope_theta: 50.0, ..shape(11, 9, 2, 2, 6) };
    let grouped = GptConfig { n_kv_head: 2, ..shape(11, 9, 1, 4, 4) };
    let qwen3 = GptConfig { norm: Norm::Rms, qk_norm: true, n_kv_head: 1, ..rope.clone() };
    let own_size = GptConfig { head_size: 10, norm_eps: 0.05, ..qwen3.clone() };
    [gpt2, rope, grouped, qwen3, own_size]
}

/// The model, and its parameters by name. What blocks add is zero, so that each reads the embeddings.
fn model(config: &GptConfig) -> (Gpt, impl Fn(&str) -> Option<Vec<f32>>) {
    let specs = param_specs(config);
    let mut params = lively_params(config, 3);
    for (spec, values) in specs.iter().zip(&mut params) {
        if spec.name.contains("c_proj") {
            values.fill(0.0);
        }
    }
    let gpt = Gpt::new(config, &to_tensors(config, &params, DType::F32, &Device::Cpu).unwrap()).unwrap();
    let by_name = move |name: &str| {
        let at = specs.iter().position(|spec| spec.name == format!("transformer.{name}"))?;
        Some(params[at].clone())
    };
    (gpt, by_name)
}

/// `x / sqrt(mean(x^2) + eps) * w` of what is centred or not.
fn normed(x: &[f64], weight: &[f32], bias: Option<&[f32]>, centred: bool, eps: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if centred { x.iter().sum::<f64>() / n } else { 0.0 };
    let std = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + eps).sqrt();
    let value =
        |(i, x): (usize, &f64)| (x - mean) / std * f64::from(weight[i]) + bias.map_or(0.0, |bias| f64::from(bias[i]));
    x.iter().enumerate().map(value).collect()
}

/// The map of a layer, `[head][query][key]`, written down as the papers do.
fn expected(
    config: &GptConfig,
    layer: usize,
    ids: &[u32],
    param: &dyn Fn(&str) -> Option<Vec<f32>>,
) -> Vec<Vec<Vec<f64>>> {
    let (c, hs) = (config.n_embd, config.head_size());
    let n_kv = if config.n_kv_head == 0 { config.n_head } else { config.n_kv_head };
    let of = |name: &str| param(&format!("h.{layer}.{name}"));
    let (wte, wpe) = (param("wte.weight").unwrap(), param("wpe.weight"));
    let (w, b) = (of("attn.c_attn.weight").unwrap(), of("attn.c_attn.bias"));
    let cols = (config.n_head + 2 * n_kv) * hs;
    // Queries and keys of each position, head by head, turned by its angle.
    let heads: Vec<Vec<Vec<f64>>> = ids
        .iter()
        .enumerate()
        .map(|(at, &id)| {
            let row =
                |i: usize| f64::from(wte[id as usize * c + i]) + wpe.as_ref().map_or(0.0, |wpe| wpe[at * c + i].into());
            let x: Vec<f64> = (0..c).map(row).collect();
            let own = |default| if config.norm_eps == 0.0 { default } else { config.norm_eps };
            let (centred, eps) = if config.norm == Norm::Layer { (true, own(1e-5)) } else { (false, own(1e-6)) };
            let x = normed(&x, &of("ln_1.weight").unwrap(), of("ln_1.bias").as_deref(), centred, eps);
            let y = |j: usize| {
                let product: f64 = x.iter().enumerate().map(|(i, x)| x * f64::from(w[i * cols + j])).sum();
                product + b.as_ref().map_or(0.0, |b| b[j].into())
            };
            let head = |head: usize| {
                let mut z: Vec<f64> = (head * hs..(head + 1) * hs).map(y).collect();
                if config.qk_norm {
                    let name = if head < config.n_head { "attn.q_norm.weight" } else { "attn.k_norm.weight" };
                    z = normed(&z, &of(name).unwrap(), None, false, own(1e-6));
                }
                if config.position == Position::Rope {
                    for i in 0..hs / 2 {
                        let angle = at as f64 * config.rope_theta.powf(-2.0 * i as f64 / hs as f64);
                        let (a, b) = (z[i], z[i + hs / 2]);
                        (z[i], z[i + hs / 2]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
                    }
                }
                z
            };
            (0..config.n_head + n_kv).map(head).collect()
        })
        .collect();
    let row = |head: usize, query: usize| -> Vec<f64> {
        let key_head = config.n_head + head / (config.n_head / n_kv);
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let score = |key: usize| dot(&heads[query][head], &heads[key][key_head]) / (hs as f64).sqrt();
        let weights: Vec<f64> = (0..ids.len()).map(|key| if key > query { 0.0 } else { score(key).exp() }).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / sum).collect()
    };
    (0..config.n_head).map(|head| (0..ids.len()).map(|query| row(head, query)).collect()).collect()
}

#[test]
fn maps_are_those_of_a_plain_composition_in_every_variant() {
    for config in configs() {
        let (gpt, param) = model(&config);
        let ids = Random::new(5).tokens(T, config.vocab_size);
        let maps = gpt.attention_maps(&ids).unwrap();
        assert_eq!(maps.len(), config.n_layer);
        let numbers = |map: &Tensor| map.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (layer, map) in maps.iter().enumerate() {
            assert_eq!(numbers(&gpt.attention_map(&ids, layer).unwrap().unwrap()), numbers(map));
        }
        assert!(gpt.attention_map(&ids, config.n_layer).unwrap().is_none());
        for (layer, map) in maps.iter().enumerate() {
            let map: Vec<Vec<Vec<f32>>> = map.to_vec3().unwrap();
            let expected = expected(&config, layer, &ids, &param);
            assert_eq!(map.len(), config.n_head);
            let (got, wanted) = (map.concat().concat(), expected.concat().concat());
            assert_eq!(got.len(), config.n_head * T * T);
            for (got, wanted) in got.iter().zip(&wanted) {
                assert!((f64::from(*got) - wanted).abs() < 1e-5, "{config:?}, layer {layer}: {got}, not {wanted}");
            }
        }
    }
}

#[test]
fn each_row_sums_to_one_and_gives_nothing_to_what_lies_ahead() {
    for config in configs() {
        let params = lively_params(&config, 4);
        let gpt = Gpt::new(&config, &to_tensors(&config, &params, DType::F32, &Device::Cpu).unwrap()).unwrap();
        for map in gpt.attention_maps(&Random::new(6).tokens(T, config.vocab_size)).unwrap() {
            for row in map.to_vec3::<f32>().unwrap().iter().flat_map(|head| head.iter().enumerate()) {
                assert!((row.1.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                assert!(row.1[row.0 + 1..].iter().all(|&p| p == 0.0));
            }
        }
    }
}

#[test]
fn a_sample_that_the_model_cannot_read_is_refused() {
    let [config, ..] = configs();
    let (gpt, _) = model(&config);
    assert!(matches!(gpt.attention_maps(&[]), Err(ModelError::NoPositions)));
    assert!(matches!(gpt.attention_maps(&[0; 10]), Err(ModelError::ContextFull { positions: 10, block_size: 9 })));
    assert!(matches!(gpt.attention_maps(&[11]), Err(ModelError::TokenOutOfRange { id: 11, .. })));
}
