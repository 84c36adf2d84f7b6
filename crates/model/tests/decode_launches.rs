//! How many kernels a decoded token launches, counted where candle cannot hide one: every operation puts its result into a
//! storage of its own. With a prime number of rows, all storages are multiples of it, and nothing else that is allocated is.
//! This is a program of its own, since the allocator is global.
#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use candle_core::{DType, Device};
use common::{lively_params, shape};
use tinygpt_model::{ContextPolicy, Decoder, GptConfig, Logits, TensorDecoder};

const ROWS: usize = 1009;

struct Counting;

static STORAGES: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)]
// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > 0 && layout.size().is_multiple_of(ROWS * size_of::<f32>()) {
            STORAGES.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Storages that a step of all rows makes.
fn storages(config: &GptConfig) -> usize {
    let params = lively_params(config, 1);
    let mut decoder = TensorDecoder::new(config, &params, ContextPolicy::Slide, DType::F32, &Device::Cpu).unwrap();
    decoder.start(&[1, 2, 3], ROWS).unwrap();
    let tokens = vec![4; ROWS];
    let before = STORAGES.load(Ordering::Relaxed);
    let logits = decoder.step(&tokens).unwrap();
    assert!(matches!(logits, Logits::Device(_)));
    STORAGES.load(Ordering::Relaxed) - before
}

#[test]
fn a_step_launches_as_many_kernels_as_the_documentation_says() {
    let of = |n_layer| storages(&shape(20, 8, n_layer, 2, 4));
    let (one, two) = (of(1), of(2));
    // Keys and values are written into the cache, which makes no storage.
    let (layer, rest) = (two - one + 2, 2 * one - two);
    assert_eq!((layer, rest), (43, 15), "of each block, and of embedding, norm and head with the upload of the tokens");
}
