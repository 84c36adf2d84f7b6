//! Golden files: hashes of results that an earlier version computed, which the present one must reproduce.
//!
//! The format is `{"platform": {...}, "cases": {case: {result: hash}}}`. With `TINYGPT_RECORD_GOLDEN=1` in the
//! environment, [`check`] writes a case to the file instead of comparing it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::Write as _,
    process::Command,
    sync::Mutex,
};

use serde_json::{Value, json};
use tinygpt_trainer::digest::Digest;

/// The results of a case by name: hashes, or short values as they are.
pub(crate) type Found = BTreeMap<String, String>;

/// The SHA-256 of some bytes, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

/// What results may depend on beside the program. Detected here and not asked of the program, so that a mistake in its
/// detection shows.
pub(crate) fn platform() -> Value {
    let libc = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let libc = libc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let libc = if libc.is_empty() { "unknown" } else { &libc };
    json!({ "arch": env::consts::ARCH, "os": env::consts::OS, "libc": libc, "simd": simd() })
}

#[cfg(target_arch = "x86_64")]
fn simd() -> &'static str {
    match (is_x86_feature_detected!("avx512f"), is_x86_feature_detected!("avx2"), has_bf16()) {
        (true, _, true) => "avx512 with bf16",
        (true, _, false) => "avx512",
        (false, true, _) => "avx2",
        (false, false, _) => "none",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> &'static str {
    "of the architecture"
}

/// Whether the processor has the instructions that training in bf16 on the CPU needs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_bf16() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_bf16() -> bool {
    false
}

/// Reports a skipped case. Writes to standard error directly, since the test harness hides what a passing test prints.
pub(crate) fn not_run(case: &str, reason: &str) {
    assert!(!recording(), "`{case}` cannot be recorded here: {reason}");
    std::io::stderr().write_all(format!("NOT RUN: golden case `{case}`: {reason}\n").as_bytes()).unwrap();
}

fn recording() -> bool {
    env::var_os("TINYGPT_RECORD_GOLDEN").is_some_and(|value| value == "1")
}

/// Panics with the differences unless the golden file has these results for the case; or records them.
pub(crate) fn check(file: &str, case: &str, found: &Found) {
    // The tests of a process run in parallel and share the file.
    static RECORDING: Mutex<()> = Mutex::new(());
    if recording() {
        let _alone = RECORDING.lock().unwrap();
        return record(file, case, found);
    }
    let golden: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let expected: Found = serde_json::from_value(golden["cases"][case].clone())
        .unwrap_or_else(|_| panic!("{file} has no case `{case}`: record it with TINYGPT_RECORD_GOLDEN=1"));
    let differences = differences(&expected, found);
    let (recorded, here) = (&golden["platform"], platform());
    if !differences.is_empty() && *recorded != here {
        // Logarithms, exponentials and sines are the system's, and candle's products those of the processor.
        return not_run(case, &format!("it was recorded on {recorded}, and this is {here}, where results differ"));
    }
    assert!(differences.is_empty(), "`{case}` is not as recorded on this platform, {here}:\n{differences}");
}

/// One line for each result that differs or is missing on one side; empty where all agree.
pub(crate) fn differences(expected: &Found, found: &Found) -> String {
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let value = |one: &Found, name: &String| one.get(name).map_or("nothing", String::as_str).to_owned();
    let differing = names.into_iter().filter(|name| expected.get(*name) != found.get(*name));
    let line = |name: &String| format!("  {name}: expected {}, found {}\n", value(expected, name), value(found, name));
    differing.map(line).collect()
}

fn record(file: &str, case: &str, found: &Found) {
    let platform = platform();
    let old = fs::read(file).ok().map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
    // A file holds the results of one platform: those of another are dropped.
    let old = old.filter(|golden| golden["platform"] == platform);
    let mut cases: BTreeMap<String, Value> =
        old.map(|golden| serde_json::from_value(golden["cases"].clone()).unwrap()).unwrap_or_default();
    cases.insert(case.to_owned(), json!(found));
    let golden = json!({ "platform": platform, "cases": cases });
    fs::write(file, serde_json::to_string_pretty(&golden).unwrap() + "\n").unwrap();
}
