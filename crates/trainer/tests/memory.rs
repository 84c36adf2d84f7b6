//! The memory of training does not grow with the number of updates.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "test code")]

use candle_core::Device;
use tinygpt_model::{GptConfig, Mlp, Precision, init_params};
use tinygpt_trainer::engine::{AdamW, Batch, Engine, EngineState, RateFactors, TensorEngine};

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: f64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096.0 / (1 << 20) as f64
}

/// Gradients come with the graph that made them. Kept in the optimizer's moments, they would keep every activation of
/// every update alive: 10 MiB an update here.
#[test]
fn memory_does_not_grow_with_updates() {
    let config = GptConfig {
        vocab_size: 32,
        block_size: 64,
        n_layer: 2,
        n_head: 2,
        n_embd: 32,
        dropout: 0.0,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    };
    let adamw = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };
    let state = EngineState::fresh(init_params(&config, 1));
    let mut engine = TensorEngine::new(&config, Precision::F32, adamw, 1, &state, &Device::Cpu).unwrap();
    let ids: Vec<u32> = (0..8 * 64).map(|i| i * 7 % 32).collect();
    let batch = Batch { targets: ids.clone(), ids, rows: 8, cols: 64 };
    let mut update = |n: u64| {
        for micro_step in 0..n {
            engine.forward_backward(&batch, micro_step).unwrap().read().unwrap();
            engine.optimizer_step(1e-3, 1.0).unwrap().read().unwrap();
        }
        resident_mib()
    };
    let settled = update(10);
    let later = update(30);
    assert!(later - settled < 60.0, "{settled:.0} MiB after 10 updates, {later:.0} MiB after 40");
}
