//! The numbers that `sample` draws from.

use std::io::{Read, stdin};

use anyhow::{Context, anyhow, bail};
use candle_core::{DType, Device, safetensors::BufferedSafetensors};
use serde_json::Value;
use tinygpt_sampler::MultinomialError;

use crate::{
    args::{InputKind, SampleArgs},
    output::Usage,
};

/// One row of numbers, or why it is none.
pub type InputRow = Result<Vec<f64>, String>;

/// Reads the rows of `--input`.
pub fn read(args: &SampleArgs) -> anyhow::Result<Vec<InputRow>> {
    let path = &args.input;
    let (name, bytes) = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        ("standard input".to_owned(), bytes)
    } else {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {name}"))?;
        (name, bytes)
    };
    if args.tensor.is_some() || path.extension().is_some_and(|e| e == "safetensors") {
        return tensor_rows(bytes, args).context(name);
    }
    json_rows(&bytes).context(name)
}

fn json_rows(bytes: &[u8]) -> anyhow::Result<Vec<InputRow>> {
    let value: Value = serde_json::from_slice(bytes).context("not JSON")?;
    let rows = value.get("rows").and_then(Value::as_array);
    let rows = rows.ok_or_else(|| anyhow!("must be an object {{\"rows\": [[...], ...]}}"))?;
    Ok(rows.iter().enumerate().map(|(row, value)| json_row(row, value)).collect())
}

fn json_row(row: usize, value: &Value) -> InputRow {
    let numbers = value.as_array().ok_or_else(|| format!("row {row}: must be an array of numbers"))?;
    let number = |(index, value): (usize, &Value)| {
        let number = match value {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => match text.as_str() {
                "inf" => Some(f64::INFINITY),
                "-inf" => Some(f64::NEG_INFINITY),
                "nan" => Some(f64::NAN),
                _ => None,
            },
            _ => None,
        };
        number.ok_or_else(|| format!("row {row}: entry {index} must be a number, \"inf\", \"-inf\" or \"nan\""))
    };
    numbers.iter().enumerate().map(number).collect()
}

fn tensor_rows(bytes: Vec<u8>, args: &SampleArgs) -> anyhow::Result<Vec<InputRow>> {
    let file = BufferedSafetensors::new(bytes).context("not a safetensors file")?;
    let mut names: Vec<String> = file.tensors().into_iter().map(|(name, _)| name).collect();
    names.sort();
    let name = match (&args.tensor, names.as_slice()) {
        (Some(name), _) if names.contains(name) => name,
        (Some(name), _) => {
            bail!(Usage(format!("--tensor {name}: the file has no such tensor; it has {}", names.join(", "))))
        }
        (None, [only]) => only,
        (None, _) => bail!(Usage(format!("--tensor NAME is needed: the file has {}", names.join(", ")))),
    };
    let tensor = file.load(name, &Device::Cpu).with_context(|| format!("tensor {name}"))?;
    let (rank, dtype) = (tensor.rank(), tensor.dtype());
    let float = matches!(dtype, DType::F16 | DType::BF16 | DType::F32 | DType::F64);
    match args.kind {
        // A tensor has a type, so the contract of `multinomial` on types holds.
        InputKind::Weights if !float => bail!(MultinomialError::Dtype { dtype }),
        InputKind::Weights if rank != 1 && rank != 2 => bail!(MultinomialError::Rank { rank }),
        InputKind::Logits if !float => bail!("logits must be floats, but tensor {name} is {dtype:?}"),
        InputKind::Logits if rank != 1 && rank != 2 => {
            bail!("logits must have rank 1 or 2, but tensor {name} has {rank}")
        }
        _ => {}
    }
    let rows = if rank == 1 { tensor.unsqueeze(0)? } else { tensor };
    let (count, vocab) = rows.dims2()?;
    if vocab == 0 {
        return Ok(vec![Ok(Vec::new()); count]);
    }
    Ok(rows.to_dtype(DType::F64)?.to_vec2()?.into_iter().map(Ok).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_is_none_does_not_spoil_the_others() {
        let rows = json_rows(br#"{"rows": [[1, "inf", -2.5e0], 7, [1, null], ["one"], [], [true]]}"#).unwrap();
        assert_eq!(rows[0], Ok(vec![1.0, f64::INFINITY, -2.5]));
        assert_eq!(rows[1], Err("row 1: must be an array of numbers".into()));
        for (row, entry) in [(2, 1), (3, 0), (5, 0)] {
            assert!(rows[row].as_ref().unwrap_err().starts_with(&format!("row {row}: entry {entry} must be")));
        }
        assert_eq!(rows[4], Ok(vec![]));
    }

    #[test]
    fn what_has_no_rows_is_refused() {
        for bad in [&b""[..], b"{", b"[]", b"{}", b"{\"rows\": 3}", b"null", b"\xff", &[b'['; 1000]] {
            assert!(json_rows(bad).is_err());
        }
    }
}
