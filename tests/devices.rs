//! `tinygpt devices` and `tinygpt selftest`, as a user sees them.

use crate::common::{Place, failure, json, stdout};
use serde_json::Value;

#[test]
fn every_backend_is_listed_and_the_cpu_is_always_there() {
    let value = json(Place::new().tinygpt().args(["devices", "--json"]));
    let backends = value["backends"].as_array().unwrap();
    let names: Vec<&str> = backends.iter().map(|backend| backend["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cpu", "cuda", "metal"]);
    for backend in backends {
        let devices = backend["devices"].as_array().unwrap();
        assert_eq!(backend["present"], Value::from(!devices.is_empty()), "{backend}");
        // Whoever lacks a device is told why, and what it takes.
        if devices.is_empty() {
            assert!(backend["problem"].is_string() && backend["needs"].is_string(), "{backend}");
        }
    }
    let cpu = &backends[0]["devices"][0];
    assert_eq!((&cpu["device"], &backends[0]["compiled"]), (&Value::from("cpu"), &Value::from(true)));
    assert!(cpu["cores"].as_u64().unwrap() > 0 && cpu["bf16"].is_boolean(), "{cpu}");
    assert!(["avx512", "avx2", "neon", "scalar"].contains(&cpu["simd"].as_str().unwrap()), "{cpu}");
    if cfg!(target_os = "linux") {
        assert!(cpu["memory_bytes"].as_u64().unwrap() > 1 << 27, "{cpu}");
    }
    let all: Vec<&Value> = backends.iter().flat_map(|b| b["devices"].as_array().unwrap()).collect();
    assert!(all.iter().any(|device| device["device"] == value["auto"]), "{value}");
}

#[test]
fn people_get_a_table() {
    let text = stdout(Place::new().tinygpt().arg("devices"));
    let mut lines: Vec<&str> = text.lines().collect();
    // The second line is this machine's.
    let cpu = lines.remove(1);
    assert!(cpu.starts_with("cpu       yes       yes  ") && cpu.contains(" cores, "), "{text}");
    if !cfg!(any(feature = "cuda", feature = "metal")) {
        insta::assert_snapshot!(lines.join("\n"), @r"
        device    compiled  present       memory  name
        cuda      no        no
                  this program was built without CUDA; build it with `cargo build --release --features cuda`
                  needs an NVIDIA driver of series 580 or newer, and libcublas.so.13 and libcurand.so.10 on LD_LIBRARY_PATH; see docs/gpu.md
        metal     no        no
                  this program was built without Metal; build it with `cargo build --release --features metal`
                  needs macOS on Apple silicon
        --device auto takes cpu
        ");
    }
}

#[test]
fn the_tensor_operations_on_the_cpu_compute_what_its_own_code_does() {
    let place = Place::new();
    let value = json(place.tinygpt().args(["selftest", "--device", "cpu", "--json"]));
    assert_eq!((&value["device"], &value["passed"]), (&Value::from("cpu"), &Value::from(true)));
    let checks = value["checks"].as_array().unwrap();
    for name in [
        "logits",
        "sampled text",
        "losses",
        "gradients",
        "parameters updated",
        "losses in bf16",
        "losses in f16",
        "resumed, one update",
        "dropout masks",
        "attention",
        "head with its loss",
        "draws on the device",
    ] {
        assert!(checks.iter().any(|check| check["check"] == name), "{name}");
    }
    for check in checks {
        let [worst, tolerance] = ["worst", "tolerance"].map(|key| check[key].as_f64().unwrap());
        assert!(check["passed"] == true && worst <= tolerance, "{check}");
    }
    if !cfg!(feature = "cuda") {
        let message = failure(place.tinygpt().args(["selftest", "--device", "cuda"]), 2);
        assert!(message.contains("built without CUDA"), "{message}");
    }
}
