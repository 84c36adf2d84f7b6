//! After its first updates the CPU engine takes no new memory from the system, in either precision.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "test code")]

use tinygpt_model::{GptConfig, Mlp, cpu::CpuPrecision, init_params};
use tinygpt_trainer::engine::{AdamW, Batch, CpuEngine, Engine, EngineState, RateFactors};

/// The minor page faults of this process so far, as `getrusage` counts them.
fn page_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // The name, second and in brackets, may hold spaces.
    let behind_name = stat.rsplit_once(')').unwrap().1;
    behind_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

#[test]
fn the_steady_state_has_no_page_faults() {
    let config = GptConfig {
        vocab_size: 65,
        block_size: 64,
        n_layer: 4,
        n_head: 4,
        n_embd: 128,
        dropout: 0.1,
        bias: true,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    };
    let adamw = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };
    let state = EngineState::fresh(init_params(&config, 1));
    let ids: Vec<u32> = (0..12 * 64).map(|i| i * 7 % 65).collect();
    let batch = Batch { targets: ids.clone(), ids, rows: 12, cols: 64 };
    for precision in [CpuPrecision::F32, CpuPrecision::Bf16] {
        let mut engine = CpuEngine::new(&config, precision, adamw, 1, &state).unwrap();
        let mut update = |n: u64| {
            for micro_step in 0..n {
                engine.forward_backward(&batch, micro_step).unwrap().read().unwrap();
                engine.optimizer_step(1e-3, 1.0).unwrap().read().unwrap();
            }
            page_faults()
        };
        let settled = update(10);
        let later = update(10);
        // One activation buffer of one sequence has 8 pages, and those of an update have thousands. A thread that is
        // scheduled for the first time may touch a page of its stack.
        assert!(later - settled < 8, "{precision:?}: {} page faults in ten updates", later - settled);
    }
}
