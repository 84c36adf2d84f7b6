//! `tinygpt selftest`: whether a device computes what the CPU does.

mod check;
mod decoding;
mod gradients;
mod kernels;
mod model;
mod operations;
mod sampler;

use anyhow::bail;
use serde_json::json;

use crate::{
    args::SelftestArgs,
    device::{self, DeviceChoice},
    output::{Usage, print_json, print_stdout},
};
use check::Check;

pub fn run(args: &SelftestArgs) -> anyhow::Result<()> {
    let device = args.device.open()?;
    if cfg!(any(feature = "cuda", feature = "metal")) && args.device == DeviceChoice::Auto && device.is_cpu() {
        return Err(Usage("no GPU was found to check; --device cpu checks tensor operations on the CPU".into()).into());
    }
    let name = device::name(&device);
    let checks = [kernels::checks, decoding::checks, model::checks, operations::checks, sampler::checks]
        .map(|checks| checks(&device));
    let checks = checks.into_iter().collect::<anyhow::Result<Vec<_>>>()?.concat();
    let failed = checks.iter().filter(|check| !check.passed).count();
    if args.json {
        print_json(&json!({ "work": "selftest", "device": name, "passed": failed == 0, "checks": checks }))?;
    } else {
        print_stdout(&table(&name, &checks))?;
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed on {name}", checks.len());
    }
    Ok(())
}

fn table(device: &str, checks: &[Check]) -> String {
    let mut text =
        format!("{device} against the CPU\n{:<22}  {:<17}  {:>9}  {:>9}\n", "check", "of", "worst", "tolerance");
    for Check { check, of, worst, at, tolerance, passed } in checks {
        let verdict = if *passed { "ok" } else { "FAILED" };
        let place = at.as_ref().map_or(String::new(), |at| format!("  at {at}"));
        text += &format!("{check:<22}  {of:<17}  {worst:>9.1e}  {tolerance:>9.0e}  {verdict}{place}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_failed_and_where() {
        let checks = [
            Check::new("losses", "a shape", 1e-4, [("batch 0".to_owned(), 2.5e-6)]),
            Check::new("gradients", "a shape", 1e-4, [("wte".to_owned(), 0.5), ("wpe".to_owned(), 0.0)]),
            Check::new("sampled text", "a shape", 0.0, [("text 0".to_owned(), 0.0)]),
        ];
        insta::assert_snapshot!(table("cuda:0", &checks), @r"
        cuda:0 against the CPU
        check                   of                     worst  tolerance
        losses                  a shape               2.5e-6       1e-4  ok  at batch 0
        gradients               a shape               5.0e-1       1e-4  FAILED  at wte
        sampled text            a shape                0.0e0        0e0  ok
        ");
    }
}
