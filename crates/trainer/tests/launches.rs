//! The launches of a whole update on a device, as docs/gpu.md has them; and that loss and norm stay on the device.

use std::sync::Arc;

use candle_core::Device;
use tinygpt_model::{GptConfig, Mlp, Precision, init_params, ops::take_launches};
use tinygpt_trainer::engine::{
    AdamW, Batch, DeferredScalar, Engine, EngineState, Muon, Optimizer, RateFactors, TensorEngine,
};

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, rates: RateFactors::EQUAL };

/// Of a batch, and of an update with clipping.
fn launches(n_layer: usize, precision: Precision, optimizer: impl Into<Arc<dyn Optimizer>> + Send) -> (usize, usize) {
    let config = GptConfig {
        vocab_size: 65,
        block_size: 8,
        n_layer,
        n_head: 2,
        n_embd: 8,
        dropout: 0.0,
        bias: false,
        mlp: Mlp::Gelu,
        ..GptConfig::default()
    };
    let state = EngineState::fresh(init_params(&config, 1));
    let ids: Vec<u32> = (0..8).collect();
    // One row is one shard, as all of a batch is on a GPU.
    let batch = Batch { targets: ids.clone(), ids, rows: 1, cols: 8 };
    // Launches are counted by thread.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        let mut engine = TensorEngine::new(&config, precision, optimizer, 5, &state, &Device::Cpu).unwrap();
        take_launches();
        let loss = engine.forward_backward(&batch, 0).unwrap();
        let of_batch = take_launches();
        let norm = engine.optimizer_step(1e-3, 1.0).unwrap();
        assert!(matches!((loss, norm), (DeferredScalar::OnDevice(_), DeferredScalar::OnDevice(_))));
        (of_batch, take_launches())
    })
}

#[test]
fn launches_of_an_update() {
    for (precision, base, layer, optimizer) in
        [(Precision::F32, 77, 133, 23), (Precision::Bf16, 86, 176, 23), (Precision::F16, 87, 176, 59)]
    {
        let [one, two, six] = [1, 2, 6].map(|n_layer| launches(n_layer, precision, ADAMW));
        let a_layer = two.0 - one.0;
        assert_eq!(six.0, one.0 + 5 * a_layer);
        assert_eq!((one.0 - a_layer, a_layer), (base, layer), "{precision:?}");
        // A gradient is copied to the flat ones; a parameter is decayed (matrices are), subtracted from and copied.
        let of_parameters = |n_layer: usize| 3 * (3 + 6 * n_layer) + 2 + 4 * n_layer;
        for (n_layer, (_, update)) in [(1, one), (2, two), (6, six)] {
            assert_eq!(update - of_parameters(n_layer), optimizer, "{precision:?}, AdamW");
        }
    }
}

#[test]
fn launches_of_muon() {
    for (precision, base, layer) in [(Precision::F32, 126, 25), (Precision::F16, 162, 25)] {
        // Of one layer, two shapes are stacks of a single matrix, which is not copied.
        let [two, three, six] = [2, 3, 6].map(|n_layer| {
            // What an update with AdamW does for each parameter, Muon's does too.
            launches(n_layer, precision, Muon::new(ADAMW, 0.9, 3)).1 - (3 * (3 + 6 * n_layer) + 2 + 4 * n_layer)
        });
        assert_eq!(six - three, 3 * (three - two));
        assert_eq!((two - 2 * (three - two), three - two), (base, layer), "{precision:?}");
    }
}

#[test]
fn another_rate_is_another_launch_for_each_of_its_parameters() {
    let rated = |matrices, embeddings| AdamW { rates: RateFactors { matrices, embeddings }, ..ADAMW };
    for (precision, decay) in [(Precision::F32, 0), (Precision::F16, 1)] {
        let of = |adamw| launches(2, precision, adamw).1;
        let equal = of(ADAMW);
        assert_eq!(of(rated(2.0, 1.0)), equal + 8 + decay);
        assert_eq!(of(rated(1.0, 2.0)), equal + 2 + decay);
        assert_eq!(of(rated(2.0, 2.0)), equal + 10);
    }
}
